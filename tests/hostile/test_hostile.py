"""A hostile file ends any command with a sentence and exit code 2, or does no harm.

`table.ROWS` lists the files of each command. .ci/full runs ten times as many examples, and others in each run.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from typer.models import OptionInfo

from dreamkit.registry.registry import Registry
from every_command import COMMANDS
from hostile.mutations import Mutation, mutated, mutations, right_hash
from hostile.running import Outcome, run
from hostile.table import OUT, READ_NO_FILE, ROWS, Row
from hostile.workspace import write_workspace

PROCESSES = 24
WHOLE_OR_NOT = (
    "cache",
    "import-published",
    "merge-adapters",
    "new-plugin",
    "plan",
)  # write only when they succeed
CLEAR_SCREEN = "\x1b[2J"  # among the mutations


class Example(NamedTuple):
    """A mutation of one of a row's files, counted modulo their number; a right hash may stand in the manifest."""

    file: int
    has_right_hash: bool
    mutation: Mutation


EXAMPLES = st.builds(Example, st.integers(0, 999), st.booleans(), mutations())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the working folder of all commands, on whose path a plug-in is installed."""
    root = write_workspace(tmp_path_factory.mktemp("hostile") / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(root / "site")
        assert run("cache", "recipe.yaml", "--out", "cache").code == 0
        gc.collect()
        gc.freeze()  # each training collects garbage, among the many objects of torch
        yield root
        gc.unfreeze()


def remove(out: Path) -> None:
    """Remove the file or folder that a command wrote, if it did."""
    for path in (out, out.with_suffix(".yaml")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def arranged(row: Row, root: Path, example: Example | None = None) -> Iterator[list[str]]:
    """Mutate a file of the workspace until the end, if there is an example; yield the command line."""
    out, pristine = root.parent / "out", root.parent / "pristine"
    with ExitStack() as stack:
        if row.writes is not None:
            shutil.copytree(root / row.writes, pristine)
            stack.callback(pristine.rename, root / row.writes)
            stack.callback(shutil.rmtree, root / row.writes)
        stack.callback(remove, out)
        if example is not None:
            paths = row.paths(root)
            path = paths[example.file % len(paths)]
            mutation = example.mutation
            if path.parent.suffix == ".dist-info" and mutation.kind == "named pipe":
                mutation = Mutation("missing")  # importlib.metadata, and so every program, waits for a pipe
            stack.enter_context(mutated(path, mutation))
            if row.verified is not None and example.has_right_hash:
                stack.enter_context(right_hash(root / row.verified, path))
        yield [*row.command.split(), *(word.replace(OUT, str(out)) for word in row.arguments)]


def assert_harmless(row: Row, root: Path, outcome: Outcome) -> None:
    """Assert that a command ended as it may: with a right exit code, a sentence, and nothing half written."""
    assert outcome.code in row.codes, f"{outcome.code}: {outcome.trace or outcome.err}"
    printed = outcome.out + outcome.err
    assert "Traceback" not in printed and CLEAR_SCREEN not in printed
    if outcome.code == 2:
        assert "dreamkit: " in outcome.err or "Usage: " in outcome.err
        written = [path.name for path in root.parent.iterdir() if path.name.strip(".").startswith("out")]
        assert row.command not in WHOLE_OR_NOT or not written


def try_examples(row: Row, root: Path, count: int, *, same: bool) -> None:
    """Run the command of a row on `count` mutations of its files: with `same`, on those of each earlier run."""
    with arranged(row, root) as command:
        outcome = run(*command)
    assert outcome.code == 0, f"the command works on the whole files: {outcome}"

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=same,
        database=None,
        phases=[Phase.generate],  # an example is small; to shrink it takes minutes
        print_blob=not same,
        suppress_health_check=list(HealthCheck),
    )
    @given(EXAMPLES)
    def is_harmless(example: Example) -> None:
        with arranged(row, root, example) as command:
            assert_harmless(row, root, run(*command))

    is_harmless()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_file_is_refused_in_a_sentence_or_does_no_harm(row: Row, workspace: Path) -> None:
    try_examples(row, workspace, row.examples, same=True)


@pytest.mark.full
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_ten_times_as_many_hostile_files_do_no_harm(row: Row, workspace: Path) -> None:
    try_examples(row, workspace, 10 * row.examples, same=False)


@settings(max_examples=PROCESSES, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(st.sampled_from(ROWS), EXAMPLES)
def check_process(root: Path, row: Row, example: Example) -> None:
    with arranged(row, root, example) as command:
        process = subprocess.run(
            [sys.executable, "-m", "dreamkit", *command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
        assert_harmless(row, root, Outcome(process.returncode, process.stdout, process.stderr))


def test_a_few_dozen_hostile_files_end_a_process_in_the_same_way(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    check_process(workspace)


def test_the_examples_are_a_thousand() -> None:
    assert sum(row.examples for row in ROWS) == 1000


def test_every_command_is_in_the_table() -> None:
    listed = {row.command for row in ROWS}
    assert listed | READ_NO_FILE.keys() == COMMANDS.keys() and not listed & READ_NO_FILE.keys()


def path_options(name: str) -> set[str]:
    """Return the options of a command, except the folder to write, that are paths; a row has all its arguments."""
    hints = get_type_hints(Registry.load().get("command", name), include_extras=True)
    return {
        f"--{key}"
        for key, hint in hints.items()
        if key != "out"
        and Path in flattened(hint)
        and any(isinstance(each, OptionInfo) for each in getattr(hint, "__metadata__", ()))
    }


def flattened(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in get_args(hint):
        yield from flattened(inner)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_option_of_a_command_is_in_the_table(name: str) -> None:
    assert path_options(name) <= {word for row in ROWS if row.command == name for word in row.arguments}


def test_the_path_options_of_a_command_are_found() -> None:
    assert path_options("generate") == {"--image"} and path_options("plugins") == set()
