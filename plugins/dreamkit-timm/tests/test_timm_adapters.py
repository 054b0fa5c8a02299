"""Adapters go into the layers that mix channels."""

from dataclasses import replace

import pytest
import torch

from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig


def test_adapters_go_into_attention_and_mlp():
    vit = Timm.from_config(Timm.tiny_config())
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(vit.adapter_targets) == {f"blocks.{index}.{name}" for index in (0, 1) for name in layers}
    convnet = Timm.from_config(replace(Timm.tiny_convnet_config(), layer=1))
    layers = ("mlp.fc1", "mlp.fc2")
    assert set(convnet.adapter_targets) == {f"stages.{i}.blocks.0.{name}" for i in (0, 1) for name in layers}


def test_adapters_go_into_convolutions_of_a_model_without_dense_layers():
    config = {"architecture": "resnet10t", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    part = Timm.from_config(TimmConfig(config=config, image_size=32))
    modules = dict(part.model.named_modules())
    assert part.adapter_targets
    assert all(isinstance(modules[name], torch.nn.Conv2d) for name in part.adapter_targets)


def test_adapters_go_into_1x1_convolutions():
    config = {"architecture": "convnext_atto", "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    part = Timm.from_config(TimmConfig(config=config))
    assert set(part.adapter_targets) == {
        f"stages.{i}.blocks.0.mlp.{fc}" for i in range(4) for fc in ("fc1", "fc2")
    }


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("vit_tiny_patch16_224", {"qkv", "proj", "fc1", "fc2"}),
        ("eva02_base_patch14_224", {"q_proj", "k_proj", "v_proj", "proj", "fc1_g", "fc1_x", "fc2"}),
        ("convit_tiny", {"qk", "v", "qkv", "proj", "fc1", "fc2"}),
        ("convnext_tiny", {"fc1", "fc2"}),
        ("seresnet50", {"conv1", "conv3", "0"}),  # "0" is in a shortcut
        ("regnety_002", {"conv"}),
        ("repvit_m0_9", {"c"}),
        ("efficientnet_b0", {"conv_pw", "conv_pwl"}),
    ],
)
def test_adapters_do_not_go_into_gates(architecture, names):
    part = Timm.meta_modules(TimmConfig(config={"architecture": architecture}))
    assert {name.rpartition(".")[2] for name in part.adapter_targets} == names
    assert not [name for name in part.adapter_targets if ".se." in name or ".attn.gate" in name]


def test_adapters_do_not_go_into_layers_that_are_not_called():
    """A BEiT uses the weights of `qkv` without calling it, so an adapter there would have no effect."""
    part = Timm.meta_modules(TimmConfig(config={"architecture": "beit_base_patch16_224", "depth": 2}))
    assert set(part.adapter_targets) == {f"blocks.0.{name}" for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}


def test_gates_are_recognized_in_a_grid_of_one_place():
    config = TimmConfig(config={"architecture": "seresnet50"}, image_size=32)
    assert Timm.infer_spec(config).num_tokens == 1
    larger = Timm.meta_modules(replace(config, image_size=64))
    assert Timm.meta_modules(config).adapter_targets == larger.adapter_targets
