"""The mapper equals torch's transformer, used as in GILL's published code."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import tiny
from dreamkit.parts.projectors import Mapper


class Published(nn.Module):
    """The modules of GILL's published mapper."""

    def __init__(self, in_dim: int, out_dim: int, tokens: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.fc, self.model = nn.Linear(in_dim, width), nn.Linear(width, out_dim)
        with warnings.catch_warnings(action="ignore"):  # about nested tensors
            self.tfm = nn.Transformer(
                width, heads, depth, depth, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
        self.query_embs = nn.Parameter(torch.randn(1, tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(self.tfm(self.fc(tokens), self.query_embs.repeat(len(tokens), 1, 1)))


NAMES = {"in_layer": "fc", "out_layer": "model", "transformer": "tfm", "queries": "query_embs"}


def published_names(part: Mapper) -> dict[str, Tensor]:
    """Return the part's weights by their published names."""
    state = {}
    for name, tensor in part.state_dict().items():
        first, dot, rest = name.partition(".")
        state[NAMES[first] + dot + rest] = tensor[None] if first == "queries" else tensor
    return state


# in evaluation mode, torch computes an encoder's layers in another way
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("heads", [2, 3])
def test_the_mapper_equals_the_published_one(training: bool, grad: bool, heads: int) -> None:
    torch.manual_seed(0)
    part = tiny.perturb(tiny.projector(Mapper, tokens=7, width=12, depth=2, heads=heads)).train(training)
    published = Published(24, 32, 7, 12, 2, heads).double().train(training)
    published.load_state_dict(published_names(part))
    tokens = torch.randn(3, 6, 24, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        actual, expected = part(tokens), published(tokens)
    assert actual.shape == (3, 7, 32)
    torch.testing.assert_close(actual, expected)


def test_the_default_sizes_are_gills() -> None:
    """4 + 4 layers of width 512 with 4 heads and no dropout, for LLaMA's width and Stable Diffusion's 77 tokens."""
    with torch.device("meta"):
        part = tiny.projector(Mapper, in_dim=4096, in_tokens=8, out_dim=768, tokens=77)
        published = Published(4096, 768, 77, 512, 4, 4)
    expected = {name: tensor.shape for name, tensor in published.state_dict().items()}
    assert {name: tensor.shape for name, tensor in published_names(part).items()} == expected
    assert all(module.p == 0 for module in part.modules() if isinstance(module, nn.Dropout))
    assert {module.num_heads for module in part.modules() if isinstance(module, nn.MultiheadAttention)} == {4}


def test_initial_weights_are_torchs() -> None:
    torch.manual_seed(0)
    part = tiny.projector(Mapper, in_dim=512, in_tokens=64, out_dim=512, depth=1)
    expected = Published(512, 512, 64, 512, 1, 4).state_dict()
    for name, tensor in published_names(part).items():
        spread = expected[name].std(correction=0).item()
        assert tensor.std(correction=0).item() == pytest.approx(spread, rel=0.15), name


def test_the_default_number_of_output_tokens_is_that_of_the_input() -> None:
    tokens = torch.randn(2, 6, 24, dtype=torch.float64)
    small = {"width": 8, "depth": 1, "heads": 2}
    assert tiny.projector(Mapper, **small)(tokens).shape == (2, 6, 32)
    assert tiny.projector(Mapper, tokens=9, **small)(tokens).shape == (2, 9, 32)


def test_the_mapper_ignores_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    part = tiny.perturb(tiny.projector(Mapper, width=12, depth=2, heads=2))
    tokens = torch.randn(2, 6, 24, dtype=torch.float64)
    torch.testing.assert_close(part(tokens.flip(1)), part(tokens))
