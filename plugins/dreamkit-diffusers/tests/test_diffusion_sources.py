"""Where a decoder comes from: folders, small dicts, and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit import ConfigError, DecoderSpec, DreamkitError, SourceError
from dreamkit_diffusers.stable_diffusion import StableDiffusion

Config = StableDiffusion.Config
Helper = Callable[..., Any]


def test_a_folder_gives_back_what_was_saved(decoder: StableDiffusion, folder: Path) -> None:
    loaded = StableDiffusion.from_pretrained(Config(pretrained=str(folder)))
    state = loaded.state_dict()
    assert state.keys() == decoder.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in decoder.state_dict().items())
    assert loaded.spec == decoder.spec
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())


def test_pickled_weights(save: Helper, decoder: StableDiffusion, tmp_path: Path) -> None:
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


def test_a_folder_with_random_weights(folder: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(StableDiffusion.from_config(Config(pretrained=str(folder))).unet.conv_out.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


class Devices(TorchDispatchMode):
    """The devices on which operators made tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type != "meta":
            self.largest = max(self.largest, made.numel())
        return made


def test_the_spec_needs_config_files_only(decoder: StableDiffusion, folder: Path) -> None:
    for weights in folder.glob("*/*.safetensors"):
        weights.write_bytes(b"not tensors: a spec needs none, but they must be there")
    with Devices() as devices:
        spec = StableDiffusion.infer_spec(Config(pretrained=str(folder)))
    # the noise schedule's thousand numbers are the most that is made
    assert devices.largest <= 1000
    assert spec == decoder.spec
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_pretrained):
        with pytest.raises(SourceError, match=r"weights .* in unet/"):
            make(Config(pretrained=str(folder)))


def test_the_spec_of_full_size_models(tmp_path: Path) -> None:
    blocks = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    blocks |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    for sample_size, width, image_size in ((64, 768, 512), (96, 1024, 768)):
        unet = {"sample_size": sample_size, "cross_attention_dim": width}
        spec = StableDiffusion.infer_spec(Config(config={"unet": unet, "vae": blocks}))
        assert spec == DecoderSpec(
            context_dim=width,
            image_size=image_size,
            latent_channels=4,
            latent_factor=8,
            size_multiple=8,
            schedulers=("ddpm", "ddim", "dpm-solver++", "unipc", "euler"),
            objective="denoising over a noise schedule",
        )


@settings(deadline=None, max_examples=8)
@given(
    depth=st.integers(1, 3),
    channels=st.integers(1, 5),
    width=st.sampled_from([4, 6]),
    multiples=st.integers(1, 4),
)
def test_the_spec_tells_the_shapes(
    tiny: Helper, depth: int, channels: int, width: int, multiples: int
) -> None:
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
    guess = decoder.unet(latents, torch.tensor([1]), torch.zeros(1, 2, decoder.spec.context_dim)).sample
    assert guess.shape == latents.shape


def test_the_folders_own_scheduler_is_the_default(folder: Path) -> None:
    PNDMScheduler(skip_prk_steps=True).save_pretrained(folder / "scheduler")
    decoder = StableDiffusion.from_config(Config(pretrained=str(folder)))
    assert type(decoder.scheduler()) is PNDMScheduler
    EulerDiscreteScheduler(use_karras_sigmas=True).save_pretrained(folder / "scheduler")
    own = StableDiffusion.from_config(Config(pretrained=str(folder))).scheduler()
    assert isinstance(own, EulerDiscreteScheduler)
    assert own.config.use_karras_sigmas


def test_latents_are_clipped_only_where_the_config_says_so(edit: Helper, folder: Path) -> None:
    """Many schedulers have no such setting; DDPM's own default would clip."""
    PNDMScheduler().save_pretrained(folder / "scheduler")
    decoder = StableDiffusion.from_config(Config(pretrained=str(folder)))
    assert not decoder.schedule.config.clip_sample
    assert not decoder.scheduler("ddpm").config.clip_sample
    assert not decoder.scheduler("ddim").config.clip_sample
    edit(folder / "scheduler" / "scheduler_config.json", clip_sample=True)
    assert StableDiffusion.from_config(Config(pretrained=str(folder))).scheduler("ddim").config.clip_sample


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_pretrained):
        with pytest.raises(SourceError, match=file):
            make(Config(pretrained=str(folder)))


@pytest.mark.parametrize(
    ("file", "named", "wanted"),
    [
        ("unet/config.json", "UNet2DModel", "UNet2DConditionModel"),
        ("vae/config.json", "AutoencoderTiny", "AutoencoderKL"),
        ("scheduler/scheduler_config.json", "FlowMatchEulerDiscreteScheduler", "DDPMScheduler"),
        ("scheduler/scheduler_config.json", "EDMEulerScheduler", "DDPMScheduler"),
    ],
)
def test_a_wrong_class_names_both(edit: Helper, folder: Path, file: str, named: str, wanted: str) -> None:
    edit(folder / file, _class_name=named)
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_pretrained):
        with pytest.raises(SourceError, match=f"{file}.*'{named}'.*'{wanted}'"):
            make(Config(pretrained=str(folder)))


def test_damaged_files(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"AutoencoderKL in .*vae cannot be loaded"):
        StableDiffusion.from_pretrained(Config(pretrained=str(folder)))
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(SourceError, match=r"unet/config\.json is not JSON"):
        StableDiffusion.infer_spec(Config(pretrained=str(folder)))
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(SourceError, match=r"unet/config\.json holds a list"):
        StableDiffusion.infer_spec(Config(pretrained=str(folder)))


def test_weights_that_lack_tensors(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"], tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(SourceError, match=r"unet lack 2 of the tensors .* 'conv_in\.bias'"):
        StableDiffusion.from_pretrained(Config(pretrained=str(folder)))


def refused(make: Helper, config: Config) -> dict[str, str]:
    """What of a section `make` refuses, by key."""
    with pytest.raises(ConfigError) as caught:
        make(config)
    return caught.value.problems


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("unet", "cross_atention_dim", 3, "unknown key.*did you mean 'cross_attention_dim'"),
        ("vae", "scalingfactor", 3, "unknown key.*did you mean 'scaling_factor'"),
        ("scheduler", "beta_stop", 1, "unknown key 'beta_stop'; did you mean 'beta_st"),
        ("scheduler", "prediction_type", "v", "'v' found.*v_prediction"),
        ("scheduler", "_class_name", "DDPMSchedule", "'DDPMSchedule'.*did you mean 'DDPMScheduler'"),
        ("scheduler", "num_train_timesteps", 0, "0 found"),
        ("scheduler", "num_train_timesteps", 10**12, "1000000000000 found"),
        ("unet", "norm_num_groups", 5, "5 found, but block_out_channels has 8"),
        ("unet", "layers_per_block", 10**6, "1000000 found, but at most 100"),
        ("unet", "cross_attention_dim", 0, "0 found"),
        ("unet", "in_channels", 9, "in_channels is 9, but the autoencoder's latents have 4"),
        ("unet", "sample_size", None, "set image_size"),
        ("vae", "norm_num_groups", 3, "3 found, but block_out_channels has 4"),
        ("vae", "scaling_factor", "half", "'half' found"),
        ("vae", "scaling_factor", 0, "0 found"),
        ("vae", "shift_factor", "none", "'none' found"),
        ("vae", "latent_channels", 8, "in_channels is 4, but the autoencoder's latents have 8"),
    ],
)
def test_a_mistaken_value_is_told_at_its_key(
    tiny: Helper, part: str, key: str, value: Any, message: str
) -> None:
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_config, StableDiffusion.meta_modules):
        ((found, said),) = refused(make, Config(config=tiny(**{part: {key: value}}))).items()
        assert found == f"config.{part}.{key}"
        assert re.search(message, said), said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {"beta_schedule": "square"}}, "does not describe a noise schedule"),
        ({"scheduler": {"beta_schedule": "linear", "beta_end": 3.0}}, "no noise schedule"),
        ({"unet": {"block_out_channels": "wide"}}, "does not describe a UNet2DConditionModel"),
        (
            {
                "unet": {
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 4,
                    "projection_class_embeddings_input_dim": 40,
                }
            },
            "'text_time' found.*use the image decoder 'sdxl'",
        ),
    ],
)
def test_a_mistaken_config_is_an_error(tiny: Helper, changes: dict[str, Any], message: str) -> None:
    for make in (StableDiffusion.infer_spec, StableDiffusion.from_config):
        ((key, said),) = refused(make, Config(config=tiny(**changes))).items()
        assert key.startswith(f"config.{next(iter(changes))}") and re.search(message, said), (key, said)


def test_all_that_is_wrong_with_a_section_is_told_at_once(tiny: Helper) -> None:
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


def test_all_that_is_wrong_with_a_folder_is_told_at_once(edit: Helper, folder: Path) -> None:
    edit(folder / "unet" / "config.json", cross_attention_dim=0, norm_num_groups=5)
    edit(folder / "vae" / "config.json", scaling_factor=0)
    with pytest.raises(SourceError) as caught:
        StableDiffusion.infer_spec(Config(pretrained=str(folder)))
    ((key, said),) = caught.value.problems.items()
    assert key == "pretrained"
    for fragment in ("unet/config.json: cross_attention_dim: 0", "norm_num_groups: 5", "scaling_factor: 0"):
        assert fragment in said


def test_a_folder_whose_values_make_no_model_is_refused_when_it_is_made(edit: Helper, folder: Path) -> None:
    edit(folder / "unet" / "config.json", down_block_types=["NoBlock2D"] * 2)
    edit(folder / "vae" / "config.json", down_block_types=["NoBlock2D"] * 2)
    config = Config(pretrained=str(folder))
    for make in (StableDiffusion.meta_modules, StableDiffusion.from_config):
        with pytest.raises(
            SourceError, match=r"UNet2DConditionModel: .*vae/config\.json: .* AutoencoderKL: "
        ):
            make(config)
    with pytest.raises(SourceError, match=r"the UNet2DConditionModel in .* cannot be loaded"):
        StableDiffusion.from_pretrained(config)


@pytest.mark.parametrize(
    ("parts", "key", "message"),
    [
        ({"une": {}}, "config.une", "unknown key 'une'; did you mean 'unet'"),
        ({"vae": 3}, "config.vae", "3 found, but a section"),
        ({"unet": None}, "config.unet", "None found, but a section"),
    ],
)
def test_a_config_of_the_wrong_parts(tiny: Helper, parts: dict[str, Any], key: str, message: str) -> None:
    ((found, said),) = refused(StableDiffusion.infer_spec, Config(config=tiny() | parts)).items()
    assert found == key and message in said
    found_missing = refused(StableDiffusion.infer_spec, Config(config={"unet": tiny()["unet"]}))
    assert found_missing.keys() == {"config.vae"} and found_missing["config.vae"].startswith("missing")


def test_an_outline_has_the_modules_of_the_part(tiny: Helper, folder: Path) -> None:
    for config in (Config(config=tiny()), Config(pretrained=str(folder))):
        outline, part = StableDiffusion.meta_modules(config), StableDiffusion.from_config(config)
        assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
        assert [name for name, _ in outline.named_modules()] == [name for name, _ in part.named_modules()]


def test_the_spec_names_every_scheduler(decoder: StableDiffusion) -> None:
    assert decoder.spec.schedulers
    for name in decoder.spec.schedulers:
        assert decoder.scheduler(name).config.beta_end == 0.012
    with pytest.raises(DreamkitError, match="no scheduler 'foo'"):
        decoder.scheduler("foo")


def test_the_config_is_left_as_it_was(tiny: Helper) -> None:
    config = tiny()
    StableDiffusion.from_config(Config(config=config))
    assert config == tiny()


def test_published_config_files_are_a_config(tiny: Helper) -> None:
    """What diffusers writes, `_class_name` and all, can be pasted into a recipe."""
    decoder = StableDiffusion.from_config(Config(config=tiny()))
    parts = {"unet": decoder.unet, "vae": decoder.vae, "scheduler": decoder.schedule}
    pasted = {name: json.loads(part.to_json_string()) for name, part in parts.items()}
    assert pasted["unet"]["_class_name"] == "UNet2DConditionModel"
    assert StableDiffusion.infer_spec(Config(config=pasted)) == decoder.spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 15}, "image_size: 15 found, but a positive multiple of 2"),
        ({"image_size": 0}, "image_size: 0 found"),
        ({"snr_gamma": 0.0}, "snr_gamma: 0.0 found"),
        ({"config": None}, "exactly one"),
        ({"pretrained": "."}, "exactly one"),
    ],
)
def test_mistaken_settings(tiny: Helper, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        StableDiffusion.infer_spec(Config(**{"config": tiny(), **settings}))


def test_weights_are_never_made_up_for_a_config(tiny: Helper) -> None:
    with pytest.raises(SourceError, match="no weights to load"):
        StableDiffusion.from_pretrained(Config(config=tiny()))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_config_of_any_shape_is_built_or_refused(tiny: Helper, data: st.DataObject) -> None:
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
