"""The encoder agrees with timm's own models, loading and preprocessing."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from dreamkit import ConfigError, PoolingConfig, VisionSpec
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig, describe

VIT = Timm.tiny_config().config
CONVNET = Timm.tiny_convnet_config().config
SMALL = {"vit": (VIT, 16), "convnet": (CONVNET, 16)}  # configs, and the side of an image
kinds = pytest.mark.parametrize("kind", SMALL)


def photo(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@kinds
@pytest.mark.parametrize("layer", [0, 1, -2, -1, None])
def test_features_are_timms_intermediates(kind, layer, source):
    config, side = SMALL[kind]
    folder, model = source(config)
    section = TimmConfig(pretrained=folder, layer=layer, image_size=side)
    part = Timm.from_pretrained(section).eval()
    index = {"vit": -2, "convnet": -1}[kind] if layer is None else layer
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        layers = model.forward_intermediates(pixels, intermediates_only=True)
        expected = layers[index].flatten(2).transpose(1, 2)
        assert torch.equal(part(pixels), expected)
    assert part.spec == Timm.infer_spec(section) == VisionSpec(side, *expected.shape[1:])


def test_the_last_layer_is_forward_features_before_its_norm(source):
    folder, model = source(VIT)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder, layer=-1)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.norm(part(pixels)), model.forward_features(pixels)[:, 1:])
    folder, model = source(CONVNET)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder, image_size=16)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model.forward_features(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(part(pixels), expected)  # a ConvNeXt normalizes after pooling


def test_class_token_and_registers_are_left_out():
    config = {**VIT, "reg_tokens": 3}
    part = Timm.from_config(TimmConfig(config=config, layer=-1)).eval()
    assert part.model.num_prefix_tokens == 4
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(part(pixels), part.model.forward_features(pixels)[:, 4:])


@kinds
def test_modules_after_the_layer_are_removed(kind, source):
    config, side = SMALL[kind]
    folder, model = source(config)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder, layer=-2, image_size=side))
    expected = {"vit": ("blocks.2", "norm"), "convnet": ("head", "stages.3")}[kind]
    assert part.dropped == expected
    removed = ("head.", *(f"{name}." for name in expected))  # the head is never created
    remaining = {f"model.{name}" for name in model.state_dict() if not name.startswith(removed)}
    assert set(part.state_dict()) == remaining
    part(torch.randn(2, 3, side, side)).sum().backward()
    assert all(parameter.grad is not None for parameter in part.parameters())


def test_parameters_without_effect_on_the_features_are_not_trained():
    """A CrossViT has a last fusion of branches after its features."""
    part = Timm.from_config(TimmConfig(config={"architecture": "crossvit_9_240"}))
    trained = {id(parameter) for parameter in part.trainable_parameters()}
    untrained = {name for name, parameter in part.named_parameters() if id(parameter) not in trained}
    assert untrained and all(name.startswith("model.blocks.2.") for name in untrained)
    side = part.spec.image_size
    part(torch.randn(1, 3, side, side)).sum().backward()
    assert {name for name, parameter in part.named_parameters() if parameter.grad is None} == untrained
    vit = Timm.from_config(Timm.tiny_config())
    assert len(list(vit.trainable_parameters())) == len(list(vit.parameters()))


def test_batch_norms_keep_their_statistics_in_training():
    config = {"architecture": "resnet10t", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    part = Timm.from_config(TimmConfig(config=config, image_size=64)).train()
    before = {name: buffer.clone() for name, buffer in part.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    pixels = torch.randn(3, 3, 64, 64)
    together = part(pixels)
    torch.testing.assert_close(together[:1], part(pixels[:1]))
    assert all(torch.equal(buffer, before[name]) for name, buffer in part.named_buffers())


# preprocessing


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_224.openai", "convnext_base.fb_in22k", "vit_base_patch16_224"]
)
@pytest.mark.parametrize("size", [None, 64])
def test_preprocessing_is_that_of_timms_weights(name, size):
    """Mean, deviation, interpolation and crop differ between these models."""
    record = timm.get_pretrained_cfg(name).to_dict()
    side = size or record["input_size"][-1]
    expected = create_transform(**resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=record))
    transform = create_transform(
        **describe(TimmConfig(config={"architecture": name}, image_size=size)).data_config
    )
    for image in (photo(50, 30), photo(300, 301)):
        assert torch.equal(transform(image), expected(image))


# sizes


@pytest.mark.parametrize("size", [8, 24, 32])
def test_a_vit_at_another_size_has_its_position_embeddings_resized(size, source):
    folder, model = source(VIT)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder, image_size=size, layer=-1)).eval()
    assert part.spec == VisionSpec(size, (size // 8) ** 2, 16)
    model.set_input_size(img_size=size)
    pixels = part.preprocess([photo(40, 41)])
    with torch.no_grad():
        torch.testing.assert_close(model.norm(part(pixels)), model.forward_features(pixels)[:, 1:])


def test_a_convnet_takes_any_multiple_of_its_reduction(source):
    folder, model = source(CONVNET)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder, image_size=24)).eval()
    assert part.spec == VisionSpec(24, 9, 16)
    pixels = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(part(pixels), model.forward_features(pixels).flatten(2).mT)


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        (
            VIT,
            20,
            "expected a multiple of 8 pixels, the distance of the layer's features, got 20; set 16 or 24",
        ),
        (VIT, 5, "got 5; set 8"),
        (VIT, 0, "expected at least 1, got 0"),
        (
            CONVNET,
            20,
            "expected a multiple of 8 pixels, the distance of the layer's features, got 20; set 16 or 24",
        ),
        ({"architecture": "coatnet_0_224"}, 240, "features, got 240; set 224 or 256"),
    ],
    ids=["vit", "small vit", "zero", "convnet", "fixed"],
)
def test_an_unsupported_size_is_refused_with_the_nearest(config, size, expected):
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(config=config, image_size=size))
    ((key, message),) = caught.value.problems.items()
    assert key == "image_size" and message.endswith(expected)


def test_a_size_that_timm_refuses_is_refused():
    config = {"architecture": "hiera_tiny_224", "embed_dim": 16, "num_heads": 1, "stages": [1, 1, 1, 1]}
    assert Timm.infer_spec(TimmConfig(config=config, layer=0)) == VisionSpec(224, 3136, 16)
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(config=config, layer=0, image_size=240))
    message = caught.value.problems["image_size"]
    assert message.startswith("timm raised ")
    assert message.endswith(" at 240 pixels; set 224, the model's own")


def test_a_model_whose_own_size_is_not_square_requires_a_size():
    config = {**VIT, "img_size": [16, 24]}
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(config=config))
    assert caught.value.problems == {
        "image_size": "missing 'image_size': the model's own size, 16 x 24, is not a square"
    }
    assert Timm.infer_spec(TimmConfig(config=config, image_size=24)) == VisionSpec(24, 9, 16)


def test_an_early_stage_has_a_finer_grid():
    config = TimmConfig(config=CONVNET, layer=0, image_size=10)
    assert Timm.infer_spec(config) == VisionSpec(
        10, 100, 8
    )  # 1 pixel apart; those of the last stage are 8 apart


@kinds
@pytest.mark.parametrize("pooling", ["mean", "pixel-shuffle"])
def test_pooling_makes_fewer_tokens(kind, pooling):
    config, _ = SMALL[kind]
    plain = Timm.from_config(TimmConfig(config=config, image_size=32)).eval()
    part = Timm.from_config(TimmConfig(config=config, image_size=32, pool=2, pooling=pooling)).eval()
    part.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    expected = PoolingConfig(pool=2, pooling=pooling).pooled(plain(pixels), plain.grid)
    assert torch.equal(part(pixels), expected)
    assert part.spec == VisionSpec(32, *expected.shape[1:])
    with pytest.raises(
        ConfigError, match=r"divisor of the \d x \d grid of tokens, got 3; set it to one of 1, 2"
    ):
        Timm.infer_spec(TimmConfig(config=config, image_size=32, pool=3))
