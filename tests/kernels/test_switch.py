"""Fused kernels are switched off by an environment variable, or inside a block."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dreamkit import kernels
from dreamkit.errors import DreamkitError
from dreamkit.kernels import capability


class CudaTensor(torch.Tensor):
    """A tensor that claims to be on CUDA device 1."""

    is_cuda = True

    def get_device(self) -> int:
        return 1


TENSOR = torch.zeros(1).as_subclass(CudaTensor)


@pytest.fixture(autouse=True)
def recent_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {1: (8, 0)}.get)


def test_a_kernel_is_usable_on_a_gpu_unless_switched_off() -> None:
    assert kernels.usable(TENSOR) and not kernels.usable(torch.zeros(1))
    with kernels.disabled():
        assert not kernels.usable(TENSOR)
        with kernels.disabled():
            assert not kernels.enabled()
        assert not kernels.enabled()
    assert kernels.usable(TENSOR)


def test_a_kernel_is_not_usable_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", {1: (7, 5)}.get)
    assert not kernels.usable(TENSOR)


def test_torch_compile_takes_the_capability_as_a_constant() -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: x + capability.is_recent(x.get_device() + 2), fullgraph=True, backend="eager"
    )
    assert compiled(torch.zeros(1)).item() == 1


def test_importing_the_kernels_does_not_import_torch_s_compiler() -> None:
    code = "import sys, dreamkit.model.model; print('torch._dynamo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


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


def test_an_error_inside_the_block_switches_kernels_on_again() -> None:
    with pytest.raises(ZeroDivisionError), kernels.disabled():
        raise ZeroDivisionError
    assert kernels.enabled()


@pytest.mark.parametrize(
    ("value", "is_on"), [("", True), ("1", True), ("On", True), ("0", False), ("FALSE", False)]
)
def test_the_environment_variable_switches_kernels(value: str, is_on: bool) -> None:
    assert kernels._parse_switch(value) == is_on


def test_another_value_of_the_environment_variable_is_refused() -> None:
    message = r"DREAMKIT_KERNELS: expected 0 \(fused kernels off\) or 1 \(on\), got 'none'"
    with pytest.raises(DreamkitError, match=message):
        kernels._parse_switch("none")


def test_the_status_has_the_reason_why_kernels_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *size, device: TENSOR)
    device = torch.device("cuda:1")
    assert kernels.kernel_status(device) == "fused kernels: on"
    with kernels.disabled():
        assert kernels.kernel_status(device) == "fused kernels: off, switched off by DREAMKIT_KERNELS"
    monkeypatch.setattr(torch.cuda, "get_device_capability", {1: (7, 5)}.get)
    assert "off, they need a GPU of compute capability 8.0 or newer" in kernels.kernel_status(device)
    monkeypatch.setattr(kernels, "HAS_TRITON", False)
    assert kernels.kernel_status(device) == "fused kernels: off, Triton or a C compiler is missing"
