"""Sources of timm's models are found with their weights; errors name what to set instead."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dreamkit import ConfigError, SourceError, VisionSpec
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig

VIT = Timm.tiny_config().config
SMALL = {"vit": (VIT, 16), "convnet": (Timm.tiny_convnet_config().config, 16)}
kinds = pytest.mark.parametrize("kind", SMALL)
LEVIT = {
    "architecture": "levit_128s",
    "embed_dim": [16, 16, 16],
    "num_heads": [2, 2, 2],
    "depth": [1, 1, 1],
    "key_dim": 8,
}


def disable_hub(monkeypatch, cache):
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
    disable_hub(monkeypatch, tmp_path)
    assert Timm.infer_spec(TimmConfig(pretrained=name)) == spec
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        Timm.from_pretrained(TimmConfig(pretrained=name))


def test_an_unknown_hub_name_is_refused_with_the_nearest(monkeypatch, tmp_path):
    disable_hub(monkeypatch, tmp_path)
    with pytest.raises(SourceError, match=r"did you mean 'vit_base_patch16_224\.augreg_in21k'\?"):
        Timm.infer_spec(TimmConfig(pretrained="timm/vit_base_patch16_224.augreg_in21"))
    with pytest.raises(SourceError, match=r"did you mean 'convnext_base\.fb_in22k'\?"):
        Timm.infer_spec(TimmConfig(pretrained="timm/convnext_bas.fb_in22k"))
    with pytest.raises(SourceError, match=r"did you mean 'coatnet_rmlp_1_rw_224\.sw_in1k'"):
        Timm.infer_spec(TimmConfig(pretrained="timm/coatnet_rmlp_1_rw_224.sw_in"))
    with pytest.raises(SourceError, match="'someone/model': the cache"):
        Timm.infer_spec(TimmConfig(pretrained="someone/model"))


def test_the_spec_of_a_folder_needs_no_weights(source):
    folder, _ = source(VIT)
    file = f"{folder}/model.safetensors"
    with open(file, "wb") as weights:
        weights.write(b"not tensors: a spec does not read weights, but they must exist")
    assert Timm.infer_spec(TimmConfig(pretrained=folder)).dim == 16
    with pytest.raises(SourceError, match="timm cannot load it"):
        Timm.from_pretrained(TimmConfig(pretrained=folder))


@kinds
def test_missing_and_misshapen_weights_are_refused(kind, source):
    config, side = SMALL[kind]
    folder, _ = source(config)
    file = f"{folder}/model.safetensors"
    weights = load_file(file)
    first = {"vit": "blocks.0.attn.qkv.weight", "convnet": "stages.0.blocks.0.conv_dw.weight"}[kind]
    section = TimmConfig(pretrained=folder, image_size=side, layer=-2)
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith(("head.", "norm."))}
    save_file(headless, file)
    Timm.from_pretrained(section)  # weights of removed modules may be missing
    save_file({name: tensor for name, tensor in weights.items() if name != first}, file)
    with pytest.raises(SourceError, match=f"the weights lack {first}"):
        Timm.from_pretrained(section)
    save_file({**weights, first: weights[first][:1]}, file)
    with pytest.raises(SourceError, match="timm cannot load it"):
        Timm.from_pretrained(section)


def test_a_folder_of_another_library_is_refused(source, tmp_path):
    folder, _ = source(VIT)
    file = tmp_path / "model/config.json"
    content = json.loads(file.read_text())
    for changed, expected in (
        ({**content, "architecture": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'?"),
        ({"model_type": "clip"}, "missing 'architecture': "),
        ({**content, "model_args": {"checkpoint_path": "/x"}}, "unsupported model_args checkpoint_path"),
        (
            {**content, "model_args": {"embed_dm": 8}},
            "unknown argument 'embed_dm' of VisionTransformer; did you mean 'embed_dim'?",
        ),
        ([], "expected a JSON object, got []"),
        ({**content, "model_args": [1]}, "model_args: expected an object, got a list of length 1"),
        (
            {**content, "model_args": "a\x1b" + "b" * 99},
            f"expected an object, got 'a\\x1b{'b' * 72}...' (string)",
        ),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(ConfigError) as caught:
            Timm.infer_spec(TimmConfig(pretrained=folder))
        ((key, message),) = caught.value.problems.items()
        assert key == "pretrained" and expected in message
    changed = json.loads(json.dumps(content))
    changed["pretrained_cfg"]["mean"] = [0.5] * 16
    file.write_text(json.dumps(changed))
    with pytest.raises(SourceError, match=f"'{folder}': timm cannot process images"):
        Timm.from_pretrained(TimmConfig(pretrained=folder))
    file.write_text("{")
    with pytest.raises(SourceError, match="cannot be read"):
        Timm.infer_spec(TimmConfig(pretrained=folder))
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
    with pytest.raises(SourceError, match=r"lacks 'model\.safetensors'"):
        Timm.infer_spec(TimmConfig(pretrained=folder))


def test_a_folder_that_changed_is_read_again(source):
    folder, _ = source(VIT)
    assert Timm.infer_spec(TimmConfig(pretrained=folder)).dim == 16
    shutil.rmtree(folder)
    source({**VIT, "embed_dim": 24})
    assert Timm.infer_spec(TimmConfig(pretrained=folder)).dim == 24


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        ({}, "config.architecture", "missing 'architecture': name one"),
        (
            {"architecture": "vit_bse_patch16_224"},
            "config.architecture",
            "did you mean 'vit_base_patch16_224'?",
        ),
        (
            {"architecture": "zzz"},
            "config.architecture",
            "expected an architecture of timm, got 'zzz'; timm.list_models()",
        ),
        ({"architecture": 7}, "config.architecture", "expected an architecture of timm, got '7'"),
        (
            {"architecture": "vit_base_patch16_224.augreg_in21"},
            "config.architecture",
            "did you mean 'vit_base_patch16_224.augreg_in21k'?",
        ),
        (
            {**VIT, "num_classes": 3},
            "config.num_classes",
            "'num_classes' does not change the features; remove it",
        ),
        (
            {**VIT, "pretrained": True},
            "config.pretrained",
            "'pretrained' does not change the features; remove it",
        ),
        (
            {**VIT, "embed_dm": 8},
            "config.embed_dm",
            "unknown argument 'embed_dm' of VisionTransformer; did you mean 'embed_dim'?",
        ),
        ({**VIT, "embed_dim": 15}, "config", "timm raised "),
        ({**VIT, "in_chans": 1}, "config.in_chans", "expected in_chans 3, the channels of an image, got 1"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(config, key, expected):
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(config=config))
    ((actual_key, message),) = caught.value.problems.items()
    assert actual_key == key and expected in message, message


@pytest.mark.parametrize(("kind", "layers"), [("vit", 3), ("convnet", 4)])
def test_a_layer_out_of_range_is_refused(kind, layers):
    config, side = SMALL[kind]
    for layer in (layers, -layers - 1):
        message = f"expected a layer from {-layers} to {layers - 1}, got {layer}"
        with pytest.raises(ConfigError) as caught:
            Timm.infer_spec(TimmConfig(config=config, layer=layer, image_size=side))
        assert caught.value.problems == {"layer": message}


def test_a_model_without_a_grid_is_refused():
    timm.models.register_model(vectors)
    try:
        with pytest.raises(ConfigError) as caught:
            Timm.infer_spec(TimmConfig(config={"architecture": "vectors"}))
    finally:
        timm.models._registry._clear_model_entries("vectors")
        del timm.models._registry._model_entrypoints["vectors"]
    assert caught.value.problems == {
        "config": "expected a model with a grid of features, got Vectors; name another one"
    }


class Vectors(torch.nn.Module):
    """An image model whose features have no grid."""

    pretrained_cfg = timm.models.PretrainedCfg().to_dict()


def vectors(pretrained=False, **arguments):
    return Vectors()


# sizes of weights


def test_a_size_that_timm_cannot_resize_weights_to_is_refused(source):
    """A LeViT's attention biases have one size, unless they are random."""
    folder, _ = source(LEVIT)
    Timm.from_pretrained(TimmConfig(pretrained=folder))
    assert Timm.infer_spec(TimmConfig(config=LEVIT, image_size=256)) == VisionSpec(256, 16, 16)
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(pretrained=folder, image_size=256))
    assert caught.value.problems == {
        "image_size": "timm cannot resize the weights to 256 pixels: expected shape [2, 256] of "
        "stages.0.blocks.0.attn.attention_biases, got [2, 196]; set 224, the model's own"
    }


def test_only_sizes_that_work_are_suggested(source):
    folder, _ = source(LEVIT)
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(pretrained=folder, image_size=250))
    assert caught.value.problems["image_size"].endswith("; set 224, the model's own")
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(config={"architecture": "crossvit_9_240"}, image_size=224))
    assert caught.value.problems["image_size"].endswith("; set 240, the model's own")


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"image_size": 100_000}, "image_size", "expected at most 4096, got 100000"),
        ({"config": {**VIT, "img_size": 8192}}, "image_size", "expected at most 4096, got 8192"),
        (
            {"config": {**VIT, "depth": 5000}},
            "config.depth",
            "expected at most 1000 layers in depth, got 5000",
        ),
        (
            {"config": {"architecture": "convnext_tiny", "depths": [1, 999, 1, 1]}},
            "config.depths",
            "expected at most 1000 layers in depths, got 1002",
        ),
    ],
)
def test_sizes_and_depths_have_limits(changes, key, message):
    with pytest.raises(ConfigError) as caught:
        Timm.infer_spec(TimmConfig(**{"config": VIT, **changes}))
    assert caught.value.problems == {key: message}


# tags


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/beit3_giant_patch14_224.untrained", "timm has no weights of this name"),
        (
            "timm/legacy_seresnet18.in1k",
            "timm downloads these weights from https://.*not from the hub; name a folder that",
        ),
        (
            "timm/rdnet_tiny.nv_in1k",
            "the hub has these weights as 'naver-ai/rdnet_tiny.nv_in1k'; name that, or",
        ),
        (
            "timm/vit_base_patch16_clip_quickgelu_224.openai",
            "only as those of 'timm/vit_base_patch16_clip_224.openai'; name a folder",
        ),
    ],
)
def test_a_tag_without_weights_under_its_name_is_refused(name, message):
    with pytest.raises(SourceError, match=message):
        Timm.infer_spec(TimmConfig(pretrained=name))


def test_weights_of_another_owner_on_the_hub_are_described(monkeypatch, tmp_path):
    disable_hub(monkeypatch, tmp_path)
    spec = Timm.infer_spec(TimmConfig(pretrained="naver-ai/rdnet_tiny.nv_in1k"))
    assert spec == Timm.infer_spec(TimmConfig(config={"architecture": "rdnet_tiny"}))


def test_loading_is_silent(source, capfd):
    folder, _ = source(VIT)
    Timm.from_pretrained(TimmConfig(pretrained=folder))
    assert capfd.readouterr().err == ""
