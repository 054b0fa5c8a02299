"""Packages written for earlier releases still pass the contract kit, train and draw."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamkit import CheckpointError, Registry, load_checkpoint
from dreamkit.testing import contracts
from releases.measure import assert_same, measure
from releases.using import RELEASES, copy_release, dreamkit, install_packages, read_expected, read_log

pytestmark = pytest.mark.filterwarnings("ignore:.* is now called:DeprecationWarning")

PARTS = {
    "vision_encoder": "patchwork",
    "language_model": "scribe",
    "projector": "pool",
    "image_decoder": "canvas",
}
FEW = ("train.steps=2", "train.batch_size=2", "train.log_every=1")
WITH_FIRST_PARTY = {
    "vision encoder": ["model.vision_encoder={name: patchwork, config: {dim: 8}}"],
    "language model": ["model.language_model={name: scribe, config: {dim: 16}}"],
    "projector": ["model.visual_projector={name: pool, every: 2}", "model.condition_projector={name: pool}"],
    "image decoder": ["model.image_decoder={name: canvas, config: {}}", "generation.scheduler=late"],
}
DIGITS = "data=[{name: digits, documents: {reading: 1, drawing: 1}}]"
SHORT = ("--max-tokens", 4, "--max-images", 1, "--steps", 2)


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name)
def source(request: pytest.FixtureRequest) -> Path:
    """Return the folder of a release."""
    return request.param


@pytest.fixture(scope="module")
def release(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the release. Tests only read it."""
    return copy_release(source, tmp_path_factory.mktemp("release") / "copy")


@pytest.fixture(scope="module")
def expected(source: Path) -> Any:
    return read_expected(source)


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder on `sys.path` with the packages of the release installed."""
    site = install_packages(source, tmp_path_factory.mktemp("packages"))
    packages = {path.name for path in site.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield site
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def trained(site: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the recipe `shapes/five` that starts from the release's checkpoint of these parts."""
    out = tmp_path_factory.mktemp("trained") / "run"
    dreamkit("train", "shapes/five", f"init={release / 'parts'}", "--out", out)
    return out


def test_the_error_of_a_missing_package_names_the_package(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = [folder for folder in sys.path if not (Path(folder) / "dreamkit_scribe").is_dir()]
    monkeypatch.setattr(sys, "path", elsewhere)
    message = (
        r"the language_model 'scribe' of dreamkit-scribe 0\.1\.0, which is needed to load it; install that"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(release / "parts")


def test_plugins_and_recipes_list_the_packages(site: Path) -> None:
    listed = dreamkit("plugins").out.splitlines()
    for kind, name in {**PARTS, "dataset": "shapes", "task": "shapes-demo"}.items():
        package = f"dreamkit-{name.removesuffix('-demo')}"
        assert [line for line in listed if line.split()[:4] == [kind, name, package, "0.1.0"]], kind
    assert any(line.startswith("shapes/five ") for line in dreamkit("recipes").out.splitlines())


def test_the_packages_use_most_public_names_and_no_others(source: Path, expected: Any) -> None:
    public, used = {*expected["names"]["dreamkit"]}, set()
    for path in source.glob("packages/*/*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Import) and "dreamkit" in ast.unparse(node)), path
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith("dreamkit"):
                assert node.module == "dreamkit", path
                used |= {alias.name for alias in node.names}
    assert used <= public
    assert len(public - used) < len(public) / 5, f"unused: {sorted(public - used)}"


@pytest.mark.parametrize("kind", PARTS)
def test_each_part_passes_the_contract_kit(kind: str, site: Path) -> None:
    cls = Registry.load().get(kind, PARTS[kind])
    report = contracts.verify(kind, contracts.tiny_part(cls), quick=True)
    assert report.ok, str(report)


def test_the_data_set_and_the_task_pass_test_plugin(site: Path) -> None:
    out = dreamkit("test-plugin", "dreamkit-shapes", "--quick").out
    assert "2 components of dreamkit-shapes; 2 checks ran: 2 passed" in out


def test_a_recipe_of_all_five_is_checked_and_planned(site: Path) -> None:
    out = dreamkit("check", "shapes/five").out
    assert all(f" {name} " in out for name in PARTS.values())
    err = dreamkit("check", "shapes/five", "model.visual_projector.every=3", code=2).err
    assert "model.visual_projector.every: 3 does not divide 4 tokens" in err
    dreamkit("plan", "shapes/five")


def test_training_all_five_logs_the_recorded_losses(trained: Path, expected: Any) -> None:
    assert_same(read_log(trained), expected["five"])


def test_a_model_of_all_five_generates(trained: Path, tmp_path: Path) -> None:
    dreamkit("generate", trained / "checkpoint", "red", *SHORT, "--out", tmp_path / "document")
    assert (tmp_path / "document/index.html").is_file()


def test_a_checkpoint_of_all_five_computes_the_recorded_numbers(
    site: Path, release: Path, expected: Any
) -> None:
    model, _ = load_checkpoint(release / "parts")
    assert_same(measure(model), expected["parts"])


def test_training_from_a_cache_logs_the_same_losses(
    site: Path, release: Path, expected: Any, tmp_path: Path
) -> None:
    start = ("shapes/five", f"init={release / 'parts'}")
    dreamkit("cache", *start, "--out", tmp_path / "cache")
    err = dreamkit("train", *start, f"train.cache={tmp_path / 'cache'}", "--out", tmp_path / "run").err
    assert "vision_encoder does not run" in err and "image_decoder does not encode" in err
    assert_same(read_log(tmp_path / "run"), expected["five"])


def test_adapters_of_the_parts_are_trained_and_merged(site: Path, release: Path, tmp_path: Path) -> None:
    targets = ("language_model", "vision_encoder", "image_decoder")
    adapters = f"model.adapters=[{', '.join(f'{{target: {target}, rank: 2}}' for target in targets)}]"
    start = (f"init={release / 'parts'}", adapters, "train.trainable=[new_tokens]")
    dreamkit("train", "shapes/five", *start, "train.steps=1", "--out", tmp_path / "run")
    load_checkpoint(tmp_path / "run/checkpoint")
    dreamkit("merge-adapters", tmp_path / "run/checkpoint", tmp_path / "merged")


@pytest.mark.parametrize("part", WITH_FIRST_PARTY.values(), ids=WITH_FIRST_PARTY)
def test_each_part_works_with_first_party_parts(part: list[str], site: Path, tmp_path: Path) -> None:
    recipe = ("digits/stage1", *part, DIGITS)
    dreamkit("check", *recipe)
    dreamkit("train", *recipe, *FEW, "--out", tmp_path / "run")
    dreamkit("generate", tmp_path / "run/checkpoint", "two", *SHORT, "--out", tmp_path / "document")


def test_first_party_parts_train_on_the_data_set(site: Path, tmp_path: Path) -> None:
    dreamkit("train", "digits/stage1", "data=[{name: shapes, side: 32}]", *FEW, "--out", tmp_path / "run")
    assert len(read_log(tmp_path / "run")) == 2


def test_the_task_runs(site: Path, tmp_path: Path) -> None:
    figures = Registry.load().get("task", "shapes-demo")().run(tmp_path / "demo", seed=1)
    assert {"loss", "pieces", "pictures", "steps", "ended"} == {*figures}
