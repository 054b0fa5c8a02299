"""Paths, folders, globs and braces that name the files of a data set."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit import DocumentError
from dreamkit_data import patterns
from dreamkit_data.patterns import matching_files


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder: Path, *paths: str) -> list[str]:
    files = matching_files([folder / path for path in paths], [".tar"])
    return [str(file.relative_to(folder)) for file in files]


braces = st.recursive(
    st.sampled_from(["a", "b", "0", "{1..3}", "{08..11}", "{3..1}", "{x}", "{", ".."]),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda items: f"{{{','.join(items)}}}")
        | st.tuples(inner, inner).map("".join)
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(braces)
def test_braces_expand_as_in_bash(pattern: str) -> None:
    bash = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert list(patterns._expand(pattern, 20)) == bash.stdout.splitlines()


def test_a_folder_names_its_files_of_the_format_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "b.tar", "a.tar", "a.parquet", ".hidden.tar", "inner/c.tar")
    assert names(tmp_path, ".") == ["a.tar", "b.tar"]


def test_globs_and_braces_keep_the_order_of_the_paths(tmp_path: Path) -> None:
    fill(tmp_path, "2.tar", "10.tar", "9.tar", "x/1.tar", "x/deep/1.tar", "[a].tar", "{a,b}.tar")
    assert names(tmp_path, "{9..10}.tar", "2*") == ["9.tar", "10.tar", "2.tar"]
    assert names(tmp_path, "x/**/*.tar") == ["x/1.tar", "x/deep/1.tar"]
    assert names(tmp_path, "{2,x/*}.tar") == ["2.tar", "x/1.tar"]
    assert names(tmp_path, "[a].tar", "{a,b}.tar") == ["[a].tar", "{a,b}.tar"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["c.tar"], "c.tar: no such file or folder; correct the path of the data set"),
        (
            ["{00..12}.tar"],
            "01.tar: no such file; 12 of 13 files are missing; correct the path of the data set",
        ),
        (["*.zip"], "*.zip: no such file"),
        (["empty"], "empty: no file named *.tar in this folder"),
        (["00.tar", "0*.tar"], "00.tar: expected each file once, got it twice"),
        (["{0..999999999999999999}"], "expected at most 1,000,000 files in a data set, got more"),
        (["{a,b}" * 21], "expected at most 20 braces in a path, got more"),
        ([], "expected the path of a data set, got an empty list"),
    ],
)
def test_paths_that_name_no_data_are_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    fill(tmp_path, "00.tar", "empty/a.txt")
    with pytest.raises(DocumentError, match=re.escape(message)):
        names(tmp_path, *paths)
