"""Recipes that ask for too much: each ends at once, before anything of that size is built."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dreamkit.build.fit import fit
from dreamkit.errors import MOST_SHOWN, RecipeError, RecipeProblem
from dreamkit.parts.projectors.blocks import head_count
from dreamkit.recipe.files import MAX_EXTENDS
from dreamkit.recipe.loading import draft_recipe, load_recipe
from dreamkit.recipe.references import MAX_REFERENCES
from dreamkit.recipe.tree import MAX_CHARACTERS, MAX_VALUES
from dreamkit.registry.registry import Registry
from recipe_files import base as base, only_problem, problems, registry as registry, write

SECONDS = 1.0  # of processor time, more than the check of a valid recipe
SHARE = 1 / 4  # of a whole `dreamkit check`, on a machine where this is more than a second
MEGABYTES = 300


@pytest.fixture(scope="module")
def seconds() -> float:
    """Processor time that a problem may take. A busy or slow machine needs more for everything."""
    before = _children()
    command = [sys.executable, "-m", "dreamkit", "check", "digits/stage1"]
    subprocess.run(command, check=True, capture_output=True)
    return max(SECONDS, SHARE * (_children() - before))


@pytest.fixture
def bounded(base: Path, registry: Registry, seconds: float) -> Iterator[None]:
    """Fail if the test takes much more time or memory than a check of a valid recipe, which comes first."""
    check(base, registry)
    with suppress(OSError):  # Linux alone can forget the peak of earlier tests
        Path("/proc/self/clear_refs").write_text("5")
    gc.collect()
    gc.freeze()  # a collection would also walk the objects of earlier tests
    begin, before = time.process_time(), _peak()
    yield
    taken = time.process_time() - begin
    gc.unfreeze()
    assert taken < seconds and _peak() - before < MEGABYTES


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check(path: Path | str, registry: Registry, *overrides: str) -> list[RecipeProblem]:
    recipe, found = draft_recipe(str(path), overrides, registry)
    return [*found, *(fit(recipe, registry).problems if recipe else [])]


@pytest.mark.parametrize("levels", [16, 60])
@pytest.mark.parametrize(
    ("first", "double"),
    [
        ("hello", "'{0}{0}'"),
        ("[1]", "['{0}', '{0}']"),
        ("{{b: 1}}", "{{left: '{0}', right: '{0}'}}"),
    ],
    ids=["texts", "lists", "sections"],
)
def test_doubled_references_are_an_error(
    base: Path, registry: Registry, bounded: None, levels: int, first: str, double: str
) -> None:
    lines = [f"  a0: {first.format()}"]
    for level in range(1, levels):
        below = f"${{x.a{level - 1}}}"
        lines.append(f"  a{level}: {double.format(below)}")
    lines += [f"init: '${{x.a{levels - 1}}}'"]
    path = write(base.parent / "bad.yaml", "\n".join(["extends: base.yaml", "x:", *lines]))
    unresolved = [problem for problem in check(path, registry) if "cannot resolve" in problem.message]
    words = ("10000 characters", f"{MAX_VALUES} values")
    assert unresolved and all(any(word in problem.message for word in words) for problem in unresolved)


@pytest.mark.parametrize(
    "text",
    [200 * "${", 200 * "${" + "a" + 200 * "}", 200 * "${oc.env:" + "A" + 200 * "}"],
    ids=["open", "closed", "variables"],
)
def test_references_inside_references_are_bounded(
    base: Path, registry: Registry, bounded: None, text: str
) -> None:
    path = write(base.parent / "bad.yaml", f"extends: base.yaml\ninit: '{text}'\n")
    problem = only_problem(path, registry)
    assert "expected '${' at most 10 times in a value, got 200 times" in problem.message
    assert len(problem.message) < 300


def test_many_references_are_an_error(base: Path, registry: Registry, bounded: None) -> None:
    lines = [f"  a{n}: '${{seed}}'" for n in range(4 * MAX_REFERENCES)]
    path = write(base.parent / "bad.yaml", "\n".join(["extends: base.yaml", "seed: 1", "x:", *lines]))
    assert any(f"at most {MAX_REFERENCES} references" in found.message for found in check(path, registry))


def test_a_diamond_of_16_levels_is_read(base: Path, registry: Registry, bounded: None) -> None:
    for level in range(16):
        for side in "ab":
            below = f"[{level - 1}a.yaml, {level - 1}b.yaml]" if level else "base.yaml"
            write(base.parent / f"{level}{side}.yaml", f"extends: {below}\ntrain: {{seed: {level}}}\n")
    assert load_recipe(str(base.parent / "15b.yaml"), (), registry).train.seed == 15


@pytest.mark.parametrize("width", [1, 8])
def test_more_names_in_extends_are_an_error(
    base: Path, registry: Registry, bounded: None, width: int
) -> None:
    for level in range(2 * MAX_EXTENDS):
        below = [f"{level - 1}.yaml" if level else "base.yaml"] * width
        write(base.parent / f"{level}.yaml", f"extends: [{', '.join(below)}]\n")
    problem = only_problem(base.parent / f"{2 * MAX_EXTENDS - 1}.yaml", registry)
    assert f"at most {MAX_EXTENDS} names in all 'extends' of a recipe" in problem.message


def test_many_names_in_one_extends_are_an_error(base: Path, registry: Registry, bounded: None) -> None:
    names = ", ".join(f"none{n}" for n in range(2 * MAX_EXTENDS))
    path = write(base.parent / "bad.yaml", f"extends: [{names}]\n")
    assert f"at most {MAX_EXTENDS} names" in only_problem(path, registry).message


def test_a_file_of_two_branches_is_reported_once(base: Path, registry: Registry) -> None:
    write(base.parent / "broken.yaml", "extends: base.yaml\ntrain: [\n")
    for side in "ab":
        write(base.parent / f"{side}.yaml", "extends: broken.yaml\n")
    path = write(base.parent / "top.yaml", "extends: [a.yaml, b.yaml]\n")
    assert "invalid YAML" in only_problem(path, registry).message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (20 * ["x"] + ["k: " + 5_000 * "[],"], f"at most {MAX_CHARACTERS} characters in a recipe"),
        (["k: [" + 500 * "1," + "]"], f"expected at most {MAX_VALUES} values"),
    ],
    ids=["characters", "values"],
)
def test_the_files_of_a_recipe_have_bounds_together(
    base: Path, registry: Registry, bounded: None, lines: list[str], message: str
) -> None:
    names = [write(base.parent / f"{n}.yaml", "\n".join(lines)).name for n in range(20)]
    path = write(base.parent / "all.yaml", f"extends: [base.yaml, {', '.join(names)}]\n")
    found = [problem for problem in check(path, registry) if message in problem.message]
    assert found and len(found) <= len(names)


@pytest.mark.parametrize("size", [10**9 + 1, 10**12, 2**62])
def test_enormous_numbers_are_errors(base: Path, registry: Registry, bounded: None, size: int) -> None:
    keys = [
        *(
            f"train.{key}"
            for key in ("steps", "batch_size", "accumulation", "warmup", "max_length", "workers")
        ),
        *(f"train.{key}" for key in ("log_every", "save_every")),
        *(f"generation.{key}" for key in ("steps", "max_tokens", "max_images", "top_k", "log_probs")),
        *("model.dream_queries", "model.vision_encoder.config.hidden_size"),
        *(f"model.language_model.config.{key}" for key in ("max_position_embeddings", "num_hidden_layers")),
        "model.image_decoder.config.unet.block_out_channels.0",
    ]
    found = check(base, registry, *(f"{key}={size}" for key in keys))
    assert {problem.key for problem in found if "at most" in problem.message} == {*keys}


def test_a_million_layers_are_an_error(base: Path, registry: Registry) -> None:
    key = "model.language_model.config.num_hidden_layers"
    (problem,) = check(base, registry, f"{key}=1000000")
    assert problem.key == key and "expected at most 1000, got 1000000" in problem.message


@pytest.mark.parametrize("size", [2**20 + 1, 10**9, 10**12])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mlp", ["depth", "hidden_dim"]),
        ("resampler", ["tokens", "depth", "width", "heads"]),
        ("mapper", ["tokens", "depth", "width", "heads"]),
        ("encoder", ["depth", "width", "heads"]),
    ],
)
def test_an_enormous_projector_is_an_error(
    base: Path, registry: Registry, bounded: None, name: str, keys: list[str], size: int
) -> None:
    section = ", ".join(f"{key}: {size}" for key in keys)
    found = check(base, registry, f"model.condition_projector={{name: {name}, {section}}}")
    assert {problem.key for problem in found} == {f"model.condition_projector.{key}" for key in keys}
    assert all("expected at most" in problem.message for problem in found)


@pytest.mark.parametrize("width", [2**20, 999_983])
def test_the_heads_of_a_wide_projector_are_found_at_once(bounded: None, width: int) -> None:
    heads = head_count(width, None)
    assert width % heads == 0


def test_an_enormous_run_is_an_error(base: Path, registry: Registry) -> None:
    problem = only_problem(base, registry, "train.steps=1000000000", "train.batch_size=1000000")
    assert problem.key == "train" and "documents in a run, got 1000000000000000" in problem.message


def test_a_flood_of_problems_is_counted(base: Path, registry: Registry) -> None:
    lines = [f"x{n}: 1" for n in range(MOST_SHOWN + 150)]
    path = write(base.parent / "bad.yaml", "\n".join(["extends: base.yaml", *lines]))
    shown = str(RecipeError(problems(path, registry))).splitlines()
    assert shown[0] == f"the recipe has {MOST_SHOWN + 150} problems:" and shown[-1] == "  and 150 more"
    assert len(shown) == MOST_SHOWN + 2
