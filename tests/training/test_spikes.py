"""Steps with a spike of the gradient norm change nothing, or end the run; a resumed run decides the same."""

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.optim import AdamW

from dreamkit.errors import TrainingError
from dreamkit.recipe.sections import TrainSection
from dreamkit.training.optimizer import update
from dreamkit.training.run_log import TIMES
from dreamkit.training.step_guard import StepGuard
from layouts import spike_run
from runs import Interrupted, assert_identical, interrupt_at, recorded_states, weights


def guard(path: Path = Path(os.devnull), **settings: Any) -> StepGuard:
    train = TrainSection(trainable=(), steps=1, global_batch=1, **settings)
    return StepGuard(path, train, torch.device("cpu"))


@given(
    norms=st.lists(st.floats(0.125, 1e4, width=32), min_size=1, max_size=40),
    factor=st.floats(1.1, 10),
    cut=st.integers(0, 40),
)
def test_a_spike_is_a_norm_above_the_median_of_the_window(
    norms: list[float], factor: float, cut: int
) -> None:
    """A guard that continues with the norms of a resume point decides the same."""
    with patch.multiple("dreamkit.training.step_guard", WINDOW=10, LEAST=4):
        each = guard(spike_factor=factor)
        for number, norm in enumerate(norms):
            if number == cut:
                each.read()
                stored = json.loads(json.dumps(each.norms()))
                assert stored == norms[max(0, number - 10) : number]
                each = guard(spike_factor=factor)
                each.begin(number, stored)
            before = norms[max(0, number - 10) : number]
            expected = len(before) >= 4 and norm > factor * median_low(before)
            assert each.judge(number, [], torch.tensor(1.0), torch.tensor(norm)) == float(expected)


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_steps_after_one_that_is_not_finite_change_nothing(loss: float, norm: float) -> None:
    each = guard()
    values = [(1.0, 1.0), (loss, norm), (1.0, 1.0)]
    judged = [each.judge(n, [], torch.tensor(a), torch.tensor(b)) for n, (a, b) in enumerate(values)]
    assert judged == [0, 1, 1] and each.read() == (1, None)
    each.rewind(2)
    assert each.norms() == (1.0,)


def test_a_skipped_spike_changes_nothing_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_states() as states:
        result = spike_run(tmp_path, log_every=4, weight_decay=0.1)
    same = [all(map(torch.equal, *pair)) for pair in pairwise(states)]
    spikes = [spike.step for spike in result.spikes]
    assert 3 in spikes and [number + 2 for number, is_same in enumerate(same) if is_same] == spikes
    assert all("bad" in spike.documents and len(spike.documents) == 2 for spike in result.spikes)
    lines = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == spikes and lines[0]["norm"] > 8 * lines[0]["median"]
    assert [entry["spikes"] for entry in result.log] == [1, len(spikes)]
    note = f"skipped {len(spikes)} steps with a spike of the gradient norm, listed in {tmp_path}/spikes.jsonl"
    assert note in capsys.readouterr().err.replace("\n", " ")


def test_a_spike_stops_a_run_at_the_step_before(tmp_path: Path) -> None:
    """With `train.on_spike=skip`, the run continues as if it had skipped the spike."""
    straight = spike_run(tmp_path / "straight")
    with pytest.raises(TrainingError) as caught:
        spike_run(tmp_path / "out", on_spike="stop", log_every=5)
    message = str(caught.value)
    assert message.startswith(
        "step 3: expected a gradient norm of at most 8 times the median of the norms before"
    )
    assert "'bad'" in message and "add train.on_spike=skip or a larger train.spike_factor" in message
    assert caught.value.__notes__[0].endswith("checkpoints/step-2; continue with --resume")
    assert [path.name for path in (tmp_path / "out/checkpoints").glob("*")] == ["step-2"]
    resumed = spike_run(tmp_path / "out", resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))
    assert resumed.spikes == straight.spikes


def test_a_resumed_run_skips_the_same_spikes(tmp_path: Path) -> None:
    straight = spike_run(tmp_path / "straight", steps=10)
    for step in (2, 4):
        out = tmp_path / str(step)
        with pytest.raises(Interrupted):
            spike_run(out, steps=10, on_log=interrupt_at(step))
        resumed = spike_run(out, steps=10, resume=True)
        assert_identical(weights(resumed.model), weights(straight.model))
        assert (out / "spikes.jsonl").read_text() == (tmp_path / "straight/spikes.jsonl").read_text()
        log, other = (
            [{name: value for name, value in entry.items() if name not in TIMES} for entry in each.log]
            for each in (resumed, straight)
        )
        assert log == other and resumed.spikes == straight.spikes


def test_steps_are_checked_at_least_every_hundred(tmp_path: Path) -> None:
    """A run with few lines of the log ends soon after a step that is not finite."""
    with patch("dreamkit.training.loop.CHECK_EVERY", 2), pytest.raises(TrainingError, match="step 3:"):
        spike_run(tmp_path, on_spike="stop", steps=1000, log_every=1000)


def test_weights_on_the_host_get_the_decision_of_a_gpu_from_the_host() -> None:
    """torch copies it without waiting, before the kernel on the host reads it."""
    with FakeTensorMode():
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer: Any = AdamW([{"params": [weight], "ema": None}], fused=True)
        update(optimizer, torch.ones((), device="cuda"), 0)
    assert optimizer.found_inf.device == weight.device
