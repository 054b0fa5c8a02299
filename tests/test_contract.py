"""The core's own projectors keep their contract, and so does a language model with a tokenizer of SentencePiece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dreamkit.projectors import MLP, Linear
from dreamkit.testing import contracts
from dreamkit.testing.subjects import WIDTHS
from dreamkit_transformers.llama import Vicuna

PUBLISHED = Path(__file__).parent / "reference" / "published-sd" / "checkpoint"


@contracts.parametrize("projector", contracts.miniature(Linear))
def test_linear(check):
    check()


@contracts.parametrize("projector", contracts.miniature(MLP))
def test_mlp(check):
    check()


@pytest.mark.parametrize(
    "config",
    [Linear.Config(bias=False), MLP.Config(depth=1), MLP.Config(depth=3, hidden_dim=7, bias=False)],
    ids=str,
)
def test_other_forms(config):
    cls = Linear if isinstance(config, Linear.Config) else MLP
    report = contracts.verify(
        "projector", lambda: cls.from_config(config, cls.spec_from(config, **WIDTHS)), quick=True
    )
    assert report.ok, str(report)


def test_a_sentencepiece_tokenizer():
    """That of the published model, whose vocabulary the miniature is given."""

    def build():
        config = replace(Vicuna.miniature(), tokenizer=str(PUBLISHED))
        return Vicuna.from_config(config)

    report = contracts.verify("language_model", build)
    assert report.ok, str(report)
