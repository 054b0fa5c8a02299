"""Learning rates are those of transformers' schedules, with each group's own warm-up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import get_scheduler

import layouts
from dreamkit.errors import RecipeError
from dreamkit.recipe.sections import TrainSection
from dreamkit.training.schedule import factor, has_same_rates
from runs import run

SCHEDULES = ["cosine", "linear", "constant", "wsd"]


def section(**settings: Any) -> TrainSection:
    return TrainSection(trainable=(), global_batch=1, **settings)


def reference(train: TrainSection, warmup: int, decay: int) -> list[float]:
    """Return the rate of each step by transformers."""
    names = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}
    options: dict[str, Any] = {}
    if train.schedule == "wsd":
        options = {"num_decay_steps": decay, "decay_type": "1-sqrt"}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = names.get(train.schedule, train.schedule)
    schedule = get_scheduler(name, optimizer, warmup, train.steps, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(train.steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 60), data=st.data())
def test_rates_are_those_of_transformers(schedule: Any, steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps))
    decay = data.draw(st.integers(0, steps - warmup))
    train = section(steps=steps, schedule=schedule, decay=decay if schedule == "wsd" else None)
    rates = [factor(train, warmup, step) for step in range(steps)]
    assert rates == pytest.approx(reference(train, warmup, decay), rel=1e-12, abs=1e-12)


def test_a_share_of_the_steps_is_rounded_up() -> None:
    shares = [(0.003, 29300, 88), (0.003, 545, 2), (0.07, 100, 7), (0.5, 3, 2), (1e-9, 1, 1)]
    for share, steps, expected in shares:
        assert section(steps=steps).in_steps(share) == expected
    assert section(steps=10).in_steps(3) == 3


@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    warmups=st.lists(st.integers(0, 10) | st.floats(0.01, 0.99), min_size=2, max_size=2),
    data=st.data(),
)
def test_runs_of_other_lengths_have_the_same_rates_only_if_so_reported(
    schedule: Any, steps: tuple[int, int], warmups: list[Any], data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, min(steps)))
    groups = ({"match": "*", "warmup": warmups[1]},)
    trains = [
        layouts.recipe(steps=each, schedule=schedule, warmup=warmups[0], groups=groups).train
        for each in steps
    ]
    if has_same_rates(*trains, step):
        for number in (0, 1):
            rates = [
                [factor(train, train.in_steps(warmups[number]), each) for each in range(step)]
                for train in trains
            ]
            assert rates[0] == rates[1]


def test_the_stable_part_of_wsd_may_be_lengthened() -> None:
    short, long = (section(steps=steps, schedule="wsd", warmup=2, decay=4) for steps in (20, 30))
    assert has_same_rates(short, long, 16) and not has_same_rates(short, long, 17)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup": 1.0},
            "train.warmup: expected steps as an integer, or a share of them between 0 and 1, got 1.0",
        ),
        ({"warmup": 1.5}, "got 1.5"),
        ({"warmup": 0.0}, "got 0.0"),
        ({"warmup": -1}, "train.warmup: expected at least 0 and at most 1000000000, got -1"),
        ({"warmup": "ten"}, "train.warmup: expected an integer or a number, got 'ten' (string)"),
        ({"schedule": "wsd", "decay": 2.0}, "train.decay: expected steps as an integer, or a share"),
        (
            {"decay": 0.1},
            "train.decay: expected none with the schedule cosine; remove it, or set schedule: wsd",
        ),
        ({"groups": [{"match": "*", "warmup": 7.5}]}, "train.groups.0.warmup: expected steps as an integer"),
        (
            {"groups": [{"match": "*"}]},
            "train.groups.0.match: expected learning_rate, weight_decay or warmup",
        ),
    ],
)
def test_another_duration_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        layouts.recipe(**settings)
    assert message in str(caught.value)


def test_the_log_has_the_rate_of_each_group(tmp_path: Path) -> None:
    groups = [{"match": "dream_queries", "learning_rate": 0.5, "warmup": 2}]
    log = run(tmp_path, layouts.recipe(steps=4, schedule="constant", warmup=0.25, groups=groups)).log
    assert [entry["learning_rate"] for entry in log] == [0.0, 0.01, 0.01, 0.01]
    assert [entry["learning_rate.dream_queries"] for entry in log] == [0.0, 0.25, 0.5, 0.5]
