"""URLs in recipes: they stay as they are written, and none with credentials is read."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dreamkit import DreamkitError, Url, location
from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.sections import plain
from dreamkit.recipe.tree import Node
from dreamkit.storage.urls import is_url

OBJECT = "s3://bucket/laion/{00000..00003}.tar"


@dataclass(frozen=True)
class Section:
    path: Path | Url | list[Path | Url]
    other: Path | None = None
    texts: list[str] = field(default_factory=list)


def read(values, folder, stored=False):
    reader = SchemaReader(stored=stored)
    section = reader.section(Section, Node.from_plain(values, "r.yaml:1", folder), "data.0")
    return section, [problem.message for problem in reader.problems]


def test_a_url_stays_as_it_is_written_and_a_path_starts_from_its_file(tmp_path):
    section, problems = read({"path": [OBJECT, "a.tar", "gs://b/c/"]}, tmp_path)
    assert not problems
    assert section.path == [Url(OBJECT), tmp_path / "a.tar", Url("gs://b/c/")]
    assert [type(each) for each in section.path] == [Url, type(Path()), Url]
    assert plain(section)["path"] == [OBJECT, str(tmp_path / "a.tar"), "gs://b/c/"]


def test_a_url_with_an_environment_variable_is_stored_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET", "s3://bucket")
    section, problems = read({"path": "${oc.env:BUCKET}/a.tar"}, tmp_path)
    assert not problems and section.path == Url("s3://bucket/a.tar")
    assert plain(section)["path"] == "${oc.env:BUCKET}/a.tar"
    copy = pickle.loads(pickle.dumps(section.path))
    assert (type(copy), copy, copy.scheme, copy.written) == (
        Url,
        "s3://bucket/a.tar",
        "s3",
        section.path.written,
    )


@pytest.mark.parametrize(
    "path",
    [
        "s3://me:hunter2@bucket/a.tar",
        "s3://hunter2@bucket/a",
        "abfs://a:hunter2@b/c",
        "https://h/a.tar?X-Amz-Signature=hunter2",
        "https://h/a.tar?hunter2/b",
        "s3://AKIA:hun/ter2hunter2@bucket/a.tar",
    ],
)
@pytest.mark.parametrize("form", [str, lambda path: [path], lambda path: "${oc.env:HIDDEN}"])
def test_a_url_with_credentials_is_refused_and_not_shown(path, form, tmp_path, monkeypatch):
    monkeypatch.setenv("HIDDEN", path)
    _, problems = read({"path": form(path)}, tmp_path)
    (problem,) = problems
    assert problem.startswith("expected a URL without a") and "hunter2" not in problem
    with pytest.raises(DreamkitError, match="expected a URL without a") as caught:
        Url(path)
    assert "hunter2" not in str(caught.value)


def test_a_key_of_local_paths_takes_no_url(tmp_path):
    _, problems = read({"path": "a.tar", "other": "s3://bucket/a"}, tmp_path)
    assert problems == ["expected a path of this machine, got a URL, which this key does not take"]


def test_a_value_that_is_neither_path_nor_url_is_refused_with_both_in_the_message(tmp_path):
    _, problems = read({"path": 3}, tmp_path)
    assert problems == [
        "expected a path, a URL or a list of paths or URLs, got 3 (integer); put it in quotes"
    ]
    assert read({"path": [OBJECT, 3]}, tmp_path)[1] == [
        "expected a path or a URL, got 3 (integer); put it in quotes"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/a", True),
        ("hf://datasets/a/b", True),
        ("memory://a", True),
        ("C:/b/a", False),
        ("./s3://b", False),
    ],
)
def test_a_url_begins_with_a_scheme(text, expected):
    assert is_url(text) is expected
    assert isinstance(location(text), Url) is expected


@pytest.mark.parametrize(("text", "name"), [("s3://b/c/a.tar", "a.tar"), ("s3://b/c/", "c"), ("S3://b", "b")])
def test_a_url_has_the_name_of_its_last_part(text, name):
    assert Url(text).name == name and Url(text).scheme == "s3"


def test_the_container_of_azure_is_no_user():
    assert Url("abfs://container@account.dfs.core.windows.net/a").name == "a"


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/0000?.tar",
        "s3://b/date=2020-0?-lang=en.parquet",
        "s3://b/notes #1.txt",
        "https://host:8080/a@2x.png",
    ],
)
def test_a_pattern_a_name_and_a_port_are_no_credentials(url):
    assert Url(url) == url


def test_a_scheme_has_small_letters():
    assert Url("S3://b/A") == "s3://b/A"


def test_a_url_with_one_slash_is_an_error_with_two(tmp_path):
    expected = "expected a URL with 's3://', got one with 's3:/'"
    assert read({"path": "s3:/b/a.tar"}, tmp_path)[1] == [expected]
    with pytest.raises(DreamkitError, match=expected):
        location("s3:/b/a.tar")
