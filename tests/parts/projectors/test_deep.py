"""Settings and gradient checkpointing of the projectors with layers."""

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
def test_head_count_divides_the_width(width: int, heads: int, even: bool) -> None:
    if even and width % 2:
        with pytest.raises(ConfigError) as caught:
            head_count(width, None, even)
        (message,) = caught.value.problems.values()
        assert f"set it to {width + 1}" in message
        return
    default = head_count(width, None, even)
    unit = 2 if even else 1
    assert width % (default * unit) == 0 and (default == 1 or width // default >= 64)
    if width % (64 * default) == 0:
        assert width // default == 64
    if width % (heads * unit) == 0:
        assert head_count(width, heads, even) == heads
        return
    with pytest.raises(ConfigError) as caught:
        head_count(width, heads, even)
    (message,) = caught.value.problems.values()
    assert f"the width {width}, got {heads};" in message
    assert head_count(width, int(message.rpartition(" ")[2]), even)


@pytest.mark.parametrize(
    ("cls", "options", "problems"),
    [
        (Resampler, {"tokens": 0, "depth": -1}, {"tokens": "got 0", "depth": "got -1"}),
        (
            Resampler,
            {"width": 20, "heads": 6},
            {"heads": "expected a divisor of the width 20, got 6; set it to 5"},
        ),
        (Resampler, {"width": 0}, {"width": "expected at least 1, got 0"}),
        (Mapper, {"heads": 5}, {"heads": "the width 512, got 5; set it to 4"}),
        (Mapper, {"tokens": 0, "heads": 0}, {"tokens": "got 0", "heads": "got 0"}),
        (
            Encoder,
            {"width": 21},
            {"width": "expected an even number (rotary positions turn pairs), got 21; set it to 22"},
        ),
        (
            Encoder,
            {"width": 20, "heads": 4},
            {"heads": "expected a divisor of half the width 20, got 4; set it to 5"},
        ),
        (Encoder, {"depth": 0}, {"depth": "got 0"}),
    ],
)
def test_invalid_settings_are_errors(cls: type, options: dict, problems: dict[str, str]) -> None:
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
def test_settings_that_do_not_fit_the_neighbours_are_errors(
    cls: type, options: dict, in_dim: int, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        cls.infer_spec(cls.Config(**options), in_dim=in_dim, in_tokens=4, out_dim=32)
    assert caught.value.problems.keys() == {key} and str(in_dim) in caught.value.problems[key]


@pytest.mark.parametrize("cls", DEEP)
def test_gradient_checkpointing_runs_each_layer_twice(cls: type) -> None:
    torch.manual_seed(0)
    part = tiny.projector(cls, **vars(cls.tiny_config())).train()
    calls = []
    for layer in DEEP[cls](part):
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    layers, tokens = len(DEEP[cls](part)), torch.randn(2, 6, 24, dtype=torch.float64)

    def count_runs(training: bool = True) -> int:
        calls.clear()
        with torch.set_grad_enabled(training):
            output = part(tokens)
        if training:
            output.sum().backward()
        return len(calls)

    assert layers >= 2 and count_runs() == layers
    part.enable_gradient_checkpointing()
    assert count_runs() == 2 * layers and count_runs(training=False) == layers


@pytest.mark.parametrize("cls", DEEP)
def test_projectors_with_attention_have_no_dense_layers(cls: type) -> None:
    assert tiny.projector(cls, **vars(cls.tiny_config())).dense_layers() is None
