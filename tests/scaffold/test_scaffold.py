"""`dreamkit new-plugin`: its package installs and works; invalid requests are refused before it writes."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import site
import subprocess
import sys
import tomllib
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamkit.errors import DreamkitError, OutputError
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from dreamkit.scaffold import KINDS, LICENSES, new_plugin
from dreamkit.scaffold.package import REQUIREMENTS, TRAINED, compatible

ROOT = Path(__file__).parents[2]
MOST_LINES = 99
PARTS = [kind for kind in KINDS if KINDS[kind].is_part]
NAMES = {kind: f"dreamkit-fresh-{kind}" for kind in KINDS}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT.pop("DREAMKIT_PLUGINS", None)


def run_process(*command: object, cwd: Path) -> str:
    """Return the output of a command, which must succeed."""
    process = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, f"{command}:\n{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, Path]:
    """Write a package of each kind."""
    folder = tmp_path_factory.mktemp("written")
    for kind, name in NAMES.items():
        new_plugin(name, kind, folder / name, author="Ada $LOVELACE", registry=registry)
    return {kind: folder / name for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the python of a new environment, which also sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run_process(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    where = run_process(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # addsitedir also reads .pth files, so that editable installs are visible
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (Path(where.strip()) / "outer.pth").write_text("".join(lines))
    return python


# commands and contract test in one process, because importing torch takes most of their time
COMMANDS = """
import json, sys
from dreamkit.cli import app
commands, section, tests = json.loads(sys.argv[1])
for arguments in commands:
    if app(arguments, standalone_mode=False):
        sys.exit(f"{arguments} failed")

import torch
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.registry.registry import Registry
registry = Registry.load()
model, _ = load_checkpoint("run/checkpoint", registry)
trained, initial = (getattr(each, section) for each in (model, build(fit(model.recipe, registry))))
for (name, now), before in zip(trained.named_parameters(), initial.parameters(), strict=True):
    print("weights", "as built:" if torch.equal(now, before) else "trained:", name)

import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", tests]))
"""
# enough to train the rows of new tokens of a frozen language model to start an image after these words
FEW = ("train.steps=16", "train.global_batch=4", "train.learning_rate=0.1", "train.warmup=0")
DRAWING = "data=[{name: digits, documents: {drawing: 1}}]"
GENERATE = "generate drawing/checkpoint 'a one' --max-tokens 8 --max-images 1 --steps 2 --out doc"


def install_package(kind: str, folder: Path, python: Path, tmp_path: Path) -> Path:
    """Install the package from a wheel, and list it; return an empty folder."""
    component = NAMES[kind].removeprefix("dreamkit-")
    wheels, empty = tmp_path / "wheels", tmp_path / "empty"
    empty.mkdir()
    run_process(
        sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", wheels, folder, cwd=tmp_path
    )
    (wheel,) = wheels.iterdir()
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run_process(*pip, wheel, cwd=empty)
    listed = [
        line.split()[:3] for line in run_process(python, "-m", "dreamkit", "plugins", cwd=empty).splitlines()
    ]
    assert [KINDS[kind].module, component, NAMES[kind]] in listed
    return empty


def readme_commands(folder: Path) -> tuple[list[str], list[str]]:
    """Return the arguments of `dreamkit check` and `dreamkit train` in the README of a package."""
    readme = (folder / "README.md").read_text()
    check, train = (
        shlex.split(line)[1:] for line in re.findall(r"^dreamkit (?:check|train) .*", readme, re.M)
    )
    return check, train


@pytest.mark.parametrize("kind", PARTS)
def test_a_new_package_installs_trains_draws_and_passes_its_contract_test(
    kind: str, written: dict[str, Path], python: Path, tmp_path: Path
) -> None:
    """Install it from a wheel; list, check, train, draw and test it with the README's commands."""
    folder, component = written[kind], NAMES[kind].removeprefix("dreamkit-")
    empty = install_package(kind, folder, python, tmp_path)
    check, train = readme_commands(folder)
    draw = ["drawing" if word == "run" else word for word in train]
    commands = [check, train, [*draw, *FEW, DRAWING], shlex.split(GENERATE)]
    commands += [["test-plugin", NAMES[kind], "--quick"]]
    arguments = [commands, KINDS[kind].section, str(folder / "tests")]
    output = run_process(python, "-c", COMMANDS, json.dumps(arguments), cwd=empty)
    assert component in output
    assert "weights trained: " in output and "weights as built: " not in output
    assert (empty / "doc" / "index.html").is_file()
    # a language model with random weights need not start an image
    assert (empty / "doc" / "image-0.png").is_file() or kind == "language-model"
    assert re.search(r"^\d\d passed", output, re.MULTILINE)


def test_a_new_data_set_installs_trains_and_passes_its_contract_test(
    written: dict[str, Path], python: Path, tmp_path: Path
) -> None:
    """Write its example with the README's code; check, train and test it with the README's commands."""
    folder = written["dataset"]
    empty = install_package("dataset", folder, python, tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    run_process(python, "-c", code, cwd=empty)
    commands = [*readme_commands(folder), ["test-plugin", NAMES["dataset"], "--quick"]]
    arguments = [commands, "visual_projector", str(folder / "tests")]
    output = run_process(python, "-c", COMMANDS, json.dumps(arguments), cwd=empty)
    assert "weights trained: " in output
    assert re.search(r"^\d\d passed", output, re.MULTILINE)


def test_the_readme_trains_the_part_and_what_digits_stage1_trains(written: dict[str, Path]) -> None:
    trained = load_recipe("digits/stage1", (), Registry.load()).train.trainable
    assert trained == TRAINED
    for kind, folder in ((kind, written[kind]) for kind in PARTS):
        (recipe,) = re.findall(r"```yaml\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        section, settings = KINDS[kind].section, yaml.safe_load(recipe)
        assert set(settings.get("train", {"trainable": trained})["trainable"]) == {*trained, section}
        assert settings["model"][section]["name"] == NAMES[kind].removeprefix("dreamkit-")


def test_the_modules_of_a_new_package_are_short() -> None:
    for path in (ROOT / "dreamkit" / "scaffold" / "parts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path.name


def imported_by(path: Path) -> set[str]:
    """Return the top-level packages that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("kind", KINDS)
def test_no_placeholder_is_left_in_a_new_package(kind: str, written: dict[str, Path]) -> None:
    for path in (path for path in written[kind].rglob("*") if path.is_file()):
        text = path.read_text()
        assert "NewPart" not in text and "scaffold" not in text, path
        # expressions of the workflows, and the author
        own = r"\$\{\{ [\w.]+ \}\}|\$\{GITHUB_REF_NAME#v\}|Ada \$LOVELACE"
        assert "$" not in re.sub(own, "", text), path


@pytest.mark.parametrize("kind", KINDS)
def test_the_requirements_of_a_new_package_are_its_imports(kind: str, written: dict[str, Path]) -> None:
    folder, package = written[kind], NAMES[kind].replace("-", "_")
    assert (folder / package / "py.typed").is_file()
    for path in (folder / ".github" / "workflows").iterdir():
        assert yaml.safe_load(path.read_text())["jobs"]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": "Ada $LOVELACE"}]
    assert project["entry-points"]["dreamkit.plugins"] == {NAMES[kind].removeprefix("dreamkit-"): package}
    imported = set.union(*(imported_by(path) for path in (folder / package).glob("*.py")))
    third_party = sorted(imported - sys.stdlib_module_names)
    needed = [
        f"dreamkit-core{compatible(version('dreamkit-core'))}" if p == "dreamkit" else REQUIREMENTS[p]
        for p in third_party
    ]
    assert sorted(project["dependencies"]) == sorted(needed)
    assert project["optional-dependencies"] == {"test": ["dreamkit-core[testing]"]}


def test_a_new_package_has_the_version_ranges_of_dreamkit() -> None:
    ours = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    known = {line for path in ours for line in tomllib.loads(path.read_text())["project"]["dependencies"]}
    assert set(REQUIREMENTS.values()) <= known


@pytest.mark.parametrize(
    ("dreamkit_version", "range_"),
    [("0.1.0", ">=0.1,<0.2"), ("0.9.3.dev1", ">=0.9,<0.10"), ("1.2.3", ">=1.2,<2"), ("2.0", ">=2.0,<3")],
)
def test_a_new_package_requires_a_dreamkit_with_the_same_interfaces(
    dreamkit_version: str, range_: str
) -> None:
    assert compatible(dreamkit_version) == range_


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_passes_ruff(kind: str, written: dict[str, Path]) -> None:
    run_process(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=written[kind])
    run_process(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=written[kind])


def test_the_hook_module_of_a_new_package_imports_no_torch(written: dict[str, Path], tmp_path: Path) -> None:
    code = f"import importlib, sys\nsys.path += sys.argv[1:{len(KINDS) + 1}]\n"
    code += f"for name in sys.argv[{len(KINDS) + 1}:]: importlib.import_module(name)\n"
    code += "sys.exit('it imports torch' if 'torch' in sys.modules else 0)"
    packages = [name.replace("-", "_") for name in NAMES.values()]
    run_process(sys.executable, "-c", code, *written.values(), *packages, cwd=tmp_path)


# names and folders


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("-wave", "projector", "expected the name of a distribution"),
        ("wave!", "projector", "expected the name of a distribution"),
        ("", "projector", "expected the name of a distribution"),
        ("../wave", "projector", "expected the name of a distribution"),
        ("dream.wave", "projector", "Python cannot import"),
        ("3d-wave", "projector", "Python cannot import"),
        ("class", "projector", "Python cannot import"),
        ("dreamkit", "projector", "already exists"),
        ("dreamkit-digits", "projector", "already exists"),
        ("json", "projector", "already exists"),
        ("import-linter", "projector", "is already installed"),
        ("dreamkit-linear", "projector", "already has a projector 'linear'"),
        ("dreamkit-sana", "image-decoder", "already has an image decoder 'sana'"),
        ("dreamkit-12", "projector", "is not a string in YAML"),
        ("dreamkit-null", "projector", "is not a string in YAML"),
        ("core", "projector", "already has a plug-in 'core'"),
        ("dreamkit-wave", "vison-encoder", "did you mean 'vision-encoder'?"),
    ],
)
def test_an_invalid_name_is_refused(
    name: str, kind: str, message: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DreamkitError, match=re.escape(message)):
        new_plugin(name, kind, registry=registry)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "component", "class_name"),
    [
        ("dreamkit-wave", "wave", "Wave"),
        ("ripple", "ripple", "Ripple"),
        ("dreamkit-long-wave_2", "long-wave_2", "LongWave2"),
        ("dreamkit-3d", "3d", "Part3d"),
        ("dreamkit-tensor", "tensor", "PartTensor"),
        ("dreamkit-none", "none", "PartNone"),
        ("dreamkit-block", "block", "PartBlock"),
        ("dreamkit-new-part", "new-part", "NewPart"),
    ],
)
def test_the_name_of_the_distribution_determines_the_other_names(
    name: str, component: str, class_name: str, registry: Registry, tmp_path: Path
) -> None:
    folder, files = new_plugin(name, "vision-encoder", tmp_path / "a" / "b", registry=registry)
    assert folder == tmp_path / "a" / "b" and all((folder / file).is_file() for file in files)
    package = folder / name.replace("-", "_")
    assert f'name="{component}"' in (package / "__init__.py").read_text()
    tree = ast.parse((package / "vision_encoder.py").read_text())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes == ["Sizes", "Block", class_name]


def test_a_folder_in_use_is_refused_and_unchanged(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name, message in (("file", "is a file"), ("full", "is not empty")):
        with pytest.raises(DreamkitError, match=message):
            new_plugin("dreamkit-wave", "projector", tmp_path / name, registry=registry)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "full"]


def test_an_empty_folder_is_accepted(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, files = new_plugin("dreamkit-wave", "projector", Path(), registry=registry)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [
        tmp_path / file for file in files
    ]


@pytest.mark.parametrize("out", ["new", "."])
def test_an_error_while_writing_leaves_no_files(
    out: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, written = Path.write_text, []

    def write_on_full_disk(path: Path, *args: Any, **named: Any) -> int:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *args, **named)

    monkeypatch.setattr(Path, "write_text", write_on_full_disk)
    with pytest.raises(
        OutputError, match=rf"{tmp_path}.*test_contract.py: No space .*free\); free some space"
    ):
        new_plugin("dreamkit-wave", "projector", Path(out), registry=registry)
    assert not list(tmp_path.iterdir())


# licenses and the command line


@pytest.mark.parametrize("name", LICENSES)
def test_the_license_is_complete_and_names_its_holder(name: str, registry: Registry, tmp_path: Path) -> None:
    texts = {}
    for author in ("Ada Lovelace", None):
        out = tmp_path / str(author)
        new_plugin("dreamkit-wave", "projector", out, license=name, author=author, registry=registry)
        texts[author] = (out / "LICENSE").read_text()
        assert tomllib.loads((out / "pyproject.toml").read_text())["project"]["license"] == name
    year = date.today().year
    (line,) = re.findall(rf"Copyright .*{year}.*", texts["Ada Lovelace"])
    assert "Ada Lovelace" in line
    assert "the authors of dreamkit-wave" in texts[None]
    if name == "Apache-2.0":
        ours = (ROOT / "LICENSE").read_text()
        assert re.sub("Copyright .*", "", texts[None]) == re.sub("Copyright .*", "", ours)
    lasts = {"MIT": "SOFTWARE.", "BSD-3-Clause": "OF SUCH DAMAGE.", "Apache-2.0": "under the License."}
    assert texts[None].rstrip().endswith(lasts[name])


def test_an_author_may_have_any_printable_name(registry: Registry, tmp_path: Path) -> None:
    author = 'Zoë "the $author" \\ O\'Neil'
    new_plugin("dreamkit-wave", "projector", tmp_path / "a", author=author, registry=registry)
    project = tomllib.loads((tmp_path / "a" / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": author}]
    for bad in ("", " ", "two\nlines"):
        with pytest.raises(DreamkitError, match="expected the author's name"):
            new_plugin("dreamkit-wave", "projector", tmp_path / "b", author=bad, registry=registry)


def test_the_command_prints_its_files_and_the_next_commands(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = partial(run, "new-plugin")
    monkeypatch.chdir(tmp_path)
    code, out, err = command("dreamkit-wave", "--kind", "projector", "--out", "a folder", "--license", "MIT")
    assert (code, err) == (0, "")
    for path in (tmp_path / "a folder").rglob("*"):
        assert re.search(rf"[├└]── {re.escape(path.name)}$", out, re.MULTILINE), path
    assert out.endswith("next:\n  cd 'a folder'\n  pip install -e '.[test]'\n  pytest\n")
    code, out, err = command("dreamkit-wave", "--kind", "projector", "--out", "a folder")
    assert (code, out, err) == (2, "", "dreamkit: a folder is not empty; pass a new folder with --out\n")
    code, out, err = command("dreamkit-wave", "--kind", "projector", "--license", "GPL")
    assert (code, out) == (2, "") and "unknown license 'GPL'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]
