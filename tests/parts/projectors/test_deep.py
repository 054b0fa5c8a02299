"""What projectors of layers have in common: their settings, and activations that are computed again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

import tiny
from dreamkit.errors import ConfigError
from dreamkit.parts.projectors import Encoder, Mapper, Resampler
from dreamkit.parts.projectors.blocks import head_count

DEEP = {
    Resampler: lambda part: part.blocks,
    Mapper: lambda part: [*part.transformer.encoder.layers, *part.transformer.decoder.layers],
    Encoder: lambda part: part.layers,
}


@given(st.integers(1, 3000), st.integers(1, 200), st.booleans())
@settings(deadline=None)
def test_heads_share_out_a_width(width: int, wanted: int, even: bool) -> None:
    if even and width % 2:
        with pytest.raises(ConfigError) as caught:
            head_count(width, None, even)
        (message,) = caught.value.problems.values()
        assert f"set it to {width + 1}" in message
        return
    heads = head_count(width, None, even)
    unit = 2 if even else 1
    assert width % (heads * unit) == 0 and (heads == 1 or width // heads >= 64)
    if width % (64 * heads) == 0:
        assert width // heads == 64
    if width % (wanted * unit) == 0:
        assert head_count(width, wanted, even) == wanted
        return
    with pytest.raises(ConfigError) as caught:
        head_count(width, wanted, even)
    (message,) = caught.value.problems.values()
    assert message.startswith(f"{wanted} found") and f"a width of {width};" in message
    assert head_count(width, int(message.rpartition(" ")[2]), even)


@pytest.mark.parametrize(
    ("cls", "options", "problems"),
    [
        (Resampler, {"tokens": 0, "depth": -1}, {"tokens": "0 found", "depth": "-1 found"}),
        (
            Resampler,
            {"width": 20, "heads": 6},
            {"heads": "6 found, but each has the same share of a width of 20; set it to 5"},
        ),
        (Resampler, {"width": 0}, {"width": "0 found, but it is at least 1"}),
        (Mapper, {"heads": 5}, {"heads": "a width of 512; set it to 4"}),
        (Mapper, {"tokens": 0, "heads": 0}, {"tokens": "0 found", "heads": "0 found"}),
        (Encoder, {"width": 21}, {"width": "21, but rotary positions turn pairs of numbers; set it to 22"}),
        (
            Encoder,
            {"width": 20, "heads": 4},
            {"heads": "the same share, an even one, of a width of 20; set it to 5"},
        ),
        (Encoder, {"depth": 0}, {"depth": "0 found"}),
    ],
)
def test_what_is_refused(cls: type, options: dict, problems: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cls.Config(**options)
    assert caught.value.problems.keys() == problems.keys()
    for key, message in problems.items():
        assert message in caught.value.problems[key]


@pytest.mark.parametrize(
    ("cls", "options", "in_dim", "key"),
    [
        (Resampler, {"heads": 5}, 27, "heads"),
        (Encoder, {"heads": 5}, 28, "heads"),
        (Encoder, {}, 27, "width"),
    ],
)
def test_what_neighbours_do_not_fit(cls: type, options: dict, in_dim: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cls.infer_spec(cls.Config(**options), in_dim=in_dim, in_tokens=4, out_dim=32)
    assert caught.value.problems.keys() == {key} and str(in_dim) in caught.value.problems[key]


@pytest.mark.parametrize("cls", DEEP)
def test_layers_are_computed_again_where_that_is_wanted(cls: type) -> None:
    torch.manual_seed(0)
    part = tiny.projector(cls, **vars(cls.tiny_config())).train()
    calls = []
    for layer in DEEP[cls](part):
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    layers, tokens = len(DEEP[cls](part)), torch.randn(2, 6, 24, dtype=torch.float64)

    def computed(learning: bool = True) -> int:
        calls.clear()
        with torch.set_grad_enabled(learning):
            output = part(tokens)
        if learning:
            output.sum().backward()
        return len(calls)

    assert layers >= 2 and computed() == layers
    part.enable_gradient_checkpointing()
    assert computed() == 2 * layers and computed(learning=False) == layers


@pytest.mark.parametrize("cls", DEEP)
def test_they_are_not_dense(cls: type) -> None:
    assert tiny.projector(cls, **vars(cls.tiny_config())).dense_layers() is None
