"""The parts that a new plug-in starts with: how they read settings and weights, and which ones they refuse."""

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

WITH_WEIGHTS = [kind for kind in KINDS if KINDS[kind].has_weights]


def part(kind: str) -> Any:
    return importlib.import_module(f"dreamkit.scaffold.parts.{KINDS[kind].module}").NewPart


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a package of each kind with weights."""
    folder = tmp_path_factory.mktemp("packages")
    registry = Registry.load()
    return {
        kind: new_plugin(f"dreamkit-read-{kind}", kind, folder / kind, registry=registry)[0]
        for kind in WITH_WEIGHTS
    }


@pytest.fixture
def weights(kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the part that the Python block of the README makes; its weights are in the folder `weights`."""
    folder = folders[kind]
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["part"]


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_saved_weights_load_into_an_equal_part(kind: str, weights: Any) -> None:
    cls = type(weights)
    config = cls.Config(pretrained="./weights")
    loaded = cls.from_pretrained(config)
    assert loaded.spec == weights.spec == cls.infer_spec(config)
    state, again = weights.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    if kind == "language-model":
        assert loaded.tokenize("</s> é") == weights.tokenize("</s> é")


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_damaged_weights_are_refused(kind: str, weights: Any) -> None:
    cls = type(weights)
    config = cls.Config(pretrained="./weights")
    Path("weights/config.json").write_text('{"dim": 64}')
    with pytest.raises(SourceError, match="size mismatch"):
        cls.from_pretrained(config)
    Path("weights/config.json").write_text('{"dims": 64}')
    with pytest.raises(SourceError, match=r"config\.json of './weights': .*'dims'; did you mean 'dim'\?"):
        cls.infer_spec(config)
    Path("weights/config.json").write_text("[1]")
    with pytest.raises(SourceError, match=r"cannot read .*config\.json"):
        cls.infer_spec(config)
    Path("weights/config.json").write_text('{"dim": 32}')
    Path("weights/model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        cls.from_pretrained(config)
    Path("weights/model.safetensors").unlink()
    with pytest.raises(SourceError, match="lacks weights"):
        cls.infer_spec(config)


@pytest.mark.parametrize("kind", ["language-model"])
def test_a_tokenizer_without_an_end_token_is_refused(kind: str, weights: Any) -> None:
    settings = json.loads(Path("weights/tokenizer_config.json").read_text())
    Path("weights/tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    config = type(weights).Config(pretrained="./weights")
    with pytest.raises(SourceError, match="the tokenizer lacks eos_token"):
        type(weights).infer_spec(config)
    Path("weights/tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="cannot read the tokenizer"):
        type(weights).infer_spec(config)


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"dims": 1}, {"config.dims": "did you mean 'dim'?"}),
        ({"dim": 0, "layers": "2"}, {"config.dim": "got 0", "config.layers": "got '2'"}),
        ({"dim": 10}, {"config.heads": "expected a divisor of dim=10, got 4"}),
    ],
)
def test_invalid_sizes_are_refused_by_key(
    kind: str, config: dict[str, Any], problems: dict[str, str]
) -> None:
    cls = part(kind)
    with pytest.raises(ConfigError) as refused:
        cls.infer_spec(cls.Config(config=config))
    assert refused.value.problems.keys() == problems.keys()
    for key, message in problems.items():
        assert message in refused.value.problems[key]


def test_the_latents_of_a_new_image_decoder_can_be_cached() -> None:
    build = contracts.tiny_part(part("image-decoder"))
    (outcome,) = contracts.verify("image_decoder", build, only="posterior_agrees", quick=True).outcomes
    assert outcome.result == "passed", str(outcome)


def test_the_projector_refuses_groups_of_unequal_size() -> None:
    cls = part("projector")
    with pytest.raises(ConfigError, match="expected at least 1, got 0"):
        cls.Config(every=0)
    with pytest.raises(ConfigError, match="expected a divisor of 5 tokens, got 2"):
        cls.infer_spec(cls.Config(), in_dim=2, in_tokens=5, out_dim=2)
