"""`dreamkit new-plugin`: the package it writes installs and works, and what cannot be done is said before it writes."""

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamkit import cli
from dreamkit.errors import DreamkitError
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from dreamkit.scaffold import KINDS, LICENSES, new_plugin
from dreamkit.scaffold.package import REQUIREMENTS, TRAINED, compatible

ROOT = Path(__file__).parents[2]
MOST_LINES = 99
NAMES = {kind: f"dreamkit-fresh-{kind}" for kind in KINDS}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT.pop("DREAMKIT_PLUGINS", None)


def run(*command: object, cwd: Path, seconds: float = 120) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, Path]:
    """A package of each kind."""
    folder = tmp_path_factory.mktemp("written")
    for kind, name in NAMES.items():
        new_plugin(name, kind, folder / name, author="Ada $LOVELACE", registry=registry)
    return {kind: folder / name for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that sees all that this one has installed, and installs into a place of its own."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # as a site of its own, so that the editable installs in it are seen too
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (Path(where.strip()) / "outer.pth").write_text("".join(lines))
    return python


# commands and contract test in one process: most of the time of each goes into importing torch and its libraries
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
trained, fresh = (getattr(each, section) for each in (model, build(fit(model.recipe, registry))))
for (name, now), before in zip(trained.named_parameters(), fresh.parameters(), strict=True):
    print("weights", "as built:" if torch.equal(now, before) else "trained:", name)

import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", tests]))
"""
# enough for a frozen language model to learn, by the rows of new tokens alone, that a picture follows these words
FEW = ("train.steps=16", "train.batch_size=4", "train.learning_rate=0.1", "train.warmup=0")
DRAWING = "data=[{name: digits, documents: {drawing: 1}}]"
GENERATE = "generate drawing/checkpoint 'a one' --max-tokens 8 --max-images 1 --steps 2 --out doc"


@pytest.mark.parametrize("kind", KINDS)
def test_it_installs_and_works(kind: str, written: dict[str, Path], python: Path, tmp_path: Path) -> None:
    """From a wheel, in an empty folder: it is listed, fits, learns, draws, and keeps its contract.

    The README's commands run as they are written.
    """
    folder, component = written[kind], NAMES[kind].removeprefix("dreamkit-")
    wheels, empty = tmp_path / "wheels", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", wheels, folder, cwd=tmp_path)
    (wheel,) = wheels.iterdir()
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=empty)
    listed = [line.split()[:3] for line in run(python, "-m", "dreamkit", "plugins", cwd=empty).splitlines()]
    assert [KINDS[kind].module, component, NAMES[kind]] in listed

    readme = (folder / "README.md").read_text()
    check, train = (
        shlex.split(line)[1:] for line in re.findall(r"^dreamkit (?:check|train) .*", readme, re.M)
    )
    draw = ["drawing" if word == "run" else word for word in train]
    commands = [check, train, [*draw, *FEW, DRAWING], shlex.split(GENERATE)]
    commands += [["test-plugin", NAMES[kind], "--quick"]]
    given = [commands, KINDS[kind].section, str(folder / "tests")]
    said = run(python, "-c", COMMANDS, json.dumps(given), cwd=empty)
    assert component in said
    assert "weights trained: " in said and "weights as built: " not in said
    assert (empty / "doc" / "index.html").is_file()
    # what a language model of random weights writes is anyone's guess
    assert (empty / "doc" / "image-0.png").is_file() or kind == "language-model"
    assert re.search(r"^\d\d passed", said, re.MULTILINE)


def test_the_recipe_of_the_readme_trains_the_part_beside_what_joins_it(written: dict[str, Path]) -> None:
    trained = load_recipe("digits/stage1", (), Registry.load()).train.trainable
    assert trained == TRAINED
    for kind, folder in written.items():
        (recipe,) = re.findall(r"```yaml\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        section, given = KINDS[kind].section, yaml.safe_load(recipe)
        assert set(given.get("train", {"trainable": trained})["trainable"]) == {*trained, section}
        assert given["model"][section]["name"] == NAMES[kind].removeprefix("dreamkit-")


def test_the_modules_to_start_from_are_short() -> None:
    for path in (ROOT / "dreamkit" / "scaffold" / "parts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path.name


def imported_by(path: Path) -> set[str]:
    """The top-level packages that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_it_is_left_to_fill_in(kind: str, written: dict[str, Path]) -> None:
    for path in (path for path in written[kind].rglob("*") if path.is_file()):
        text = path.read_text()
        assert "NewPart" not in text and "scaffold" not in text, path
        # the workflows' own expressions, and the author
        own = r"\$\{\{ [\w.]+ \}\}|\$\{GITHUB_REF_NAME#v\}|Ada \$LOVELACE"
        assert "$" not in re.sub(own, "", text), path


@pytest.mark.parametrize("kind", KINDS)
def test_its_metadata_is_what_it_needs(kind: str, written: dict[str, Path]) -> None:
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


def test_its_requirements_are_those_of_dreamkit() -> None:
    ours = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    known = {line for path in ours for line in tomllib.loads(path.read_text())["project"]["dependencies"]}
    assert set(REQUIREMENTS.values()) <= known


@pytest.mark.parametrize(
    ("found", "range_"),
    [("0.1.0", ">=0.1,<0.2"), ("0.9.3.dev1", ">=0.9,<0.10"), ("1.2.3", ">=1.2,<2"), ("2.0", ">=2.0,<3")],
)
def test_it_wants_the_dreamkit_it_was_written_with(found: str, range_: str) -> None:
    assert compatible(found) == range_


@pytest.mark.parametrize("kind", KINDS)
def test_ruff_has_nothing_to_say(kind: str, written: dict[str, Path]) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=written[kind])
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=written[kind])


def test_its_hook_module_imports_no_torch(written: dict[str, Path], tmp_path: Path) -> None:
    code = "import importlib, sys\nsys.path += sys.argv[1:5]\n"
    code += "for name in sys.argv[5:]: importlib.import_module(name)\n"
    code += "sys.exit('it imports torch' if 'torch' in sys.modules else 0)"
    packages = [name.replace("-", "_") for name in NAMES.values()]
    run(sys.executable, "-c", code, *written.values(), *packages, cwd=tmp_path)


# names and folders


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("-wave", "projector", "cannot be the name of a distribution"),
        ("wave!", "projector", "cannot be the name of a distribution"),
        ("", "projector", "cannot be the name of a distribution"),
        ("../wave", "projector", "cannot be the name of a distribution"),
        ("dream.wave", "projector", "Python cannot import"),
        ("3d-wave", "projector", "Python cannot import"),
        ("class", "projector", "Python cannot import"),
        ("dreamkit", "projector", "there is one already"),
        ("dreamkit-digits", "projector", "there is one already"),
        ("json", "projector", "there is one already"),
        ("import-linter", "projector", "is installed already, in version"),
        ("dreamkit-linear", "projector", "has a projector 'linear' already"),
        ("dreamkit-sana", "image-decoder", "has an image decoder 'sana' already"),
        ("dreamkit-12", "projector", "no text in a recipe"),
        ("dreamkit-null", "projector", "no text in a recipe"),
        ("core", "projector", "is called 'core' already"),
        ("dreamkit-wave", "vison-encoder", "did you mean 'vision-encoder'?"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    name: str, kind: str, said: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DreamkitError, match=re.escape(said)):
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
def test_the_other_names_follow_from_the_distribution_s(
    name: str, component: str, class_name: str, registry: Registry, tmp_path: Path
) -> None:
    folder, files = new_plugin(name, "vision-encoder", tmp_path / "a" / "b", registry=registry)
    assert folder == tmp_path / "a" / "b" and all((folder / file).is_file() for file in files)
    package = folder / name.replace("-", "_")
    assert f'name="{component}"' in (package / "__init__.py").read_text()
    tree = ast.parse((package / "vision_encoder.py").read_text())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes == ["Sizes", "Block", class_name]


def test_a_folder_in_use_is_left_as_it_is(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for name, said in (("file", "is a file"), ("full", "is not empty")):
        with pytest.raises(DreamkitError, match=said):
            new_plugin("dreamkit-wave", "projector", tmp_path / name, registry=registry)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "full"]


def test_an_empty_folder_is_filled(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, files = new_plugin("dreamkit-wave", "projector", Path(), registry=registry)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [
        tmp_path / file for file in files
    ]


@pytest.mark.parametrize("out", ["new", "."])
def test_nothing_half_written_stays(
    out: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, written = Path.write_text, []

    def full(path: Path, *args: Any, **named: Any) -> int:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *args, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        new_plugin("dreamkit-wave", "projector", Path(out), registry=registry)
    assert not list(tmp_path.iterdir())


# licenses and the command line


@pytest.mark.parametrize("name", LICENSES)
def test_the_license_is_whole_and_names_who_holds_it(name: str, registry: Registry, tmp_path: Path) -> None:
    texts = {}
    for author in ("Ada Lovelace", None):
        out = tmp_path / str(author)
        new_plugin("dreamkit-wave", "projector", out, license=name, author=author, registry=registry)
        texts[author] = (out / "LICENSE").read_text()
        assert tomllib.loads((out / "pyproject.toml").read_text())["project"]["license"] == name
    year = date.today().year
    (held,) = re.findall(rf"Copyright .*{year}.*", texts["Ada Lovelace"])
    assert "Ada Lovelace" in held
    assert "the authors of dreamkit-wave" in texts[None]
    if name == "Apache-2.0":
        ours = (ROOT / "LICENSE").read_text()
        assert re.sub("Copyright .*", "", texts[None]) == re.sub("Copyright .*", "", ours)
    lasts = {"MIT": "SOFTWARE.", "BSD-3-Clause": "OF SUCH DAMAGE.", "Apache-2.0": "under the License."}
    assert texts[None].rstrip().endswith(lasts[name])


def test_an_author_s_name_may_hold_anything_that_is_text(registry: Registry, tmp_path: Path) -> None:
    author = 'Zoë "the $author" \\ O\'Neil'
    new_plugin("dreamkit-wave", "projector", tmp_path / "a", author=author, registry=registry)
    project = tomllib.loads((tmp_path / "a" / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": author}]
    for bad in ("", " ", "two\nlines"):
        with pytest.raises(DreamkitError, match="is no author's name"):
            new_plugin("dreamkit-wave", "projector", tmp_path / "b", author=bad, registry=registry)


def test_the_command_shows_what_it_wrote_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamkit", "new-plugin", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capfd.readouterr())

    monkeypatch.chdir(tmp_path)
    code, out, err = command("dreamkit-wave", "--kind", "projector", "--out", "a folder", "--license", "MIT")
    assert (code, err) == (0, "")
    for path in (tmp_path / "a folder").rglob("*"):
        assert re.search(rf"[├└]── {re.escape(path.name)}$", out, re.MULTILINE), path
    assert out.endswith("next:\n  cd 'a folder'\n  pip install -e '.[test]'\n  pytest\n")
    code, out, err = command("dreamkit-wave", "--kind", "projector", "--out", "a folder")
    assert (code, out, err) == (2, "", "dreamkit: a folder is not empty; name a new folder by --out\n")
    code, out, err = command("dreamkit-wave", "--kind", "projector", "--license", "GPL")
    assert (code, out) == (2, "") and "there is no license text for 'GPL'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]
