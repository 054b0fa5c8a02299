"""Pooling of vision tokens, compared with sums over neighbours and with transformers' pixel shuffle; its errors."""

import pytest
import torch
from hypothesis import given, strategies as st
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from dreamkit import ConfigError, PartConfig, PoolingConfig

sizes = st.integers(1, 4)
poolings = st.sampled_from(["mean", "pixel-shuffle"])


@given(height=sizes, width=sizes, pool=sizes, dim=sizes, pooling=poolings, seed=st.integers(0, 99))
def test_a_pooled_token_combines_a_square_of_neighbours(height, width, pool, dim, pooling, seed):
    config = PoolingConfig(pool=pool, pooling=pooling)
    grid = (height * pool, width * pool)
    map_NHWd = torch.randn(2, *grid, dim, generator=torch.Generator().manual_seed(seed))
    tokens = config.pooled(map_NHWd.flatten(1, 2), grid)
    assert tokens.shape == (2, *config.pooled_shape(grid, dim))
    for index in range(height * width):
        top, left = index // width * pool, index % width * pool
        square = map_NHWd[:, top : top + pool, left : left + pool].flatten(1, 2)
        expected = square.mean(1) if pooling == "mean" else square.flatten(1)
        torch.testing.assert_close(tokens[:, index], expected)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_pixel_shuffle_equals_that_of_smolvlm(pool):
    tokens = torch.randn(2, 36, 5)
    expected = Idefics3Connector.pixel_shuffle(None, tokens, scale_factor=pool)
    assert torch.equal(PoolingConfig(pool=pool, pooling="pixel-shuffle").pooled(tokens, (6, 6)), expected)


@given(height=st.integers(1, 12), width=st.integers(1, 12), pool=st.integers(1, 12), pooling=poolings)
def test_a_pool_divides_the_grid_or_the_error_names_those_that_do(height, width, pool, pooling):
    config = PoolingConfig(pool=pool, pooling=pooling)
    if height % pool == 0 and width % pool == 0:
        tokens, dim = config.pooled_shape((height, width), 3)
        assert tokens * pool**2 == height * width
        assert dim == (3 * pool**2 if pooling == "pixel-shuffle" else 3)
        return
    with pytest.raises(ConfigError) as caught:
        config.pooled_shape((height, width), 3)
    ((key, message),) = caught.value.problems.items()
    start, _, divisors = message.removesuffix(" or change image_size").partition("; set it to one of ")
    assert key == "pool"
    assert start == f"expected a divisor of the {height} x {width} grid of tokens, got {pool}"
    for divisor in map(int, divisors.split(", ")):
        PoolingConfig(pool=divisor).pooled_shape((height, width), 3)


def test_a_pool_below_one_is_an_error():
    with pytest.raises(ConfigError) as caught:
        PoolingConfig(pool=0)
    assert caught.value.problems == {"pool": "expected at least 1, got 0"}


def test_a_pooling_config_has_a_source_and_does_not_pool_by_default():
    config = PoolingConfig(pretrained="./folder")
    assert isinstance(config, PartConfig) and config.is_local
    tokens = torch.randn(1, 4, 2)
    assert config.pooled(tokens, (2, 2)) is tokens
