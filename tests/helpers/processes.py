"""Scripts of tests in two processes that train together."""

import os
import subprocess
import sys


def run_in_two(*script: str) -> None:
    """Run a script and its arguments in two processes under `torchrun`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.run(
        [*command, *script],
        env=os.environ | environment,
        timeout=180,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout[-8000:]
