"""Fused paths are switched off by an environment variable, or inside a context."""

import pytest
import torch

from dreamkit import kernels
from dreamkit.errors import DreamkitError


class OnDevice(torch.Tensor):
    """What says that it lies on a CUDA device."""

    is_cuda = True


TENSOR = torch.zeros(1).as_subclass(OnDevice)


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_TRITON", True)


def test_a_kernel_is_usable_on_a_device_and_where_it_is_wanted() -> None:
    assert kernels.usable(TENSOR) and not kernels.usable(torch.zeros(1))
    with kernels.disabled():
        assert not kernels.usable(TENSOR)
        with kernels.disabled():
            assert not kernels.enabled()
        assert not kernels.enabled()
    assert kernels.usable(TENSOR)


def test_an_error_inside_switches_them_on_again() -> None:
    with pytest.raises(ZeroDivisionError), kernels.disabled():
        raise ZeroDivisionError
    assert kernels.enabled()


@pytest.mark.parametrize(("said", "wanted"), [("", True), ("1", True), ("0", False)])
def test_the_environment_variable(said: str, wanted: bool) -> None:
    assert kernels._wanted(said) == wanted


def test_another_value_is_refused() -> None:
    with pytest.raises(DreamkitError, match="DREAMKIT_KERNELS is 'off'; set it to 0"):
        kernels._wanted("off")
