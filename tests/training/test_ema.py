"""Moving averages of the trained weights: their formula, their exchange with the weights, and their checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import layouts
from dreamkit.build.parameter_groups import ParameterGroup, parameter_groups
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.errors import RecipeError
from dreamkit.recipe.sections import TrainSection
from dreamkit.training import ema
from dreamkit.training.ema import averaged, has_averages
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.optimizer import make_optimizer, update
from runs import assert_identical, run, weights
from saved_models import build_tiny


@settings(max_examples=30)
@given(
    decay=st.floats(0.01, 0.9999),
    values=st.lists(st.tuples(st.floats(-8, 8), st.booleans()), min_size=1, max_size=12),
)
def test_an_average_is_the_weighted_sum_of_all_weights(
    decay: float, values: list[tuple[float, bool]]
) -> None:
    """A weight counts with its share, times the decays of all good steps after it."""
    weight = nn.Parameter(torch.full((2, 3), 0.5, dtype=torch.float64))
    train = TrainSection(trainable=(), steps=1, global_batch=1, ema=decay)
    optimizer = make_optimizer([ParameterGroup("", [weight], 1.0, 0.0, 0)], train)
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(1, len(values) + 1)]
    steps = [(value, d) for (value, is_bad), d in zip(values, decays, strict=True) if not is_bad]

    def step(self: object, *args: object) -> None:
        value, is_bad = values[number]
        if not is_bad:
            weight.data.fill_(value)

    with patch.object(type(optimizer), "step", step):
        for number, (_, is_bad) in enumerate(values):
            update(optimizer, torch.tensor(float(is_bad)), number)
    after = [
        torch.tensor([d for _, d in steps[n:]], dtype=torch.float64).prod().item()
        for n in range(len(steps) + 1)
    ]
    expected = 0.5 * after[0] + sum((1 - d) * v * after[n + 1] for n, (v, d) in enumerate(steps))
    torch.testing.assert_close(optimizer.state[weight]["ema"], torch.full_like(weight, expected).detach())
    assert optimizer.state[weight]["ema"].dtype == weight.dtype


class Operations(TorchDispatchMode):
    """The names of the operations of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("most", [1, 50, ema.MOST_VALUES])
def test_averages_replace_the_weights_for_a_while(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy is made, also if the block raises an error."""
    monkeypatch.setattr(ema, "MOST_VALUES", most)
    model = build_tiny()
    model.set_trainable(["visual_projector", "dream_queries"])
    recipe = layouts.recipe(trainable=["visual_projector", "dream_queries"], ema=0.9)
    optimizer = make_optimizer(parameter_groups(model, recipe), recipe.train)
    averages = {id(p): optimizer.state[p]["ema"] for p in optimizer.state}
    for average in averages.values():
        average.add_(1)
    before = weights(model)
    addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(KeyError), Operations() as operations, averaged(model, optimizer):
        begun = len(operations.names)
        inside = weights(model)
        copied = len(operations.names)
        raise KeyError
    exchanges = operations.names[:begun] + operations.names[copied:]
    assert exchanges.count("new_empty") == 1 and {*exchanges} <= {
        *("new_empty", "copy_", "detach", "slice", "split", "view", "_unsafe_view", "alias")
    }, "it may lack memory only before the first exchange"
    assert trained and sorted(trained) == sorted(n for n in before if not torch.equal(before[n], inside[n]))
    for name in trained:
        torch.testing.assert_close(inside[name], before[name] + 1)
    assert_identical(weights(model), before)
    for parameter in optimizer.state:
        assert torch.equal(optimizer.state[parameter]["ema"], parameter + 1)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == addresses


def test_without_averages_nothing_is_exchanged() -> None:
    model = build_tiny()
    recipe = layouts.recipe()
    model.set_trainable(recipe.train.trainable)
    optimizer = make_optimizer(parameter_groups(model, recipe), recipe.train)
    before = weights(model)
    with averaged(model, optimizer):
        assert_identical(weights(model), before)
    assert not has_averages(optimizer)


def test_the_checkpoint_of_averages_is_one_to_start_from(tmp_path: Path) -> None:
    """It has the averages over all steps, and what was not trained as it is in the checkpoint beside it."""
    states: list[dict[str, Tensor]] = []

    def end_step(loop: TrainingLoop, end_step: Any = TrainingLoop.end_step) -> None:
        states.append(weights(loop.model))
        end_step(loop)

    model = build_tiny()
    expected = weights(model)
    with patch.object(TrainingLoop, "end_step", end_step):
        result = run(tmp_path / "out", layouts.recipe(steps=3, ema=0.25), model=model)
    for number, state in enumerate(states, start=1):
        decay = min(0.25, (1 + number) / (10 + number))
        expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in state.items()}
    averages, _ = load_checkpoint(tmp_path / "out/checkpoint-ema")
    actual, trained = weights(averages), weights(result.model)
    assert len(states) == 3 and actual.keys() == trained.keys()
    for name, parameter in result.model.named_parameters():
        torch.testing.assert_close(actual[name], expected[name])
        assert parameter.requires_grad or torch.equal(actual[name], trained[name])
    assert_identical(weights(load_checkpoint(tmp_path / "out/checkpoint")[0]), trained)
    run(tmp_path / "next", layouts.recipe(steps=1, init=str(tmp_path / "out/checkpoint-ema")))


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_is_between_0_and_1(decay: float) -> None:
    with pytest.raises(RecipeError, match=r"train\.ema: expected more than 0 and less than 1, got"):
        layouts.recipe(ema=decay)
