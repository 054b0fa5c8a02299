"""Two processes under FSDP2: no layout changes what is learned, and nothing hangs when their batches differ.

One launch of `layouts.py` does the work for all tests; a hang ends at the timeout and fails.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import layouts
import tiny


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, layouts.__file__, str(folder)],
        env=os.environ | quiet,
        timeout=180,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return folder


def test_one_process_with_text_alone_and_one_with_images(launched: Path) -> None:
    model = tiny.model()
    batches = layouts.uneven_batches(model)
    counts = torch.stack([batch.counts for batch in batches]).sum(0)
    expected = layouts.gradients(model, batches, counts)
    found = load_file(launched / "gradients.safetensors")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-6, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_processes_of_two_equal_one_of_four(launched: Path, tmp_path: Path) -> None:
    model = layouts.train_layout(tmp_path, batch_size=4, accumulation=1)
    part = load_file(launched / "2x2/checkpoint/language_model.safetensors")
    for name, tensor in model.language_model.state_dict().items():
        torch.testing.assert_close(part[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_resume_where_they_were(launched: Path) -> None:
    files = sorted((launched / "straight/checkpoint").glob("*.safetensors"))
    assert len(files) == 6
    for file in files:
        assert file.read_bytes() == (launched / "resumed/checkpoint" / file.name).read_bytes(), file.name
