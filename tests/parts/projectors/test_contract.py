"""The core's projectors, and a language model with a SentencePiece tokenizer, pass the contract kit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dreamkit.parts.projectors import MLP, Encoder, Linear, Mapper, Resampler
from dreamkit.testing import contracts
from dreamkit.testing.subject_kinds import WIDTHS
from dreamkit_transformers.llama import Vicuna

PUBLISHED = Path(__file__).parents[2] / "reference" / "published-sd" / "checkpoint"


@contracts.parametrize("projector", contracts.tiny_part(Linear))
def test_linear(check):
    check()


@contracts.parametrize("projector", contracts.tiny_part(MLP))
def test_mlp(check):
    check()


@contracts.parametrize("projector", contracts.tiny_part(Resampler))
def test_resampler(check):
    check()


@contracts.parametrize("projector", contracts.tiny_part(Mapper))
def test_mapper(check):
    check()


@contracts.parametrize("projector", contracts.tiny_part(Encoder))
def test_encoder(check):
    check()


NARROWING = {"in_dim": 32, "in_tokens": 3, "out_dim": 12}  # the shapes of a condition projector


@pytest.mark.parametrize(
    ("cls", "options", "widths"),
    [
        (Linear, {"bias": False}, WIDTHS),
        (MLP, {"depth": 1}, WIDTHS),
        (MLP, {"depth": 3, "hidden_dim": 7, "bias": False}, WIDTHS),
        (Resampler, {"tokens": 1, "depth": 1}, WIDTHS),
        (Resampler, {"tokens": 20, "depth": 1, "heads": 3}, NARROWING),
        (Mapper, {"width": 9, "heads": 3, "depth": 2}, WIDTHS),
        (Mapper, {"tokens": 5, "width": 16, "depth": 1}, NARROWING),
        (Encoder, {"depth": 1}, WIDTHS),
        (Encoder, {"depth": 1, "width": 18, "heads": 3}, NARROWING),
    ],
    ids=str,
)
def test_other_settings(cls, options, widths):
    config = cls.Config(**options)
    report = contracts.verify(
        "projector", lambda: cls.from_config(config, cls.infer_spec(config, **widths)), quick=True
    )
    assert report.ok, str(report)


def test_a_sentencepiece_tokenizer():
    """The tokenizer and vocabulary of the published model, in a tiny part."""

    def build():
        config = replace(Vicuna.tiny_config(), tokenizer=str(PUBLISHED))
        return Vicuna.from_config(config)

    report = contracts.verify("language_model", build)
    assert report.ok, str(report)
