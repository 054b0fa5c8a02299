"""Pickles of other programs: the message has the first name of code that torch does not allow."""

import collections
import operator
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamkit.errors import SourceError
from dreamkit.storage.tensor_files import read_pickle

every_protocol = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


class Call:
    """A call that loading would make."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def refusal_of(content: Any, protocol: int, file: Path) -> str:
    file.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(SourceError) as caught:
        read_pickle(file, SourceError)
    return str(caught.value).removeprefix(f"{file}: ")


@every_protocol
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (collections.OrderedDict(weight=np.ones(2)), r"numpy\..*"),
        (collections.OrderedDict(weight=torch.ones(2)), r"torch\..*"),
        ([collections.OrderedDict(), Call(collections.deque)], r"collections\.deque"),
        ([collections.Counter(), collections.OrderedDict(), Call(collections.deque)], r"collections\.deque"),
        (["_operator", "add", Call(operator.add, 1, 2)], r"_operator\.add"),
        ({"add": collections.OrderedDict(a=[Call(operator.add, 1, 2)])}, r"_operator\.add"),
    ],
    ids=["arrays", "tensors", "same module", "names", "texts", "key"],
)
def test_the_first_name_that_torch_does_not_allow_is_shown(
    content: Any, name: str, protocol: int, tmp_path: Path
) -> None:
    message = refusal_of(content, protocol, tmp_path / "model.bin")
    assert re.search(f"got one that also names '{name}'; loading it would run this code", message)


@every_protocol
@pytest.mark.parametrize(
    "content", [{"a": 1}, collections.OrderedDict(a=1.0), ["collections", "deque"]], ids=repr
)
def test_a_pickle_of_plain_values_names_no_code(content: Any, protocol: int, tmp_path: Path) -> None:
    message = refusal_of(content, protocol, tmp_path / "model.bin")
    assert message.startswith("expected a file of torch.save, got a pickle of another program; if you trust")


def test_a_cut_pickle_is_damaged(tmp_path: Path) -> None:
    file, whole = tmp_path / "model.bin", pickle.dumps({"a": 1})
    for content in (whole[:-1], whole + b"more"):
        file.write_bytes(content)
        with pytest.raises(SourceError, match="got another kind of file or a damaged one; copy it again"):
            read_pickle(file, SourceError)
