"""The contract kit under pytest: names, skips, expected failures, and the text of a failure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreamkit.testing import contracts


def pytest_on(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    if text:
        (folder / "test_part.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


PART = """
import sys
sys.path.insert(0, {tests!r})
from dreamkit.parts.projectors import Linear
from dreamkit.testing import contracts
from meta.breaking import with_method, drops_the_batch_dimension

class Sound(Linear):
    def dense_layers(self):
        return None

@contracts.parametrize("projector", contracts.tiny_part({part}), {expected!r}, quick=True)
def test_contract(check):
    check()
"""


def contract_test(part: str, **expected: str) -> str:
    return PART.format(tests=str(Path(__file__).parents[1]), part=part, expected=expected)


POOL = """
from dataclasses import dataclass
from dreamkit import Projector, ProjectorSpec
from torch import nn

class Pool(Projector):
    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config, spec):
        super().__init__()
        self.config, self.spec = config, spec
        self.layer = nn.Linear(spec.in_dim, spec.out_dim)

    @classmethod
    def infer_spec(cls, config, *, in_dim, in_tokens, out_dim):
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=in_tokens)

    @classmethod
    def from_config(cls, config, spec):
        return cls(config, spec)

    def forward(self, tokens):
        return self.layer(tokens)
"""
TEST = """
from dreamkit.testing import contracts
from pool import Pool

@contracts.parametrize("projector", {build}, {{"light_import": "nothing registers it"}}, quick=True)
def test_contract(check):
    check()
"""
MOST_LINES = 15  # of a failure


def pool_with(folder: Path, right: str, wrong: str, build: str = "contracts.tiny_part(Pool)") -> int:
    """Write the part with a mistake, and its contract test; return the line of the mistake's last line."""
    assert POOL.count(right) == 1
    text = POOL.replace(right, wrong)
    (folder / "pool.py").write_text(text)
    (folder / "test_part.py").write_text(TEST.format(build=build))
    return text[: text.index(wrong) + len(wrong)].count("\n") + 1


def failures(stdout: str) -> dict[str, list[str]]:
    """Return the lines that pytest prints for each failure, by the name of the check."""
    (shown,) = re.findall(r"^=+ FAILURES =+\n(.*?)^=+ ", stdout, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^_+ test_contract\[(\w+)\] _+\n", shown, flags=re.MULTILINE)[1:]
    return {name: text.splitlines() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_under_pytest_each_check_is_a_test_with_its_name(tmp_path):
    run = pytest_on(tmp_path, "-k", "determinism or dense_layers", text=contract_test("Sound"))
    assert run.returncode == 0, run.stdout
    assert "PASSED test_part.py::test_contract[determinism]" in run.stdout
    assert re.search(r"SKIPPED .*its dense_layers\(\) returns None: it is more than matrices", run.stdout)
    assert "1 passed, 1 skipped" in run.stdout


def test_under_pytest_a_failure_prints_the_command_that_repeats_it(tmp_path):
    text = contract_test('with_method(Sound, "forward", drops_the_batch_dimension)')
    run = pytest_on(tmp_path, "-k", "batch_of_one", text=text)
    assert run.returncode == 1
    assert 'repeat it with: pytest "test_part.py::test_contract[batch_of_one]"' in run.stdout
    # the kit's own lines do not help the author
    assert "class Check" not in run.stdout and "def test(" not in run.stdout


def test_under_pytest_an_expected_failure_that_passes_is_an_error(tmp_path):
    run = pytest_on(tmp_path, "-k", "determinism", text=contract_test("Sound", determinism="it rolls dice"))
    assert run.returncode == 1 and "XPASS(strict)" in run.stdout
    text = contract_test('with_method(Sound, "forward", drops_the_batch_dimension)', batch_of_one="known")
    run = pytest_on(tmp_path, "-k", "batch_of_one", text=text)
    assert run.returncode == 0 and "XFAIL test_part.py::test_contract[batch_of_one] - known" in run.stdout


def test_under_pytest_a_mistake_is_reported_once_with_its_line_first(tmp_path):
    line = pool_with(tmp_path, "self.layer(tokens)", "self.layer(tokens.reshape(-1, 7))")
    run = pytest_on(tmp_path)
    first, *others = failures(run.stdout).values()
    assert first == [
        f"pool.py:{line}: RuntimeError: shape '[-1, 7]' is invalid for input of size 768",
        "  spec_agrees: A part's output is finite and has the shape in its spec.",
        "  during forward(tokens of shape (2, 16, 24))",
        "  smallest failing input: case=Case(rows=2, length=2, seed=0)",
        '  repeat it with: pytest "test_part.py::test_contract[spec_agrees]"',
        "  pytest --full-trace shows the whole traceback",
    ]
    assert len(others) > 10
    assert all(other == [f"the same error as in `spec_agrees`, at pool.py:{line}"] for other in others)
    assert "dreamkit/testing" not in run.stdout and "Falsifying" not in run.stdout
    assert len(run.stdout.splitlines()) < 100


def test_under_pytest_full_trace_shows_the_traceback(tmp_path):
    pool_with(tmp_path, "self.layer(tokens)", "self.layer(tokens.reshape(-1, 7))")
    run = pytest_on(tmp_path, "--full-trace", "-k", "spec_agrees")
    assert "def test_contract(check):" in run.stdout and "dreamkit/testing/check.py" in run.stdout
    assert re.search(r"^>       return self\.layer\(tokens\.reshape", run.stdout, re.MULTILINE)


def test_under_pytest_a_chain_of_errors_is_short(tmp_path):
    wrong = """
        try:
            return {}["layer"]
        except KeyError as error:
            raise ValueError("no layer") from error"""
    line = pool_with(tmp_path, "\n        return self.layer(tokens)", wrong)
    run = pytest_on(tmp_path, "-k", "spec_agrees or determinism")
    shown = failures(run.stdout)
    assert shown["spec_agrees"][0] == f"pool.py:{line}: ValueError: no layer"
    assert len(shown["spec_agrees"]) < MOST_LINES and len(shown["determinism"]) == 1
    assert "KeyError" not in run.stdout


@pytest.mark.parametrize("build", ["contracts.tiny_part(Pool)", "lambda: Pool(None, None)"])
def test_under_pytest_a_part_that_cannot_be_built_is_reported_once(tmp_path, build):
    wrong = 'super().__init__()\n        {}["weights"]'
    line = pool_with(tmp_path, "super().__init__()", wrong, build)
    run = pytest_on(tmp_path)
    first, *others = failures(run.stdout).values()
    assert first[0] == f"pool.py:{line}: build() failed: KeyError: 'weights'" and len(first) < MOST_LINES
    assert all(other == [f"the same error as in `spec_agrees`, at pool.py:{line}"] for other in others)
    # also light_import: an error of build() is not its expected failure
    assert len(others) == len(contracts.checks("projector")) - 1
