"""SigLIP 2 and DINOv2; other image sizes and pooling in every family."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dreamkit import ConfigError, PoolingConfig, SourceError, VisionSpec
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.siglip import Siglip, Siglip2
from dreamkit_transformers.vision import VisionConfig

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 5}
FIXED = {**SMALL, "intermediate_size": 24, "image_size": 20}
NAFLEX = {**SMALL, "intermediate_size": 24, "num_patches": 16}
DINO = {**SMALL, "mlp_ratio": 2, "image_size": 20}
REGISTERS = {**DINO, "num_register_tokens": 3}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
NAFLEX_PROCESSOR = {**HALF, "patch_size": 5, "max_num_patches": 16}
SQUARE = {"size": {"height": 20, "width": 20}}
DINO_PROCESSOR = {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}


@pytest.fixture
def source(tmp_path):
    """Return a function that writes a model of the library and its processor into a folder."""

    def write(model, processor):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def naflex(**changes):
    torch.manual_seed(0)
    return Siglip2VisionModel(Siglip2VisionConfig(**{**NAFLEX, **changes})).eval()


def dino(registers, **changes):
    torch.manual_seed(0)
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**{**REGISTERS, **changes}))
    else:
        model = Dinov2Model(Dinov2Config(**{**DINO, **changes}))
    for parameter in model.parameters():  # the initial registers and layer scales have no effect
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def photo(side):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
@pytest.mark.parametrize("side", [20, 30])
def test_naflex_features_equal_the_librarys(layer, side, source):
    model = naflex()
    processor = Siglip2ImageProcessor(**NAFLEX_PROCESSOR)
    size = None if side == 20 else side
    config = VisionConfig(pretrained=source(model, processor), layer=layer, image_size=size)
    part = Siglip2.from_pretrained(config).eval()
    picture = photo(33)
    inputs = processor([picture], max_num_patches=(side // 5) ** 2, return_tensors="pt")
    pixels = part.preprocess([picture])
    assert pixels.shape == (1, 3, side, side) and part.spec == VisionSpec(side, (side // 5) ** 2, 16)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(part(pixels), expected)
        torch.testing.assert_close(part(pixels.repeat(3, 1, 1, 1)), expected.repeat(3, 1, 1))


def test_siglip2_loads_a_source_of_fixed_resolution(source):
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**FIXED)).eval()
    folder = source(model, SiglipImageProcessor(**SQUARE, **HALF))
    config = VisionConfig(pretrained=folder, layer=-1)
    part, other = Siglip2.from_pretrained(config), Siglip.from_pretrained(config)
    assert part.spec == Siglip2.infer_spec(config) == VisionSpec(20, 16, 16)
    pixels = part.preprocess([photo(31)])
    assert torch.equal(pixels, other.preprocess([photo(31)]))
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(part(pixels), expected) and torch.equal(other(pixels), expected)


def test_model_type_selects_the_architecture_of_a_family():
    fixed = VisionConfig(config={"model_type": "siglip_vision_model", **FIXED})
    assert type(Siglip2.from_config(fixed).model) is SiglipVisionModel
    assert type(Siglip2.from_config(VisionConfig(config=NAFLEX)).model) is Siglip2VisionModel
    registers = VisionConfig(config={"model_type": "dinov2_with_registers", **REGISTERS})
    assert type(Dinov2.from_config(registers).model) is Dinov2WithRegistersModel
    with pytest.raises(ConfigError) as caught:
        Dinov2.infer_spec(VisionConfig(config={"model_type": "dinov2_with_register", **REGISTERS}))
    ((key, message),) = caught.value.problems.items()
    assert key == "config.model_type"
    assert message == (
        "expected one of dinov2, dinov2_with_registers, got 'dinov2_with_register'; "
        "did you mean 'dinov2_with_registers'?"
    )


@pytest.mark.parametrize("layer", [-1, -2, 0, 3])
@pytest.mark.parametrize("side", [20, 25])
@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
def test_dinov2_features_equal_the_librarys_hidden_states(registers, layer, side, source):
    model = dino(registers)
    size = None if side == 20 else side
    folder = source(model, BitImageProcessor(**DINO_PROCESSOR))
    part = Dinov2.from_pretrained(VisionConfig(pretrained=folder, layer=layer, image_size=size))
    pixels = part.preprocess([photo(40), photo(31)])
    prefix = 4 if registers else 1
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[layer][:, prefix:]
        assert torch.equal(part(pixels), expected)
    assert part.spec == VisionSpec(side, (side // 5) ** 2, 16) and expected.shape[1] == part.spec.num_tokens


@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
def test_dinov2_drops_unused_modules(registers, source):
    model = dino(registers)
    folder = source(model, BitImageProcessor(**DINO_PROCESSOR))
    part = Dinov2.from_pretrained(VisionConfig(pretrained=folder))
    assert part.dropped == ("encoder.layer.2", "layernorm", "embeddings.mask_token")
    part(torch.randn(2, 3, 20, 20)).sum().backward()
    assert [name for name, parameter in part.named_parameters() if parameter.grad is None] == []


def test_dinov2_loads_weights_under_their_published_names(source, tmp_path):
    """Load projections named as in facebook/dinov2-*, before version 5 of transformers."""
    from safetensors.torch import load_file, save_file

    model = dino(registers=False)
    folder = source(model, BitImageProcessor(**DINO_PROCESSOR))
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    weights = load_file(tmp_path / "model.safetensors")
    for new, old in (names | {"o_proj": "output.dense"}).items():
        weights = {
            name.replace(f"attention.{new}", f"attention.{old}"): each for name, each in weights.items()
        }
    assert "encoder.layer.0.attention.attention.query.weight" in weights
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    part = Dinov2.from_pretrained(VisionConfig(pretrained=folder))
    pixels = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(part(pixels), model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])


def test_dinov2_reads_the_image_size_of_its_processor(source, tmp_path):
    """Published models have position embeddings for 518 pixels and processors that make 224."""
    folder = source(dino(registers=False, image_size=40), BitImageProcessor(**DINO_PROCESSOR))
    config = VisionConfig(pretrained=folder)
    assert Dinov2.infer_spec(config) == Dinov2.from_pretrained(config).spec == VisionSpec(20, 16, 16)
    file = tmp_path / "preprocessor_config.json"
    odd = {**json.loads(file.read_text()), "crop_size": {"height": 22, "width": 22}}
    file.write_text(json.dumps(odd))
    with pytest.raises(
        SourceError, match=r"expected images with a multiple of 5 pixels \(patch_size\) a side, got 22"
    ):
        Dinov2.infer_spec(config)
    assert Dinov2.infer_spec(VisionConfig(pretrained=folder, image_size=40)).num_tokens == 64


def test_dinov2_crops_the_same_share_at_another_size(source):
    folder = source(dino(registers=False), BitImageProcessor(**DINO_PROCESSOR))
    part = Dinov2.from_pretrained(VisionConfig(pretrained=folder, image_size=40))
    scaled = BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40})
    picture = photo(70)
    expected = scaled([picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(part.preprocess([picture]), expected)


@pytest.mark.parametrize(
    ("part_class", "config"),
    [(Clip, FIXED), (Siglip, FIXED), (Siglip2, NAFLEX), (Dinov2, DINO)],
    ids=["clip", "siglip", "siglip2", "dinov2"],
)
class TestAnyFamily:
    @pytest.mark.parametrize(("size", "nearest"), [(23, "20 or 25"), (29, "25 or 30"), (4, "5"), (0, "5")])
    def test_a_size_between_multiples_of_the_patch_size_is_an_error(self, part_class, config, size, nearest):
        with pytest.raises(ConfigError) as caught:
            part_class.infer_spec(VisionConfig(config=config, image_size=size))
        message = f"expected a multiple of the patch size 5, got {size}; set {nearest}"
        assert caught.value.problems == {"image_size": message}

    @pytest.mark.parametrize("pooling", ["mean", "pixel-shuffle"])
    def test_pooling_reduces_the_tokens(self, part_class, config, pooling):
        plain = part_class.from_config(VisionConfig(config=config)).eval()
        pooled = VisionConfig(config=config, pool=2, pooling=pooling)
        part = part_class.from_config(pooled).eval()
        part.load_state_dict(plain.state_dict())
        assert part.spec == part_class.infer_spec(pooled)
        assert part.spec == VisionSpec(20, 4, 16 if pooling == "mean" else 64)
        pixels = torch.randn(2, 3, 20, 20)
        expected = PoolingConfig(pool=2, pooling=pooling).pooled(plain(pixels), (4, 4))
        assert torch.equal(part(pixels), expected)

    def test_a_pool_that_does_not_divide_the_grid_is_an_error(self, part_class, config):
        message = "divisor of the 4 x 4 grid of tokens, got 3; set it to one of 1, 2, 4"
        with pytest.raises(ConfigError, match=message):
            part_class.infer_spec(VisionConfig(config=config, pool=3))


def test_a_number_of_position_embeddings_without_a_square_grid_is_an_error():
    with pytest.raises(ConfigError) as caught:
        Siglip2.infer_spec(VisionConfig(config={**NAFLEX, "num_patches": 15}))
    message = "expected a square number (position embeddings of a square grid), got 15; set 9 or 16"
    assert caught.value.problems == {"config.num_patches": message}


def test_the_image_size_of_a_source_need_not_be_a_multiple_of_the_patch_size(source):
    """The model so400m-patch14-384 cuts 384 pixels into 27 patches of 14 and ignores 6 pixels."""
    model = SiglipVisionModel(SiglipVisionConfig(**{**FIXED, "image_size": 23})).eval()
    processor = SiglipImageProcessor(size={"height": 23, "width": 23}, **HALF)
    folder = source(model, processor)
    for size in (None, 23):
        part = Siglip.from_pretrained(VisionConfig(pretrained=folder, image_size=size, layer=-1))
        assert part.spec == VisionSpec(23, 16, 16)
        pixels = part.preprocess([photo(31)])
        with torch.no_grad():
            assert torch.equal(part(pixels), model(pixels, output_hidden_states=True).hidden_states[-1])


KNOWN = [
    ("openai/clip-vit-large-patch14", Clip, VisionSpec(224, 256, 1024)),
    ("openai/clip-vit-large-patch14-336", Clip, VisionSpec(336, 576, 1024)),
    ("google/siglip-base-patch16-224", Siglip, VisionSpec(224, 196, 768)),
    ("google/siglip-so400m-patch14-384", Siglip, VisionSpec(384, 729, 1152)),
    ("google/siglip2-so400m-patch14-384", Siglip2, VisionSpec(384, 729, 1152)),
    ("google/siglip2-base-patch16-naflex", Siglip2, VisionSpec(256, 256, 768)),
    ("facebook/dinov2-large", Dinov2, VisionSpec(224, 256, 1024)),
    ("facebook/dinov2-base", Dinov2, VisionSpec(224, 256, 768)),
    ("facebook/dinov2-with-registers-base", Dinov2, VisionSpec(224, 256, 768)),
]


@pytest.mark.parametrize(("name", "part_class", "spec"), KNOWN, ids=[name for name, *_ in KNOWN])
def test_a_well_known_model_is_described_offline(name, part_class, spec, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = VisionConfig(pretrained=name)
    assert part_class.infer_spec(config) == spec
    assert part_class.infer_spec(config).resized_side == (256 if part_class is Dinov2 else spec.image_size)
    part = part_class.meta_modules(config)
    assert {parameter.device.type for parameter in part.parameters()} == {"meta"}
    pixels = torch.zeros(1, 3, spec.image_size, spec.image_size, device="meta")
    assert part(pixels).shape == (1, spec.num_tokens, spec.dim)


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("part_class", [Clip, Siglip2, Dinov2])
def test_an_image_as_large_as_the_resized_side_is_not_resized(source, part_class, size):
    torch.manual_seed(0)
    model, processor = {
        Clip: (CLIPVisionModel(CLIPVisionConfig(**FIXED)), CLIPImageProcessor(size=26, crop_size=20)),
        Siglip2: (naflex(), Siglip2ImageProcessor(**NAFLEX_PROCESSOR)),
        Dinov2: (dino(registers=True), BitImageProcessor(**DINO_PROCESSOR)),
    }[part_class]
    part = part_class.from_pretrained(VisionConfig(pretrained=source(model, processor), image_size=size))
    side = part.spec.resized_side
    assert side == {Clip: 26, Siglip2: 20, Dinov2: 24}[part_class] * (1 if size is None else 2)
    values = np.random.default_rng(0).integers(0, 2, (side, side, 3), dtype=np.uint8) * 255
    pixels = part.preprocess([Image.fromarray(values)])[0]
    assert [len(channel.unique()) for channel in pixels] == [2, 2, 2]


def test_a_side_that_only_the_processor_decides_is_not_stated(source, tmp_path):
    folder = source(dino(registers=False), BitImageProcessor(**DINO_PROCESSOR))
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "image_processor_type": "CLIPImageProcessor"})
    )
    spec = Dinov2.infer_spec(VisionConfig(pretrained=folder))
    assert spec == VisionSpec(20, 16, 16) and spec.resized_side is None


def test_a_well_known_model_accepts_another_image_size_and_pooling():
    config = VisionConfig(pretrained="facebook/dinov2-large", image_size=518)
    assert Dinov2.infer_spec(config) == VisionSpec(518, 1369, 1024)
    shuffled = VisionConfig(pretrained="google/siglip2-base-patch16-naflex", pool=2, pooling="pixel-shuffle")
    assert Siglip2.infer_spec(shuffled) == VisionSpec(256, 64, 3072)
    with pytest.raises(
        ConfigError, match="27 x 27 grid of tokens, got 2; set it to one of 1, 3, 9, 27 or change image_size"
    ):
        Siglip2.infer_spec(VisionConfig(pretrained="google/siglip2-so400m-patch14-384", pool=2))
