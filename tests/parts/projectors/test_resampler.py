"""The resampler computes what diffusers' blocks and torch's own layers compute from its weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import IPAdapterPlusImageProjectionBlock
from torch import Tensor, nn

import tiny
from dreamkit.parts.projectors import Resampler

OPTIONS = {"tokens": 5, "depth": 2, "width": 16, "heads": 4}


def around(part: Resampler, blocks: list[nn.Module], tokens: Tensor) -> Tensor:
    """The projection with `blocks` in place of its own, the matrices and the final norm by hand."""
    given = tokens @ part.in_layer.weight.T + part.in_layer.bias
    latents = part.latents.repeat(len(tokens), 1, 1)
    for block in blocks:
        latents = block(given, latents)
    mean, spread = latents.mean(-1, keepdim=True), latents.std(-1, correction=0, keepdim=True)
    normed = (latents - mean) / (spread.square() + 1e-5).sqrt() * part.norm.weight + part.norm.bias
    return normed @ part.out_layer.weight.T + part.out_layer.bias


def of_diffusers(block: nn.Module) -> nn.Module:
    """The block of IP-Adapter's resampler, which is OpenFlamingo's, with the weights of ours."""
    width = block.out.weight.shape[0]
    made = IPAdapterPlusImageProjectionBlock(width, width // block.heads, block.heads).double()
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
    made.load_state_dict(state)
    return lambda given, latents: made(given, latents, latents)


def of_torch(block: nn.Module) -> nn.Module:
    width = block.out.weight.shape[0]
    attention = nn.MultiheadAttention(width, block.heads, bias=False, batch_first=True).double()
    stacked = torch.cat([block.query.weight, block.key.weight, block.value.weight])
    attention.load_state_dict({"in_proj_weight": stacked, "out_proj.weight": block.out.weight})

    def norm(layer: nn.LayerNorm, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (width,), layer.weight, layer.bias)

    def compute(given: Tensor, latents: Tensor) -> Tensor:
        asking = norm(block.latents_norm, latents)
        seen = torch.cat([norm(block.tokens_norm, given), asking], dim=1)
        latents = latents + attention(asking, seen, seen, need_weights=False)[0]
        first, _, last = block.feed_forward[1:]
        return latents + F.linear(
            F.gelu(F.linear(norm(block.feed_forward[0], latents), first.weight)), last.weight
        )

    return compute


@pytest.mark.parametrize("library", [of_diffusers, of_torch])
def test_it_computes_what_libraries_do(library: object) -> None:
    torch.manual_seed(0)
    part = tiny.shaken(tiny.projector(Resampler, **OPTIONS))
    tokens = torch.randn(3, 6, 24, dtype=torch.float64)
    wanted = around(part, [library(block) for block in part.blocks], tokens)
    assert wanted.shape == (3, 5, 32)
    torch.testing.assert_close(part(tokens), wanted)


def test_the_order_of_tokens_makes_no_difference() -> None:
    """They are read as a set, as in the paper's code for pictures; what is said of it in the docs."""
    torch.manual_seed(0)
    part = tiny.shaken(tiny.projector(Resampler, **OPTIONS))
    tokens = torch.randn(2, 6, 24, dtype=torch.float64)
    torch.testing.assert_close(part(tokens.flip(1)), part(tokens))


def test_fresh_latents_differ_and_look_at_the_tokens() -> None:
    torch.manual_seed(0)
    part = tiny.projector(Resampler, **OPTIONS)
    first, second = part(torch.randn(2, 6, 24, dtype=torch.float64))
    assert torch.pdist(first).min() > 0.1 * first.norm(dim=-1).mean()
    assert not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize(("in_dim", "out_dim", "width"), [(24, 32, 24), (32, 24, 24)])
def test_it_is_as_wide_as_the_narrower_neighbour(in_dim: int, out_dim: int, width: int) -> None:
    part = tiny.projector(Resampler, in_dim=in_dim, out_dim=out_dim, depth=1)
    assert part.latents.shape == (64, width) and len(part.blocks) == 1
    assert Resampler.Config().depth == 6  # Flamingo's
