"""Damaged metadata of one distribution does not affect the plug-ins of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamkit.registry.kinds import KINDS
from dreamkit.registry.registry import Registry, distributions
from meta.installing import install


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("entry_points.txt", b"[dreamkit.plugins]\nno equals sign\n", "cannot read entry_points.txt: "),
        ("entry_points.txt", b"\xff\xfe", "cannot read entry_points.txt: UnicodeDecodeError"),
        ("METADATA", b"Name: \xff\n", "cannot read METADATA: UnicodeDecodeError"),
        ("METADATA", b"Metadata-Version: 2.1\n", "cannot read METADATA: it has no Name"),
        ("METADATA", b"", "cannot read METADATA: it has no Name"),
    ],
)
def test_damaged_metadata_is_a_problem_of_its_distribution_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes, reason: str
) -> None:
    before = Registry.load()
    install(tmp_path, "damaged_plugin", "")
    (tmp_path / "damaged_plugin-1.0.dist-info" / file).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry.load()
    (problem,) = registry.problems
    assert reason in str(problem) and "damaged_plugin-1.0.dist-info" in str(problem)
    for kind in KINDS:
        assert registry.components(kind).keys() == before.components(kind).keys()
    assert "dreamkit-core" in distributions()


def test_a_folder_named_like_a_recipe_is_not_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = "\n@hookimpl\ndef dreamkit_recipes():\n    return 'with_folder:recipes'\n"
    install(tmp_path, "with_folder", hooks)
    (tmp_path / "with_folder/recipes/folder.yaml").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry.load()
    assert registry.problems == () and "folder" not in registry.recipes()
