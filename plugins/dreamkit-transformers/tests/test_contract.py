"""The parts of this distribution keep their contracts, as they come and in forms that recipes give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import MistralConfig, MistralForCausalLM

from dreamkit import ChatTemplate
from dreamkit.testing import contracts
from dreamkit_transformers.causal_lm import CausalLM
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.llama import Llama, Vicuna
from dreamkit_transformers.siglip import Siglip, Siglip2

NOT_REGISTERED = {"light_import": "a family that only this test knows"}


class Mistral(CausalLM):
    """A family with a sliding window, shorter than the rows it is given."""

    model_types = ("mistral",)
    config_class = MistralConfig
    model_class = MistralForCausalLM
    adapter_targets = ("q_proj", "v_proj")

    @classmethod
    def chat_template(cls, config, tokenizer):
        return ChatTemplate(user=("[INST]", "[/INST]"), assistant=("", tokenizer.eos_token))


def form(cls: Any, **changes: Any) -> Any:
    """What builds the miniature with other settings; those of `config` are put among the miniature's own."""

    def build() -> Any:
        given = cls.miniature()
        config = {**given.config, **changes.get("config", {})}
        return cls.from_config(replace(given, **{**changes, "config": config}))

    return build


def fixed_siglip2() -> Siglip2:
    given = Siglip.miniature()
    return Siglip2.from_config(replace(given, config={**given.config, "model_type": "siglip_vision_model"}))


@contracts.parametrize("vision_encoder", contracts.miniature(Clip))
def test_clip(check):
    check()


@contracts.parametrize("vision_encoder", contracts.miniature(Siglip))
def test_siglip(check):
    check()


@contracts.parametrize("vision_encoder", contracts.miniature(Siglip2))
def test_siglip2(check):
    check()


@contracts.parametrize("vision_encoder", contracts.miniature(Dinov2))
def test_dinov2(check):
    check()


@contracts.parametrize("language_model", contracts.miniature(Llama))
def test_llama(check):
    check()


@contracts.parametrize("language_model", contracts.miniature(Vicuna))
def test_vicuna(check):
    check()


@contracts.parametrize("language_model", form(Mistral, config={"sliding_window": 4}), NOT_REGISTERED)
def test_a_sliding_window(check):
    check()


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("vision_encoder", form(Clip, layer=-1)),
        ("vision_encoder", form(Siglip, layer=1)),
        ("vision_encoder", form(Siglip, layer=-1, config={"image_size": 18, "patch_size": 4})),
        ("vision_encoder", fixed_siglip2),
        ("vision_encoder", form(Siglip2, image_size=32, pool=2)),
        ("vision_encoder", form(Dinov2, config={"model_type": "dinov2_with_registers"})),
        ("vision_encoder", form(Dinov2, image_size=24, layer=1)),
        ("vision_encoder", form(Dinov2, pool=2, pooling="pixel-shuffle")),
        ("vision_encoder", form(Clip, image_size=32, pool=2)),
        ("language_model", form(Llama, config={"tie_word_embeddings": True})),
        ("language_model", form(Llama, config={"vocab_size": 270})),
        ("language_model", form(Vicuna, system_prompt="")),
    ],
    ids=[
        "last layer",
        "first layer",
        "cut patches",
        "fixed",
        "large naflex",
        "registers",
        "large dinov2",
        "shuffled",
        "pooled",
        "tied",
        "padded vocabulary",
        "no system prompt",
    ],
)
def test_other_forms(kind, build):
    report = contracts.verify(kind, build, quick=True)
    assert report.ok, str(report)
