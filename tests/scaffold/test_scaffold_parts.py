"""The parts that a new plug-in starts with: how they read settings and weights, and what they refuse."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit.errors import ConfigError, SourceError
from dreamkit.registry.registry import Registry
from dreamkit.scaffold import KINDS, new_plugin
from dreamkit.testing import contracts

WITH_WEIGHTS = [kind for kind in KINDS if kind != "projector"]


def part(kind: str) -> Any:
    return importlib.import_module(f"dreamkit.scaffold.parts.{KINDS[kind].module}").NewPart


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each kind that has weights."""
    folder = tmp_path_factory.mktemp("packages")
    registry = Registry.load()
    return {
        kind: new_plugin(f"dreamkit-read-{kind}", kind, folder / kind, registry=registry)[0]
        for kind in WITH_WEIGHTS
    }


@pytest.fixture
def weights(kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The part that the lines of a package's README make; its weights are in the folder `weights`."""
    folder = folders[kind]
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["part"]


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_weights_are_read_back(kind: str, weights: Any) -> None:
    cls = type(weights)
    config = cls.Config(pretrained="./weights")
    read = cls.from_pretrained(config)
    assert read.spec == weights.spec == cls.infer_spec(config)
    state, again = weights.state_dict(), read.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    if kind == "language-model":
        assert read.tokenize("</s> é") == weights.tokenize("</s> é")


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(kind: str, weights: Any) -> None:
    cls = type(weights)
    config = cls.Config(pretrained="./weights")
    Path("weights/config.json").write_text('{"dim": 64}')
    with pytest.raises(SourceError, match="size mismatch"):
        cls.from_pretrained(config)
    Path("weights/config.json").write_text('{"dims": 64}')
    with pytest.raises(SourceError, match=r"config\.json of './weights': .*'dims'; did you mean 'dim'\?"):
        cls.infer_spec(config)
    Path("weights/config.json").write_text("[1]")
    with pytest.raises(SourceError, match=r"config\.json cannot be read"):
        cls.infer_spec(config)
    Path("weights/config.json").write_text('{"dim": 32}')
    Path("weights/model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        cls.from_pretrained(config)
    Path("weights/model.safetensors").unlink()
    with pytest.raises(SourceError, match="lacks weights"):
        cls.infer_spec(config)


@pytest.mark.parametrize("kind", ["language-model"])
def test_a_tokenizer_that_cannot_end_a_text_is_refused(kind: str, weights: Any) -> None:
    settings = json.loads(Path("weights/tokenizer_config.json").read_text())
    Path("weights/tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    config = type(weights).Config(pretrained="./weights")
    with pytest.raises(SourceError, match="the tokenizer has no eos_token"):
        type(weights).infer_spec(config)
    Path("weights/tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="the tokenizer cannot be read"):
        type(weights).infer_spec(config)


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"dims": 1}, {"config.dims": "did you mean 'dim'?"}),
        ({"dim": 0, "layers": "2"}, {"config.dim": "0 found", "config.layers": "'2' found"}),
        ({"dim": 10}, {"config.heads": "4 found, which does not divide dim, 10"}),
    ],
)
def test_settings_that_cannot_be_are_refused(
    kind: str, config: dict[str, Any], problems: dict[str, str]
) -> None:
    cls = part(kind)
    with pytest.raises(ConfigError) as refused:
        cls.infer_spec(cls.Config(config=config))
    assert refused.value.problems.keys() == problems.keys()
    for key, said in problems.items():
        assert said in refused.value.problems[key]


def test_the_latents_of_a_new_decoder_can_be_cached() -> None:
    build = contracts.tiny_part(part("image-decoder"))
    (outcome,) = contracts.verify("image_decoder", build, only="posterior_agrees", quick=True).outcomes
    assert outcome.result == "passed", str(outcome)


def test_the_projector_refuses_what_it_cannot_average() -> None:
    cls = part("projector")
    with pytest.raises(ConfigError, match="0 found"):
        cls.Config(every=0)
    with pytest.raises(ConfigError, match="2 found, which does not divide 5 tokens"):
        cls.infer_spec(cls.Config(), in_dim=2, in_tokens=5, out_dim=2)
