"""The start of processes that train together."""

from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

from dreamkit.distributed import join


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("is_launched", [True, False])
def test_processes_with_gpus_also_sum_tensors_on_the_host(
    has_gpu: bool, is_launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if is_launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    state: Any = Mock(return_value=Mock(device=torch.device("cpu")))
    with patch("accelerate.PartialState", state), patch("torch.cuda.is_available", return_value=has_gpu):
        join()
    expected = "cuda:nccl,cpu:gloo" if has_gpu and is_launched else None
    assert state.call_args.kwargs.get("backend") == expected
