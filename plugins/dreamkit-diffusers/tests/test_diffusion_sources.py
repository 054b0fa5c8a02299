"""A decoder is made from a folder or from the values of a recipe; errors name the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit import ConfigError, DreamkitError, SourceError
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from tiny_decoders import tiny_config, tiny_decoder

Config = StableDiffusion.Config
Helper = Callable[..., Any]


def tiny(**changes: dict[str, Any]) -> dict[str, Any]:
    """Return the tiny values, with those of its parts changed."""
    return tiny_config(StableDiffusion, **changes).config


def test_a_folder_restores_the_saved_decoder(decoder: StableDiffusion, folder: Path) -> None:
    loaded = StableDiffusion.from_pretrained(Config(pretrained=str(folder)))
    state = loaded.state_dict()
    assert state.keys() == decoder.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in decoder.state_dict().items())
    assert loaded.spec == decoder.spec
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())


def test_pickled_weights_are_loaded(save: Helper, decoder: StableDiffusion, tmp_path: Path) -> None:
    save(decoder, tmp_path, safetensors=False)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.bin").exists()
    loaded = StableDiffusion.from_pretrained(Config(pretrained=str(tmp_path)))
    assert torch.equal(loaded.unet.conv_in.weight, decoder.unet.conv_in.weight)


def test_half_precision_files_are_loaded_in_float32(
    save: Helper, decoder: StableDiffusion, tmp_path: Path
) -> None:
    save(decoder.half(), tmp_path)
    loaded = StableDiffusion.from_pretrained(Config(pretrained=str(tmp_path)))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_random_weights_of_a_folder_depend_on_the_seed(folder: Path) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(StableDiffusion.from_config(Config(pretrained=str(folder))).unet.conv_out.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class Allocations(TorchDispatchMode):
    """A record of the largest tensor that is not on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.largest = max(self.largest, result.numel())
        return result


def test_the_spec_needs_config_files_only(decoder: StableDiffusion, folder: Path) -> None:
    for weights in folder.glob("*/*.safetensors"):
        weights.write_bytes(b"not tensors: a spec does not read weights, but they must exist")
    with Allocations() as allocations:
        spec = StableDiffusion.infer_spec(Config(pretrained=str(folder)))
    assert allocations.largest <= 1000  # the noise schedule
    assert spec == decoder.spec
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_pretrained):
        with pytest.raises(SourceError, match=r"weights .* in unet/"):
            make(Config(pretrained=str(folder)))


@settings(deadline=None, max_examples=8)
@given(
    depth=st.integers(1, 3),
    channels=st.integers(1, 5),
    width=st.sampled_from([4, 6]),
    multiples=st.integers(1, 4),
)
def test_the_spec_has_the_models_shapes(depth: int, channels: int, width: int, multiples: int) -> None:
    config = tiny(
        unet={"in_channels": channels, "out_channels": channels, "cross_attention_dim": width},
        vae={
            "latent_channels": channels,
            "block_out_channels": [4] * depth,
            "down_block_types": ["DownEncoderBlock2D"] * depth,
            "up_block_types": ["UpDecoderBlock2D"] * depth,
        },
    )
    size = multiples * 2 ** (depth - 1)
    decoder = StableDiffusion.from_config(Config(config=config, image_size=size))
    assert decoder.spec == StableDiffusion.infer_spec(Config(config=config, image_size=size))
    latents = decoder.encode(torch.zeros(1, 3, size, size))
    assert latents.shape == (1, *decoder.spec.latent_shape((size, size)))
    assert decoder.decode(latents).shape == (1, 3, size, size)
    prediction = decoder.unet(latents, torch.tensor([1]), torch.zeros(1, 2, decoder.spec.context_dim)).sample
    assert prediction.shape == latents.shape


def test_the_folders_own_scheduler_is_the_default(folder: Path) -> None:
    EulerDiscreteScheduler(use_karras_sigmas=True).save_pretrained(folder / "scheduler")
    own = StableDiffusion.from_config(Config(pretrained=str(folder))).scheduler()
    assert isinstance(own, EulerDiscreteScheduler)
    assert own.config.use_karras_sigmas


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_pretrained):
        with pytest.raises(SourceError, match=file):
            make(Config(pretrained=str(folder)))


@pytest.mark.parametrize(
    ("file", "expected", "actual"),
    [
        ("unet/config.json", "class 'UNet2DConditionModel'", "UNet2DModel"),
        ("vae/config.json", "class 'AutoencoderKL'", "AutoencoderTiny"),
        ("scheduler/scheduler_config.json", "scheduler class", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_file_of_another_class_is_refused(
    edit: Helper, folder: Path, file: str, expected: str, actual: str
) -> None:
    edit(folder / file, _class_name=actual)
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_pretrained):
        with pytest.raises(
            SourceError, match=f"{file}: _class_name: expected a? ?{expected}.*, got '{actual}'"
        ):
            make(Config(pretrained=str(folder)))


def test_damaged_files_are_refused(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"AutoencoderKL in .*vae cannot be loaded"):
        StableDiffusion.from_pretrained(Config(pretrained=str(folder)))
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"unet/config\.json cannot be read as JSON"):
        StableDiffusion.infer_spec(Config(pretrained=str(folder)))
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(SourceError, match=r"unet/config\.json: expected a JSON object, got \[\]"):
        StableDiffusion.infer_spec(Config(pretrained=str(folder)))


def test_missing_tensors_are_named(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"], tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(SourceError, match=r"unet lack 2 tensors .* 'conv_in\.bias'"):
        StableDiffusion.from_pretrained(Config(pretrained=str(folder)))


def refused(make: Helper, config: Config) -> dict[str, str]:
    """Return the problems that `make` raises, by key."""
    with pytest.raises(ConfigError) as caught:
        make(config)
    return caught.value.problems


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("unet", "cross_atention_dim", 3, "unknown key.*did you mean 'cross_attention_dim'"),
        ("vae", "scalingfactor", 3, "unknown key.*did you mean 'scaling_factor'"),
        ("scheduler", "beta_stop", 1, "unknown key 'beta_stop'; did you mean 'beta_st"),
        ("scheduler", "prediction_type", "v", r"one of epsilon, v_prediction, sample, got 'v' \(string\)"),
        (
            "scheduler",
            "_class_name",
            "DDPMSchedule",
            "got 'DDPMSchedule'; did you mean 'DDPMScheduler'",
        ),
        ("scheduler", "num_train_timesteps", 0, "expected at least 1, got 0"),
        ("scheduler", "num_train_timesteps", 10**12, "expected at most 100000, got 1000000000000"),
        ("unet", "norm_num_groups", 5, "all block_out_channels, got 5; it does not divide 8"),
        ("unet", "layers_per_block", 10**6, "expected at most 100, got 1000000"),
        ("unet", "cross_attention_dim", 0, "expected at least 1, got 0"),
        ("unet", "cross_attention_dim", True, r"expected an integer, got true \(boolean\)"),
        ("unet", "in_channels", 9, "expected 4 in_channels, .* got 9; use a UNet"),
        ("unet", "sample_size", None, "expected an integer, got null; set image_size"),
        ("vae", "norm_num_groups", 3, "got 3; it does not divide 4"),
        ("vae", "scaling_factor", "half", r"expected a finite number, got 'half' \(string\)"),
        ("vae", "scaling_factor", 0, "expected more than 0, got 0"),
        ("vae", "latent_channels", 8, "expected 8 in_channels, .* got 4; use a UNet"),
    ],
)
def test_a_wrong_value_is_reported_at_its_key(part: str, key: str, value: Any, message: str) -> None:
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_config, StableDiffusion.meta_modules):
        ((actual_key, actual),) = refused(make, Config(config=tiny(**{part: {key: value}}))).items()
        assert actual_key == f"config.{part}.{key}"
        assert re.search(message, actual), actual


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {"beta_schedule": "square"}}, "cannot build a noise schedule: "),
        ({"scheduler": {"beta_schedule": "linear", "beta_end": 3.0}}, "expected betas from 0 to 1, got 1.0"),
        ({"unet": {"block_out_channels": "wide"}}, "cannot build a UNet2DConditionModel: "),
        (
            {
                "unet": {
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 4,
                    "projection_class_embeddings_input_dim": 40,
                }
            },
            r"got 'text_time' \(string\); use the image decoder 'sdxl'",
        ),
    ],
)
def test_a_wrong_config_is_refused(changes: dict[str, Any], message: str) -> None:
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_config):
        ((key, actual),) = refused(make, Config(config=tiny(**changes))).items()
        assert key.startswith(f"config.{next(iter(changes))}") and re.search(message, actual), (key, actual)


def test_all_problems_of_a_section_are_reported_at_once() -> None:
    changes = {"unet": {"foo": 1, "bar": 2, "norm_num_groups": 5}, "vae": {"baz": 3}, "scheduler": {"s": 1}}
    config = Config(config=tiny(**changes) | {"qux": {}}, image_size=3, snr_gamma=-1.0)
    assert refused(StableDiffusion.infer_spec, config).keys() == {
        "config.unet.foo",
        "config.unet.bar",
        "config.unet.norm_num_groups",
        "config.vae.baz",
        "config.scheduler.s",
        "config.qux",
        "image_size",
        "snr_gamma",
    }


def test_all_problems_of_a_folder_are_reported_at_once(edit: Helper, folder: Path) -> None:
    edit(folder / "unet" / "config.json", cross_attention_dim=0, norm_num_groups=5)
    edit(folder / "vae" / "config.json", scaling_factor=0)
    with pytest.raises(SourceError) as caught:
        StableDiffusion.infer_spec(Config(pretrained=str(folder)))
    ((key, message),) = caught.value.problems.items()
    assert key == "pretrained"
    for place in (
        "unet/config.json: norm_num_groups",
        "unet/config.json: cross_attention_dim",
        "scaling_factor",
    ):
        assert f"{place}: expected" in message


def test_a_folder_that_describes_no_model_is_refused_on_building(edit: Helper, folder: Path) -> None:
    edit(folder / "unet" / "config.json", down_block_types=["NoBlock2D"] * 2)
    edit(folder / "vae" / "config.json", down_block_types=["NoBlock2D"] * 2)
    config = Config(pretrained=str(folder))
    for make in (StableDiffusion.meta_modules, StableDiffusion.from_config, StableDiffusion.from_pretrained):
        with pytest.raises(
            SourceError, match=r"UNet2DConditionModel: .*vae/config\.json: .* AutoencoderKL: "
        ):
            make(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("downsample_padding", 10**9, "its models do not run: "),
        ("downsample_padding", -1, "its models do not run: "),
        ("sample_size", 10**9, "sample_size: expected at most "),
    ],
)
def test_values_that_diffusers_takes_and_cannot_run_are_refused_before_the_weights(
    edit: Helper, folder: Path, key: str, value: Any, message: str
) -> None:
    edit(folder / "unet" / "config.json", **{key: value})
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        StableDiffusion.from_pretrained(Config(pretrained=str(folder)))
    assert str(folder) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "key", "message"),
    [
        ({"une": {}}, "config.une", "unknown key 'une'; did you mean 'unet'"),
        (
            {"vae": 3},
            "config.vae",
            "expected a section with the values of a vae/config.json, got 3 (integer)",
        ),
        ({"unet": None}, "config.unet", "expected a section with the values of a unet/config.json, got null"),
    ],
)
def test_a_wrong_section_is_refused(parts: dict[str, Any], key: str, message: str) -> None:
    ((actual_key, actual),) = refused(StableDiffusion.infer_spec, Config(config=tiny() | parts)).items()
    assert actual_key == key and message in actual


def test_a_missing_section_is_named() -> None:
    problems = refused(StableDiffusion.infer_spec, Config(config={"unet": tiny()["unet"]}))
    assert problems == {"config.vae": "missing 'vae': set the values of a vae/config.json"}


def test_meta_modules_of_a_folder_are_those_of_the_part(folder: Path) -> None:
    config = Config(pretrained=str(folder))
    modules, part = StableDiffusion.meta_modules(config), StableDiffusion.from_config(config)
    assert {parameter.device.type for parameter in modules.parameters()} == {"meta"}
    assert [name for name, _ in modules.named_modules()] == [name for name, _ in part.named_modules()]


def test_the_config_stays_as_it_was() -> None:
    config = tiny()
    StableDiffusion.from_config(Config(config=config))
    assert config == tiny()


def test_published_config_files_may_be_a_config() -> None:
    """Files that diffusers writes can be pasted into a recipe, with their `_class_name`."""
    decoder = tiny_decoder(StableDiffusion)
    parts = {"unet": decoder.unet, "vae": decoder.vae, "scheduler": decoder.schedule}
    pasted = {name: json.loads(part.to_json_string()) for name, part in parts.items()}
    assert pasted["unet"]["_class_name"] == "UNet2DConditionModel"
    assert StableDiffusion.infer_spec(Config(config=pasted)) == decoder.spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 15}, "image_size: expected a positive multiple of 2 pixels, got 15"),
        ({"image_size": 0}, "image_size: expected a positive multiple of 2 pixels, got 0"),
        ({"snr_gamma": 0.0}, "snr_gamma: expected more than 0, got 0.0"),
        ({"config": None}, "missing 'pretrained' or 'config'"),
        ({"pretrained": "."}, "expected either 'pretrained' or 'config', got both"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        StableDiffusion.infer_spec(Config(**{"config": tiny(), **settings}))


def test_a_config_alone_has_no_weights_to_load() -> None:
    with pytest.raises(SourceError, match="missing 'pretrained'"):
        StableDiffusion.from_pretrained(Config(config=tiny()))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_config_of_any_shape_is_built_or_refused(data: st.DataObject) -> None:
    config = tiny()
    part = data.draw(st.sampled_from(sorted(config)))
    key = data.draw(st.sampled_from(sorted(config[part])))
    config[part][key] = data.draw(
        st.sampled_from([None, True, -1, 0, 3, 2.5, "three", [], [8], [8, 16, 32], {"a": 1}])
    )
    try:
        spec = StableDiffusion.infer_spec(Config(config=config))
    except DreamkitError:
        return
    decoder = StableDiffusion.from_config(Config(config=config))
    assert decoder.spec == spec
    assert isinstance(decoder.unet, UNet2DConditionModel)
    assert isinstance(decoder.vae, AutoencoderKL)
