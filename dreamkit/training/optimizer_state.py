"""The optimizer's state in a resume point: tensors by the names of parameters, in slices of the processes.

Earlier releases stored the state of all processes as one pickle. It is read with `weights_only`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch.optim import Optimizer

from dreamkit.checkpoints.saved_tensors import SavedTensor, read_slices
from dreamkit.distributed import is_sharded, local, local_region, of_all, together_if_sharded
from dreamkit.errors import CheckpointError, DreamkitError, describe_value, excerpt, first_lines
from dreamkit.storage.tensor_files import LONGEST_NAME, read_pickle, tensor_problem
from dreamkit.training.resume_state import EARLIER_OPTIMIZER, STATE, optimizer_file, state_errors

_MOST_LISTED: Final = 5


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of each trained parameter as `<parameter>/<tensor>`."""
    return {
        f"{name}/{key}": tensor
        for name, parameter in _trained(model, optimizer).items()
        for key, tensor in optimizer.state[parameter].items()
    }


def load_optimizer(point: Path, processes: int, model: nn.Module, optimizer: Optimizer) -> None:
    """Set the state of the optimizer to that in a resume point of this number of processes.

    Each process reads its slices. Every process must call this function, and a problem of one is an error of all.

    Raises:
        CheckpointError: the state is damaged or does not fit; nothing has changed.
    """
    with state_errors(point):
        _load(point / STATE, processes, model, optimizer)


def _load(folder: Path, processes: int, model: nn.Module, optimizer: Optimizer) -> None:
    with together_if_sharded(model):
        saved = _read(folder, processes)
    if saved is None:  # before the first step
        return
    copies: list[tuple[Tensor, SavedTensor]] = []
    problems: list[str] = []
    for name, target in optimizer_tensors(model, optimizer).items():
        tensor = saved.pop(name, None)
        if tensor is None:
            problem: str | None = "missing"
        elif tensor.shape != target.shape:
            problem = f"expected shape {tuple(target.shape)}, got {excerpt(str(tensor.shape))}"
        else:
            problem = tensor_problem(tensor.read(local_region(target)), local(target))
            copies.append((target, tensor))
        if problem is not None:
            problems.append(f"{name}: {problem}")
    problems += [f"{excerpt(name, LONGEST_NAME)}: not of a trained parameter" for name in saved]
    if is_sharded(model):
        problems = of_all(problems)
    if problems:
        raise DreamkitError("; ".join(first_lines(problems, _MOST_LISTED)))
    for target, tensor in copies:
        local(target).copy_(tensor.read(local_region(target)))


def _trained(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return each trained parameter by the first name that the model has for it."""
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    return {
        names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]
    }


def _read(folder: Path, processes: int) -> dict[str, SavedTensor] | None:
    """Return the saved tensors in the folder of a run's state, or None if it has none.

    Raises:
        CheckpointError: they are damaged, or a pickle that holds more than tensors.
    """
    earlier = folder / EARLIER_OPTIMIZER
    if earlier.is_file():
        return _earlier(read_pickle(earlier, CheckpointError))
    if not (folder / optimizer_file(0, processes)).is_file():
        return None
    return read_slices(folder / optimizer_file(number, processes) for number in range(processes))


def _earlier(content: Any) -> dict[str, SavedTensor]:
    """Return the tensors of a pickle of earlier releases.

    Raises:
        DreamkitError: it has another structure.
    """
    states = content.get("state") if isinstance(content, dict) else None
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise DreamkitError(
            f"{EARLIER_OPTIMIZER}: expected the state of each parameter, got {describe_value(states)}"
        )
    saved: dict[str, SavedTensor] = {}
    for name, state in states.items():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise DreamkitError(f"{EARLIER_OPTIMIZER}: expected tensors, got {describe_value(value)}")
            saved[f"{name}/{key}"] = SavedTensor.whole(value)
    return saved
