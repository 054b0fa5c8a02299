"""Working and broken plug-ins: real distributions, which pip installs into a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreamkit.errors import PluginError, RecipeError
from dreamkit.parts.projector import Projector
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry import core
from dreamkit.registry.kinds import KINDS
from dreamkit.registry.registry import Registry
from meta.installing import write_wheel
from tiny import recipe

HOOKS = "from dreamkit import Component, hookimpl\n"
PROJECTOR = "from dreamkit.parts.projectors import Linear\n\nclass {name}(Linear):\n    pass\n"


def hook_of(target: str, name: str, hook: str = "dreamkit_projectors", arguments: str = "") -> str:
    """Return the source of a hook that returns one component."""
    return f"{HOOKS}\n@hookimpl\ndef {hook}({arguments}):\n    return [Component({name!r}, {target!r}, 'a summary')]\n"


# distribution -> {file of its package: source}; the package is the distribution's name with underscores
DISTRIBUTIONS = {
    "good": {"__init__.py": hook_of("good.parts:Good", "good"), "parts.py": PROJECTOR.format(name="Good")},
    "no-import": {"__init__.py": "import a_library_nobody_has\n" + hook_of("no_import:A", "no-import")},
    "exits": {"__init__.py": "raise SystemExit('bye')\n"},
    "misspelled": {
        "__init__.py": hook_of("misspelled.parts:A", "misspelled", hook="dreamkit_projector")
        + hook_of("misspelled.parts:B", "well-spelled"),
        "parts.py": PROJECTOR.format(name="B"),
    },
    "argument": {"__init__.py": hook_of("argument.parts:A", "argument", arguments="recipe")},
    "twin-one": {
        "__init__.py": hook_of("twin_one.parts:Twin", "twin"),
        "parts.py": PROJECTOR.format(name="Twin"),
    },
    "twin-two": {
        "__init__.py": hook_of("twin_two.parts:Twin", "twin"),
        "parts.py": PROJECTOR.format(name="Twin"),
    },
    "no-class": {
        "__init__.py": hook_of("no_class.parts:Gohst", "ghost"),
        "parts.py": PROJECTOR.format(name="Ghost"),
    },
    "no-module": {"__init__.py": hook_of("no_module.nowhere:A", "nowhere")},
    "no-form": {"__init__.py": hook_of("no_form.parts.A", "no-form")},
    "lazy": {
        "__init__.py": hook_of("lazy.parts:Lazy", "lazy"),
        "parts.py": "def __getattr__(name):\n    from dreamkit.parts.projectors import Linear\n    return Linear\n",
    },
    "no-hook": {"__init__.py": "def dreamkit_projectors():\n    return []\n"},
    "raises": {
        "__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_projectors():\n    raise RuntimeError('oh no')\n"
    },
    "no-list": {"__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_projectors():\n    return 'good'\n"},
    "base-exception": {"__init__.py": "class Unusual(BaseException): pass\nraise Unusual('bye')\n"},
    "base-raises": {
        "__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_projectors():\n    raise BaseException('oh no')\n"
    },
    "no-return": {"__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_datasets():\n    []\n"},
    "no-repr": {
        "__init__.py": f"{HOOKS}\nclass Odd:\n    def __repr__(self): raise RuntimeError('no words')\n"
        "\n@hookimpl\ndef dreamkit_projectors():\n    return Odd()\n"
    },
    "twice": {
        "__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_projectors():\n"
        "    return [Component('twice', f'twice.parts:{name}') for name in 'AB']\n",
        "parts.py": PROJECTOR.format(name="A") + PROJECTOR.format(name="B"),
    },
    "empty-name": {"__init__.py": hook_of("good.parts:Good", "")},
    "two-lines": {"__init__.py": hook_of("good.parts:Good", "two\nlines")},
    "function": {
        "__init__.py": hook_of("function.parts:make", "function"),
        "parts.py": "def make():\n    pass\n",
    },
    "leads-out": {"__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_recipes():\n    return 'pluggy:../..'\n"},
    "no-recipes": {"__init__.py": f"{HOOKS}\n@hookimpl\ndef dreamkit_recipes():\n    return 'pluggy:x'\n"},
    "abstract": {
        "__init__.py": hook_of("abstract.parts:Part", "abstract"),
        "parts.py": "from dataclasses import dataclass\nfrom dreamkit import Projector\n\n"
        "class Part(Projector):\n    @dataclass(frozen=True)\n    class Config:\n        pass\n",
    },
    "base-late": {
        "__init__.py": hook_of("base_late.parts:Late", "base-late"),
        "parts.py": "raise BaseException('too late')\nclass Late: pass\n",
    },
    "late": {
        "__init__.py": hook_of("late.parts:Late", "late"),
        "parts.py": "import a_library_nobody_has\nLate = 1\n",
    },
    "other-kind": {
        "__init__.py": hook_of("other_kind.parts:Other", "other-kind"),
        "parts.py": "class Other:\n    pass\n",
    },
}


def plug_in_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    package = name.replace("-", "_")
    inside = {f"{package}/{file}": source for file, source in files.items()}
    return write_wheel(folder, name, "1.2", inside, f"[dreamkit.plugins]\n{package} = {package}\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install all distributions into a folder."""
    wheels = tmp_path_factory.mktemp("wheels")
    target = tmp_path_factory.mktemp("installed")
    paths = [str(plug_in_wheel(wheels, name, files)) for name, files in DISTRIBUTIONS.items()]
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *paths], check=True)
    return target


@pytest.fixture
def registry(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(installed))
    return Registry.load()


def dreamkit(installed: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dreamkit", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


PROBLEMS = {
    "no-import": "No module named 'a_library_nobody_has'",
    "exits": "SystemExit: bye",
    "misspelled": "unknown hook 'dreamkit_projector'; did you mean 'dreamkit_projectors'?",
    "argument": "{'recipe'}",
    "twin-one": "projector 'twin' is also registered by twin-two 1.2",
    "twin-two": "projector 'twin' is also registered by twin-one 1.2",
    "no-form": "projector 'no-form': expected a target of the form 'module:name', got 'no_form.parts.A'",
    "no-hook": "no hook is implemented; decorate functions of no_hook with dreamkit.hookimpl",
    "raises": "dreamkit_projectors failed: RuntimeError: oh no",
    "no-list": "expected dreamkit.Components of strings from dreamkit_projectors, got 'good'",
    "base-exception": "importing base_exception failed: Unusual: bye",
    "base-raises": "dreamkit_projectors failed: BaseException: oh no",
    "no-return": "dreamkit_datasets returned None; a `return` may be missing",
    "no-repr": "reading the plug-in failed: RuntimeError: no words",
    "twice": "projector 'twice' is registered more than once; remove one",
    "empty-name": "projector '': expected one word of letters, digits and '-'",
    "two-lines": "projector 'two\\nlines': expected one word of letters, digits and '-'",
    "leads-out": "'../..' leads out of package 'pluggy'",
    "no-recipes": "package 'pluggy' is installed, but there is no folder",
}


def test_a_broken_plugin_is_listed_and_does_not_affect_another(installed: Path) -> None:
    listed = dreamkit(installed, "plugins")
    assert listed.returncode == 1, listed.stderr
    assert "Traceback" not in listed.stdout + listed.stderr
    problems = {
        line for line in listed.stdout.splitlines() if line.startswith("problem: ") and " 1.2: " in line
    }
    for name, message in PROBLEMS.items():
        entry_point = name.replace("-", "_")
        mine = [p for p in problems if p.startswith(f"problem: plug-in '{entry_point}' of {name} 1.2: ")]
        assert len(mine) == 1 and message in mine[0], (name, listed.stdout)
    assert len(problems) == len(PROBLEMS)
    components = [line.split()[:3] for line in listed.stdout.splitlines() if line not in problems]
    distributions = {"good": "good", "well-spelled": "misspelled", "linear": "dreamkit-core"}
    for name, distribution in distributions.items():
        assert ["projector", name, distribution] in components


def test_listing_plugins_imports_no_heavy_library(installed: Path) -> None:
    code = (
        "import sys; from dreamkit.cli import main; sys.argv = ['dreamkit', 'plugins']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'peft', 'no_class.parts'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["no-import", "misspelled", "argument", "no-form"])
def test_the_error_about_an_unknown_name_lists_broken_plugins(registry: Registry, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(recipe(**{"model.visual_projector": {"name": name}}), registry)
    message = str(caught.value)
    assert f"model.visual_projector.name: unknown projector '{name}'" in message
    assert f"of {name} 1.2: " in message and PROBLEMS[name] in message


# component -> error
WRONG_TARGETS = {
    "ghost": "'ghost' of no-class 1.2: module 'no_class.parts' has no 'Gohst'; did you mean 'Ghost'?",
    "nowhere": "'nowhere' of no-module 1.2: importing no_module.nowhere:A failed: ModuleNotFoundError: No module named",
    "function": "'function' of function 1.2: function.parts:make is not a subclass of dreamkit.Projector",
    "late": "'late' of late 1.2: importing late.parts:Late failed: ModuleNotFoundError",
    "base-late": "'base-late' of base-late 1.2: importing base_late.parts:Late failed: BaseException: too late",
    "other-kind": "'other-kind' of other-kind 1.2: other_kind.parts:Other is not a subclass of dreamkit.Projector",
    "abstract": "'abstract' of abstract 1.2: abstract.parts:Part lacks forward, from_config, infer_spec; implement",
}


@pytest.mark.parametrize("name", WRONG_TARGETS)
def test_an_invalid_class_is_an_error_when_it_is_looked_up(registry: Registry, name: str) -> None:
    assert name in registry.components("projector")
    with pytest.raises(PluginError, match=re.escape(f"projector {WRONG_TARGETS[name]}")) as caught:
        registry.get("projector", name)
    assert "\n" not in str(caught.value)


def test_a_missing_class_is_an_error_with_file_line_and_key(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  visual_projector: {name: ghost}\n")
    run = dreamkit(installed, "check", str(path))
    assert run.returncode == 2
    assert f"{path}:2: model.visual_projector.name: projector {WRONG_TARGETS['ghost']}" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_clash_names_both_distributions(registry: Registry) -> None:
    with pytest.raises(
        PluginError, match=r"projector 'twin' is registered by twin-one 1\.2 and by twin-two 1\.2"
    ):
        registry.get("projector", "twin")
    assert "twin" not in registry.components("projector")


def test_a_module_may_create_its_class_lazily(registry: Registry) -> None:
    assert issubclass(registry.get("projector", "lazy"), Projector)


def test_a_registered_component_has_its_class_and_distribution(registry: Registry) -> None:
    assert issubclass(registry.get("projector", "good"), Projector)
    registered = registry.components("projector")["good"]
    assert (registered.distribution, registered.version, registered.entry_point) == ("good", "1.2", "good")


def test_the_nearest_name_is_suggested(registry: Registry) -> None:
    with pytest.raises(PluginError, match="unknown projector 'liner'; did you mean 'linear'"):
        registry.get("projector", "liner")


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        ("good", {"good"}),
        ("good,core", {"good", *(component.name for component in core.dreamkit_projectors())}),
        ("", set()),
    ],
)
def test_the_allow_list_limits_the_loaded_plugins(
    installed: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, names: set[str]
) -> None:
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("DREAMKIT_PLUGINS", allowed)
    registry = Registry.load()
    assert set(registry.components("projector")) == names
    assert registry.problems == ()


def test_the_allow_list_resolves_a_clash(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("DREAMKIT_PLUGINS", "twin_one")
    assert Registry.load().get("projector", "twin").__module__ == "twin_one.parts"


def test_an_allowed_plugin_that_is_not_installed_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_PLUGINS", "core,cor")
    (problem,) = Registry.load().problems
    assert "DREAMKIT_PLUGINS" in str(problem) and "did you mean 'core'?" in str(problem)


def test_the_installed_first_party_plugins_have_no_problems() -> None:
    registry = Registry.load()
    assert registry.problems == ()
    for kind in KINDS:
        for name in registry.components(kind):
            assert registry.get(kind, name).__name__
