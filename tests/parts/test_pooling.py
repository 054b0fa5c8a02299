"""Fewer tokens: against a sum over each token's neighbours, against transformers' own pixel shuffle, and refusals."""

import pytest
import torch
from hypothesis import given, strategies as st
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from dreamkit import ConfigError, PartConfig, PoolingConfig

sizes = st.integers(1, 4)
ways = st.sampled_from(["mean", "pixel-shuffle"])


@given(height=sizes, width=sizes, pool=sizes, dim=sizes, pooling=ways, seed=st.integers(0, 99))
def test_a_token_is_made_of_its_neighbours(height, width, pool, dim, pooling, seed):
    config = PoolingConfig(pool=pool, pooling=pooling)
    grid = (height * pool, width * pool)
    map_NHWd = torch.randn(2, *grid, dim, generator=torch.Generator().manual_seed(seed))
    tokens = config.pooled(map_NHWd.flatten(1, 2), grid)
    assert tokens.shape == (2, *config.pooled_shape(grid, dim))
    for index in range(height * width):
        top, left = index // width * pool, index % width * pool
        square = map_NHWd[:, top : top + pool, left : left + pool].flatten(1, 2)
        wanted = square.mean(1) if pooling == "mean" else square.flatten(1)
        torch.testing.assert_close(tokens[:, index], wanted)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_pixel_shuffle_is_that_of_smolvlm(pool):
    tokens = torch.randn(2, 36, 5)
    expected = Idefics3Connector.pixel_shuffle(None, tokens, scale_factor=pool)
    assert torch.equal(PoolingConfig(pool=pool, pooling="pixel-shuffle").pooled(tokens, (6, 6)), expected)


@given(height=st.integers(1, 12), width=st.integers(1, 12), pool=st.integers(1, 12), pooling=ways)
def test_a_pool_divides_the_grid_or_is_refused_with_those_that_do(height, width, pool, pooling):
    config = PoolingConfig(pool=pool, pooling=pooling)
    if height % pool == 0 and width % pool == 0:
        tokens, dim = config.pooled_shape((height, width), 3)
        assert tokens * pool**2 == height * width
        assert dim == (3 * pool**2 if pooling == "pixel-shuffle" else 3)
        return
    with pytest.raises(ConfigError) as caught:
        config.pooled_shape((height, width), 3)
    ((key, said),) = caught.value.problems.items()
    assert key == "pool" and said.startswith(
        f"{pool} does not divide the grid of {height} x {width} tokens; give "
    )
    offered = said.partition("; give ")[2].removesuffix(", or another image_size").replace(" or ", ", ")
    for fitting in map(int, offered.split(", ")):
        PoolingConfig(pool=fitting).pooled_shape((height, width), 3)


def test_what_it_says_of_a_pool():
    with pytest.raises(ConfigError) as caught:
        PoolingConfig(pool=3).pooled_shape((16, 16), 8)
    said = "3 does not divide the grid of 16 x 16 tokens; give 1, 2, 4, 8 or 16, or another image_size"
    assert caught.value.problems == {"pool": said}
    with pytest.raises(ConfigError) as caught:
        PoolingConfig(pool=0)
    assert caught.value.problems == {"pool": "0 found, but a token is made of at least 1 x 1"}


def test_it_is_a_section_with_a_source():
    config = PoolingConfig(pretrained="./folder")
    assert isinstance(config, PartConfig) and config.is_local
    tokens = torch.randn(1, 4, 2)
    assert config.pooled(tokens, (2, 2)) is tokens
