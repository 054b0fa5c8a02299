"""timm's models as vision encoders, against what timm computes, loads and preprocesses by itself."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

from dreamkit import ConfigError, PoolingConfig, SourceError, VisionSpec
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig, describe

VIT = Timm.miniature().config
CONVNET = Timm.miniature_convnet().config
SMALL = {"vit": (VIT, 16), "convnet": (CONVNET, 16)}  # architectures with their sizes, and a picture's side
kinds = pytest.mark.parametrize("kind", SMALL)


def make(config, **more):
    torch.manual_seed(0)
    arguments = {name: value for name, value in config.items() if name != "architecture"}
    model = timm.create_model(config["architecture"], **arguments, **more)
    for parameter in model.parameters():  # layer scales and tokens as made would hide what is done with them
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def source(tmp_path):
    """A folder as timm writes it, head included, and the model in it."""

    def write(config, **more):
        model = make(config, num_classes=5, **more)
        save_for_hf(model, tmp_path / "model", safe_serialization=True)
        return str(tmp_path / "model"), model

    return write


def photo(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@kinds
@pytest.mark.parametrize("layer", [0, 1, -2, -1, None])
def test_features_are_timms_intermediates(kind, layer, source):
    config, side = SMALL[kind]
    folder, model = source(config)
    wanted = TimmConfig(pretrained=folder, layer=layer, image_size=side)
    part = Timm.from_pretrained(wanted).eval()
    index = {"vit": -2, "convnet": -1}[kind] if layer is None else layer
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        everything = model.forward_intermediates(pixels, intermediates_only=True)
        expected = everything[index].flatten(2).transpose(1, 2)
        assert torch.equal(part(pixels), expected)
    assert part.spec == Timm.spec_from(wanted) == VisionSpec(side, *expected.shape[1:])


def test_the_last_layer_is_what_forward_features_gives_before_its_norm(source):
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
        torch.testing.assert_close(part(pixels), expected)  # a ConvNeXt norms after pooling


def test_class_token_and_registers_are_left_out():
    config = {**VIT, "reg_tokens": 3}
    part = Timm.from_config(TimmConfig(config=config, layer=-1)).eval()
    assert part.model.num_prefix_tokens == 4
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(part(pixels), part.model.forward_features(pixels)[:, 4:])


@kinds
def test_what_comes_after_the_layer_is_not_kept(kind, source):
    config, side = SMALL[kind]
    folder, model = source(config)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder, layer=-2, image_size=side))
    expected = {"vit": ("blocks.2", "norm"), "convnet": ("head", "stages.3")}[kind]
    assert part.dropped == expected
    gone = ("head.", *(f"{name}." for name in expected))  # no head is made in the first place
    kept = {f"model.{name}" for name in model.state_dict() if not name.startswith(gone)}
    assert set(part.state_dict()) == kept
    part(torch.randn(2, 3, side, side)).sum().backward()
    assert [name for name, each in part.named_parameters() if each.grad is None] == []


def test_what_the_features_do_not_depend_on_is_not_trained():
    """A CrossViT also makes the last fusion of branches that its features do not hold."""
    part = Timm.from_config(TimmConfig(config={"architecture": "crossvit_9_240"}))
    trained = list(part.trainable_parameters())
    names = {id(each): name for name, each in part.named_parameters()}
    left = set(names.values()) - {names[id(each)] for each in trained}
    assert left and all(name.startswith("model.blocks.2.") for name in left)
    side = part.spec.image_size
    part(torch.randn(1, 3, side, side)).sum().backward()
    assert {name for name, each in part.named_parameters() if each.grad is None} == left
    vit = Timm.from_config(Timm.miniature())
    assert len(list(vit.trainable_parameters())) == len(list(vit.parameters()))


def test_batch_norms_keep_the_statistics_they_came_with():
    config = {"architecture": "resnet10t", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    part = Timm.from_config(TimmConfig(config=config, image_size=64)).train()
    before = {name: each.clone() for name, each in part.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    pixels = torch.randn(3, 3, 64, 64)
    together = part(pixels)
    torch.testing.assert_close(together[:1], part(pixels[:1]))
    assert all(torch.equal(each, before[name]) for name, each in part.named_buffers())


# pictures


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_224.openai", "convnext_base.fb_in22k", "vit_base_patch16_224"]
)
@pytest.mark.parametrize("size", [None, 64])
def test_preprocessing_is_timms_of_the_weights(name, size):
    """mean, std, interpolation and crop differ between these."""
    known = timm.get_pretrained_cfg(name).to_dict()
    side = size or known["input_size"][-1]
    expected = create_transform(**resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=known))
    transform = create_transform(
        **describe(TimmConfig(config={"architecture": name}, image_size=size)).data_config
    )
    for picture in (photo(50, 30), photo(300, 301)):
        assert torch.equal(transform(picture), expected(picture))


def test_pictures_of_many_sizes_are_one_batch_in_their_order():
    part = Timm.from_config(Timm.miniature())
    several = [photo(50, 30), photo(3, 4).convert("L"), photo(16, 16).convert("P")]
    together = part.preprocess(several)
    assert together.shape == (3, 3, 16, 16)
    assert torch.equal(together, torch.cat([part.preprocess([picture]) for picture in several]))


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
    ("config", "size", "said"),
    [
        (VIT, 20, "20 found, but the layer's features are 8 pixels apart; give 16 or 24"),
        (VIT, 5, "5 found, but the layer's features are 8 pixels apart; give 8"),
        (VIT, 0, "0 found, but a picture has at least 1 pixel"),
        (CONVNET, 20, "20 found, but the layer's features are 8 pixels apart; give 16 or 24"),
        ({"architecture": "coatnet_0_224"}, 240, "240 found, but the layer"),
    ],
    ids=["vit", "small vit", "none", "convnet", "fixed"],
)
def test_sizes_that_a_model_does_not_take(config, size, said):
    with pytest.raises(ConfigError) as caught:
        Timm.spec_from(TimmConfig(config=config, image_size=size))
    ((key, message),) = caught.value.problems.items()
    assert key == "image_size" and said in message


def test_a_size_that_timm_refuses():
    config = {"architecture": "hiera_tiny_224", "embed_dim": 16, "num_heads": 1, "stages": [1, 1, 1, 1]}
    assert Timm.spec_from(TimmConfig(config=config, layer=0)) == VisionSpec(224, 3136, 16)
    with pytest.raises(ConfigError) as caught:
        Timm.spec_from(TimmConfig(config=config, layer=0, image_size=240))
    said = caught.value.problems["image_size"]
    assert said.startswith("240 found, but timm refuses it: ") and said.endswith("; give 224, its own")


def test_a_size_is_wanted_where_the_models_own_is_no_square():
    config = {**VIT, "img_size": [16, 24]}
    with pytest.raises(ConfigError) as caught:
        Timm.spec_from(TimmConfig(config=config))
    assert caught.value.problems == {
        "image_size": "none found, but the model's own size, 16 x 24, is no square; name one"
    }
    assert Timm.spec_from(TimmConfig(config=config, image_size=24)) == VisionSpec(24, 9, 16)


def test_an_early_stage_is_finer():
    config = TimmConfig(config=CONVNET, layer=0, image_size=10)
    assert Timm.spec_from(config) == VisionSpec(10, 100, 8)  # 1 pixel apart, where the last are 8


@kinds
@pytest.mark.parametrize("pooling", ["mean", "pixel-shuffle"])
def test_fewer_tokens(kind, pooling):
    config, _ = SMALL[kind]
    plain = Timm.from_config(TimmConfig(config=config, image_size=32)).eval()
    part = Timm.from_config(TimmConfig(config=config, image_size=32, pool=2, pooling=pooling)).eval()
    part.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    expected = PoolingConfig(pool=2, pooling=pooling).pooled(plain(pixels), plain.grid)
    assert torch.equal(part(pixels), expected)
    assert part.spec == VisionSpec(32, *expected.shape[1:])
    with pytest.raises(ConfigError, match=r"3 does not divide the grid of \d x \d tokens; give 1, 2"):
        Timm.spec_from(TimmConfig(config=config, image_size=32, pool=3))


# sources


def without_hub(monkeypatch, cache):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("timm/vit_base_patch16_224.augreg_in21k", VisionSpec(224, 196, 768)),
        ("timm/convnext_base.fb_in22k_ft_in1k", VisionSpec(224, 49, 1024)),
        ("timm/vit_so400m_patch14_siglip_384.webli", VisionSpec(384, 729, 1152)),
        ("timm/vit_large_patch14_reg4_dinov2.lvd142m", VisionSpec(518, 1369, 1024)),
        ("timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", VisionSpec(224, 49, 1024)),
        ("timm/resnet50.a1_in1k", VisionSpec(224, 49, 2048)),
    ],
)
def test_hub_names_are_described_by_timm_itself(name, spec, monkeypatch, tmp_path):
    without_hub(monkeypatch, tmp_path)
    assert Timm.spec_from(TimmConfig(pretrained=name)) == spec
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        Timm.from_pretrained(TimmConfig(pretrained=name))


def test_hub_names_that_timm_does_not_know(monkeypatch, tmp_path):
    without_hub(monkeypatch, tmp_path)
    with pytest.raises(SourceError, match=r"did you mean 'vit_base_patch16_224\.augreg_in21k'\?"):
        Timm.spec_from(TimmConfig(pretrained="timm/vit_base_patch16_224.augreg_in21"))
    with pytest.raises(SourceError, match=r"did you mean 'convnext_base\.fb_in22k'\?"):
        Timm.spec_from(TimmConfig(pretrained="timm/convnext_bas.fb_in22k"))
    with pytest.raises(SourceError, match="'someone/model': the cache"):
        Timm.spec_from(TimmConfig(pretrained="someone/model"))


def test_the_spec_of_a_folder_needs_no_weights(source):
    folder, _ = source(VIT)
    file = f"{folder}/model.safetensors"
    with open(file, "wb") as weights:
        weights.write(b"not tensors: a spec needs none, but they must be there")
    assert Timm.spec_from(TimmConfig(pretrained=folder)).dim == 16
    with pytest.raises(SourceError, match="timm cannot load it"):
        Timm.from_pretrained(TimmConfig(pretrained=folder))


@kinds
def test_weights_that_lack_something(kind, source):
    config, side = SMALL[kind]
    folder, _ = source(config)
    file = f"{folder}/model.safetensors"
    weights = load_file(file)
    first = {"vit": "blocks.0.attn.qkv.weight", "convnet": "stages.0.blocks.0.conv_dw.weight"}[kind]
    wanted = TimmConfig(pretrained=folder, image_size=side, layer=-2)
    headless = {name: each for name, each in weights.items() if not name.startswith(("head.", "norm."))}
    save_file(headless, file)
    Timm.from_pretrained(wanted)  # what is not used may lack
    save_file({name: each for name, each in weights.items() if name != first}, file)
    with pytest.raises(SourceError, match=f"the weights lack {first}"):
        Timm.from_pretrained(wanted)
    save_file({**weights, first: weights[first][:1]}, file)
    with pytest.raises(SourceError, match="timm cannot load it"):
        Timm.from_pretrained(wanted)


def test_folders_of_something_else(source, tmp_path):
    folder, _ = source(VIT)
    file = tmp_path / "model/config.json"
    content = json.loads(file.read_text())
    for changed, said in (
        ({**content, "architecture": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'?"),
        ({"model_type": "clip"}, "names no architecture of timm"),
        ({**content, "model_args": {"checkpoint_path": "/x"}}, "its model_args hold checkpoint_path"),
        ({**content, "model_args": {"embed_dm": 8}}, "no 'embed_dm'; did you mean 'embed_dim'?"),
        ([], "names no architecture of timm"),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(ConfigError) as caught:
            Timm.spec_from(TimmConfig(pretrained=folder))
        ((key, message),) = caught.value.problems.items()
        assert key == "pretrained" and said in message
    file.write_text("{")
    with pytest.raises(SourceError, match="cannot be read"):
        Timm.spec_from(TimmConfig(pretrained=folder))
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
    with pytest.raises(SourceError, match=r"lacks 'model\.safetensors'"):
        Timm.spec_from(TimmConfig(pretrained=folder))


def test_a_folder_that_changed_is_read_again(source):
    folder, _ = source(VIT)
    assert Timm.spec_from(TimmConfig(pretrained=folder)).dim == 16
    shutil.rmtree(folder)
    source({**VIT, "embed_dim": 24})
    assert Timm.spec_from(TimmConfig(pretrained=folder)).dim == 24


@pytest.mark.parametrize(
    ("config", "key", "said"),
    [
        ({}, "config.architecture", "none found; name one"),
        (
            {"architecture": "vit_bse_patch16_224"},
            "config.architecture",
            "did you mean 'vit_base_patch16_224'?",
        ),
        (
            {"architecture": "zzz"},
            "config.architecture",
            "timm has no architecture 'zzz'; timm.list_models()",
        ),
        ({"architecture": 7}, "config.architecture", "timm has no architecture '7'"),
        (
            {"architecture": "vit_base_patch16_224.augreg_in21"},
            "config.architecture",
            "did you mean 'vit_base_patch16_224.augreg_in21k'?",
        ),
        ({**VIT, "num_classes": 3}, "config.num_classes", "says nothing of the features; remove it"),
        ({**VIT, "pretrained": True}, "config.pretrained", "remove it"),
        (
            {**VIT, "embed_dm": 8},
            "config.embed_dm",
            "VisionTransformer takes no 'embed_dm'; did you mean 'embed_dim'?",
        ),
        ({**VIT, "embed_dim": 15}, "config", "timm refuses it"),
        ({**VIT, "in_chans": 1}, "config.in_chans", "in_chans 1 found, but pictures have 3"),
    ],
)
def test_a_config_that_makes_no_model(config, key, said):
    with pytest.raises(ConfigError) as caught:
        Timm.spec_from(TimmConfig(config=config))
    ((found, message),) = caught.value.problems.items()
    assert found == key and said in message, message


@pytest.mark.parametrize(("kind", "layers"), [("vit", 3), ("convnet", 4)])
def test_a_layer_that_is_not_there(kind, layers):
    config, side = SMALL[kind]
    for layer in (layers, -layers - 1):
        said = f"layer {layer}, but the model has {layers} layers; give {-layers} to {layers - 1}"
        with pytest.raises(ConfigError) as caught:
            Timm.spec_from(TimmConfig(config=config, layer=layer, image_size=side))
        assert caught.value.problems == {"layer": said}


def test_a_model_without_a_grid_is_refused():
    timm.models.register_model(vectors)
    try:
        with pytest.raises(ConfigError) as caught:
            Timm.spec_from(TimmConfig(config={"architecture": "vectors"}))
    finally:
        timm.models._registry._clear_model_entries("vectors")
        del timm.models._registry._model_entrypoints["vectors"]
    assert caught.value.problems == {"config": "Vectors gives no grid of features, but one is wanted"}


class Vectors(torch.nn.Module):
    """An image model whose features have no places."""

    pretrained_cfg = timm.models.PretrainedCfg().to_dict()


def vectors(pretrained=False, **arguments):
    return Vectors()


# adapters


def test_adapters_go_into_attention_and_mlp():
    vit = Timm.from_config(Timm.miniature())
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(vit.adapter_targets) == {f"blocks.{index}.{name}" for index in (0, 1) for name in layers}
    convnet = Timm.from_config(replace(Timm.miniature_convnet(), layer=1))
    layers = ("mlp.fc1", "mlp.fc2")
    assert set(convnet.adapter_targets) == {f"stages.{i}.blocks.0.{name}" for i in (0, 1) for name in layers}


def test_a_model_of_convolutions_alone_has_them_adapted():
    config = {"architecture": "resnet10t", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    part = Timm.from_config(TimmConfig(config=config, image_size=32))
    modules = dict(part.model.named_modules())
    assert part.adapter_targets
    assert all(isinstance(modules[name], torch.nn.Conv2d) for name in part.adapter_targets)


def test_pointwise_convolutions_are_dense_layers():
    config = {"architecture": "convnext_atto", "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    part = Timm.from_config(TimmConfig(config=config))
    assert set(part.adapter_targets) == {
        f"stages.{i}.blocks.0.mlp.{fc}" for i in range(4) for fc in ("fc1", "fc2")
    }
