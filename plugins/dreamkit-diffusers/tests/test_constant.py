"""What depends on the condition alone is computed once a drawing, and nothing is drawn otherwise to the bit."""

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
from small_drawings import STEPS, check_drawing, condition, counting, drawn, keeping_nothing, make, steps_of

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DECODERS = [StableDiffusion, SDXL, SD3, Sana]
ONCE = {
    StableDiffusion: ("attn2.to_k", "attn2.to_v"),
    SDXL: ("attn2.to_k", "attn2.to_v"),
    SD3: ("context_embedder", "time_text_embed.text_embedder"),
    Sana: ("attn2.to_k", "attn2.to_v", "caption_projection", "caption_norm"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("cls", DECODERS)
def test_pictures_are_the_same_to_the_bit(cls: Any, guidance: float, dtype: torch.dtype) -> None:
    decoder = make(cls).to(dtype)
    for scheduler in (None, *decoder.spec.schedulers):
        check_drawing(decoder, guidance=guidance, scheduler=scheduler)
    plain = decoder.draw(condition(decoder), guidance=1.0, steps=2, generators=torch.Generator())
    with keeping_nothing(decoder):
        wanted = decoder.draw(condition(decoder), guidance=1.0, steps=2, generators=torch.Generator())
    assert torch.equal(plain, wanted)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("cls", DECODERS)
def test_layers_of_the_condition_are_called_once_a_drawing(cls: Any, guidance: float) -> None:
    decoder = make(cls)
    names = {name for name, _ in decoder.network.named_modules() if name.endswith(ONCE[cls])}
    assert names
    counts = counting(decoder)
    for drawings in (1, 2):
        drawn(decoder, guidance=guidance)
        assert {counts[name] for name in names} == {drawings}
        others = {name: count for name, count in counts.items() if not name.startswith(tuple(names))}
        assert not {name: count for name, count in others.items() if count % (STEPS * drawings)}
    if cls is not SD3:
        selves = {count for name, count in counts.items() if name.endswith("attn1.to_k")}
        assert selves == {2 * STEPS}


def test_the_condition_is_brought_to_half_precision_once() -> None:
    decoder = make(SDXL).bfloat16()
    seen: list[Condition] = []
    predict = decoder.predict

    def listen(noisy: Tensor, timesteps: Tensor, condition: Condition, extras: Any) -> Tensor:
        seen.append(condition)
        return predict(noisy, timesteps, condition, extras)

    decoder.predict = listen
    drawn(decoder)
    assert len(seen) == STEPS and all(one is seen[0] for one in seen)
    assert seen[0].context.dtype == seen[0].pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("cls", DECODERS)
def test_drawings_may_be_interleaved(cls: Any, guidance: float) -> None:
    """Also two of one condition, and one with the other's condition asked for in between."""
    decoder = make(cls)
    seeds = (1, 2, 1)
    wanted = [drawn(decoder, seed, guidance=guidance) for seed in seeds]
    noisy, timesteps, extras = wanted[0][0], torch.tensor([400, 400]), decoder.default_extras(2, (16, 16))
    other = condition(decoder, 9)
    with torch.no_grad():
        expected = decoder.denoise(noisy, timesteps, other, extras)
    found: list[list[Tensor]] = [[], [], []]
    for latents in zip(*(steps_of(decoder, seed, guidance=guidance) for seed in seeds), strict=True):
        for steps, one in zip(found, latents, strict=True):
            steps.append(one)
        with torch.no_grad():
            assert torch.equal(decoder.denoise(noisy, timesteps, other, extras), expected)
    assert all(torch.equal(torch.stack(a), b) for a, b in zip(found, wanted, strict=True))


def test_one_condition_may_be_drawn_from_twice_at_a_time() -> None:
    decoder, given = make(StableDiffusion), condition(make(StableDiffusion))
    counts = counting(decoder)
    options: dict[str, Any] = {"guidance": 1.0, "steps": STEPS}
    runs = [decoder.draw_steps(given, generators=torch.Generator().manual_seed(1), **options) for _ in "ab"]
    next(runs[0])
    next(runs[1])
    runs[0].close()
    rest = [done.latents for done in runs[1]]
    assert counts["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] == 2
    assert torch.equal(torch.stack(rest), drawn(decoder, guidance=1.0)[1:])


@pytest.mark.parametrize("cls", DECODERS)
def test_contexts_nest_and_overlap(cls: Any) -> None:
    decoder = make(cls)
    first, second = condition(decoder, 1), condition(decoder, 2)
    latents, extras = torch.randn(3, 2, 4, 8, 8), decoder.default_extras(2, (16, 16))

    def said(given: Condition) -> Tensor:
        times = (900.0, 500.0, 100.0)
        return torch.stack(
            [
                decoder.denoise(x, torch.full((2,), t), given, extras)
                for x, t in zip(latents, times, strict=True)
            ]
        )

    with torch.no_grad():
        wanted = said(first), said(second)
        a, b = decoder.cache_condition(first), decoder.cache_condition(second)
        for step in (a.__enter__, b.__enter__, lambda: a.__exit__(None, None, None)):
            step()
            assert torch.equal(said(first), wanted[0]) and torch.equal(said(second), wanted[1])
        with decoder.cache_condition(second), decoder.cache_condition(first), decoder.cache_condition(first):
            assert torch.equal(said(first), wanted[0]) and torch.equal(said(second), wanted[1])
            equal = replace(first, context=first.context + 0)
            assert torch.equal(said(equal), wanted[0])
            assert torch.equal(
                said(replace(first, context=second.context)), said(replace(first, context=second.context + 0))
            )
        b.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["abandoned", "exception", "finished"])
def test_nothing_is_left_behind(how: str) -> None:
    decoder = make(StableDiffusion)
    wanted, before = drawn(decoder), {name: set(vars(module)) for name, module in decoder.named_modules()}
    kept: list[weakref.ref[Tensor]] = []
    attention = decoder.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    handle = attention.to_k.register_forward_hook(lambda *called: kept.append(weakref.ref(called[-1])))
    steps = steps_of(decoder)
    next(steps)
    assert kept[0]() is not None
    assert {name: set(vars(module)) for name, module in decoder.named_modules()} == before
    if how == "finished":
        assert torch.equal(torch.stack(list(steps)), wanted[1:])
    elif how == "exception":

        def breaks(*_: Any) -> None:
            raise RuntimeError("a broken cable")

        broken = attention.to_q.register_forward_hook(breaks)
        with pytest.raises(RuntimeError, match="a broken cable"):
            next(steps)
        broken.remove()
    del steps
    handle.remove()
    assert len(kept) == 1 and kept[0]() is None
    assert {name: set(vars(module)) for name, module in decoder.named_modules()} == before
    assert torch.equal(drawn(decoder), wanted)


@pytest.mark.parametrize("cls", DECODERS)
def test_copies_and_what_is_saved_know_nothing_of_it(cls: Any) -> None:
    decoder = make(cls)
    wanted, keys, size = drawn(decoder), list(decoder.state_dict()), len(pickle.dumps(decoder))
    steps = steps_of(decoder)
    first = next(steps)
    pickled = pickle.dumps(decoder)
    assert len(pickled) == size and list(decoder.state_dict()) == keys
    copies = [copy.deepcopy(decoder), pickle.loads(pickled)]
    with torch.no_grad():
        for parameter in copies[0].parameters():
            parameter.zero_()
    assert torch.equal(torch.stack([first, *steps]), wanted)
    assert torch.equal(drawn(copies[1]), wanted) and not torch.equal(drawn(copies[0]), wanted)


def test_a_copy_made_while_the_network_predicts_is_a_decoder() -> None:
    decoder, copies = make(StableDiffusion), []
    wanted = drawn(decoder)
    handle = decoder.unet.mid_block.register_forward_hook(
        lambda *_: copies.append(copy.deepcopy(decoder.unet))
    )
    drawn(decoder, steps=1)
    handle.remove()
    decoder.unet = copies[0]
    assert torch.equal(drawn(decoder), wanted)
    assert not any("to_k" in vars(module) for module in decoder.modules())


def test_threads_draw_on_one_decoder() -> None:
    decoder, both = make(SDXL), Barrier(2, timeout=30)
    wanted = [drawn(decoder, seed) for seed in (1, 2)]
    found: dict[int, Tensor] = {}

    def meet(*_: Any) -> None:
        """Each waits for the other in the middle of a prediction."""
        both.wait()

    decoder.unet.mid_block.register_forward_pre_hook(meet)

    def draw(seed: int) -> None:
        found[seed] = drawn(decoder, seed)

    threads = [Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[1], wanted[0]) and torch.equal(found[2], wanted[1])
    assert not any("to_k" in vars(module) for module in decoder.modules())


@pytest.mark.parametrize("cls", DECODERS)
def test_gradients_reach_a_constant_condition(cls: Any) -> None:
    decoder = make(cls)
    latents, extras = torch.randn(2, 4, 8, 8), decoder.default_extras(2, (16, 16))

    def gradient(given: Condition) -> Tensor:
        given.context.grad = None
        decoder.denoise(latents, torch.tensor([300, 600]), given, extras).square().sum().backward()
        assert given.context.grad is not None
        return given.context.grad

    given = condition(decoder)
    given.context.requires_grad_(True)
    wanted = gradient(given)
    with decoder.cache_condition(given):
        with torch.no_grad():
            decoder.denoise(latents, torch.tensor([300, 600]), given, extras)
        for _ in range(2):
            assert torch.equal(gradient(given), wanted)


def test_autocast_may_be_on_in_some_steps() -> None:
    decoder = make(StableDiffusion)

    def draw() -> Tensor:
        steps, found = steps_of(decoder), []
        for step in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 1):
                found.append(next(steps))
        return torch.stack(found)

    with keeping_nothing(decoder):
        wanted = draw()
    assert torch.equal(draw(), wanted) and not torch.equal(wanted, drawn(decoder))


@pytest.mark.parametrize("cls", [StableDiffusion, SD3])
def test_schedulers_copy_nothing_from_where_the_latents_are(cls: Any) -> None:
    """A value of a meta tensor cannot be read, as one on a GPU cannot without waiting for it."""
    decoder = make(cls)
    given = Condition(torch.empty(2, 5, 12, device="meta"))
    decoder.denoise = lambda noisy, timesteps, *rest: noisy / 2 + timesteps[0]
    for scheduler in (None, *decoder.spec.schedulers):
        *_, last = decoder.draw_steps(given, guidance=1.0, steps=4, scheduler=scheduler)
        assert last.latents.is_meta


def test_a_graph_reads_nothing_that_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be replayed when that is gone; and what is computed while it is captured has no values to keep."""
    decoder = make(StableDiffusion)
    given, latents, times = condition(decoder), torch.randn(2, 4, 8, 8), torch.tensor([900, 400])
    counts, layer = counting(decoder), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    with decoder.cache_condition(given), torch.no_grad():
        for capturing, calls in ((False, 1), (True, 2), (True, 3), (False, 3)):
            monkeypatch.setattr("dreamkit_diffusers.constant._is_capturing", lambda: capturing)  # noqa: B023
            decoder.denoise(latents, times, given, {})
            assert counts[layer] == calls
