"""References between values of a recipe: OmegaConf resolves each once, after those that it refers to."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamkit.errors import RecipeProblem
from dreamkit.recipe.references import MAX_REFERENCES, resolve_references
from dreamkit.recipe.tree import Node


def resolve(values: Any) -> tuple[Any, list[RecipeProblem]]:
    problems: list[RecipeProblem] = []
    tree = resolve_references(Node.from_plain(values, "file:1", Path()), problems.append)
    return tree.plain(), problems


KEYS = ["a", "b", "c"]
TEXTS = [
    *(
        "${a}",
        "${b}",
        "${c}",
        "${s.a}",
        "${s.l[1]}",
        "${s.l.0}",
        "${s.l[-1]}",
        "${s.l.-2}",
        "${s.l.01}",
        "${s.l}",
        "${.a}",
        "${..b}",
        "${s}",
        "${s.${c}}",
        "${${c}}",
    ),
    *(
        "x ${a} y",
        "${a}${b}",
        "\\${a}",
        "\\\\${a}",
        "\\\\\\${a}",
        "${ a }",
        "${a.b}",
        "${nowhere}",
        "${a",
        "$a {b}",
    ),
]
leaves = st.sampled_from([1, 2.5, True, None, "a", "b", "l", *TEXTS])
trees = st.fixed_dictionaries(
    {key: leaves for key in KEYS}
    | {"s": st.fixed_dictionaries({"a": leaves, "b": leaves, "l": st.lists(leaves)})}
)


@given(trees)
@settings(max_examples=300)
def test_the_values_are_those_of_omegaconf(values: Any) -> None:
    resolved, problems = resolve(values)
    try:
        expected = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except (OmegaConfBaseException, RecursionError):
        assert problems and not any("Interpolation" in problem.message for problem in problems)
    else:
        assert not problems and repr(resolved) == repr(expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_chain_is_resolved_in_any_order_of_its_keys(seed: int) -> None:
    links = [(f"k{n}", f"${{k{n + 1}}}") for n in range(MAX_REFERENCES)] + [(f"k{MAX_REFERENCES}", 7)]
    random.Random(seed).shuffle(links)
    values, problems = resolve(dict(links))
    assert not problems and set(values.values()) == {7}


@pytest.mark.parametrize(
    ("values", "cycle"),
    [
        ({"a": "${a}"}, "a -> a"),
        ({"a": "${b}", "b": "x${c}", "c": "${a}"}, "a -> b -> c -> a"),
        ({"a": {"b": "${a}"}}, "a.b -> a.b"),
        ({"a": "${b.c}", "b": {"c": "${..a}"}}, "a -> b.c -> a"),
        ({"a": "${${b}}", "b": "a"}, "a -> a"),
        ({"a": ["${a.1}", "${a[0]}"]}, "a.0 -> a.1 -> a.0"),
        ({"a": ["${a[-1]}", "${a.00}"]}, "a.0 -> a.1 -> a.0"),
    ],
)
def test_a_cycle_is_one_problem_that_names_its_keys(values: dict[str, Any], cycle: str) -> None:
    _, problems = resolve({**values, "user": "${a}", "free": "${other}", "other": 1})
    assert len(problems) == 1 and f"it refers to itself: {cycle}" in problems[0].message


def test_a_reference_to_a_value_with_a_problem_is_no_second_problem() -> None:
    values, problems = resolve({"a": "${nowhere}", "b": "${a}", "c": "x${b}", "d": 1, "e": "${d}"})
    assert [problem.key for problem in problems] == ["a"] and values["e"] == 1


@pytest.mark.parametrize(
    "text", ["${oc.select:a}", "${oc.decode:1}", "${oc.dict.keys:a}", "${${b}:HOME}", "${x:1}"]
)
def test_other_resolvers_are_refused(text: str) -> None:
    _, problems = resolve({"a": 1, "b": "oc.env", "c": text})
    assert [problem.key for problem in problems] == ["c"]
    assert "expected a key or 'oc.env:NAME'" in problems[0].message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${train.stepz}", "there is no key 'train.stepz'; did you mean 'steps'?"),
        ("${.stepz}", "there is no key 'train.stepz'; did you mean 'steps'?"),
        ("${nowhere.a}", "there is no key 'nowhere'; known: data, none, train"),
        ("${train.steps.x}", "there is no key 'train.steps.x'; none are known"),
        ("${data[2].path}", "there is no key 'data.2'; its list has 1 item"),
        ("${data[-2].path}", "there is no key 'data.-2'; its list has 1 item"),
        ("${data.path}", "there is no key 'data.path'; its list has 1 item"),
        ("${${none}}", "there is no key 'None'; did you mean 'none'?"),
        ("${train.open}", "train.open is '???', which stands for a missing value; set it"),
        ("${...train}", "expected at most 2 dots before a key here, got 3"),
        *(
            (text, "expected ${key} or ${oc.env:NAME}, each with its closing brace and quotes")
            for text in ("${a", "${}", "${a b}", '${oc.env:A,"b}', "${a}${")
        ),
    ],
)
def test_a_reference_to_nothing_is_explained_without_the_words_of_omegaconf(text: str, reason: str) -> None:
    values = {"train": {"steps": 3, "open": "???", "out": text}, "data": [{"path": 1}], "none": None}
    _, problems = resolve(values)
    (problem,) = problems
    assert problem.key == "train.out" and problem.message.startswith(
        f"cannot resolve '{text}' (string): {reason}"
    )


@pytest.mark.parametrize(
    "text", ["${oc.env:${a}}", "${oc.env:HOME,${a}}", "${s.${oc.env:HOME}}", "${s[${oc.env:HOME}]}"]
)
def test_environment_variables_and_keys_are_not_inside_each_other(text: str) -> None:
    _, problems = resolve({"a": "HOME", "s": {"b": 1}, "c": text})
    assert [problem.key for problem in problems] == ["c"] and "cannot resolve" in problems[0].message


def test_environment_variables_stay_as_they_are_written() -> None:
    text = '${oc.env:HOME,"~/x"}/a'
    values, problems = resolve({"a": text, "b": "${a}", "c": "${b}-${a}", "d": "${s}", "s": {"e": "${a}"}})
    assert not problems
    assert values == {"a": text, "b": text, "c": f"{text}-{text}", "d": {"e": text}, "s": {"e": text}}
