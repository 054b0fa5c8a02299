"""Plans: exact sizes, and memory within 15 % of that of real steps, which is counted in another way."""

from __future__ import annotations

import json
import re
import shlex
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import alive
import tiny
from alive import ALL, JOINTS, LORA, WIDE
from dreamkit.build.build import build, build_on_meta
from dreamkit.build.fit import fit
from dreamkit.cli import app
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.mixture import run_mixture
from dreamkit.data.samples import Samples
from dreamkit.errors import DreamkitError, RecipeError
from dreamkit.plan.advice import memory_advice
from dreamkit.plan.memory import Memory
from dreamkit.plan.plan import plan, plan_data
from dreamkit.plan.rows import batch_shapes, full_batch
from dreamkit.plan.sizes import format_bytes, format_count, parse_bytes
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import MAX_BATCH, PARTS, AdapterSection
from dreamkit.registry.registry import Registry
from layouts import TinyDocuments
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
    "float64": ({"trainable": ALL, "precision": "float64"}, {}),
    "bfloat16, frozen": ({"trainable": JOINTS, "precision": "bfloat16"}, WIDE),
    "adapters, bfloat16": ({"trainable": JOINTS, "precision": "bfloat16"}, {"model.adapters": LORA}),
    "accumulation": ({"trainable": ALL, "accumulation": 3, "batch_size": 1}, WIDE),
    "updating": ({"trainable": ALL, "batch_size": 1, "gradient_checkpointing": True}, WIDE),
    "dropped conditions": ({"trainable": ALL}, {"loss": {"condition_drop": 0.5}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_is_close_to_that_of_a_real_step(variant: str, tmp_path: Path) -> None:
    settings, changes = VARIANTS[variant]
    recipe = alive.recipe(settings, **changes)
    estimate = plan(recipe, REGISTRY, device="cpu").memory.peak
    real = alive.real_peak(recipe, tmp_path / "out")
    print(f"{variant}: {estimate / real:.3f} of {format_bytes(real)}")
    assert abs(estimate / real - 1) <= TOLERANCE


@pytest.fixture(scope="module")
def sharded_peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("two")
    run_in_two(alive.__file__, folder)
    peaks: dict[str, int] = json.loads((folder / "peaks.json").read_text())
    return peaks


@pytest.mark.parametrize("variant", alive.SHARDED)
def test_memory_is_close_to_that_of_a_process_under_fsdp(variant: str, sharded_peaks: dict[str, int]) -> None:
    settings, changes = alive.SHARDED[variant]
    recipe = alive.recipe(settings, **changes)
    estimate = plan(recipe, REGISTRY, device="cpu", processes=2).memory.peak
    print(f"{variant}: {estimate / sharded_peaks[variant]:.3f}")
    assert abs(estimate / sharded_peaks[variant] - 1) <= TOLERANCE


def test_memory_of_data_is_close_to_that_of_a_real_step(tmp_path: Path) -> None:
    recipe = alive.recipe({"trainable": ALL, "batch_size": 5, "max_length": 256})
    data = TinyDocuments()  # five, so that every batch holds them all
    estimate = plan_data(recipe, REGISTRY, [data], 1, device="cpu")
    real = alive.real_peak(recipe, tmp_path / "out", datasets=[data])
    assert abs(estimate.memory.peak / real - 1) <= TOLERANCE
    assert estimate.images is None and estimate.rows * estimate.length < 1.2 * estimate.tokens
    full = plan(recipe, REGISTRY, device="cpu")
    assert (full.rows, full.length, full.tokens) == (5, 256, 5 * 256) and full.memory.peak > 2 * real


def test_the_batch_with_the_highest_peak_is_planned() -> None:
    recipe = alive.recipe({"trainable": ALL, "batch_size": 1, "steps": 5})
    data = TinyDocuments()
    mixture = run_mixture(recipe, [data], 1)

    def make_batch(collator: Collator, place: int) -> Batch:
        return collator.collate([Samples(mixture, collator.sequencer)[place]])

    plans = [plan(recipe, REGISTRY, make_batch=partial(make_batch, place=place)) for place in range(5)]
    peaks = [each.memory.peak for each in plans]
    assert len({*peaks}) > 2
    for count in (1, 3, 9):
        assert plan_data(recipe, REGISTRY, [data], count).memory.peak == max(peaks[:count])


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
    recipe = alive.recipe({"trainable": trainable}, **{"model.adapters": adapters})
    built, on_meta = build(fit(recipe, REGISTRY)), build_on_meta(fit(recipe, REGISTRY))
    for model in (built, on_meta):
        model.set_trainable(trainable)
    assert sizes(on_meta) == sizes(built)
    assert all(parameter.is_meta for parameter in on_meta.parameters())
    estimate = plan(recipe, REGISTRY)
    assert estimate.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert estimate.trainable == sum(p.numel() for p in built.parameters() if p.requires_grad)
    tensors = [*built.parameters(), *built.buffers()]
    assert sum(part.bytes for part in estimate.parts) == sum(tensor.nbytes for tensor in tensors)
    by_name = {part.part: part for part in estimate.parts}
    assert by_name["dream_queries"].parameters == by_name["dream_queries"].trainable == 3 * 32
    assert by_name["vision_encoder"].trainable == 0
    rows = sum(rows.numel() for rows in built.language_model.added_token_parameters())
    assert by_name["new_tokens"].parameters == rows > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_close_to_those_of_a_real_step(checkpointing: bool) -> None:
    recipe = alive.recipe({"trainable": ALL, "gradient_checkpointing": checkpointing, "accumulation": 2})
    flops = plan(recipe, REGISTRY).flops
    model = build(fit(recipe, REGISTRY))
    model.set_trainable(ALL)
    model.train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    # on a CPU torch counts only plain attention. It has one product less: the fused one computes the scores again in
    # the backward pass
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(full_batch(model, recipe, 1, recipe.train.batch_size or 0)).loss.backward()
    assert 1 < flops / (2 * counter.get_total_flops()) < 1.04


def test_shapes_of_the_chain_equal_those_of_a_real_pass() -> None:
    recipe = alive.recipe({"trainable": ALL})
    (steps, words) = plan(recipe, REGISTRY).chain
    model = build(fit(recipe, REGISTRY))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, part in model.parts().items():
        part.register_forward_hook(lambda m, i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    model(full_batch(model, recipe, 1, recipe.train.batch_size or 0))
    assert {step.part: step.shape for step in steps if step.part in shapes} == shapes
    assert steps[0].shape == tuple(model.vision_encoder.preprocess([tiny.picture(0)]).shape[1:])
    targets, _ = model.image_decoder.preprocess([tiny.picture(0)])
    assert steps[-1].shape == tuple(targets.shape[1:])
    assert steps[-2].shape == tuple(model.image_decoder.encode(targets).shape[1:])
    assert words[-1].shape[-1] == model.language_model.head().weight.shape[0]


def test_processes_divide_weights_and_states_but_no_activations() -> None:
    recipe = alive.recipe({"trainable": ALL}, **WIDE)
    one, two, many = (plan(recipe, REGISTRY, processes=count).memory for count in (1, 2, 64))
    assert one.gathered == 0 and two.gathered == many.gathered > 0
    assert one.states / 2 <= two.states < 1.01 * one.states / 2
    assert many.weights < two.weights < one.weights
    assert two.computing.activations == one.computing.activations


def test_sharding_divides_weights_among_all_devices_or_those_of_a_machine() -> None:
    changes: dict[str, Any] = {"trainable": ALL}

    def memory(processes: int, machines: int = 1, **train: Any) -> Memory:
        recipe = alive.recipe(changes | train, **WIDE)
        return plan(recipe, REGISTRY, processes=processes, machines=machines).memory

    one, four, eight = (memory(processes) for processes in (1, 4, 8))
    assert memory(8, 2, sharding="full") == memory(8) == eight
    assert memory(8, 2, sharding="hybrid") == four
    copies = memory(8, 2, sharding="none")
    assert (copies.weights, copies.states, copies.gathered) == (one.weights, one.states, four.gathered)
    frozen = [name for name in ALL if name != "language_model"]
    whole, divided = (memory(4, trainable=frozen, unsharded=parts) for parts in (["language_model"], []))
    assert divided.weights < whole.weights < one.weights
    assert whole.gathered < divided.gathered
    offloaded = memory(4, cpu_offload=True)
    assert (offloaded.states, offloaded.gathered) == (0, four.gathered)
    assert offloaded.on_host == four.weights - offloaded.weights + four.states + four.gradients


def test_machines_that_do_not_divide_the_processes_are_an_error() -> None:
    with pytest.raises(DreamkitError, match="expected --processes that 3 machines share evenly, got 8"):
        plan(alive.recipe({"trainable": ALL}), REGISTRY, processes=8, machines=3)
    with pytest.raises(DreamkitError, match="hybrid shards over the processes of a machine, got 1 on each"):
        plan(alive.recipe({"trainable": ALL, "sharding": "hybrid"}), REGISTRY, processes=2, machines=2)


def test_a_plan_names_the_parts_that_are_loaded_whole() -> None:
    digits = plan(load_recipe("digits/stage2", (), REGISTRY), REGISTRY, processes=2)
    assert digits.in_turns == ()
    assert plan(alive.recipe({"trainable": ALL}), REGISTRY).in_turns == ()
    random = plan(alive.recipe({"trainable": ALL}), REGISTRY, processes=2)
    assert random.in_turns == ("language_model", "vision_encoder", "image_decoder")


def test_batch_size_and_images_change_the_plan() -> None:
    recipe = alive.recipe({"trainable": ALL, "batch_size": 3})
    most = plan(recipe, REGISTRY).most_images
    more = plan(recipe, REGISTRY, images=most)
    assert more.rows == 3 and more.length == alive.LENGTH
    assert more.memory.peak > plan(recipe, REGISTRY, images=1).memory.peak
    with pytest.raises(
        DreamkitError, match=rf"expected --images from 0 to {most}, got {most + 1}: a row has 64 tokens"
    ):
        plan(recipe, REGISTRY, images=most + 1)


@pytest.mark.parametrize(("name", "length"), [("tiny", 5 + 6 + 2), ("digits/stage2", 6 + 18 + 1)])
def test_a_plan_has_an_image_in_the_shortest_row_for_one(name: str, length: int) -> None:
    train = {"trainable": ALL, "max_length": length, "batch_size": 1}
    shortest = (
        alive.recipe(train)
        if name == "tiny"
        else load_recipe(name, [f"train.max_length={length}", "train.batch_size=1"], REGISTRY)
    )
    planned = plan(shortest, REGISTRY, images=1)
    assert (planned.most_images, planned.images, planned.length) == (1, 1, length)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("size", [5, 60])
def test_the_shapes_of_a_batch_are_those_of_its_documents(
    images: int, packing: bool, drop: float, size: int
) -> None:
    settings = {"trainable": ALL, "batch_size": size, "packing": packing}
    recipe = alive.recipe(settings, loss={"condition_drop": drop})
    model = build_on_meta(fit(recipe, REGISTRY))
    real, shapes = (
        vars(full_batch(model, recipe, images, size)),
        vars(batch_shapes(model, recipe, images, size)),
    )
    assert len(shapes.pop("documents")) == len(real.pop("documents"))
    assert all(isinstance(value, Tensor) == isinstance(real[key], Tensor) for key, value in shapes.items())
    for value, expected in zip(tree_leaves(shapes), tree_leaves(real), strict=True):
        if isinstance(expected, Tensor):
            assert value.is_meta and (value.shape, value.dtype) == (expected.shape, expected.dtype)
        else:
            assert value == expected


def test_a_large_batch_is_planned_without_its_data() -> None:
    recipe = alive.recipe({"trainable": ALL, "batch_size": MAX_BATCH})
    model = build_on_meta(fit(recipe, REGISTRY))
    begin = time.process_time()
    batch = batch_shapes(model, recipe, 1, MAX_BATCH).with_tensors(
        torch.empty_like
    )  # of its spans, none is visited
    assert batch.input_ids_BT.shape == (MAX_BATCH, alive.LENGTH) and len(batch.spans) == MAX_BATCH
    assert time.process_time() - begin < 1


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    with pytest.raises(DreamkitError, match="no step to plan, since nothing is trained"):
        plan(alive.recipe({"trainable": []}), REGISTRY)


def test_parts_that_cannot_recompute_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = alive.recipe({"trainable": [*ALL, "vision_encoder"], "gradient_checkpointing": True})
    assert plan(recipe, REGISTRY).unchecked == ()
    clip = REGISTRY.get("vision_encoder", "clip")
    from dreamkit.parts.part import Part

    for cls in clip.__mro__:
        if cls is not Part and "enable_gradient_checkpointing" in vars(cls):
            monkeypatch.delattr(cls, "enable_gradient_checkpointing")
    assert plan(recipe, REGISTRY).unchecked == ("vision_encoder",)
    frozen = alive.recipe({"trainable": ALL, "gradient_checkpointing": True})
    assert plan(frozen, REGISTRY).unchecked == ()  # nothing of it would be recomputed


def test_a_part_without_meta_modules_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = REGISTRY.get("vision_encoder", "clip")
    recipe = alive.recipe({"trainable": ALL})
    exact = plan(recipe, REGISTRY)
    monkeypatch.setattr(clip, "meta_modules", classmethod(lambda cls, config: None))
    assert plan(recipe, REGISTRY) == exact  # a part of a `config` can be built on the meta device
    monkeypatch.setattr(clip, "meta_modules", classmethod(lambda cls, config: nn.Linear(1, 1)))
    with pytest.raises(RecipeError, match=r"model\.vision_encoder: .*meta_modules, got Linear"):
        plan(recipe, REGISTRY)


@pytest.mark.parametrize(
    ("text", "count"),
    [("80GiB", 80 * 2**30), ("24GB", 24 * 10**9), ("512MiB", 2**29), ("1.5 gib", 3 * 2**29), ("7B", 7)],
)
def test_an_amount_of_memory_is_parsed(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "80", "GiB", "-1GiB", "80GiBs", "0GiB", "0.1B", "80 parsecs", "1e3GB"])
def test_an_invalid_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(
        DreamkitError, match=rf"^expected an amount of memory, got '{re.escape(text)}'; .* such as 80GiB$"
    ):
        parse_bytes(text)


def test_sizes_are_formatted_with_units() -> None:
    assert (format_bytes(80 * 2**30), format_bytes(1023), format_bytes(1536)) == (
        "80.00 GiB",
        "1023 B",
        "1.50 KiB",
    )
    assert (format_count(6.74e9), format_count(999)) == ("6.74 G", "999 ")


def write(path: Path, settings: dict[str, Any]) -> str:
    base = {"trainable": ALL, "steps": 1, "batch_size": 4, "max_length": 64, "gradient_checkpointing": True}
    path.write_text(yaml.safe_dump(tiny.recipe(train=base | settings)))
    return str(path)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_prints_whether_the_plan_fits(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    peak = plan(load_recipe(path, (), REGISTRY), REGISTRY).memory.peak
    code, out = invoke(path, "--memory", f"{peak}B")
    assert code == 0 and out.endswith(f"fits into {format_bytes(peak)}, 0 B to spare\n")
    assert out.startswith(
        "image (3, 16, 16)\n  -> vision_encoder clip (4, 16)\n  -> visual_projector linear (4, 32)\n"
    )
    code, out = invoke(path, "--memory", f"{peak - 1}B")
    assert code == 1 and "too much, in the forward and backward pass; the largest term is activations" in out
    assert "train.batch_size=2 train.accumulation=2" in out and "gradient_checkpointing=true" not in out
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


def test_the_command_prints_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"gradient_checkpointing": False})
    code, out = invoke(path, "--memory", "10KiB", "--processes", "4")
    assert code == 1
    for advice in ("train.gradient_checkpointing=true", "train.precision=bfloat16", "--processes 8"):
        assert advice in out
    assert "model.adapters=[{target: language_model}]" in out and "remain without activations" in out


def test_each_advice_lowers_the_peak(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"gradient_checkpointing": False})
    recipe = load_recipe(path, (), REGISTRY)
    before = plan(recipe, REGISTRY)
    changes = [
        shlex.split(line.partition(": ")[2])
        for line in memory_advice(before, recipe, before.memory.peak - 1)
        if line.startswith("  - ") and "--processes" not in line and "below" not in line
    ]
    assert len(changes) == 5
    for change in changes:
        assert plan(load_recipe(path, change, REGISTRY), REGISTRY).memory.peak < before.memory.peak, change


def test_advice_keeps_existing_adapters(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"trainable": ["language_model", *JOINTS]})
    recipe = load_recipe(
        path, ["model.adapters=[{target: image_decoder, rank: 2, modules: [to_q, to_k]}]"], REGISTRY
    )
    before = plan(recipe, REGISTRY)
    (advice,) = (line for line in memory_advice(before, recipe, 1) if "an adapter instead" in line)
    changed = load_recipe(path, shlex.split(advice.partition(": ")[2]), REGISTRY)
    assert changed.model.adapters == (*recipe.model.adapters, AdapterSection("language_model"))
    assert changed.train.trainable == tuple(JOINTS)


def test_json_has_the_numbers_of_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    code, out = invoke(path, "--json")
    numbers = json.loads(out)
    assert code == 0 and numbers["peak"] == plan(load_recipe(path, (), REGISTRY), REGISTRY).memory.peak
    assert {part["part"] for part in numbers["parts"]} >= set(PARTS) - {"pooled_projector"}


def test_the_command_plans_batches_of_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"text": "word " * number, "images": []}) + "\n" for number in range(1, 9))
    )
    settings = ["train.steps=2", f"data=[{{name: interleaved, path: {data}}}]"]
    path = write(tmp_path / "tiny.yaml", {})
    code, out = invoke(path, *settings, "--batches", "9")
    assert code == 0
    assert re.search(
        r"a batch of 4 documents of the recipe's data, \d+ tokens in \d rows? of \d+; 1 batch a step", out
    )
    assert "(--images)" not in out
    code, out = invoke(path, *settings, "--batches", "2", "--memory", "10KiB")
    assert code == 1 and "train.max_length" not in out and "fewer images" not in out
    with pytest.raises(
        DreamkitError, match=r"expected --images or --batches, got both; .* leave out --images"
    ):
        invoke(path, *settings, "--batches", "1", "--images", "0")
    with pytest.raises(RecipeError, match="no training data: name at least one data set"):
        invoke(path, "--batches", "1")


def test_a_wrong_size_and_an_unknown_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    with pytest.raises(DreamkitError, match="expected an amount of memory, got '80'"):
        invoke(path, "--memory", "80")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    unknown = ("model.language_model.config=null", "model.language_model.pretrained=nobody/nothing")
    with pytest.raises(RecipeError, match=r"model\.language_model\.pretrained: 'nobody/nothing': the cache"):
        invoke(path, *unknown)


def test_the_command_prints_the_example_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has the paper's size; its config files come with the plug-ins, so the hub is not needed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    docs = (Path(__file__).parents[2] / "docs/plan.md").read_text()
    example = re.search(r"```console\n\$ dreamkit plan (.*)\n((?:.|\n)*?)```", docs)
    assert example is not None
    code, out = invoke(*example[1].split())
    assert code == 0
    lines = zip(out.splitlines(), example[2].splitlines(), strict=True)
    # versions of the libraries differ a little in memory
    assert [(ours, docs) for ours, docs in lines if not alike(ours.split(), docs.split())] == []
    # the "6.7B" of table 2 of arXiv 2302.13971
    assert "vicuna            6,738,415,616" in out


def alike(ours: list[str], theirs: list[str]) -> bool:
    """Return True if words are equal and numbers with a point are close."""

    def same(a: str, b: str) -> bool:
        number = re.compile(r"\d+\.\d+")
        if number.fullmatch(a) and number.fullmatch(b):
            return float(a) == pytest.approx(float(b), rel=0.05)
        return a == b

    return len(ours) == len(theirs) and all(map(same, ours, theirs))
