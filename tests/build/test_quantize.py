"""`quantize` of a part: which layers it changes, what it needs, and how close a forward pass stays."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from adapted_models import REGISTRY, SMALL, build_model, fixed_batch, sources as sources
from dreamkit.build import build as building
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.build.quantize import quantize_part
from dreamkit.errors import DreamkitError, RecipeError
from dreamkit.parts.quantized import QuantizedLinear, quantized_layers
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.testing import contracts
from dreamkit.testing.part_subject import Case
from dreamkit.testing.subject_kinds import SUBJECTS

KINDS = ("nf4", "int8")
PARTS = [(kind, name) for kind in WITH_SOURCE for name in sorted(REGISTRY.components(kind))]
# Relative errors of an output. The kit's weights are larger than trained ones, and so is their error.
MOST_ERROR = {"nf4": 0.4, "int8": 0.03}
KEPT = ("lm_head", "time_embedding", "add_embedding", "time_text_embed", "time_embed", "vae", "lora_A")


def quantized(kind: str, parts: tuple[str, ...] = WITH_SOURCE) -> dict[str, str]:
    """Return the change of a recipe that quantizes parts."""
    return {f"model.{part}.quantize": kind for part in parts}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_computes_nearly_the_same_when_quantized(kind: str, name: str) -> None:
    subject = SUBJECTS[kind](contracts.tiny_part(REGISTRY.get(kind, name)))
    plain = subject.make().float()
    inputs = [subject.inputs(Case(2, 3, seed=seed)) for seed in range(3)]
    expected = [subject.call(plain, each) for each in inputs]
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    for each in KINDS:
        part = subject.make().float()
        part.load_state_dict(state)
        before = {name for name, layer in part.named_modules() if type(layer) is nn.Linear}
        quantize_part(part, each)
        after = {name for name, _ in quantized_layers(part)}
        assert before - after == {name for name in before if {*name.split(".")} & {*KEPT}}
        errors = [relative_error(subject.call(part, x), y) for x, y in zip(inputs, expected, strict=True)]
        assert min(errors) > 0 and max(errors) < MOST_ERROR[each], errors


@pytest.mark.parametrize("part", WITH_SOURCE)
def test_a_quantized_part_keeps_its_contract(part: str) -> None:
    cls = REGISTRY.get(part, {"language_model": "llama", "vision_encoder": "clip"}.get(part, "sdxl"))

    def build() -> Any:
        made = contracts.tiny_part(cls)()
        quantize_part(made, "nf4")
        return made

    checks = ["batch_invariance", "batch_of_one", "determinism", "dtype_kept", "spec_agrees"]
    checks += ["packing_invariance", "cached_decoding"] if part == "language_model" else []
    report = contracts.verify(part, build, only=checks, quick=True)
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_through_quantized_parts(kind: str) -> None:
    gradients = []
    for changes in ({}, quantized(kind)):
        model = build_model(tiny.recipe(**changes))
        model.set_trainable(SMALL)
        model.enable_gradient_checkpointing()
        model.train()(fixed_batch(model)).loss.backward()
        assert not any(parameter.grad is not None for parameter in model.image_decoder.parameters())
        gradients.append(
            {
                name: parameter.grad.flatten()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )
    plain, packed = gradients
    assert plain.keys() == packed.keys() and len(plain) >= len(SMALL)
    for name, gradient in plain.items():
        assert torch.cosine_similarity(packed[name], gradient, dim=0) > 0.95, name


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_weights_give_the_part_of_loaded_ones(kind: str, sources: Path) -> None:
    model = build_model(tiny.on_sources(sources))
    for part_name in WITH_SOURCE:
        quantize_part(model.parts()[part_name], kind)
    recipe = tiny.on_sources(sources)
    for part_name in WITH_SOURCE:
        recipe["model"][part_name]["quantize"] = kind
    mapped = build_model(recipe)
    state, expected = mapped.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    layers = dict(quantized_layers(model))
    assert layers.keys() == dict(quantized_layers(mapped)).keys()
    for name, layer in quantized_layers(mapped):
        assert torch.equal(layer.packed, layers[name].packed) and torch.equal(
            layer.scales, layers[name].scales
        )
    assert {p.dtype for p in mapped.parameters()} == {torch.float32}


def test_parts_are_mapped_and_not_loaded(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.on_sources(sources)
    recipe["model"]["language_model"]["quantize"] = "int8"
    loaded: list[str] = []
    load = building._part

    def record(cls: Any, *arguments: Any) -> Any:
        loaded.append(cls.__name__)
        return load(cls, *arguments)

    monkeypatch.setattr(building, "_part", record)
    build_model(recipe)
    assert loaded == [
        REGISTRY.get(*each).__name__
        for each in (("vision_encoder", "clip"), ("image_decoder", "stable-diffusion"))
    ]


def test_tied_heads_and_layers_of_other_classes_keep_their_weights() -> None:
    class Own(nn.Linear):
        pass

    part = contracts.tiny_part(REGISTRY.get("vision_encoder", "clip"))()
    part.shared, part.own = nn.Linear(4, 4), Own(4, 4)
    part.sharing = nn.Linear(4, 4)
    part.sharing.weight = part.shared.weight
    quantize_part(part, "int8")
    assert not any(isinstance(each, QuantizedLinear) for each in (part.shared, part.sharing, part.own))


def test_an_author_names_modules_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    part = contracts.tiny_part(REGISTRY.get("vision_encoder", "clip"))()
    monkeypatch.setattr(type(part), "unquantized", ("mlp",))
    quantize_part(part, "int8")
    names = {name.split(".")[-2] for name, _ in quantized_layers(part)}
    assert names == {"self_attn"}
    monkeypatch.setattr(type(part), "unquantized", ("encoder",))
    with pytest.raises(DreamkitError, match="expected linear layers to quantize, got none"):
        quantize_part(contracts.tiny_part(type(part))(), "int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.language_model.quantize": "nf5"},
            r"quantize: expected one of nf4, int8, got 'nf5' \(string\); did you mean 'nf4'",
        ),
        ({"model.visual_projector.quantize": "nf4"}, "unknown key 'quantize'"),
        (
            {**quantized("nf4"), "train": {"trainable": ["language_model"], "steps": 1, "global_batch": 1}},
            r"train\.trainable: 'language_model' has quantized weights \(.*\), which cannot be trained; remove it here",
        ),
    ],
)
def test_wrong_settings_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        fit(recipe_from_dict(tiny.recipe(**changes), REGISTRY, where="tiny"), REGISTRY).require_valid()


def test_a_quantized_part_of_a_model_cannot_be_made_trainable() -> None:
    model = build_model(tiny.recipe(**quantized("int8", ("vision_encoder",))))
    with pytest.raises(DreamkitError, match="cannot train 'vision_encoder', whose weights are quantized"):
        model.set_trainable(["vision_encoder"])
    model.set_trainable(["language_model"])


def test_a_missing_library_is_an_error_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "dreamkit.build.quantize.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    monkeypatch.setattr(building, "_part", lambda *_: pytest.fail("weights are read"))
    fitted = fit(recipe_from_dict(tiny.recipe(**quantized("nf4")), REGISTRY, where="tiny"), REGISTRY)
    with pytest.raises(
        RecipeError, match=r"run pip install 'dreamkit-core\[quantize\]', or set int8"
    ) as error:
        build(fitted)
    assert len(error.value.problems) == 3
    monkeypatch.undo()
    monkeypatch.setattr("dreamkit.build.quantize.find_spec", lambda name: None)
    build_model(tiny.recipe(**quantized("int8")))
