"""The start of processes that train together."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist

from dreamkit.distributed import join, join_alone, leave, meeting_timeout
from dreamkit.errors import TrainingError


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


@pytest.fixture
def own_group() -> Iterator[None]:
    """A group of processes that the program has set up."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("own_group")
def test_a_group_of_the_program_is_used_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with patch("torch.cuda.is_available", return_value=False):
        assert join() == torch.device("cpu")
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.current_device", return_value=3),
    ):
        assert join() == torch.device("cuda", 3)
    leave()
    assert dist.is_initialized()


def test_a_group_of_one_process_ends_with_the_command() -> None:
    join_alone()
    join_alone()  # there is one
    assert dist.get_world_size() == 1
    leave()
    assert not dist.is_initialized()


def test_the_time_of_a_meeting_is_set_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, minutes in {"": 30.0, "90": 90.0, "0.5": 0.5}.items():
        monkeypatch.setenv("DREAMKIT_TIMEOUT", text)
        assert meeting_timeout() == timedelta(minutes=minutes)
    for text in ("0", "-1", "nan", "inf", "1e9", "2h"):
        monkeypatch.setenv("DREAMKIT_TIMEOUT", text)
        with pytest.raises(
            TrainingError, match=f"^DREAMKIT_TIMEOUT: expected a number of minutes .*'{text}'"
        ):
            join()
