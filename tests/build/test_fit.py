"""The check that parts fit each other, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from diffusers import ModelMixin
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

import odd_parts
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.errors import RecipeError
from dreamkit.recipe.loading import draft_recipe, load_recipe
from dreamkit.recipe.sections import plain
from dreamkit.registry.hookspecs import Component
from dreamkit.registry.kinds import KINDS, Registered
from dreamkit.registry.registry import Registry
from dreamkit_transformers.tokenizers import byte_tokenizer
from odd_parts import read, tiny_part
from tiny import recipe as tiny_recipe

TRAIN = {"trainable": ["dream_queries"], "steps": 1, "batch_size": 1}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return odd_parts.registry()


def test_the_tiny_recipe_fits(registry: Registry) -> None:
    result = fit(read(registry), registry)
    assert result.problems == []
    assert {part: shapes for part, _, shapes in result.summary()} == {
        "language_model": "256 x 32, vocabulary of 260",
        "vision_encoder": "16 px -> 4 x 16",
        "image_decoder": "any x 12 -> 16 px",
        "visual_projector": "4 x 16 -> 4 x 32",
        "condition_projector": "3 x 32 -> 3 x 12",
    }


@pytest.mark.parametrize(
    ("changes", "key", "fragments"),
    [
        (
            {"model__image_decoder": tiny_part("image_decoder", "fixedtokens")},
            "model.condition_projector",
            ("expected 4 tokens", "got 3 from 3 dream queries", "set model.dream_queries to 4"),
        ),
        (
            {"model__pooled_projector": {"name": "linear"}},
            "model.pooled_projector",
            ("unused 'linear'", "takes no pooled vector", "remove it"),
        ),
        (
            {"train": {**TRAIN, "trainable": ["pooled_projector"]}},
            "train.trainable",
            ("no 'pooled_projector' in this model", "remove it"),
        ),
        (
            {
                "model__image_decoder": tiny_part("image_decoder", "pooled"),
                "model__pooled_projector": {"name": "doubling"},
            },
            "model.pooled_projector",
            ("expected 1 token from 1, got 2",),
        ),
        (
            {"model__dream_queries": 300},
            "model.dream_queries",
            ("302 + 6 tokens", "a row has 256; lower model.dream_queries"),
        ),
        (
            {"train": {**TRAIN, "max_length": 12}},
            "train.max_length",
            ("5 + 6 tokens", "a row has 12; raise train.max_length"),
        ),
        (
            {"train": {**TRAIN, "trainable": ["condition_projector"]}, "loss": {"denoising": 0}},
            "train.trainable",
            ("only drawing trains condition_projector", "loss.denoising is 0"),
        ),
        (
            {"train": {**TRAIN, "max_length": 257}},
            "train.max_length",
            ("expected at most", "256 tokens", "got 257"),
        ),
        (
            {
                "model__language_model": tiny_part("language_model", "apart"),
                "train": {**TRAIN, "packing": True},
            },
            "train.packing",
            ("cannot separate documents", "set it to false or leave it out"),
        ),
        (
            {"model__condition_projector": {"name": "halving"}},
            "model.condition_projector",
            ("3 tokens go in", "pairs"),
        ),
        (
            {"model__visual_projector": {"name": "narrow"}},
            "model.visual_projector",
            ("expected out_dim 32", "got 5 from 'narrow'"),
        ),
        ({"model__visual_projector": {"name": "crashing"}}, "model.visual_projector", ("KeyError: 'a'",)),
        (
            {
                "model__vision_encoder": tiny_part("vision_encoder", "unadaptable"),
                "model__adapters": [{"target": "vision_encoder"}],
            },
            "model.adapters.0.target",
            ("'unadaptable' has no default layers", "'modules'"),
        ),
        (
            {"model__adapters": [{"target": "language_model"}, {"target": "language_model", "rank": 3}]},
            "model.adapters.1.target",
            ("expected one adapter for each part",),
        ),
        (
            {
                "model__adapters": [{"target": "language_model"}],
                "train": {**TRAIN, "trainable": ["language_model"]},
            },
            "train.trainable",
            ("'language_model' has an adapter", "remove it here"),
        ),
        (
            {"model__special_tokens": {"dream_end": "<dream_start>"}},
            "model.special_tokens.dream_end",
            ("'<dream_start>' is also dream_start",),
        ),
        (
            {"model__special_tokens": {"dream_end": " "}},
            "model.special_tokens.dream_end",
            ("such as <dream_end>", "got ' '"),
        ),
        (
            {"model__special_tokens": {"dream_start": "</s>"}},
            "model.special_tokens.dream_start",
            ("'</s>' is reserved by the language model", "another name"),
        ),
        (
            {"generation": {"scheduler": "dppm"}},
            "generation.scheduler",
            ("expected one of ddpm, ddim", "got 'dppm'"),
        ),
        ({"model__vision_encoder__layer": 7}, "model.vision_encoder.layer", ("got 7", "3 layers")),
    ],
)
def test_a_misfit_is_reported_and_refused_by_build(
    registry: Registry, changes: dict[str, Any], key: str, fragments: tuple[str, ...]
) -> None:
    recipe = read(registry, **changes)
    (problem,) = fit(recipe, registry).problems
    assert problem.key == key
    assert all(fragment in problem.message for fragment in fragments), problem.message
    with pytest.raises(RecipeError) as caught:
        build(fit(recipe, registry))
    assert caught.value.problems == (problem,)


def test_images_are_not_decoded_smaller_for_a_part_that_uses_their_own_size(registry: Registry) -> None:
    cls: Any = registry.get("image_decoder", "sdxl")
    changes: dict[str, Any] = {"model__image_decoder": {"name": "sdxl", **plain(cls.tiny_config())}}
    assert fit(read(registry, **changes, train=TRAIN), registry).problems == []
    (problem,) = fit(read(registry, **changes, train={**TRAIN, "decode_margin": 2}), registry).problems
    assert problem.key == "train.decode_margin"
    assert "expected model.image_decoder to resize images to a known size" in problem.message
    assert fit(read(registry, train={**TRAIN, "decode_margin": 2}), registry).problems == []


def test_the_hint_for_a_wrong_number_of_tokens_helps(registry: Registry) -> None:
    """It names the queries if the projector returns one token for each, otherwise another projector."""
    fixed = {"model__image_decoder": tiny_part("image_decoder", "fixedtokens")}
    (problem,) = fit(
        read(registry, **fixed, model__condition_projector={"name": "mapper", "tokens": 5}), registry
    ).problems
    assert "got 5 from 3 dream queries" in problem.message
    assert "; name a projector that returns 4, such as {name: resampler, tokens: 4}" in problem.message
    resampler = {"name": "resampler", "tokens": 4}
    assert fit(read(registry, **fixed, model__condition_projector=resampler), registry).problems == []
    assert fit(read(registry, **fixed, model__dream_queries=4), registry).problems == []


def test_all_misfits_are_reported_at_once(registry: Registry) -> None:
    recipe = read(
        registry,
        model__image_decoder=tiny_part("image_decoder", "fixedtokens"),
        model__visual_projector={"name": "narrow"},
        model__adapters=[{"target": "image_decoder"}, {"target": "image_decoder"}],
        train={**TRAIN, "max_length": 1000},
    )
    assert {problem.key for problem in fit(recipe, registry).problems} == {
        "model.condition_projector",
        "model.visual_projector",
        "model.adapters.1.target",
        "train.max_length",
    }


WRONG = {
    "model.language_model.config.hidden_sise": 3,
    "model.language_model.config.hidden_act": "gleu",
    "model.language_model.config.max_position_embeddings": 0,
    "model.language_model.tokenizer": "./nowhere",
    "model.vision_encoder.config.patch_size": 0,
    "model.vision_encoder.config.num_hidden_layers": 100_000,
    "model.image_decoder.config.unet.norm_num_groups": 5,
    "model.image_decoder.config.unet.foo": 1,
    "model.image_decoder.config.unet.bar": 1,
    "model.image_decoder.config.vae.baz": 1,
    "model.image_decoder.config.vae.latent_channels": 3,
    "model.image_decoder.config.qux": 1,
    "model.image_decoder.config.scheduler.num_train_timesteps": 0,
    "model.image_decoder.image_size": 3,
}


def test_each_invalid_value_is_reported_at_its_own_line(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(**WRONG), sort_keys=False))
    lines = path.read_text().splitlines()
    problems = fit(load_recipe(str(path), (), registry), registry).problems
    assert {problem.key for problem in problems} == WRONG.keys() and len(problems) == len(WRONG)
    for problem in problems:
        line = lines[int(problem.where.removeprefix(f"{path}:")) - 1]
        assert line.strip().startswith(f"{problem.key.rpartition('.')[2]}:"), problem


@pytest.mark.parametrize("key", WRONG)
def test_an_invalid_override_is_reported_on_the_command_line(
    tmp_path: Path, registry: Registry, key: str
) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe()))
    (problem,) = fit(load_recipe(str(path), [f"{key}={WRONG[key]}"], registry), registry).problems
    assert (problem.where, problem.key) == ("command line", key)


@pytest.mark.parametrize("source", ["./nowhere", "no/such/hub/name", "pkg:nowhere/x", "bad name"])
def test_a_missing_source_is_reported_at_its_key(tmp_path: Path, registry: Registry, source: str) -> None:
    path = tmp_path / "bad.yaml"
    changes = {
        "model.vision_encoder": {"name": "clip", "layer": -1, "pretrained": source},
        "model.language_model.tokenizer": source,
    }
    path.write_text(yaml.safe_dump(tiny_recipe(**changes), sort_keys=False))
    lines = path.read_text().splitlines()
    problems = fit(load_recipe(str(path), (), registry), registry).problems
    assert {problem.key for problem in problems} == {
        "model.vision_encoder.pretrained",
        "model.language_model.tokenizer",
    }
    for problem in problems:
        name = problem.key.rpartition(".")[2]
        assert lines[int(problem.where.removeprefix(f"{path}:")) - 1].strip().startswith(f"{name}: ")
        assert source.removeprefix("./") in problem.message


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("visual_projector", "exiting", "SystemExit: 0"),
        ("visual_projector", "silent", "expected a ProjectorSpec from 'silent', got None"),
        ("vision_encoder", "wordy", "expected a VisionSpec from 'wordy', got '16 px'"),
    ],
)
def test_a_defect_of_a_part_is_a_problem_of_its_section(
    registry: Registry, key: str, name: str, message: str
) -> None:
    section = tiny_part(key, name) if key == "vision_encoder" else {"name": name}
    (problem,) = fit(read(registry, **{f"model__{key}": section}), registry).problems
    assert problem.key == f"model.{key}" and message in problem.message


def test_a_missing_linear_projector_is_reported(registry: Registry) -> None:
    """The default pooled projector, without the plug-in that has it."""
    others = [c for kind in KINDS for c in registry.components(kind).values() if c.component.name != "linear"]
    recipe = read(
        registry,
        model__image_decoder=tiny_part("image_decoder", "pooled"),
        model__visual_projector={"name": "mlp"},
        model__condition_projector={"name": "mlp"},
    )
    (problem,) = fit(recipe, Registry(others)).problems
    assert problem.key == "model.pooled_projector" and "unknown projector 'linear'" in problem.message


def twins(registry: Registry) -> Registry:
    """Return `registry` with a second `mlp`, of another distribution."""
    known = [component for kind in KINDS for component in registry.components(kind).values()]
    return Registry(
        [*known, Registered(Component("mlp", "odd_parts:Narrow"), "projector", "twin", "2.0", "twin")]
    )


def test_a_name_of_two_distributions_is_reported(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "twins.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(**{"model.visual_projector": {"name": "mlp"}})))
    draft, (problem,) = draft_recipe(str(path), (), twins(registry))
    assert problem.key == "model.visual_projector.name"
    assert "dreamkit" in problem.message and "twin 2.0" in problem.message
    assert draft is not None and fit(draft, twins(registry)).problems == []


def saved_parts(folder: Path, registry: Registry) -> dict[str, dict[str, Any]]:
    """Save the three parts with weights; return sections that name their folders."""
    model = build(fit(read(registry), registry))
    size = {"height": 16, "width": 16}
    parts: Any = model
    parts.language_model.model.model.norm = parts.language_model.norm
    parts.language_model.model.save_pretrained(folder / "language_model")
    byte_tokenizer().save_pretrained(folder / "language_model")
    CLIPVisionModel(CLIPVisionConfig(**tiny_recipe()["model"]["vision_encoder"]["config"])).save_pretrained(
        folder / "vision_encoder"
    )
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder / "vision_encoder")
    parts.image_decoder.unet.save_pretrained(folder / "image_decoder" / "unet")
    parts.image_decoder.vae.save_pretrained(folder / "image_decoder" / "vae")
    parts.image_decoder.schedule.save_pretrained(folder / "image_decoder" / "scheduler")
    names = {"language_model": "vicuna", "vision_encoder": "clip", "image_decoder": "stable-diffusion"}
    return {key: {"name": name, "pretrained": str(folder / key)} for key, name in names.items()}


def test_checking_reads_no_weights(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = saved_parts(tmp_path, registry)
    recipe = read(registry, **{f"model__{key}": section for key, section in sections.items()})
    assert build(fit(recipe, registry)).sources == {
        **{key: section["pretrained"] for key, section in sections.items()},
        "visual_projector": None,
        "condition_projector": None,
    }

    def refuse(*args: Any, **named: Any) -> None:
        raise AssertionError("weights are read")

    for holder, name in (
        (torch, "load"),
        (safetensors, "safe_open"),
        (safetensors.torch, "load_file"),
        (PreTrainedModel, "from_pretrained"),
        (ModelMixin, "from_pretrained"),
    ):
        monkeypatch.setattr(holder, name, refuse)
    adapted = read(
        registry,
        **{f"model__{key}": section for key, section in sections.items()},
        model__adapters=[{"target": key, "modules": [layer]} for key, layer in LAYERS.items()],
    )
    assert fit(recipe, registry).problems == [] and fit(adapted, registry).problems == []
    with pytest.raises(RecipeError, match="weights are read"):
        build(fit(recipe, registry))


LAYERS = {"language_model": "up_proj", "vision_encoder": "layers.0.mlp.fc1", "image_decoder": "attn1.to_q"}


@pytest.mark.parametrize("target", LAYERS)
def test_the_layers_of_an_adapter_are_checked_without_weights(
    tmp_path: Path, registry: Registry, target: str
) -> None:
    sections = saved_parts(tmp_path, registry)
    modules = ["nope", LAYERS[target], "layers.0" if target != "image_decoder" else "down_blocks.0"]
    for section in (sections[target], tiny_recipe()["model"][target]):
        adapters = [{"target": target, "modules": modules}]
        recipe = read(registry, **{f"model__{target}": section}, model__adapters=adapters)
        missing, weightless = fit(recipe, registry).problems
        assert missing.key == "model.adapters.0.modules.0" and "has no layer 'nope'" in missing.message
        assert weightless.key == "model.adapters.0.modules.2"
        assert "expected a layer with weights" in weightless.message


def test_an_adapter_without_layers_is_reported(registry: Registry) -> None:
    recipe = read(registry, model__adapters=[{"target": "language_model", "modules": []}])
    (problem,) = fit(recipe, registry).problems
    assert problem.key == "model.adapters.0.modules" and "got an empty list" in problem.message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reserved", "has a field 'name', a reserved key"),
        ("unreadable", "name 'Nothing' is not defined"),
        ("unholdable", "a recipe cannot hold Unholdable.Config.layers (set[int]); fix its plug-in"),
    ],
)
def test_a_config_that_cannot_be_a_section_is_reported(registry: Registry, name: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(registry, model__visual_projector={"name": name})
    (problem,) = caught.value.problems
    assert problem.key.startswith("model.visual_projector") and message in problem.message


def test_a_folder_without_weights_is_reported(tmp_path: Path, registry: Registry) -> None:
    for key, section in saved_parts(tmp_path, registry).items():
        recipe = read(registry, **{f"model__{key}": section})
        assert fit(recipe, registry).problems == []
        for weights in tmp_path.glob(f"{key}/**/*.safetensors"):
            weights.unlink()
        (problem,) = fit(recipe, registry).problems
        assert problem.key == f"model.{key}.pretrained"
        assert str(tmp_path / key) in problem.message and "weights" in problem.message
