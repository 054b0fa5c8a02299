"""The layers of the condition are cached in networks that are adapted, fused, compiled or of other blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dreamkit_diffusers.stable_diffusion import StableDiffusion
from tiny_decoders import (
    STEPS,
    assert_cache_changes_nothing,
    count_calls,
    draw,
    draw_steps,
    tiny_decoder,
    uncached,
)

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LORA = {"r": 2, "target_modules": r".*attn2\.to_[kv]", "init_lora_weights": False}


def adapted_decoder(**settings: Any) -> Any:
    decoder = tiny_decoder(StableDiffusion)
    inject_adapter_in_model(LoraConfig(**LORA, **settings), decoder.unet)
    return decoder.eval()


def calls_in_a_drawing(decoder: Any, layers: tuple[str, ...]) -> set[int]:
    """Check that the cache changes nothing; return how often the layers are called in a drawing."""
    assert_cache_changes_nothing(decoder)
    counts = count_calls(decoder)
    draw(decoder)
    return {count for name, count in counts.items() if name.endswith(layers)}


@pytest.mark.parametrize("dora", [False, True])
def test_adapted_layers_are_called_once(dora: bool) -> None:
    decoder = adapted_decoder(use_dora=dora)
    assert not torch.equal(draw(decoder), draw(tiny_decoder(StableDiffusion)))
    layers = ("attn2.to_k", "attn2.to_v", "attn2.to_k.base_layer", "attn2.to_v.base_layer")
    assert calls_in_a_drawing(decoder, layers) == {1}


def test_an_adapter_drops_out_anew_in_each_step() -> None:
    decoder = adapted_decoder(lora_dropout=0.5).train()

    def draw_seeded() -> Tensor:
        torch.manual_seed(3)
        return draw(decoder)

    with uncached(decoder):
        expected = draw_seeded()
    assert torch.equal(draw_seeded(), expected)
    decoder.eval()
    assert not torch.equal(draw_seeded(), expected)


def test_training_mode_may_begin_within_a_drawing() -> None:
    decoder = adapted_decoder(lora_dropout=0.5)

    def draw_mixed() -> Tensor:
        steps = draw_steps(decoder.eval())
        first = next(steps)
        decoder.train()
        torch.manual_seed(3)
        return torch.stack([first, *steps])

    with uncached(decoder):
        expected = draw_mixed()
    assert torch.equal(draw_mixed(), expected)


def test_fused_projections_are_called_once() -> None:
    decoder = tiny_decoder(StableDiffusion)
    decoder.unet.fuse_qkv_projections()
    assert calls_in_a_drawing(decoder, ("to_kv",)) == {1}
    assert calls_in_a_drawing(decoder, ("to_qkv",)) == {STEPS}


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)])
def test_other_attention_processors_use_the_cache(processor: Any) -> None:
    decoder = tiny_decoder(StableDiffusion)
    decoder.unet.set_attn_processor(processor)
    assert calls_in_a_drawing(decoder, ("attn2.to_k", "attn2.to_v")) == {1}


FIRST = "down_blocks.0.attentions.0.transformer_blocks.0"
SIMPLE = {
    "down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"],
}


@pytest.mark.parametrize(
    ("unet", "once", "each_step"),
    [
        ({"only_cross_attention": True}, (f"{FIRST}.attn1.to_k", "attn2.to_v"), ("attn1.to_q", "attn2.to_q")),
        ({"upcast_attention": True, "use_linear_projection": True}, ("attn2.to_k",), ("attn1.to_k",)),
        (SIMPLE, (), ("to_k", "add_k_proj")),
    ],
    ids=["only cross", "upcast", "simple"],
)
def test_unets_of_other_blocks_use_the_cache(
    unet: Any, once: tuple[str, ...], each_step: tuple[str, ...]
) -> None:
    decoder = tiny_decoder(StableDiffusion, unet=unet)
    assert calls_in_a_drawing(decoder, once) == ({1} if once else set())
    assert calls_in_a_drawing(decoder, each_step) == {STEPS}


def compile_module(unet: Any) -> Any:
    return torch.compile(unet, backend="eager", fullgraph=True)


def compile_in_place(unet: Any) -> Any:
    unet.compile(backend="eager", fullgraph=True)
    return unet


def compile_forward(unet: Any) -> Any:
    unet.forward = torch.compile(unet.forward, backend="eager", fullgraph=True)
    return unet


@pytest.fixture
def reset_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("compiled", [compile_module, compile_in_place, compile_forward])
def test_a_compiled_unet_draws(compiled: Callable[[nn.Module], Any]) -> None:
    decoder = tiny_decoder(StableDiffusion)
    expected = [draw(decoder, seed) for seed in (1, 2)]
    decoder.unet = compiled(decoder.unet)
    for seed in (1, 2, 1):
        torch.testing.assert_close(draw(decoder, seed), expected[seed - 1])


@pytest.mark.usefixtures("reset_compiler")
@pytest.mark.parametrize("compiled", [compile_module, compile_in_place])
def test_a_compiled_unet_has_no_stand_ins_and_is_not_recompiled(
    compiled: Callable[[nn.Module], Any],
) -> None:
    decoder = tiny_decoder(StableDiffusion)
    decoder.unet = compiled(decoder.unet)
    with uncached(decoder):
        expected = draw(decoder)
    predict = decoder.predict

    def check(*arguments: Any) -> Tensor:
        assert not any("to_k" in vars(module) for module in decoder.modules())
        return predict(*arguments)

    decoder.predict = check
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(draw(decoder), expected)
