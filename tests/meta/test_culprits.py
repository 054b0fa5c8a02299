"""Every check has a culprit: a part or data set that fails this check and no other."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from dreamkit.testing import contracts
from meta.culprits import CULPRITS, MORE_CULPRITS
from meta.installing import hook, install
from meta.parts import BASES, SOUND

ALL_CULPRITS = [
    (kind, check, part) for kind, culprits in CULPRITS.items() for check, part in culprits.items()
] + MORE_CULPRITS
IDS = [f"{kind}-{check}-{part.__name__}" for kind, check, part in ALL_CULPRITS]


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install two plug-ins: one with the base classes of culprits, and one whose hook module imports torch."""
    folder = tmp_path_factory.mktemp("site")
    bases = [(kind, f"{base.__module__}:{base.__qualname__}") for kind, base in BASES.items()]
    install(folder, "meta_bases", "".join(hook(kind, f"base-{kind}", target) for kind, target in bases))
    heavy = [
        hook(kind, f"heavy-{kind}", f"meta_heavy.parts:Heavy{base.__name__}") for kind, base in BASES.items()
    ]
    parts = [
        f"from {base.__module__} import {base.__name__}\nclass Heavy{base.__name__}({base.__name__}): pass\n"
        for base in BASES.values()
    ]
    install(folder, "meta_heavy", "import torch\n" + "".join(heavy), "".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def example(kind: str, cls: type) -> Any:
    """Return what the kit tries of a class."""
    return contracts.tiny_dataset(cls) if kind == "dataset" else contracts.tiny_part(cls)


@pytest.mark.parametrize("kind", CULPRITS)
def test_every_check_has_a_culprit(kind: str) -> None:
    assert {check.name for check in contracts.checks(kind)} == {*CULPRITS[kind], "light_import"}


def same_file(kind: str, name: str) -> list[str]:
    """Return the names of the checks of a kind in the file of the check `name`."""
    (file,) = {check.run.__module__ for check in contracts.checks(kind) if check.name == name}
    return [check.name for check in contracts.checks(kind) if check.run.__module__ == file]


@pytest.mark.parametrize(("kind", "check", "part"), ALL_CULPRITS, ids=IDS)
def test_a_culprit_fails_its_own_check_and_no_other_of_the_file(kind: str, check: str, part: type) -> None:
    report = contracts.verify(kind, example(kind, part), only=same_file(kind, check), quick=True)
    assert [outcome.check for outcome in report.failures] == [check], str(report)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "check", "part"), ALL_CULPRITS, ids=IDS)
def test_a_culprit_fails_only_its_own_check(kind: str, check: str, part: type) -> None:
    report = contracts.verify(kind, example(kind, part), quick=True)
    assert [outcome.check for outcome in report.failures] == [check], str(report)


@pytest.mark.parametrize("kind", BASES)
def test_a_plug_in_that_imports_torch_fails_only_light_import(kind: str) -> None:
    part = getattr(importlib.import_module("meta_heavy.parts"), f"Heavy{BASES[kind].__name__}")
    report = contracts.verify(kind, example(kind, part), quick=True)
    assert [outcome.check for outcome in report.failures] == ["light_import"], str(report)
    assert "meta_heavy imports torch" in report.failures[0].message


@pytest.mark.parametrize("kind", BASES)
def test_the_base_class_of_culprits_passes_every_check(kind: str) -> None:
    report = contracts.verify(kind, example(kind, BASES[kind]))
    assert report.ok, str(report)


@pytest.mark.parametrize(("kind", "part"), SOUND, ids=[f"{kind}-{part.__name__}" for kind, part in SOUND])
def test_an_unusual_part_passes_every_check(kind: str, part: type) -> None:
    report = contracts.verify(kind, example(kind, part), quick=True)
    assert report.ok, str(report)
