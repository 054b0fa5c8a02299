"""The share of a run's time that it waits for data."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import layouts
from dreamkit.document import Document
from dreamkit.training.agreement import Agreement
from dreamkit.training.data_wait import DataWait
from dreamkit.training.run import train_recipe
from runs import REGISTRY


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    moved = Clock()
    with patch("dreamkit.training.data_wait.time", moved):
        yield moved


class Event:
    """The event of a device whose work is over or not."""

    is_over = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.is_over


def step(wait: DataWait, clock: Clock, *, reading: float, computing: float) -> None:
    with wait.waiting():
        clock.now += reading
    clock.now += computing


def test_the_share_is_that_of_the_time_after_the_first_batch(clock: Clock) -> None:
    wait = DataWait(torch.device("cpu"))
    assert wait.advice(0) is None
    step(wait, clock, reading=50, computing=2)
    assert wait.read() == 0 and wait.advice(0) is None
    step(wait, clock, reading=1, computing=3)
    step(wait, clock, reading=0, computing=4)
    assert wait.read() == pytest.approx(1 / 8)
    step(wait, clock, reading=2, computing=2)
    assert wait.read() == pytest.approx(1 / 2)
    assert wait.advice(3) == (
        "21% of the time was spent waiting for data; raise train.workers (now 3), set train.decode_margin if JPEG "
        "images are large, or compute latents and features before, with `dreamkit cache`"
    )
    clock.now += 1000
    assert wait.advice(3) is None


def test_a_wait_of_the_host_does_not_count_while_the_device_computes(clock: Clock) -> None:
    with patch("torch.cuda.Event", Event):
        wait = DataWait(torch.device("cuda"))
    step(wait, clock, reading=1, computing=1)
    step(wait, clock, reading=1, computing=1)
    assert wait.read() == 0
    Event.is_over = True
    step(wait, clock, reading=1, computing=1)
    assert wait.read() == pytest.approx(1 / 2)


class SlowDocuments(layouts.TinyDocuments):
    def __getitem__(self, index: int) -> Document:
        time.sleep(0.2)
        return super().__getitem__(index)


def test_a_run_with_slow_data_ends_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_recipe(layouts.recipe(steps=3), REGISTRY, tmp_path, datasets=[SlowDocuments()])
    assert all(0 <= (entry["data_wait"] or 0) <= 1 for entry in result.log)
    assert "of the time was spent waiting for data; raise train.workers (now 0)" in capsys.readouterr().err


def test_the_wait_for_the_data_of_another_process_counts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Meeting(Agreement):
        """An agreement with a process whose data comes ten seconds later."""

        def call(self, *functions: Any, **named: Any) -> Any:
            result = super().call(*functions, **named)
            clock.now += 10
            return result

    monkeypatch.setattr("dreamkit.training.loop.Agreement", Meeting)
    documents = layouts.TinyDocuments()
    result = train_recipe(layouts.recipe(steps=3, log_every=3), REGISTRY, tmp_path, datasets=[documents])
    assert result.log[-1]["data_wait"] == 1.0
