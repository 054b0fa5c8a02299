"""docs/plugins is correct: its plug-in works, its list of checks is current, its reference is complete."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import checks_page
import dreamkit
from dreamkit.kernels.assemble_embeddings.reference import look_up
from dreamkit.parts import specs
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.language import LanguageModel
from dreamkit.parts.projector import Projector
from dreamkit.parts.vision import VisionEncoder
from dreamkit.registry import hookspecs
from dreamkit.scaffold.parts.image_decoder import NewPart
from dreamkit.testing import contracts
from meta.installing import install

DOCS = Path(__file__).parents[2] / "docs" / "plugins"
TUTORIAL = (DOCS / "tutorial.md").read_text()
REFERENCE = (DOCS / "reference.md").read_text()
FILES = {
    "pyproject.toml",
    "dreamkit_shuffle/__init__.py",
    "dreamkit_shuffle/shuffle.py",
    "tests/test_contract.py",
}
SIZES = ["train.global_batch=2", "data=[{name: digits, documents: {reading: 1, drawing: 1}}]"]


@pytest.fixture(scope="module")
def shuffle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the package from the blocks of the tutorial, and install it with pip; return both folders."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    blocks = re.findall(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in blocks} - {"wrong:"} == FILES
    for name, text in blocks:
        if name in FILES:
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_text(text)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return source, site


def run_module(shuffle: tuple[Path, Path], folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(shuffle[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_tutorials_plug_in_passes_its_contract_test(shuffle: tuple[Path, Path]) -> None:
    process = run_module(shuffle, shuffle[0], "pytest", "-q", "-rs", "-p", "no:cacheprovider")
    assert process.returncode == 0, process.stdout
    assert re.search(r"\d\d passed, 1 skipped", process.stdout) and "dense_layers_agree" not in process.stdout
    assert "its dense_layers() returns None" in process.stdout


def test_the_tutorials_mistake_gives_the_shown_error(shuffle: tuple[Path, Path], tmp_path: Path) -> None:
    (wrong,) = re.findall(r"^# wrong: .*\n(.*)\n```", TUTORIAL, re.MULTILINE)
    right = "side, factor = isqrt(self.spec.in_tokens), self.config.factor"
    file = shuffle[0] / "dreamkit_shuffle" / "shuffle.py"
    assert right in file.read_text()
    for name in FILES - {"pyproject.toml"}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((shuffle[0] / name).read_text())
    text = f"# {file.relative_to(shuffle[0])}\n{file.read_text()}"  # with the first line of the block
    (tmp_path / "dreamkit_shuffle" / "shuffle.py").write_text(text.replace(right, wrong))
    process = run_module(
        shuffle, tmp_path, "pytest", "-p", "no:cacheprovider", "-k", "spec_agrees or determinism"
    )
    (shown,) = re.findall(r"^```text\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)
    first, rest = shown.split(" ...")
    assert re.search(re.escape(first) + " .*" + re.escape(rest), process.stdout), process.stdout
    assert f"\nthe same error as in `spec_agrees`, at {first.partition(': ')[0]}\n" in process.stdout


def test_the_tutorials_commands_check_train_and_draw(shuffle: tuple[Path, Path], tmp_path: Path) -> None:
    listed = run_module(shuffle, tmp_path, "dreamkit", "plugins")
    assert re.search(r"projector +shuffle +dreamkit-shuffle 0.1.0", listed.stdout), listed.stdout
    part = "model.visual_projector={name: shuffle, factor: 2}"
    process = run_module(shuffle, tmp_path, "dreamkit", "check", "digits/stage1", part)
    assert re.search(r"visual_projector +shuffle +16 x \d+ -> 4 x", process.stdout), (
        process.stdout + process.stderr
    )
    refused = run_module(shuffle, tmp_path, "dreamkit", "check", "digits/stage1", part.replace("2}", "3}"))
    assert refused.returncode == 2
    (message,) = re.findall(r"^dreamkit: the recipe.*?(?=^```)", TUTORIAL, re.MULTILINE | re.DOTALL)
    assert refused.stderr == message
    train = ["dreamkit", "train", "digits/stage1", part, "train.steps=2", *SIZES, "--out", "run"]
    process = run_module(shuffle, tmp_path, *train)
    assert process.returncode == 0, process.stderr
    draw = [
        "dreamkit",
        "generate",
        "run/checkpoint",
        "two",
        "--max-images",
        "1",
        "--max-tokens",
        "4",
        "--out",
        "doc",
    ]
    process = run_module(shuffle, tmp_path, *draw)
    assert process.returncode == 0 and (tmp_path / "doc" / "index.html").is_file(), process.stderr


def test_the_list_of_checks_is_current() -> None:
    command = "python tests/helpers/checks_page.py"
    assert checks_page.PATH.read_text() == checks_page.page(), f"rewrite it with: {command}"


def test_the_reference_has_every_hook_and_every_interface() -> None:
    for name in vars(hookspecs):
        if name.startswith("dreamkit_"):
            assert f"| `{name}()` |" in REFERENCE, name
    for cls in (
        VisionEncoder,
        LanguageModel,
        Projector,
        ImageDecoder,
        dreamkit.Dataset,
    ):
        (section,) = re.findall(rf"^## {cls.__name__}\n(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
        for name, member in vars(cls).items():
            if name.startswith("_") or not (callable(member) or isinstance(member, property | classmethod)):
                continue
            assert re.search(rf"^\| `{name}[(`]", section, re.MULTILINE), f"{cls.__name__}.{name}"


@pytest.mark.parametrize(
    "cls",
    [
        specs.VisionSpec,
        specs.LanguageSpec,
        specs.ProjectorSpec,
        specs.DecoderSpec,
        specs.ChatTemplate,
        specs.Condition,
        dreamkit.Component,
        dreamkit.Document,
        dreamkit.Text,
        dreamkit.Image,
    ],
)
def test_the_reference_has_every_field(cls: type) -> None:
    (arguments,) = re.findall(rf"`{cls.__name__}\(([^`]*)\)`", REFERENCE)
    fields = [field.name for field in dataclasses.fields(cls)]
    assert [name.split("=")[0].strip() for name in re.split(r", (?=\w)", arguments)] == fields


def test_the_references_command_runs(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = dict(
        re.findall(r"^```python\n# (dreamkit_count/\S+)\n(.*?)^```$", REFERENCE, re.DOTALL | re.MULTILINE)
    )
    install(tmp_path, "dreamkit_count", files["dreamkit_count/__init__.py"])
    (tmp_path / "dreamkit_count" / "count.py").write_text(files["dreamkit_count/count.py"])
    monkeypatch.syspath_prepend(tmp_path)

    def output(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    listed = "Commands of dreamkit_count 1.0:\n  data count  Count the documents of a recipe.\n"
    assert listed in output("--help")
    assert "Example: dreamkit data count digits/stage1\n" in output("data", "count", "--help")
    assert re.fullmatch(
        r"digits: [\d,]+ documents\n", output("data", "count", "digits/stage1", "train.steps=1")
    )


def example(having: str, **names: Any) -> dict[str, Any]:
    """Run the one example of the reference that contains `having`; return the names it defines."""
    blocks = re.findall(r"^```python\n(.*?)^```$", REFERENCE, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if having in block)
    namespace: dict[str, Any] = {"torch": torch, **vars(specs), **names}
    exec(code, namespace)
    return namespace


def assert_passes(part: type, *checks: str) -> None:
    report = contracts.verify("image_decoder", contracts.tiny_part(part), only=checks, quick=True)
    assert [outcome.result for outcome in report.outcomes] == ["passed"] * len(checks), str(report)


def test_the_references_latents_can_be_cached() -> None:
    class Autoencoding(NewPart):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.vae = nn.Conv2d(3, 6, 1)

    part = example("posterior_module", ImageDecoder=Autoencoding)["Latent"]
    assert_passes(part, "posterior_agrees", "gradients_reach_trainable")
    all_trained = type("AllTrained", (part,), {"trainable_parameters": nn.Module.parameters})
    build = contracts.tiny_part(all_trained)
    report = contracts.verify("image_decoder", build, only="gradients_reach_trainable", quick=True)
    assert "vae" in report.failures[0].message


def test_the_references_decoder_caches_keys_and_values_of_a_condition() -> None:
    computed = []

    class Caching(NewPart):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.cached: list[Any] = []

        def keys_and_values(self, condition: specs.Condition) -> specs.Condition:
            computed.append(condition)
            return condition

    defined = example("def cache_condition", contextmanager=contextmanager)
    part = type("Example", (Caching,), {name: defined[name] for name in ("cache_condition", "denoise")})
    assert_passes(part, "constant_condition", "gradients_reach_input", "draw_alone")
    decoder = part.from_config(part.tiny_config())
    computed.clear()
    decoder.draw(specs.Condition(torch.zeros(1, 2, 12)), steps=4, guidance=1.0)
    assert len(computed) == 1 and not decoder.cached


def test_the_references_tables_equal_its_embed() -> None:
    defined = example("def embedding")
    part = SimpleNamespace(table=nn.Embedding(5, 3), new_rows=nn.Parameter(torch.randn(2, 3)))
    ids = torch.tensor([[6, 0, 4], [5, 1, 5]])
    assert torch.equal(look_up(ids, *defined["embedding"](part)), defined["embed"](part, ids))
