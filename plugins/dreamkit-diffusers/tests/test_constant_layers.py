"""The layers called once a drawing are found in networks that are adapted, fused, compiled or of other blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dreamkit_diffusers.stable_diffusion import StableDiffusion
from small_drawings import STEPS, check_drawing, counting, drawn, keeping_nothing, make, steps_of

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LORA = {"r": 2, "target_modules": r".*attn2\.to_[kv]", "init_lora_weights": False}


def adapted(**settings: Any) -> Any:
    decoder = make(StableDiffusion)
    inject_adapter_in_model(LoraConfig(**LORA, **settings), decoder.unet)
    return decoder.eval()


@pytest.mark.parametrize("dora", [False, True])
def test_adapted_layers_are_called_once(dora: bool) -> None:
    decoder = adapted(use_dora=dora)
    assert not torch.equal(drawn(decoder), drawn(make(StableDiffusion)))
    check_drawing(decoder)
    counts = counting(decoder)
    drawn(decoder)
    layers = ("attn2.to_k", "attn2.to_v", "attn2.to_k.base_layer", "attn2.to_v.base_layer")
    assert {count for name, count in counts.items() if name.endswith(layers)} == {1}


def test_an_adapter_drops_out_anew_in_each_step() -> None:
    decoder = adapted(lora_dropout=0.5).train()

    def draw() -> Tensor:
        torch.manual_seed(3)
        return drawn(decoder)

    with keeping_nothing(decoder):
        wanted = draw()
    assert torch.equal(draw(), wanted)
    decoder.eval()
    assert not torch.equal(draw(), wanted)


def test_a_drawing_may_go_on_in_training() -> None:
    decoder = adapted(lora_dropout=0.5)

    def draw() -> Tensor:
        steps = steps_of(decoder.eval())
        found = [next(steps)]
        decoder.train()
        torch.manual_seed(3)
        return torch.stack([*found, *steps])

    with keeping_nothing(decoder):
        wanted = draw()
    assert torch.equal(draw(), wanted)


def test_fused_projections_are_called_once() -> None:
    decoder = make(StableDiffusion)
    decoder.unet.fuse_qkv_projections()
    check_drawing(decoder)
    counts = counting(decoder)
    drawn(decoder)
    assert {count for name, count in counts.items() if name.endswith("to_kv")} == {1}
    assert {count for name, count in counts.items() if name.endswith("to_qkv")} == {STEPS}


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)])
def test_other_attention_processors_find_the_layers(processor: Any) -> None:
    decoder = make(StableDiffusion)
    decoder.unet.set_attn_processor(processor)
    check_drawing(decoder)
    counts = counting(decoder)
    drawn(decoder)
    assert {count for name, count in counts.items() if name.endswith(("attn2.to_k", "attn2.to_v"))} == {1}


FIRST = "down_blocks.0.attentions.0.transformer_blocks.0"
SIMPLE = {
    "down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"],
}


@pytest.mark.parametrize(
    ("network", "once", "each"),
    [
        ({"only_cross_attention": True}, (f"{FIRST}.attn1.to_k", "attn2.to_v"), ("attn1.to_q", "attn2.to_q")),
        ({"upcast_attention": True, "use_linear_projection": True}, ("attn2.to_k",), ("attn1.to_k",)),
        (SIMPLE, (), ("to_k", "add_k_proj")),
    ],
    ids=["only cross", "upcast", "simple"],
)
def test_unets_of_other_kinds(network: Any, once: tuple[str, ...], each: tuple[str, ...]) -> None:
    decoder = make(StableDiffusion, **network)
    check_drawing(decoder)
    counts = counting(decoder)
    drawn(decoder)
    for names, wanted in ((once, 1), (each, STEPS)):
        found = {count for name, count in counts.items() if name.endswith(names)}
        assert found == ({wanted} if names else set())


def compile_module(unet: Any) -> Any:
    return torch.compile(unet, backend="eager", fullgraph=True)


def compile_in_place(unet: Any) -> Any:
    unet.compile(backend="eager", fullgraph=True)
    return unet


def compile_forward(unet: Any) -> Any:
    unet.forward = torch.compile(unet.forward, backend="eager", fullgraph=True)
    return unet


@pytest.fixture
def nothing_compiled() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("compiled", [compile_module, compile_in_place, compile_forward])
def test_a_compiled_unet_draws(compiled: Callable[[nn.Module], Any]) -> None:
    decoder = make(StableDiffusion)
    wanted = [drawn(decoder, seed) for seed in (1, 2)]
    decoder.unet = compiled(decoder.unet)
    for seed in (1, 2, 1):
        torch.testing.assert_close(drawn(decoder, seed), wanted[seed - 1])


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("compiled", [compile_module, compile_in_place])
def test_a_compiled_unet_sees_its_own_layers_and_is_not_compiled_anew(
    compiled: Callable[[nn.Module], Any],
) -> None:
    decoder = make(StableDiffusion)
    decoder.unet = compiled(decoder.unet)
    with keeping_nothing(decoder):
        wanted = drawn(decoder)
    predict = decoder.predict

    def look(*arguments: Any) -> Tensor:
        assert not any("to_k" in vars(module) for module in decoder.modules())
        return predict(*arguments)

    decoder.predict = look
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(drawn(decoder), wanted)
