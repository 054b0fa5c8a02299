"""Optimizers: their formulas, steps that change nothing, their state in resume points and in the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchao.optim import AdamW8bit
from transformers.optimization import Adafactor as LibraryAdafactor

import layouts
import optimizer_runs
from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.build.optimizer_states import block_size
from dreamkit.build.parameter_groups import ParameterGroup, parameter_groups
from dreamkit.errors import TrainingError
from dreamkit.plan.memory import layout_of, memory_of
from dreamkit.recipe.sections import TrainSection
from dreamkit.training import optimizer as optimizers
from dreamkit.training.optimizer import make_optimizer, update
from host_reads import HostReads
from optimizer_runs import OPTIMIZERS
from runs import REGISTRY, Interrupted, assert_identical, interrupt_at, run, weights

SHAPES = [(64, 128), (7,), (5, 4, 3, 2), (80, 60), (1, 6), (3, 1), (32, 128, 3)]
RATES = (1e-2, 3e-3, 1e-2, 5e-3)
GOOD, BAD = torch.zeros(()), torch.ones(())


def parameters(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def make(own: list[nn.Parameter], name: str, ema: float | None = None) -> Optimizer:
    train = TrainSection(trainable=(), steps=1, global_batch=1, optimizer=name, ema=ema)
    optimizer = make_optimizer([ParameterGroup("", own, 1e-2, 0.1, 0)], train)
    optimizer.param_groups[0]["lr"] = 1e-2  # as `set_learning_rates` does
    return optimizer


def set_gradients(own: list[nn.Parameter], seed: int, value: float | None = None) -> None:
    torch.manual_seed(seed)
    for parameter in own:
        gradient = torch.randn_like(parameter)
        parameter.grad = gradient if value is None else torch.full_like(parameter, value)


def train(own: list[nn.Parameter], optimizer: Optimizer, step: Callable[[int], Any]) -> list[Tensor]:
    """Train a few steps with other rates and gradients in each; return the weights."""
    for number, rate in enumerate(RATES):
        set_gradients(own, number)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        step(number)
    return [parameter.detach() for parameter in own]


def ours(name: str) -> list[Tensor]:
    own = parameters()
    optimizer = make(own, name)
    return train(own, optimizer, lambda number: update(optimizer, GOOD, number))


def theirs(optimizer_of: Callable[[list[nn.Parameter]], Optimizer]) -> list[Tensor]:
    own = parameters()
    optimizer = optimizer_of(own)
    return train(own, optimizer, lambda number: optimizer.step())


def test_adamw_is_torchs_bit_by_bit() -> None:
    expected = theirs(lambda own: AdamW(own, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, fused=True))
    assert all(map(torch.equal, ours("adamw"), expected))


def test_adafactor_computes_the_update_of_transformers() -> None:
    options = {"scale_parameter": False, "relative_step": False, "weight_decay": 0.1}
    expected = theirs(lambda own: LibraryAdafactor(own, lr=1.0, **options))
    for actual, other in zip(ours("adafactor"), expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-6)


def test_8_bit_adamw_is_torchaos_where_a_row_has_whole_blocks() -> None:
    """The first tensor has rows of 128 values; its blocks have as many, in torchao too if it is told to."""
    with torch.compiler.set_stance("force_eager"):
        expected = theirs(lambda own: AdamW8bit(own, weight_decay=0.1, block_size=128))
    actual = ours("adamw8bit")
    assert block_size(SHAPES[0]) == 128 and torch.equal(actual[0], expected[0])
    whole = ours("adamw")
    for number, tensor in enumerate(actual):
        close = {"rtol": 0, "atol": 3e-3 if block_size(SHAPES[number]) else 1e-6}
        torch.testing.assert_close(tensor, whole[number], **close)


@given(shape=st.lists(st.integers(1, 700), min_size=1, max_size=3).map(tuple))
def test_blocks_of_8_bit_state_divide_each_row(shape: tuple[int, ...]) -> None:
    block = block_size(shape)
    if block is not None:
        row = torch.empty(shape, device="meta")[0].numel()
        assert row % block == 0 and 16 <= block <= 256


def bits(own: list[nn.Parameter], optimizer: Optimizer) -> list[Tensor]:
    """Return copies of all weights and states as integers, of which -0.0 and 0.0 differ."""
    tensors = [*own, *(each for state in optimizer.state.values() for each in state.values())]
    return [tensor.detach().clone().flatten().view(torch.uint8) for tensor in tensors]


@settings(max_examples=20)
@given(
    name=st.sampled_from(OPTIMIZERS),
    value=st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30, 0.0]),
    steps=st.integers(0, 2),
)
def test_a_bad_step_changes_no_bit(name: str, value: float, steps: int) -> None:
    """Not even the first step does, nor a zero's sign."""
    own = parameters()
    with torch.no_grad():
        own[0][0] = -0.0
    optimizer = make(own, name, ema=0.9)
    for number in range(steps):
        set_gradients(own, number)
        update(optimizer, GOOD, number)
    before = bits(own, optimizer)
    set_gradients(own, 9, value)
    update(optimizer, BAD, steps)
    assert all(map(torch.equal, bits(own, optimizer), before))
    set_gradients(own, 10)
    update(optimizer, GOOD, steps + 1)
    assert not any(map(torch.equal, bits(own, optimizer)[: len(own)], before))


@pytest.mark.parametrize(("name", "reads"), [("adamw", 0), ("adafactor", 0), ("adamw8bit", 1)])
def test_only_8_bit_adamw_reads_the_decision_on_the_host(name: str, reads: int) -> None:
    own = parameters()
    optimizer = make(own, name, ema=0.9)
    counts = [state["step"] for state in optimizer.state.values()]  # on the host with 8 bits
    host_reads = HostReads(lambda tensor: name != "adafactor" and any(tensor is each for each in counts))
    set_gradients(own, 0)
    with host_reads.watch():
        update(optimizer, GOOD, 0)
    assert len(host_reads.reads) == reads


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_bitwise_identical(tmp_path: Path, name: str) -> None:
    recipe = optimizer_runs.recipe(name, precision="float32")
    straight = run(tmp_path / "straight", recipe)
    with pytest.raises(Interrupted):
        run(tmp_path / "out", recipe, on_log=interrupt_at(2))
    resumed = run(tmp_path / "out", recipe, resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))
    for checkpoint in ("checkpoint", "checkpoint-ema"):
        for file in (tmp_path / "straight" / checkpoint).glob("*.safetensors"):
            assert file.read_bytes() == (tmp_path / "out" / checkpoint / file.name).read_bytes()


@pytest.mark.parametrize("setting", [{"optimizer": "adafactor"}, {"ema": 0.5}, {"ema": None}])
def test_a_resumed_run_has_the_optimizer_and_averages_of_the_run_before(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, layouts.recipe(ema=0.9), on_log=interrupt_at(1))
    (key,) = setting
    with pytest.raises(TrainingError, match=rf"1 setting of the recipe differs .*\n  train\.{key}: was "):
        run(tmp_path, layouts.recipe(**{"ema": 0.9} | setting), resume=True)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_plan_has_the_bytes_of_the_state(name: str, ema: float | None) -> None:
    recipe = optimizer_runs.recipe(name, ema=ema, precision="float32")
    model = build_on_meta(fit(recipe, REGISTRY))
    model.set_trainable(recipe.train.trainable)
    planned = memory_of(model, recipe.train)
    with torch.device("cpu"):
        model.to_empty(device="cpu")
    groups = parameter_groups(model, recipe)
    states = make_optimizer(groups, recipe.train).state.values()
    assert planned.averages == sum(state["ema"].nbytes for state in states if "ema" in state)
    real = sum(tensor.nbytes for state in states for key, tensor in state.items() if key != "ema")
    assert planned.states == real
    values = sum(parameter.numel() for group in groups for parameter in group.parameters)
    least, most = {"adamw": (8, 8.1), "adafactor": (0, 0.8), "adamw8bit": (2, 6)}[name]
    assert least <= real / values <= most
    halves = memory_of(model, recipe.train, layout_of(recipe.train, processes=2, machines=1))
    assert real / 2 <= halves.states < real


def test_a_missing_package_is_an_error_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    message = r"adamw8bit needs the package torchao, .* run pip install 'dreamkit-core\[optimizers\]', or set"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path / "out", layouts.recipe(optimizer="adamw8bit"))
    assert not (tmp_path / "out").exists()
