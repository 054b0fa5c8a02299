"""The resampler equals diffusers' blocks and torch's layers with its weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import IPAdapterPlusImageProjectionBlock
from torch import Tensor, nn

import tiny
from dreamkit.parts.projectors import Resampler

OPTIONS = {"tokens": 5, "depth": 2, "width": 16, "heads": 4}


def project(part: Resampler, blocks: list[nn.Module], tokens: Tensor) -> Tensor:
    """Compute the projection with other `blocks`; the linear layers and the final norm are computed by hand."""
    inputs = tokens @ part.in_layer.weight.T + part.in_layer.bias
    latents = part.latents.repeat(len(tokens), 1, 1)
    for block in blocks:
        latents = block(inputs, latents)
    mean, spread = latents.mean(-1, keepdim=True), latents.std(-1, correction=0, keepdim=True)
    normed = (latents - mean) / (spread.square() + 1e-5).sqrt() * part.norm.weight + part.norm.bias
    return normed @ part.out_layer.weight.T + part.out_layer.bias


def diffusers_block(block: nn.Module) -> nn.Module:
    """Return the block of IP-Adapter's resampler, which is OpenFlamingo's, with the weights of `block`."""
    width = block.out.weight.shape[0]
    published = IPAdapterPlusImageProjectionBlock(width, width // block.heads, block.heads).double()
    names = {
        "tokens_norm": "ln0",
        "latents_norm": "ln1",
        "query": "attn.to_q",
        "key": "attn.to_k",
        "value": "attn.to_v",
        "out": "attn.to_out.0",
        "feed_forward.0": "ff.0",
        "feed_forward.1": "ff.1.net.0.proj",
        "feed_forward.3": "ff.1.net.2",
    }
    state = {
        f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": weight
        for name, weight in block.state_dict().items()
    }
    published.load_state_dict(state)
    return lambda inputs, latents: published(inputs, latents, latents)


def torch_block(block: nn.Module) -> nn.Module:
    """Return a block of torch's own layers with the weights of `block`."""
    width = block.out.weight.shape[0]
    attention = nn.MultiheadAttention(width, block.heads, bias=False, batch_first=True).double()
    stacked = torch.cat([block.query.weight, block.key.weight, block.value.weight])
    attention.load_state_dict({"in_proj_weight": stacked, "out_proj.weight": block.out.weight})

    def norm(layer: nn.LayerNorm, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (width,), layer.weight, layer.bias)

    def compute(inputs: Tensor, latents: Tensor) -> Tensor:
        normed = norm(block.latents_norm, latents)
        attended = torch.cat([norm(block.tokens_norm, inputs), normed], dim=1)
        latents = latents + attention(normed, attended, attended, need_weights=False)[0]
        first, _, last = block.feed_forward[1:]
        return latents + F.linear(
            F.gelu(F.linear(norm(block.feed_forward[0], latents), first.weight)), last.weight
        )

    return compute


@pytest.mark.parametrize("library", [diffusers_block, torch_block])
def test_the_resampler_equals_library_blocks(library: object) -> None:
    torch.manual_seed(0)
    part = tiny.perturb(tiny.projector(Resampler, **OPTIONS))
    tokens = torch.randn(3, 6, 24, dtype=torch.float64)
    expected = project(part, [library(block) for block in part.blocks], tokens)
    assert expected.shape == (3, 5, 32)
    torch.testing.assert_close(part(tokens), expected)


def test_the_resampler_ignores_the_order_of_tokens() -> None:
    """So does the paper's code for images. The docs state it."""
    torch.manual_seed(0)
    part = tiny.perturb(tiny.projector(Resampler, **OPTIONS))
    tokens = torch.randn(2, 6, 24, dtype=torch.float64)
    torch.testing.assert_close(part(tokens.flip(1)), part(tokens))


def test_initial_latents_differ_and_attend_to_the_tokens() -> None:
    torch.manual_seed(0)
    part = tiny.projector(Resampler, **OPTIONS)
    first, second = part(torch.randn(2, 6, 24, dtype=torch.float64))
    assert torch.pdist(first).min() > 0.1 * first.norm(dim=-1).mean()
    assert not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize(("in_dim", "out_dim", "width"), [(24, 32, 24), (32, 24, 24)])
def test_the_default_width_is_that_of_the_narrower_neighbour(in_dim: int, out_dim: int, width: int) -> None:
    part = tiny.projector(Resampler, in_dim=in_dim, out_dim=out_dim, depth=1)
    assert part.latents.shape == (64, width) and len(part.blocks) == 1
    assert Resampler.Config().depth == 6  # Flamingo's number of blocks
