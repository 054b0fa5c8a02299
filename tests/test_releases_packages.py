"""Packages that others built on earlier releases: they keep their contracts, train and draw."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamkit import CheckpointError, Registry, load_checkpoint
from dreamkit.testing import contracts
from releases.measure import measured, same
from releases.using import RELEASES, dreamkit, installed, logged, placed

pytestmark = pytest.mark.filterwarnings("ignore:.* is now called:DeprecationWarning")

PARTS = {
    "vision_encoder": "patchwork",
    "language_model": "scribe",
    "projector": "pool",
    "image_decoder": "canvas",
}
FEW = ("train.steps=2", "train.batch_size=2", "train.log_every=1")
BESIDE = {
    "vision encoder": ["model.vision_encoder={name: patchwork, config: {dim: 8}}"],
    "language model": ["model.language_model={name: scribe, config: {dim: 16}}"],
    "projector": ["model.visual_projector={name: pool, every: 2}", "model.condition_projector={name: pool}"],
    "image decoder": ["model.image_decoder={name: canvas, config: {}}", "generation.scheduler=late"],
}
DIGITS = "data=[{name: digits, documents: {reading: 1, drawing: 1}}]"
SHORT = ("--max-tokens", 4, "--max-images", 1, "--steps", 2)


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name)
def given(request: pytest.FixtureRequest) -> Path:
    """The folder of a release."""
    return request.param


@pytest.fixture(scope="module")
def release(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, which no test changes."""
    return placed(given, tmp_path_factory.mktemp("release") / "copy")


@pytest.fixture(scope="module")
def expected(given: Path) -> Any:
    return json.loads((given / "expected.json").read_text())


@pytest.fixture(scope="module")
def site(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, on the path, in which the packages of the release are installed."""
    site = installed(given, tmp_path_factory.mktemp("installed"))
    packages = {path.name for path in site.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield site
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def trained(site: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe of all five, from the checkpoint that the release wrote with them."""
    out = tmp_path_factory.mktemp("trained") / "run"
    dreamkit("train", "shapes/five", f"init={release / 'parts'}", "--out", out)
    return out


def test_a_checkpoint_says_which_package_it_needs(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [folder for folder in sys.path if not (Path(folder) / "dreamkit_scribe").is_dir()]
    monkeypatch.setattr(sys, "path", elsewhere)
    said = r"the language_model 'scribe' of dreamkit-scribe 0\.1\.0, which is needed to load it; install that"
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(release / "parts")


def test_they_are_listed_without_a_problem(site: Path) -> None:
    listed = dreamkit("plugins").out.splitlines()
    for kind, name in {**PARTS, "dataset": "shapes", "task": "shapes-demo"}.items():
        package = f"dreamkit-{name.removesuffix('-demo')}"
        assert [line for line in listed if line.split()[:4] == [kind, name, package, "0.1.0"]], kind
    assert any(line.startswith("shapes/five ") for line in dreamkit("recipes").out.splitlines())


def test_they_use_public_names_alone(given: Path, expected: Any) -> None:
    public, used = {*expected["names"]["dreamkit"]}, set()
    for path in given.glob("packages/*/*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Import) and "dreamkit" in ast.unparse(node)), path
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("dreamkit"):
                assert node.module == "dreamkit", path
                used |= {alias.name for alias in node.names}
    assert used <= public
    assert len(public - used) < len(public) / 5, f"they could use more: {sorted(public - used)}"


@pytest.mark.parametrize("kind", PARTS)
def test_they_keep_their_contracts(kind: str, site: Path) -> None:
    cls = Registry.load().get(kind, PARTS[kind])
    report = contracts.verify(kind, contracts.tiny_part(cls), quick=True)
    assert report.ok, str(report)


def test_what_else_they_register_is_tested(site: Path) -> None:
    said = dreamkit("test-plugin", "dreamkit-shapes", "--quick").out
    assert "2 components of dreamkit-shapes; 2 checks ran: 2 passed" in said


def test_a_recipe_of_all_five_is_checked(site: Path) -> None:
    said = dreamkit("check", "shapes/five").out
    assert all(f" {name} " in said for name in PARTS.values())
    wrong = dreamkit("check", "shapes/five", "model.visual_projector.every=3", code=2)
    assert "model.visual_projector.every: 3 does not divide 4 tokens" in wrong.err
    dreamkit("plan", "shapes/five")


def test_a_recipe_of_all_five_is_trained(trained: Path, expected: Any) -> None:
    same(logged(trained), expected["five"])


def test_a_model_of_all_five_generates(trained: Path, tmp_path: Path) -> None:
    dreamkit("generate", trained / "checkpoint", "red", *SHORT, "--out", tmp_path / "document")
    assert (tmp_path / "document/index.html").is_file()


def test_a_checkpoint_of_all_five_gives_the_numbers_it_gave(site: Path, release: Path, expected: Any) -> None:
    model, _ = load_checkpoint(release / "parts")
    same(measured(model), expected["parts"])


def test_what_they_compute_is_cached(site: Path, release: Path, expected: Any, tmp_path: Path) -> None:
    start = ("shapes/five", f"init={release / 'parts'}")
    dreamkit("cache", *start, "--out", tmp_path / "cache")
    done = dreamkit("train", *start, f"train.cache={tmp_path / 'cache'}", "--out", tmp_path / "run")
    assert "vision_encoder does not run" in done.err and "image_decoder does not encode" in done.err
    same(logged(tmp_path / "run"), expected["five"])


def test_they_are_adapted(site: Path, release: Path, tmp_path: Path) -> None:
    targets = ("language_model", "vision_encoder", "image_decoder")
    adapters = f"model.adapters=[{', '.join(f'{{target: {target}, rank: 2}}' for target in targets)}]"
    start = (f"init={release / 'parts'}", adapters, "train.trainable=[new_tokens]")
    dreamkit("train", "shapes/five", *start, "train.steps=1", "--out", tmp_path / "run")
    load_checkpoint(tmp_path / "run/checkpoint")
    dreamkit("merge-adapters", tmp_path / "run/checkpoint", tmp_path / "merged")


@pytest.mark.parametrize("part", BESIDE.values(), ids=BESIDE)
def test_each_works_beside_first_party_parts(part: list[str], site: Path, tmp_path: Path) -> None:
    recipe = ("digits/stage1", *part, DIGITS)
    dreamkit("check", *recipe)
    dreamkit("train", *recipe, *FEW, "--out", tmp_path / "run")
    dreamkit("generate", tmp_path / "run/checkpoint", "two", *SHORT, "--out", tmp_path / "document")


def test_first_party_parts_learn_from_their_data(site: Path, tmp_path: Path) -> None:
    dreamkit("train", "digits/stage1", "data=[{name: shapes, side: 32}]", *FEW, "--out", tmp_path / "run")
    assert len(logged(tmp_path / "run")) == 2


def test_their_task_runs(site: Path, tmp_path: Path) -> None:
    figures = Registry.load().get("task", "shapes-demo")().run(tmp_path / "demo", seed=1)
    assert {"loss", "pieces", "pictures", "steps", "ended"} == {*figures}
