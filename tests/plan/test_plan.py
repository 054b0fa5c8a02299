"""Plans: exact sizes, and memory within 15 % of what real steps keep alive, counted by other means."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import alive
import tiny
from alive import ALL, JOINTS, LORA, WIDE
from dreamkit.build.build import build, build_on_meta
from dreamkit.build.fit import fit
from dreamkit.cli import app
from dreamkit.errors import DreamkitError, RecipeError
from dreamkit.plan.advice import misfit
from dreamkit.plan.plan import plan
from dreamkit.plan.rows import full_batch
from dreamkit.plan.sizes import in_bytes, in_words, parse_bytes
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import PARTS, AdapterSection
from dreamkit.registry.registry import Registry
from processes import run_in_two

TOLERANCE = 0.15
REGISTRY = Registry.load()

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "language model": ({"trainable": ALL}, {}),
    "everything": ({"trainable": [*ALL, "vision_encoder", "image_decoder"]}, {}),
    "checkpointing": ({"trainable": ALL, "gradient_checkpointing": True}, {}),
    "bfloat16, checkpointing": (
        {"trainable": ALL, "precision": "bfloat16", "gradient_checkpointing": True},
        {},
    ),
    "bfloat16, frozen": ({"trainable": JOINTS, "precision": "bfloat16"}, WIDE),
    "adapters, bfloat16": ({"trainable": JOINTS, "precision": "bfloat16"}, {"model.adapters": LORA}),
    "accumulation": ({"trainable": ALL, "accumulation": 3, "batch_size": 1}, WIDE),
    "updating": ({"trainable": ALL, "batch_size": 1, "gradient_checkpointing": True}, WIDE),
    "dropped conditions": ({"trainable": ALL}, {"loss": {"condition_drop": 0.5}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_memory_is_that_of_a_real_step(variant: str, tmp_path: Path) -> None:
    settings, changes = VARIANTS[variant]
    planned = alive.recipe(settings, **changes)
    estimate = plan(planned, REGISTRY, device="cpu").memory.peak
    real = alive.real_peak(planned, tmp_path / "out")
    print(f"{variant}: {estimate / real:.3f} of {in_bytes(real)}")
    assert abs(estimate / real - 1) <= TOLERANCE


@pytest.fixture(scope="module")
def sharded_peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("two")
    run_in_two(alive.__file__, str(folder))
    peaks: dict[str, int] = json.loads((folder / "peaks.json").read_text())
    return peaks


@pytest.mark.parametrize("variant", alive.SHARDED)
def test_the_memory_is_that_of_a_process_under_fsdp(variant: str, sharded_peaks: dict[str, int]) -> None:
    settings, changes = alive.SHARDED[variant]
    planned = alive.recipe(settings, **changes)
    estimate = plan(planned, REGISTRY, device="cpu", processes=2).memory.peak
    print(f"{variant}: {estimate / sharded_peaks[variant]:.3f}")
    assert abs(estimate / sharded_peaks[variant] - 1) <= TOLERANCE


def sizes(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {
        name: (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


@pytest.mark.parametrize(
    "adapters", [[], LORA, [{**LORA[0], "use_dora": True}]], ids=["none", "lora", "dora"]
)
def test_parameters_are_exactly_those_of_the_built_model(adapters: list[dict[str, Any]]) -> None:
    trainable = [name for name in ALL if not adapters or name != "language_model"]
    planned = alive.recipe({"trainable": trainable}, **{"model.adapters": adapters})
    built, outlined = build(fit(planned, REGISTRY)), build_on_meta(fit(planned, REGISTRY))
    for model in (built, outlined):
        model.set_trainable(trainable)
    assert sizes(outlined) == sizes(built)
    assert all(parameter.is_meta for parameter in outlined.parameters())
    found = plan(planned, REGISTRY)
    assert found.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert found.trainable == sum(p.numel() for p in built.parameters() if p.requires_grad)
    tensors = [*built.parameters(), *built.buffers()]
    assert sum(part.bytes for part in found.parts) == sum(tensor.nbytes for tensor in tensors)
    by_name = {part.part: part for part in found.parts}
    assert by_name["dream_queries"].parameters == by_name["dream_queries"].trainable == 3 * 32
    assert by_name["vision_encoder"].trainable == 0
    rows = sum(rows.numel() for rows in built.language_model.added_token_parameters())
    assert by_name["new_tokens"].parameters == rows > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts_in_a_real_step(checkpointing: bool) -> None:
    planned = alive.recipe({"trainable": ALL, "gradient_checkpointing": checkpointing, "accumulation": 2})
    found = plan(planned, REGISTRY).flops
    model = build(fit(planned, REGISTRY))
    model.set_trainable(ALL)
    model.train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    # torch counts attention on a CPU in its plain form alone, which has one product less: the fused one computes the
    # scores again in the backward pass
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(full_batch(model, planned, 1)).loss.backward()
    assert 1 < found / (2 * counter.get_total_flops()) < 1.04


def test_shapes_of_the_chain_are_those_of_a_real_pass() -> None:
    planned = alive.recipe({"trainable": ALL})
    (steps, words) = plan(planned, REGISTRY).chain
    model = build(fit(planned, REGISTRY))
    given: dict[str, tuple[int, ...]] = {}
    for name, part in model.parts().items():
        part.register_forward_hook(lambda m, i, out, name=name: given.update({name: tuple(out.shape[1:])}))
    model(full_batch(model, planned, 1))
    assert {step.part: step.shape for step in steps if step.part in given} == given
    assert steps[0].shape == tuple(model.vision_encoder.preprocess([tiny.picture(0)]).shape[1:])
    targets, _ = model.image_decoder.preprocess([tiny.picture(0)])
    assert steps[-1].shape == tuple(targets.shape[1:])
    assert steps[-2].shape == tuple(model.image_decoder.encode(targets).shape[1:])
    assert words[-1].shape[-1] == model.language_model.head().weight.shape[0]


def test_processes_share_what_is_sharded_and_nothing_else() -> None:
    planned = alive.recipe({"trainable": ALL}, **WIDE)
    one, two, many = (plan(planned, REGISTRY, processes=count).memory for count in (1, 2, 64))
    assert one.gathered == 0 and two.gathered == many.gathered > 0
    assert one.states / 2 <= two.states < 1.01 * one.states / 2
    assert many.weights < two.weights < one.weights
    assert two.computing.activations == one.computing.activations


def test_a_third_of_a_batch_and_more_images_are_planned_for() -> None:
    planned = alive.recipe({"trainable": ALL, "batch_size": 3})
    most = plan(planned, REGISTRY).most_images
    more = plan(planned, REGISTRY, images=most)
    assert more.rows == 3 and more.length == alive.LENGTH
    assert more.memory.peak > plan(planned, REGISTRY, images=1).memory.peak
    with pytest.raises(
        DreamkitError, match=rf"--images {most + 1}, but a row of 64 tokens holds 0 to {most}"
    ):
        plan(planned, REGISTRY, images=most + 1)


def test_without_anything_to_train_there_is_no_plan() -> None:
    with pytest.raises(DreamkitError, match="nothing is to be trained"):
        plan(alive.recipe({"trainable": []}), REGISTRY)


def test_parts_that_cannot_recompute_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = alive.recipe({"trainable": [*ALL, "vision_encoder"], "gradient_checkpointing": True})
    assert plan(planned, REGISTRY).unchecked == ()
    clip = REGISTRY.get("vision_encoder", "clip")
    from dreamkit.parts.part import Part

    for cls in clip.__mro__:
        if cls is not Part and "enable_gradient_checkpointing" in vars(cls):
            monkeypatch.delattr(cls, "enable_gradient_checkpointing")
    assert plan(planned, REGISTRY).unchecked == ("vision_encoder",)
    frozen = alive.recipe({"trainable": ALL, "gradient_checkpointing": True})
    assert plan(frozen, REGISTRY).unchecked == ()  # nothing of it would be recomputed


def test_a_part_that_does_not_tell_its_size_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = REGISTRY.get("vision_encoder", "clip")
    planned = alive.recipe({"trainable": ALL})
    exact = plan(planned, REGISTRY)
    monkeypatch.setattr(clip, "meta_modules", classmethod(lambda cls, config: None))
    assert plan(planned, REGISTRY) == exact  # a part of a `config` can be made on the meta device
    monkeypatch.setattr(clip, "meta_modules", classmethod(lambda cls, config: nn.Linear(1, 1)))
    with pytest.raises(RecipeError, match=r"model\.vision_encoder: .*meta_modules, got Linear"):
        plan(planned, REGISTRY)


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GiB", 80 * 2**30), ("24GB", 24 * 10**9), ("512MiB", 2**29), ("1.5 gib", 3 * 2**29), ("7B", 7)],
)
def test_amounts_of_memory(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "80", "GiB", "-1GiB", "80GiBs", "0GiB", "0.1B", "80 parsecs", "1e3GB"])
def test_what_is_no_amount_of_memory_is_said(text: str) -> None:
    with pytest.raises(
        DreamkitError, match=rf"^'{re.escape(text)}' is no amount of memory; .* such as 80GiB$"
    ):
        parse_bytes(text)


def test_numbers_in_words() -> None:
    assert (in_bytes(80 * 2**30), in_bytes(1023), in_bytes(1536)) == ("80.00 GiB", "1023 B", "1.50 KiB")
    assert (in_words(6.74e9), in_words(999)) == ("6.74 G", "999 ")


def write(path: Path, settings: dict[str, Any]) -> str:
    base = {"trainable": ALL, "steps": 1, "batch_size": 4, "max_length": 64, "gradient_checkpointing": True}
    path.write_text(yaml.safe_dump(tiny.recipe(train=base | settings)))
    return str(path)


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_says_what_fits(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    peak = plan(load_recipe(path, (), REGISTRY), REGISTRY).memory.peak
    code, out = invoke(path, "--memory", f"{peak}B")
    assert code == 0 and out.endswith(f"fits into {in_bytes(peak)}, 0 B to spare\n")
    assert out.startswith(
        "image (3, 16, 16)\n  -> vision_encoder clip (4, 16)\n  -> visual_projector linear (4, 32)\n"
    )
    code, out = invoke(path, "--memory", f"{peak - 1}B")
    assert code == 1 and "too much, in the forward and backward pass; the largest term is activations" in out
    assert "train.batch_size=2 train.accumulation=2" in out and "gradient_checkpointing=true" not in out
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


def test_the_command_says_what_would_help(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"gradient_checkpointing": False})
    code, out = invoke(path, "--memory", "10KiB", "--processes", "4")
    assert code == 1
    for wanted in ("train.gradient_checkpointing=true", "train.precision=bfloat16", "--processes 8"):
        assert wanted in out
    assert "model.adapters=[{target: language_model}]" in out and "without activations it is still" in out


def test_the_advice_helps(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"gradient_checkpointing": False})
    recipe = load_recipe(path, (), REGISTRY)
    before = plan(recipe, REGISTRY)
    changes = [
        shlex.split(line.partition(": ")[2])
        for line in misfit(before, recipe, before.memory.peak - 1)
        if line.startswith("  - ") and "--processes" not in line and "below" not in line
    ]
    assert len(changes) == 4
    for change in changes:
        assert plan(load_recipe(path, change, REGISTRY), REGISTRY).memory.peak < before.memory.peak, change


def test_the_advice_keeps_the_adapters_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"trainable": ["language_model", *JOINTS]})
    recipe = load_recipe(
        path, ["model.adapters=[{target: image_decoder, rank: 2, modules: [to_q, to_k]}]"], REGISTRY
    )
    before = plan(recipe, REGISTRY)
    (advice,) = (line for line in misfit(before, recipe, 1) if "an adapter instead" in line)
    changed = load_recipe(path, shlex.split(advice.partition(": ")[2]), REGISTRY)
    assert changed.model.adapters == (*recipe.model.adapters, AdapterSection("language_model"))
    assert changed.train.trainable == tuple(JOINTS)


def test_numbers_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    code, out = invoke(path, "--json")
    found = json.loads(out)
    assert code == 0 and found["peak"] == plan(load_recipe(path, (), REGISTRY), REGISTRY).memory.peak
    assert {part["part"] for part in found["parts"]} >= set(PARTS) - {"pooled_projector"}


def test_a_bad_size_and_an_unknown_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    with pytest.raises(DreamkitError, match="'80' is no amount of memory"):
        invoke(path, "--memory", "80")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    unknown = ("model.language_model.config=null", "model.language_model.pretrained=nobody/nothing")
    with pytest.raises(RecipeError, match=r"model\.language_model\.pretrained: 'nobody/nothing': the cache"):
        invoke(path, *unknown)


def test_the_example_of_the_docs_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the paper's size, and its names are known without the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    docs = (Path(__file__).parents[2] / "docs/plan.md").read_text()
    found = re.search(r"```console\n\$ dreamkit plan (.*)\n((?:.|\n)*?)```", docs)
    assert found is not None
    code, out = invoke(*found[1].split())
    assert code == 0
    lines = zip(out.splitlines(), found[2].splitlines(), strict=True)
    # libraries may come to keep a little more or less
    assert [(ours, docs) for ours, docs in lines if not alike(ours.split(), docs.split())] == []
    # the "6.7B" of table 2 of arXiv 2302.13971
    assert "vicuna            6,738,415,616" in out


def alike(ours: list[str], theirs: list[str]) -> bool:
    """Whether words are the same, and numbers with a point nearly."""

    def same(a: str, b: str) -> bool:
        number = re.compile(r"\d+\.\d+")
        if number.fullmatch(a) and number.fullmatch(b):
            return float(a) == pytest.approx(float(b), rel=0.05)
        return a == b

    return len(ours) == len(theirs) and all(map(same, ours, theirs))
