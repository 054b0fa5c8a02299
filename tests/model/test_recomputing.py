"""Gradient checkpointing recomputes the parts that a gradient passes through, and no others."""

from collections import Counter
from typing import Any

import pytest

import tiny
from dreamkit.data.batch import Collator
from dreamkit.parts.projectors import Linear

FIRST = {  # the first module of a block of each part: it runs once, and again if the block is recomputed
    "vision_encoder": "model.encoder.layers.0.layer_norm1",
    "visual_projector": "layers.0.attention_norm",
    "language_model": "model.model.layers.0.input_layernorm",
    "condition_projector": "layers.0.attention_norm",
    "image_decoder": "unet.up_blocks.0.resnets.0.norm1",
}
ENCODER = {"name": "encoder", "depth": 1, "width": 16, "heads": 2}
DRAWING_PARTS = {"language_model", "condition_projector", "image_decoder"}
ALL_PARTS = {*FIRST}
CASES: dict[str, tuple[list[str], str | None, set[str]]] = {
    "joints": (
        ["visual_projector", "condition_projector", "dream_queries"],
        None,
        ALL_PARTS - {"vision_encoder"},
    ),
    "visual projector": (["visual_projector"], None, ALL_PARTS - {"vision_encoder"}),
    "dream queries": (["dream_queries"], None, DRAWING_PARTS),
    "new tokens": (["new_tokens"], None, DRAWING_PARTS),
    "language model": (["language_model"], None, DRAWING_PARTS),
    "adapter of the language model": ([], "language_model", DRAWING_PARTS),
    "condition projector": (["condition_projector"], None, {"condition_projector", "image_decoder"}),
    "image decoder": (["image_decoder"], None, {"image_decoder"}),
    "adapter of the image decoder": ([], "image_decoder", {"image_decoder"}),
    "vision encoder": (["vision_encoder"], None, ALL_PARTS),
    "adapter of the vision encoder": ([], "vision_encoder", ALL_PARTS),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_that_a_gradient_passes_through_are_recomputed(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable, adapter_target, reached = CASES[case]
    changes: dict[str, Any] = {"model.visual_projector": ENCODER, "model.condition_projector": ENCODER}
    if adapter_target:
        changes["model.adapters"] = [{"target": adapter_target, "rank": 2}]
    model = tiny.model(**changes)
    model.set_trainable(trainable)
    assert model.reached_parts().keys() == reached
    enabled: set[str] = set()
    for name, part in model.parts().items():

        def enable(name: str = name, enable: Any = part.enable_gradient_checkpointing) -> None:
            enabled.add(name)
            enable()

        monkeypatch.setattr(part, "enable_gradient_checkpointing", enable)
    model.enable_gradient_checkpointing()
    assert enabled == reached
    runs: Counter[str] = Counter()
    for name, inner in FIRST.items():
        layer = model.parts()[name].get_submodule(inner)
        layer.register_forward_pre_hook(lambda module, inputs, name=name: runs.update([name]))
    collator = Collator(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)
    model.train()(collator(tiny.documents())).loss.backward()
    assert runs == {name: 2 if name in reached else 1 for name in FIRST}


def test_a_pooled_projector_feeds_the_image_decoder() -> None:
    model = tiny.model()
    model.pooled_projector = tiny.projector(Linear, in_dim=32, in_tokens=1, out_dim=4)
    model.set_trainable(["pooled_projector"])
    assert model.reached_parts().keys() == {"pooled_projector", "image_decoder"}
