"""Fused paths are switched off by an environment variable, or inside a context."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dreamkit import kernels
from dreamkit.errors import DreamkitError


class OnDevice(torch.Tensor):
    """What says that it lies on a CUDA device."""

    is_cuda = True

    def get_device(self) -> int:
        return 1


TENSOR = torch.zeros(1).as_subclass(OnDevice)


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {1: (8, 0)}.get)


def test_a_kernel_is_usable_on_a_device_and_where_it_is_wanted() -> None:
    assert kernels.usable(TENSOR) and not kernels.usable(torch.zeros(1))
    with kernels.disabled():
        assert not kernels.usable(TENSOR)
        with kernels.disabled():
            assert not kernels.enabled()
        assert not kernels.enabled()
    assert kernels.usable(TENSOR)


def test_a_gpu_may_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", {1: (7, 5)}.get)
    assert not kernels.usable(TENSOR)


def test_what_compiles_around_a_kernel_does_not_break_at_the_question() -> None:
    torch.compiler.reset()
    asked = torch.compile(
        lambda x: x + kernels._is_recent(x.get_device() + 2), fullgraph=True, backend="eager"
    )
    assert asked(torch.zeros(1)).item() == 1


def test_kernels_are_launched_on_the_device_of_the_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [None]

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    operator = kernels.on_its_device(lambda first, second: (current[-1] is first, second))
    assert operator(TENSOR, 2) == (True, 2) and current == [None]


def test_an_error_inside_switches_them_on_again() -> None:
    with pytest.raises(ZeroDivisionError), kernels.disabled():
        raise ZeroDivisionError
    assert kernels.enabled()


@pytest.mark.parametrize(
    ("said", "wanted"), [("", True), ("1", True), ("On", True), ("0", False), ("FALSE", False)]
)
def test_the_environment_variable(said: str, wanted: bool) -> None:
    assert kernels._wanted(said) == wanted


def test_another_value_is_refused() -> None:
    with pytest.raises(DreamkitError, match="DREAMKIT_KERNELS is 'none'; set it to 0"):
        kernels._wanted("none")


def test_it_is_told_whether_kernels_are_used_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *size, device: TENSOR)
    device = torch.device("cuda:1")
    assert kernels.told(device) == "fused kernels: on"
    with kernels.disabled():
        assert kernels.told(device) == "fused kernels: off, DREAMKIT_KERNELS says so"
    monkeypatch.setattr(torch.cuda, "get_device_capability", {1: (7, 5)}.get)
    assert "off, they need a GPU of compute capability 8.0 or newer" in kernels.told(device)
    monkeypatch.setattr(kernels, "HAS_TRITON", False)
    assert kernels.told(device) == "fused kernels: off, Triton or a C compiler is missing"
