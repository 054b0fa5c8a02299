"""Requirements of plug-ins on dreamkit, in the metadata of real distributions."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from dreamkit.registry.registry import Registry
from meta.installing import write_wheel

HOOK = "from dreamkit import hookimpl\n\n@hookimpl\ndef dreamkit_projectors():\n    return []\n"
INSTALLED = version("dreamkit-core")
UNMET = f"but dreamkit-core {INSTALLED} is installed; install another version of one"
EARLIER = "which is another project on the package index; require dreamkit-core"

REQUIREMENTS = {
    "met": (["dreamkit-core>=0.1", "torch"], None),
    "of another": (["dreamkit-cores>=99", "dreamkit-diffusers>=99"], None),
    "none": ([], None),
    "newer": (["dreamkit-core>=99"], f"problem: {{}}requires dreamkit-core>=99, {UNMET}"),
    "older": (["dreamkit-core>=0.0.1,<0.1"], f"problem: {{}}requires dreamkit-core<0.1,>=0.0.1, {UNMET}"),
    "exact": (["dreamkit-core==0.0.9"], f"problem: {{}}requires dreamkit-core==0.0.9, {UNMET}"),
    "second": (
        ["dreamkit-core>=0.1", "dreamkit-core!=0.1.*"],
        f"problem: {{}}requires dreamkit-core!=0.1.*, {UNMET}",
    ),
    "another spelling": (["Dreamkit_Core (>=99)"], f"problem: {{}}requires Dreamkit_Core>=99, {UNMET}"),
    "with extras": (
        ["dreamkit-core[testing]>=99"],
        f"problem: {{}}requires dreamkit-core[testing]>=99, {UNMET}",
    ),
    "marker that applies": (
        ["dreamkit-core>=99; python_version >= '3.0'"],
        f"problem: {{}}requires dreamkit-core>=99, {UNMET}",
    ),
    "marker that does not apply": (["dreamkit-core>=99; python_version < '3.0'"], None),
    "extra": (['dreamkit-core[testing]>=99; extra == "test"', 'dreamkit; extra == "test"'], None),
    "earlier name": (["dreamkit>=0.1"], f"note: {{}}requires dreamkit>=0.1, {EARLIER}>=0.1"),
    "earlier name alone": (["dreamkit"], f"note: {{}}requires dreamkit, {EARLIER}"),
    "address": (["dreamkit-core @ https://example.org/dreamkit.whl"], None),
    "invalid": (
        ["dreamkit-core >>= 1"],
        "problem: {}reading its requirements failed: ValueError: invalid requirement",
    ),
}


@pytest.mark.parametrize(("requires", "expected"), REQUIREMENTS.values(), ids=REQUIREMENTS)
def test_plugins_names_a_requirement_that_the_installed_version_does_not_meet(
    run, requires: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(tmp_path, "one", "1.2", {"one.py": HOOK}, "[dreamkit.plugins]\none = one\n", requires)
    monkeypatch.syspath_prepend(str(wheel))
    monkeypatch.setenv("DREAMKIT_PLUGINS", "core,one")
    code, out, err = run("plugins")
    lines = [line for line in out.splitlines() if "plug-in 'one' of one 1.2: " in line]
    assert (code, err) == (1 if expected and expected.startswith("problem") else 0, "")
    if expected is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert lines[0].startswith(expected.format("plug-in 'one' of one 1.2: "))


def test_a_plugin_with_an_unmet_requirement_is_loaded_and_named_as_a_possible_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = HOOK.replace("import hookimpl", "import Component, hookimpl").replace(
        "[]", "[Component('one', 'dreamkit.parts.projectors.dense:Linear')]"
    )
    entry_points = "[dreamkit.plugins]\none = one\n"
    wheel = write_wheel(
        tmp_path, "one", "1.2", {"one.py": hook}, entry_points, ["dreamkit-core>=99", "dreamkit"]
    )
    monkeypatch.syspath_prepend(str(wheel))
    monkeypatch.delitem(__import__("sys").modules, "one", raising=False)
    registry = Registry.load()
    assert registry.components("projector")["one"].origin == "one 1.2"
    assert "requires dreamkit-core>=99" in registry.about_problems()
    assert EARLIER not in registry.about_problems()
