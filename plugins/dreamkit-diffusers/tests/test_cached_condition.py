"""The condition's cache calls its layers once in a drawing, and changes no bit of it."""

from __future__ import annotations

import copy
import pickle
import weakref
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamkit import Condition
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from tiny_decoders import (
    STEPS,
    assert_cache_changes_nothing,
    condition_of,
    count_calls,
    draw,
    draw_steps,
    latents_of,
    seeded,
    tiny_decoder,
    uncached,
)

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

every_decoder = pytest.mark.parametrize("cls", [StableDiffusion, SDXL, SD3, Sana])
CONDITION_LAYERS = {
    StableDiffusion: ("attn2.to_k", "attn2.to_v"),
    SDXL: ("attn2.to_k", "attn2.to_v"),
    SD3: ("context_embedder", "time_text_embed.text_embedder"),
    Sana: ("attn2.to_k", "attn2.to_v", "caption_projection", "caption_norm"),
}


def predict(decoder: Any, condition: Condition) -> Tensor:
    """Return predictions at three timesteps."""
    noisy, extras = latents_of(2), decoder.default_extras(2, (16, 16))
    timesteps = (torch.full((2,), timestep) for timestep in (900.0, 500.0, 100.0))
    return torch.stack([decoder.denoise(noisy, each, condition, extras) for each in timesteps])


def attributes(decoder: Any) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in decoder.named_modules()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@every_decoder
def test_images_are_bitwise_identical_without_the_cache(
    cls: Any, guidance: float, dtype: torch.dtype
) -> None:
    decoder = tiny_decoder(cls).to(dtype)
    for scheduler in (None, *decoder.spec.schedulers):
        assert_cache_changes_nothing(decoder, guidance=guidance, scheduler=scheduler)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@every_decoder
def test_condition_layers_are_called_once_in_a_drawing(cls: Any, guidance: float) -> None:
    decoder = tiny_decoder(cls)
    names = {name for name, _ in decoder.network.named_modules() if name.endswith(CONDITION_LAYERS[cls])}
    assert names
    counts = count_calls(decoder)
    for drawings in (1, 2):
        draw(decoder, guidance=guidance)
        assert {counts[name] for name in names} == {drawings}
        others = {name: count for name, count in counts.items() if not name.startswith(tuple(names))}
        assert not {name: count for name, count in others.items() if count % (STEPS * drawings)}


def test_the_condition_is_cast_to_half_precision_once() -> None:
    decoder = tiny_decoder(SDXL).bfloat16()
    conditions: list[Condition] = []
    original = decoder.predict

    def listen(noisy: Tensor, timesteps: Tensor, condition: Condition, extras: Any) -> Tensor:
        conditions.append(condition)
        return original(noisy, timesteps, condition, extras)

    decoder.predict = listen
    draw(decoder)
    assert len(conditions) == STEPS and all(each is conditions[0] for each in conditions)
    assert conditions[0].context.dtype == conditions[0].pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@every_decoder
def test_drawings_may_be_interleaved(cls: Any, guidance: float) -> None:
    """Two of them have one condition, and another condition is used between their steps."""
    decoder = tiny_decoder(cls)
    seeds = (1, 2, 1)
    expected = [draw(decoder, seed, guidance=guidance) for seed in seeds]
    other = condition_of(decoder, seed=9)
    with torch.no_grad():
        expected_other = predict(decoder, other)
    actual: list[list[Tensor]] = [[], [], []]
    for latents in zip(*(draw_steps(decoder, seed, guidance=guidance) for seed in seeds), strict=True):
        for steps, step in zip(actual, latents, strict=True):
            steps.append(step)
        with torch.no_grad():
            assert torch.equal(predict(decoder, other), expected_other)
    assert all(torch.equal(torch.stack(a), b) for a, b in zip(actual, expected, strict=True))


def test_two_drawings_of_one_condition_have_caches_of_their_own() -> None:
    decoder = tiny_decoder(StableDiffusion)
    condition, counts = condition_of(decoder), count_calls(decoder)
    options: dict[str, Any] = {"guidance": 1.0, "steps": STEPS}
    first, second = (decoder.draw_steps(condition, generators=seeded(1), **options) for _ in range(2))
    next(first)
    next(second)
    first.close()
    rest = [step.latents for step in second]
    assert counts["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] == 2
    assert torch.equal(torch.stack(rest), draw(decoder, guidance=1.0)[1:])


@every_decoder
def test_caches_nest_and_overlap(cls: Any) -> None:
    decoder = tiny_decoder(cls)
    first, second = condition_of(decoder, seed=1), condition_of(decoder, seed=2)
    with torch.no_grad():
        expected = predict(decoder, first), predict(decoder, second)
        a, b = decoder.cache_condition(first), decoder.cache_condition(second)
        for step in (a.__enter__, b.__enter__, lambda: a.__exit__(None, None, None)):
            step()
            assert torch.equal(predict(decoder, first), expected[0])
            assert torch.equal(predict(decoder, second), expected[1])
        with decoder.cache_condition(second), decoder.cache_condition(first), decoder.cache_condition(first):
            assert torch.equal(predict(decoder, first), expected[0])
            assert torch.equal(predict(decoder, second), expected[1])
            copied = replace(first, context=first.context + 0)
            assert torch.equal(predict(decoder, copied), expected[0])
            mixed = replace(first, context=second.context)
            mixed_copy = replace(first, context=second.context + 0)
            assert torch.equal(predict(decoder, mixed), predict(decoder, mixed_copy))
        b.__exit__(None, None, None)


@pytest.mark.parametrize("end", ["abandoned", "exception", "finished"])
def test_a_drawing_leaves_nothing_behind(end: str) -> None:
    decoder = tiny_decoder(StableDiffusion)
    expected, before = draw(decoder), attributes(decoder)
    outputs: list[weakref.ref[Tensor]] = []
    attention = decoder.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    hook = attention.to_k.register_forward_hook(lambda *call: outputs.append(weakref.ref(call[-1])))
    steps = draw_steps(decoder)
    next(steps)
    assert outputs[0]() is not None
    assert attributes(decoder) == before
    if end == "finished":
        assert torch.equal(torch.stack(list(steps)), expected[1:])
    elif end == "exception":

        def fail(*_: Any) -> None:
            raise RuntimeError("a broken cable")

        failure = attention.to_q.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="a broken cable"):
            next(steps)
        failure.remove()
    del steps
    hook.remove()
    assert len(outputs) == 1 and outputs[0]() is None
    assert attributes(decoder) == before
    assert torch.equal(draw(decoder), expected)


@every_decoder
def test_copies_and_pickles_are_without_the_cache(cls: Any) -> None:
    decoder = tiny_decoder(cls)
    expected, keys, size = draw(decoder), list(decoder.state_dict()), len(pickle.dumps(decoder))
    steps = draw_steps(decoder)
    first = next(steps)
    pickled = pickle.dumps(decoder)
    assert len(pickled) == size and list(decoder.state_dict()) == keys
    copied, unpickled = copy.deepcopy(decoder), pickle.loads(pickled)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(torch.stack([first, *steps]), expected)
    assert torch.equal(draw(unpickled), expected) and not torch.equal(draw(copied), expected)


def test_a_network_copied_while_it_predicts_draws() -> None:
    decoder, copies = tiny_decoder(StableDiffusion), []
    expected = draw(decoder)
    hook = decoder.unet.mid_block.register_forward_hook(lambda *_: copies.append(copy.deepcopy(decoder.unet)))
    draw(decoder, steps=1)
    hook.remove()
    decoder.unet = copies[0]
    assert torch.equal(draw(decoder), expected)
    assert not any("to_k" in names for names in attributes(decoder).values())


def test_threads_draw_with_one_decoder() -> None:
    decoder, barrier = tiny_decoder(SDXL), Barrier(2, timeout=30)
    expected = [draw(decoder, seed) for seed in (1, 2)]
    actual: dict[int, Tensor] = {}

    def wait(*_: Any) -> None:
        """Wait for the other thread in the middle of a prediction."""
        barrier.wait()

    decoder.unet.mid_block.register_forward_pre_hook(wait)

    def run(seed: int) -> None:
        actual[seed] = draw(decoder, seed)

    threads = [Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(actual[1], expected[0]) and torch.equal(actual[2], expected[1])
    assert not any("to_k" in names for names in attributes(decoder).values())


@every_decoder
def test_gradients_reach_a_cached_condition(cls: Any) -> None:
    decoder = tiny_decoder(cls)
    condition = condition_of(decoder)
    condition.context.requires_grad_(True)

    def gradient() -> Tensor:
        condition.context.grad = None
        predict(decoder, condition).square().sum().backward()
        assert condition.context.grad is not None
        return condition.context.grad

    expected = gradient()
    with decoder.cache_condition(condition):
        with torch.no_grad():
            predict(decoder, condition)
        for _ in range(2):
            assert torch.equal(gradient(), expected)


def test_autocast_may_change_between_steps() -> None:
    decoder = tiny_decoder(StableDiffusion)

    def draw_mixed() -> Tensor:
        steps, latents = draw_steps(decoder), []
        for step in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 1):
                latents.append(next(steps))
        return torch.stack(latents)

    with uncached(decoder):
        expected = draw_mixed()
    assert torch.equal(draw_mixed(), expected) and not torch.equal(expected, draw(decoder))


@pytest.mark.parametrize("cls", [StableDiffusion, SD3])
def test_schedulers_read_no_value_of_the_latents(cls: Any) -> None:
    """The values of a meta tensor cannot be read. On a GPU, reading one waits for the device."""
    decoder = tiny_decoder(cls)
    condition = Condition(torch.empty(2, 5, 12, device="meta"))
    decoder.denoise = lambda noisy, timesteps, *rest: noisy / 2 + timesteps[0]
    for scheduler in (None, *decoder.spec.schedulers):
        *_, last = decoder.draw_steps(condition, guidance=1.0, steps=4, scheduler=scheduler)
        assert last.latents.is_meta


def test_a_cuda_graph_reads_nothing_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be replayed after the cache is gone, and tensors have no values while it is captured."""
    decoder = tiny_decoder(StableDiffusion)
    condition, latents, timesteps = condition_of(decoder), latents_of(2), torch.tensor([900, 400])
    counts, layer = count_calls(decoder), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    with decoder.cache_condition(condition), torch.no_grad():
        for capturing, calls in ((False, 1), (True, 2), (True, 3), (False, 3)):
            monkeypatch.setattr("dreamkit_diffusers.cached_condition._is_capturing", lambda: capturing)  # noqa: B023
            decoder.denoise(latents, timesteps, condition, {})
            assert counts[layer] == calls
