"""Settings of every test: one thread (several test processes share few cores), no network, a GPU where it is needed."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# Time says nothing where several processes share few cores.
settings.register_profile("dreamkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dreamkit")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
