"""A field whose type a recipe cannot hold is reported when its section is read, before anything is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.tree import parse


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    tree: Inner | None = None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Unsupported:
    device: torch.device | None = None
    inner: Inner | None = None


def read_messages(cls: type, text: str = "{}") -> list[str]:
    tree, problems = parse(text, lambda line: f"line {line}", Path())
    reader = SchemaReader()
    reader.section(cls, tree, "part")
    return [problem.message for problem in [*problems, *reader.problems]]


def section(annotation: Any) -> type:
    return make_dataclass("Section", [("setting", annotation, field(default=None))], frozen=True)


@pytest.mark.parametrize(
    "annotation",
    [
        None,
        bool,
        int | None,
        float,
        str,
        Path,
        Any,
        object,
        dict,
        list,
        Literal["a", 2, None],
        list[list[int]],
        tuple[int, str],
        tuple[int, ...],
        Sequence[float],
        dict[str, Any],
        Mapping[str, list[Inner]],
        Inner | None,
    ],
    ids=str,
)
def test_a_recipe_can_hold_these_types(annotation: Any) -> None:
    assert read_messages(section(annotation)) == []


@pytest.mark.parametrize(
    "annotation",
    [
        set,
        set[int],
        frozenset[str],
        bytes,
        complex,
        tuple,
        Sequence,
        Mapping,
        torch.Tensor,
        torch.dtype | None,
        Colour,
        Literal["a", Colour.RED],
        Callable[[int], int],
        type[int],
        list[set[int]],
        list[torch.Tensor] | int,
        dict[str, bytes],
        dict[int, str],
        dict[str, Unsupported],
    ],
    ids=str,
)
def test_a_recipe_cannot_hold_these_types(annotation: Any) -> None:
    """Also if the key is missing, since its default could not be saved in a checkpoint."""
    for text in ("{}", "{setting: 1}"):
        (message,) = read_messages(section(annotation), text)
        assert message.startswith("a recipe cannot hold ") and message.endswith("; fix its plug-in")


def test_the_message_lists_the_fields() -> None:
    fields = [("weights", torch.Tensor), ("kinds", set[int]), ("inner", list[Unsupported])]
    derived = ("derived", set[int], field(default_factory=set, init=False))
    (message,) = read_messages(make_dataclass("Config", [*fields, derived], frozen=True))
    assert message == (
        "a recipe cannot hold Config.weights (Tensor), Config.kinds (set[int]), "
        "Unsupported.device (torch.device | None); fix its plug-in"
    )
