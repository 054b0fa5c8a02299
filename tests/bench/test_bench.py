"""The whole benchmark in miniature on the CPU, and what its step and its drawing are."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench_sections
from dreamkit import kernels
from dreamkit.bench import drawing, stage, training_step
from dreamkit.bench.__main__ import SECTIONS
from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.kernels.bench import benchmarks
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure
from dreamkit.kernels.bench.harness import Bench
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.measurements import OUT_OF_TIME, Record, Records
from dreamkit.kernels.bench.runner import Section
from dreamkit.parts.specs import Condition
from dreamkit.registry.registry import Registry

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
REGISTRY = Registry.load()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str, of: Any = SECTIONS) -> int:
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    return benchmarks.main("dreamkit.bench", "", of)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.full),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_trial_runs_everything(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = command(monkeypatch, "--device", device, "--small", "--out", str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert code == 0, [record["problem"] for record in found["records"] if record["failed"]]
    assert {record["ran"] for record in found["records"]} == {True}
    names = {record["table"].partition(",")[0] for record in found["records"]}
    assert names == {
        "machine",
        "query projection",
        "assembling embeddings",
        "label loss",
        "training step",
        "loss of a training step",
        "drawing",
    }
    assert len(found["targets"]) == 7 + 2 + 2 + 2
    assert {target["met"] for target in found["targets"]} == {"not judged"}


def test_where_a_candidate_fails_it_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--device", "cpu", "--small", "--out", str(tmp_path))
    assert command(monkeypatch, *arguments, of=(Section("bad", 1, bench_sections.cut),)) == 1
    assert "bad, -, -: OSError: the disk is full" in (tmp_path / "benchmarks.md").read_text()


def test_without_time_everything_is_told_as_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--device", "cpu", "--small", "--out", str(tmp_path), "--minutes", "0")
    assert command(monkeypatch, *arguments) == 0
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    problems = {record["problem"] for record in records if record["table"] != "machine"}
    assert problems == {OUT_OF_TIME}


@pytest.mark.parametrize("program", ["dreamkit.kernels.bench", "dreamkit.bench"])
def test_on_a_cpu_it_measures_nothing(program: str, tmp_path: Path) -> None:
    asked = [sys.executable, "-m", program, "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: on cpu nothing is measured; add --small")
    assert not (tmp_path / "out").exists()


def test_where_no_results_can_be_written_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("")
    monkeypatch.setattr("dreamkit.kernels.bench.runner.sent", None)
    assert command(monkeypatch, "--device", "cpu", "--small", "--out", str(out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dreamkit.bench: --out {out}: no results can be written there")


def test_the_kernels_benchmark_imports_no_model() -> None:
    code = "import sys, dreamkit.kernels.bench.benchmarks; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    loaded = {name for name in done.stdout.split() if name.startswith("dreamkit.")}
    assert "dreamkit.kernels.bench.benchmarks" in loaded
    light = {"dreamkit.errors", "dreamkit.neighbour"}
    assert all(name in light or name.startswith("dreamkit.kernels") for name in loaded)


def test_the_real_stage_is_the_shipped_one_at_its_sizes() -> None:
    recipe = stage.recipe(8, small=False, registry=REGISTRY)
    model = build_on_meta(fit(recipe, REGISTRY))
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # LLaMA-7B's
    language = sum(parameter.numel() for parameter in model.language_model.model.parameters())
    assert language == 8 * layer + 2 * 32000 * 4096
    assert sum(p.numel() for p in model.image_decoder.unet.parameters()) == 859_520_964  # as published
    assert model.vision_encoder.spec.num_tokens == 256 and recipe.model.dream_queries == 64
    assert recipe.train.precision == "bfloat16" and recipe.train.gradient_checkpointing


def test_large_matrices_are_filled_on_the_device_alone() -> None:
    def make() -> nn.Module:
        made = nn.Sequential(nn.Linear(2048, 1024), nn.LayerNorm(1024), nn.Linear(8, 8))
        assert made[2].weight.std() > 0.1  # a part may try what is small
        with torch.no_grad():
            made[0].weight.fill_(torch.nan)
            nn.init.normal_(made[0].weight)
        assert made[0].weight.isnan().all()
        return made

    first, norm, last = stage.at_random(make, CPU)  # type: ignore[misc]
    for layer in (first, last):
        assert 0.01 < layer.weight.std() < 0.03 and not layer.bias.any()
    assert (norm.weight == 1).all()


def test_its_documents_are_always_the_same_and_fit_into_a_row() -> None:
    made = stage.documents(400, range(9), small=False)
    assert made == stage.documents(400, range(9), small=False)
    pictures = [[s for s in document if hasattr(s, "picture")] for document in made]
    counts = [len(each) for each in pictures]
    assert set(counts[::2]) == {1, 2, 3, 4} and set(counts[1::2]) == {1}
    assert {(s.draw, s.read) for each in pictures[1::4] for s in each} == {(True, False)}
    assert {(s.draw, s.read) for each in pictures[3::4] for s in each} == {(False, True)}
    for document in made:
        words = sum(len(s.text.split()) for s in document if hasattr(s, "text"))
        images = sum(258 * s.read + 66 * s.draw for s in document if hasattr(s, "picture"))
        assert words + images + 2 <= 2048


@pytest.fixture(scope="module")
def made() -> training_step.Step:
    machine = Machine(Figure(1.0), {}, 0, {})
    return training_step.Step(2, Bench(Clock(CPU, 0.0), machine, small=True))


def test_both_batches_hold_the_same_documents(made: training_step.Step) -> None:
    assert made.packed.input_ids_BT.numel() < made.padded.input_ids_BT.numel()
    for batch in (made.packed, made.padded):
        assert int((batch.segment_ids_BT >= 0).sum()) == made.tokens
        assert batch.counts.tolist() == made.packed.counts.tolist()


def test_steps_start_from_the_same_weights_and_find_the_same_loss(made: training_step.Step) -> None:
    before = [parameter.clone() for parameter in made.trained]
    losses = [made.run(made.packed), made.run(made.padded), training_step.unfused()(made.run)(made.packed)]
    assert torch.stack(losses).isfinite().all()
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(3), rtol=5e-3, atol=0)
    assert all(torch.equal(one, other) for one, other in zip(before, made.trained, strict=True))


def test_the_step_to_compare_with_has_no_kernel_and_all_logits_at_once(made: training_step.Step) -> None:
    seen: list[tuple[bool, int]] = []
    logits = made.model.language_model.logits

    def look(hidden: Tensor) -> Tensor:
        seen.append((kernels.enabled(), len(hidden)))
        return logits(hidden)

    made.model.language_model.logits = look  # type: ignore[method-assign]
    try:
        training_step.unfused()(made.run)(made.packed)
        assert seen == [(False, len(made.packed.label_rows_L))]
        seen.clear()
        made.run(made.packed)
        assert {enabled for enabled, _ in seen} == {True}
        assert len(seen) > 1  # one row tells the size of chunks
    finally:
        del made.model.language_model.logits


def test_the_loss_of_a_step_has_gradients_of_the_head(made: training_step.Step) -> None:
    """Ours computes them in the forward pass, so that all candidates have to."""
    hidden = made.hidden()
    loss, to_hidden, *others = made.loss(hidden)
    eager = training_step.unfused()(made.loss)(hidden)
    assert loss is not None and to_hidden is not None and to_hidden.shape == hidden.shape
    assert 0 < sum(grad is not None for grad in others) < 4
    for one, other in zip((loss, to_hidden, *others), eager, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0.02, atol=1e-3)


def test_drawing_is_compared_with_keys_and_values_of_each_step() -> None:
    decoder: Any = drawing.decoder(small=True, device=CPU)
    (layer, *_) = [module for name, module in decoder.named_modules() if name.endswith("attn2.to_k")]
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    conditions: tuple[Condition, Condition] = drawing.conditions(decoder, 2)
    kept = drawing.draw(decoder, *conditions, steps=5)
    assert len(calls) == 1
    anew = drawing.draw_projecting(decoder, *conditions, steps=5)
    assert len(calls) == 1 + 6  # Stable Diffusion 1.5's own scheduler, PNDM, asks for one step twice
    assert torch.equal(kept, anew)


def test_targets_of_the_step() -> None:
    def records(eager: float, padded: float) -> Records:
        times = {training_step.EAGER: eager, training_step.PADDED: padded, training_step.OURS: 1.0}
        return Records(
            Record(training_step.TABLE, "32 layers, by slope", name, figure=Figure(time, 0.01))
            for name, time in times.items()
        )

    assert [verdict.met for verdict in training_step.targets(records(1.2, 2.1))] == [True, True]
    assert [verdict.met for verdict in training_step.targets(records(1.1, 1.9))] == [False, False]
    assert [verdict.met for verdict in training_step.targets(Records())] == [None, None]
    failed = [
        Record(training_step.TABLE, "32 layers, by slope", training_step.OURS, problem="x", failed=True)
    ]
    assert [verdict.met for verdict in training_step.targets(Records(failed))] == [False, False]


def test_what_fails_at_one_depth_fails_for_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(Figure(1.0), {}, 0, {})
    bench = Bench(Clock(CPU, 0.0), machine, small=True)
    times = {
        training_step.EAGER: Figure(1.0),
        training_step.PADDED: None,
        training_step.OURS: None,
    }
    for layers, (name, figure) in product((4, 8), times.items()):
        failed = layers == 8 and name == training_step.OURS
        bench.found.append(
            Record(training_step.TABLE, f"{layers} layers", name, figure=figure, failed=failed)
        )
    monkeypatch.setattr(training_step, "measured", lambda *_: iter(()))
    found = list(training_step.section(bench))
    assert [(r.case, r.candidate, r.failed) for r in found] == [
        ("32 layers, by slope", training_step.EAGER, False),
        ("32 layers, by slope", training_step.OURS, True),
    ]


def test_targets_of_drawing() -> None:
    def verdicts(kept: Record) -> list[bool | None]:
        each = Record(drawing.TABLE, "1 image", drawing.EACH_STEP, figure=Figure(1.0, 0.01))
        return [verdict.met for verdict in drawing.targets(Records([each, kept]))]

    kept = Record(drawing.TABLE, "1 image", drawing.KEPT, figure=Figure(0.9))
    assert verdicts(kept) == [True, True]
    assert verdicts(Record(drawing.TABLE, "1 image", drawing.KEPT, figure=Figure(1.005))) == [True, True]
    assert verdicts(Record(drawing.TABLE, "1 image", drawing.KEPT, figure=Figure(1.1))) == [True, False]
    assert verdicts(Record(drawing.TABLE, "1 image", drawing.KEPT, problem="x", failed=True)) == [
        False,
        False,
    ]
