"""README and docs are correct: their examples run, and every recipe key is documented."""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dreamkit.build.fit import fit
from dreamkit.recipe.generation_section import GenerationSection
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import (
    AdapterSection,
    LossSection,
    ModelSection,
    Recipe,
    SourcedSection,
    TrainSection,
)
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit.registry.registry import Registry
from dreamkit.testing import contracts
from every_command import COMMANDS, NAME, full_name

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "docs" / "recipes.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def dreamkit(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return a function that runs `dreamkit ARGUMENTS` in an empty folder and returns its exit code and all output.

    `path` is a site folder with more distributions.
    """
    monkeypatch.chdir(tmp_path)

    def dreamkit(*arguments: str, path: Path | None = None) -> tuple[int, str]:
        if path is not None:
            monkeypatch.syspath_prepend(path)
        code, out, err = run(*arguments)
        return code, out + err

    return dreamkit


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the README's plug-in with pip from the files that the README shows; return the site folder."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    names = []
    for text in (*blocks(README, "toml"), *blocks(README, "python")):
        if name := re.match(r"# (pyproject\.toml|dreamkit_pool/\S+\.py)", text):
            names.append(name[1])
            (source / name[1]).parent.mkdir(exist_ok=True)
            (source / name[1]).write_text(text)
    assert names == ["pyproject.toml", "dreamkit_pool/__init__.py", "dreamkit_pool/pool.py"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return site


def test_plugins_lists_the_plug_in_of_the_readme(pool: Path, dreamkit: Callable) -> None:
    code, output = dreamkit("plugins", path=pool)
    assert code == 0, output
    assert re.search(r"projector +pool +dreamkit-pool 0.1.0 +averages", output)


@pytest.mark.parametrize(
    ("setting", "expected", "pattern"),
    [
        ("{name: pool, every: 4}", 0, "visual_projector +pool +16 x 64 -> 4 x"),
        ("{name: pool, every: 3}", 2, "visual_projector.every: .*expected a divisor of 16 tokens, got 3"),
        ("{name: pool, evry: 4}", 2, "did you mean 'every'"),
    ],
)
def test_check_accepts_only_valid_settings_of_the_readme_s_part(
    pool: Path, dreamkit: Callable, setting: str, expected: int, pattern: str
) -> None:
    assert "visual_projector: {name: pool, every: 4}" in README
    code, output = dreamkit("check", "digits/stage1", f"model.visual_projector={setting}", path=pool)
    assert code == expected, output
    assert re.search(pattern, output)


def test_the_readme_s_part_passes_the_contract_kit(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(pool)
    from dreamkit_pool.pool import Pool

    report = contracts.verify("projector", contracts.tiny_part(Pool), quick=True)
    assert report.ok, str(report)


def test_the_readme_s_swap_changes_one_line_and_names_registered_parts() -> None:
    (diff,) = blocks(README, "diff")
    assert [line[0] for line in diff.splitlines()] == [" ", "-", "+"]
    known = Registry.load().components("vision_encoder")
    for sign in "-+":
        recipe = "\n".join(line[1:] for line in diff.splitlines() if line[0] in (" ", sign))
        (section,) = yaml.safe_load(recipe)["model"].values()
        assert section["name"] in known


def test_the_readme_lists_every_command() -> None:
    listed = re.findall(rf"^\| `dreamkit ({NAME})", README, re.MULTILINE)
    assert set(map(full_name, listed)) == set(COMMANDS)


def test_commands_in_the_docs_and_their_options_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for block in (*blocks(text, "sh"), *blocks(text, "console")):
            for name, rest in re.findall(rf"dreamkit ({NAME})\b(?!')(.*)", block):
                name = full_name(name)
                assert name in COMMANDS, f"{page.name}: dreamkit {name}"
                known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
                unknown = set(re.findall(r"--[a-z][\w-]*", rest)) - known
                assert not unknown, f"{page.name}: dreamkit {name} {unknown}"


@pytest.mark.parametrize(
    "section",
    [
        Recipe,
        ModelSection,
        AdapterSection,
        SourcedSection,
        SpecialTokens,
        LossSection,
        TrainSection,
        GenerationSection,
    ],
)
def test_every_recipe_key_is_documented(section: type) -> None:
    prose = re.sub(r"^```.*?^```$", "", RECIPES, flags=re.DOTALL | re.MULTILINE)
    words = {word for code in re.findall(r"`([^`]+)`", prose) for word in re.findall(r"\w+", code)}
    missing = {field.name for field in dataclasses.fields(section) if field.init} - words
    assert not missing


@pytest.mark.parametrize("kind", ["dataset", "projector"])
def test_every_setting_of_a_component_of_the_core_is_documented(kind: str) -> None:
    for name, registered in Registry.load().components(kind).items():
        if registered.distribution == "dreamkit-core":
            (row,) = re.findall(rf"^\| `{name}` \|(.*)", RECIPES, re.MULTILINE)
            for field in dataclasses.fields(Registry.load().get(kind, name).Config):
                assert f"`{field.name}" in row, f"{name}: {field.name}"


@pytest.mark.parametrize(
    "setting", re.findall(r"`(\{name: \w+[^`]*\})`", RECIPES.partition("### Projectors")[2])
)
def test_check_accepts_the_projectors_of_the_docs(setting: str, dreamkit: Callable) -> None:
    code, output = dreamkit("check", "digits/stage1", f"model.condition_projector={setting}")
    assert code == 0, output


@pytest.mark.parametrize("number", range(2))
def test_check_accepts_the_recipes_of_the_docs(number: int, tmp_path: Path, dreamkit: Callable) -> None:
    whole, groups = blocks(RECIPES, "yaml")
    text = (whole, f"extends: digits/stage2\n{groups}")[number]
    (tmp_path / "recipe.yaml").write_text(text)
    code, output = dreamkit("check", "recipe.yaml")
    assert code == 0, output


SWAPS = blocks(RECIPES.partition("## Swapping parts")[2], "sh")[0].splitlines()


def test_the_docs_show_a_swap_of_each_part() -> None:
    shown = {key for line in SWAPS for key in re.findall(r"model\.(\w+)=", line)}
    assert shown == {
        "vision_encoder",
        "language_model",
        "visual_projector",
        "condition_projector",
        "image_decoder",
    }


@pytest.mark.parametrize("line", SWAPS)
def test_the_swaps_of_the_docs_work_in_every_stage(dreamkit: Callable, line: str) -> None:
    """Run the command as shown, and merge its setting over every shipped stage."""
    command, *arguments = shlex.split(line)
    code, output = dreamkit(*arguments)
    assert command == "dreamkit" and code == 0, output
    setting = arguments[-1]
    key, name = re.findall(r"model\.(\w+)={name: ([\w-]+)", setting)[0]
    assert re.search(rf"^{key} +{name} ", output, re.MULTILINE), output
    registry = Registry.load()
    stages = [name for name in registry.recipes() if re.search(r"/stage\d[\w-]*$", name)]
    assert len(stages) > 8
    for stage in stages:
        swapped = load_recipe(stage, [setting], registry)
        assert getattr(swapped.model, key).name == name
        # rows of the digits recipes are too short for the tokens of large images
        assert stage.startswith("digits/") or fit(swapped, registry).problems == []


FILES = [  # that may name the distribution
    *PAGES,
    ROOT / "pyproject.toml",
    *ROOT.glob("plugins/*/pyproject.toml"),
    *ROOT.glob("plugins/*/README.md"),
    *ROOT.glob("dreamkit/**/*.py"),
    *ROOT.glob("dreamkit/scaffold/templates/*"),
]


def test_no_file_names_the_package_index_s_dreamkit_as_a_requirement() -> None:
    """On the package index, `dreamkit` is another project."""
    requirement = re.compile(r"""\bdreamkit(\[|[<>=~!]=|\$)|pip install ['"]?dreamkit(?![-\w])""")
    matches = {str(path): match[0] for path in FILES if (match := requirement.search(path.read_text()))}
    assert not matches


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_docs_compiles(page: Path) -> None:
    for number, code in enumerate(blocks(page.read_text(), "python")):
        compile(code, f"{page.name}[{number}]", "exec")
