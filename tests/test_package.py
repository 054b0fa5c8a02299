"""The package as a whole: its public names, their use by plug-ins, and the examples in the help."""

import ast
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dreamkit
from dreamkit.cli import app
from every_command import COMMANDS

ROOT = Path(__file__).parent.parent

PUBLIC = [
    "CacheError",
    "ChatTemplate",
    "CheckpointError",
    "Component",
    "Condition",
    "ConfigError",
    "Dataset",
    "DecoderSpec",
    "DenoisingStep",
    "Document",
    "DocumentDone",
    "DocumentError",
    "DocumentFailed",
    "DreamModel",
    "DreamkitError",
    "Embedding",
    "Engine",
    "Extras",
    "GenerationSection",
    "Handle",
    "Head",
    "Image",
    "ImageDecoder",
    "ImageDone",
    "ImagePaths",
    "ImageStarted",
    "LanguageModel",
    "LanguageSpec",
    "Location",
    "LogLikelihood",
    "Mixture",
    "NormWeights",
    "OutputError",
    "PartConfig",
    "PluginError",
    "PoolingConfig",
    "Projector",
    "ProjectorSpec",
    "RangeReads",
    "RecipeError",
    "Registry",
    "Scheduler",
    "SourceError",
    "Spans",
    "StorageError",
    "StoredWeights",
    "Task",
    "Text",
    "TextPiece",
    "TokenScore",
    "TrainingError",
    "Turn",
    "TurnPiece",
    "Url",
    "VisionEncoder",
    "VisionSpec",
    "build_model",
    "collect",
    "count",
    "decode_picture",
    "describe_error",
    "describe_value",
    "did_you_mean",
    "excerpt",
    "hookimpl",
    "index_counts",
    "indexed",
    "library_errors",
    "load_checkpoint",
    "load_recipe",
    "locate",
    "location",
    "open_packed",
    "place",
    "printable",
    "read_error",
    "read_json",
    "read_updates",
    "save_checkpoint",
    "stored_weights",
    "to_rgb",
    "train_recipe",
    "unpacked",
    "write_text",
]


def run(*command: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, **kwargs)


def dreamkit_imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return the statements of a file that import from dreamkit."""
    statements = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        if any(name == "dreamkit" or name.startswith("dreamkit.") for name in names):
            statements.append(node)
    return statements


def test_the_public_names_are_as_listed() -> None:
    assert dreamkit.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(dreamkit, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Documents"):
        _ = dreamkit.Documents


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("plugins/*/dreamkit_*/**/*.py")), ids=lambda path: path.stem
)
def test_plug_ins_use_public_names_only(path: Path) -> None:
    for node in dreamkit_imports(path):
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        assert isinstance(node, ast.ImportFrom), f"{where}: write `from dreamkit import ...`"
        assert node.module == "dreamkit", f"{where}: only names of `dreamkit` itself are public"
        for alias in node.names:
            assert alias.name in PUBLIC, f"{where}: {alias.name} is not in dreamkit.__all__"


def test_every_plug_in_is_checked() -> None:
    for folder in ROOT.glob("plugins/*/"):
        files = list(folder.glob("dreamkit_*/**/*.py"))
        assert any(dreamkit_imports(path) for path in files), f"no file of {folder.name} imports dreamkit"


def examples() -> dict[str, list[list[str]]]:
    """Return the example command lines in the help of each command."""
    return {
        name: [
            shlex.split(example)
            for example in re.findall(r"^\s*Example: (.+(?:\n +\S.*)*)", command.help or "", re.MULTILINE)
        ]
        for name, command in COMMANDS.items()
    }


@pytest.mark.parametrize("name", examples())
def test_the_help_has_an_example_that_parses(name: str) -> None:
    assert examples()[name], f"the help of `dreamkit {name}` has no line `Example: dreamkit {name} ...`"
    words = ["dreamkit", *name.split()]
    for example in examples()[name]:
        assert example[: len(words)] == words
        context = COMMANDS[name].make_context(name, example[len(words) :])
        assert not context.args


@pytest.mark.parametrize("name", ["plugins", "recipes", "check", "data check", "test-plugin"])
def test_the_example_works_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    for _, *arguments in examples()[name]:
        result = run("-m", "dreamkit", *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout
    assert not list(tmp_path.iterdir())


def test_the_examples_with_a_checkpoint_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples run in order, in a folder with the files that they name; training and drawing are shortened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    short = {
        "train": ["train.steps=1", "train.batch_size=2"],
        "generate": ["--steps", "2", "--max-tokens", "9"],
    }
    outputs = {
        "train": ["run1/checkpoint/dreamkit.json", "run1/log.jsonl"],
        "data preview": ["digits.html"],
        "generate": ["two/index.html"],
        "import-published": ["imported/dreamkit.json"],
    }
    for name in ("data preview", "train", "inspect", "generate", "import-published"):
        for _, *arguments in examples()[name]:
            result = CliRunner().invoke(app, [*arguments, *short.get(name, ())], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            assert all(Path(file).is_file() for file in outputs.get(name, ())), result.output
        if name == "train":
            (tmp_path / "dreamkit-demo").symlink_to(tmp_path / "run1")
        if name == "inspect":
            assert "visual_projector" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        ([], 2, "Usage: python -m dreamkit [OPTIONS] COMMAND"),
        (["--version"], 0, f"dreamkit {version('dreamkit-core')}"),
    ],
)
def test_python_m_dreamkit_runs_the_command(arguments: list[str], code: int, output: str) -> None:
    result = run("-m", "dreamkit", *arguments)
    assert result.returncode == code
    assert output in result.stdout + result.stderr
