"""Models in bfloat16 against the same models in float32, for every first-party part, and the arguments of `place`."""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import zip_longest
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import dreamkit
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DreamkitError
from dreamkit.model.events import collect
from dreamkit.model.model import DreamModel
from dreamkit.model.placing import Placement, placement
from dreamkit.parts.quantized import quantized_layers
from dreamkit.parts.specs import Condition
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from product import trial
from product.parts import Combination, parts
from product.trial import recipe

REGISTRY = Registry.load()
PARTS = parts(REGISTRY)
# each part in one of them
FILLERS = ("clip", "llama", "linear", "stable-diffusion (epsilon)")
COMBINATIONS = [
    Combination(*(name or filler for name, filler in zip(names, FILLERS, strict=True)))
    for names in zip_longest(*PARTS.values())
]
PROMPT = Document((Text("a"), Image(tiny.picture(1)), Text("is")), name="prompt")
HALF = torch.bfloat16
ROUNDING = 2**-8  # of one number in bfloat16, relative


def build_model(combination: Combination, quantize: str | None = None) -> DreamModel:
    plain = deepcopy(recipe(combination, PARTS))
    if quantize is not None:
        plain["model"]["language_model"]["quantize"] = quantize
        plain["train"]["trainable"] = ["condition_projector"]
    return build(fit(recipe_from_dict(plain, REGISTRY, where=str(combination)), REGISTRY))


def drawn(model: DreamModel) -> Tensor:
    """Return the pixels (H, W, 3) that the model draws after the prompt, in [0, 255]."""
    assert model.recipe is not None
    (picture,) = model.draw([PROMPT], [3], model.recipe.generation)
    assert not isinstance(picture, DreamkitError), picture
    return torch.from_numpy(np.asarray(picture).astype("float32"))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def kept_in_float32(model: DreamModel) -> set[str]:
    """Return the names of the floating-point tensors that are not in bfloat16, all of them in float32."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    others = {name: each for name, each in tensors.items() if each.is_floating_point() and each.dtype != HALF}
    assert {each.dtype for each in others.values()} <= {torch.float32}
    return {*others}


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_every_part_computes_in_bfloat16_nearly_what_it_computes_in_float32(combination: Combination) -> None:
    model = build_model(combination)
    expected_states, expected_image = model.dream_states([PROMPT]), drawn(model)
    assert dreamkit.place(model, "cpu", "bfloat16") is model
    states, image = model.dream_states([PROMPT]), drawn(model)
    assert states.dtype == HALF
    error, levels = relative_error(states, expected_states), float((image - expected_image).abs().mean())
    print(f"{combination}: states {error:.4f}, image {levels:.2f} levels")
    assert 0 < error < 4 * ROUNDING and levels < 2
    vae = {name for name in kept_in_float32(model) if name.startswith("image_decoder.vae.")}
    assert bool(vae) == (combination.image_decoder == "sdxl")
    # only what is computed and not trained: the frequencies of positions, and factors
    trained = dict(model.named_parameters()).keys()
    assert not (kept_in_float32(model) - vae) & trained


@pytest.mark.parametrize("combination", COMBINATIONS[:2], ids=str)
def test_a_document_with_text_and_images_is_written_in_bfloat16(combination: Combination) -> None:
    model = dreamkit.place(build_model(combination), "cpu", "bfloat16")
    trial.draw(model)  # scripted text, an image, which is read back, and text
    prompts = [PROMPT, Document((*PROMPT, Image(tiny.picture(2), draw=True)), name="drawn")]
    texts = [document.text for document in collect(model.generate(prompts, max_tokens=4, max_images=0))]
    assert len(texts) == 2


def test_rotary_frequencies_and_other_computed_buffers_stay_in_float32() -> None:
    model = build_model(COMBINATIONS[0])
    (name,) = [name for name, _ in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    expected = model.get_buffer(name).clone()
    model.bfloat16()
    assert name in kept_in_float32(model) and torch.equal(model.get_buffer(name), expected)
    model.double()
    assert model.get_buffer(name).dtype == torch.float64


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_layers_keep_their_weights_to_the_bit(kind: str) -> None:
    model = build_model(COMBINATIONS[0], quantize=kind)
    layers = [layer for _, layer in quantized_layers(model)]
    before = [layer.restored(torch.float32) for layer in layers]
    dreamkit.place(model, "cpu", "bfloat16")
    assert layers and all(
        torch.equal(layer.restored(torch.float32), weights)
        for layer, weights in zip(layers, before, strict=True)
    )
    assert {layer.weight.dtype for layer in layers} == {HALF}  # as libraries look it up
    assert model.dream_states([PROMPT]).isfinite().all()


def test_the_same_seed_begins_with_the_same_noise_in_every_dtype() -> None:
    decoder = build_model(COMBINATIONS[0]).image_decoder

    def first_latents(dtype: torch.dtype) -> Tensor:
        """Return what the network gets in the first step."""
        seen: list[Tensor] = []
        decoder.to(dtype)
        with patch.object(
            decoder, "denoise", lambda noisy, *_: seen.append(noisy) or torch.zeros_like(noisy)
        ):
            context = torch.zeros(2, 4, decoder.spec.context_dim, dtype=dtype)
            seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
            steps = [*decoder.draw_steps(Condition(context), guidance=1, steps=2, generators=seeds)]
        assert {step.latents.dtype for step in steps} == {dtype}
        return seen[0]

    single = first_latents(torch.float32)
    assert torch.equal(first_latents(HALF), single.to(HALF))


def test_a_scheduler_computes_in_float32_for_a_network_in_bfloat16() -> None:
    decoder = build_model(COMBINATIONS[0]).image_decoder.bfloat16()
    scheduler, seen = decoder.scheduler(None), []
    real = scheduler.step

    def step(*tensors: Tensor, **options: Any) -> Any:
        seen.extend(each.dtype for each in tensors if each.dim() == 4)
        return real(*tensors, **options)

    scheduler.step = step
    with patch.object(decoder, "scheduler", lambda name: scheduler):
        condition = Condition(torch.zeros(1, 4, decoder.spec.context_dim, dtype=HALF))
        decoder.draw(condition, condition, steps=2, generators=torch.Generator())
    assert seen == [torch.float32] * 4


def test_auto_is_the_fastest_device_and_bfloat16_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(cuda: bool, mps: bool, has_bfloat16: bool = True) -> Placement:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: has_bfloat16)
        return placement()

    assert machine(cuda=False, mps=False) == Placement(torch.device("cpu"))  # the model's own dtype
    assert machine(cuda=False, mps=True) == Placement(torch.device("mps"), HALF)
    assert machine(cuda=False, mps=True, has_bfloat16=False) == Placement(torch.device("mps"), torch.float32)
    assert machine(cuda=True, mps=True) == Placement(torch.device("cuda"), HALF)
    assert machine(cuda=True, mps=False, has_bfloat16=False) == Placement(torch.device("cuda"))
    assert placement("cpu", "bfloat16") == Placement(torch.device("cpu"), HALF)
    assert placement("cuda", torch.float32, True) == Placement(torch.device("cuda"), torch.float32, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpu",), "device: expected one of auto, cuda, mps, cpu, got 'gpu' (string)"),
        (("cpux",), "did you mean 'cpu'?"),
        (("mps",), "device: expected one of this machine, cpu, got mps"),
        (("cpu", "float16"), "expected one of auto, float32, bfloat16, got 'float16' (string); did you mean"),
        (("auto", torch.int8), "dtype: expected one of auto, float32, bfloat16, got torch.int8"),
        (
            ("auto", "auto", True),
            "offload: expected a device beside the CPU to move parts to, got cpu; leave it out",
        ),
    ],
)
def test_a_placement_that_is_not_there_is_an_error(
    arguments: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DreamkitError, match=re.escape(message)):
        placement(*arguments)
