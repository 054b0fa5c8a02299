"""Each key of a config is computed with, as in diffusers' pipeline, or refused by name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from dreamkit import ConfigError, SourceError
from dreamkit_diffusers import networks
from dreamkit_diffusers.keys import AVERAGING, FLOW_SCHEDULERS, NOISE_SCHEDULERS
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.schedulers import FLOW, NOISE
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from library_pipelines import LIBRARY_WARNINGS, NETWORKS, pipeline, write_folder
from tiny_decoders import tiny_config

pytestmark = LIBRARY_WARNINGS

Edit = Callable[..., None]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_keys_of_a_model_are_those_of_the_installed_class(name: str) -> None:
    keys = NETWORKS[name].keys
    assert sorted(keys) == sorted(inspect.signature(getattr(diffusers, name)).parameters)


@pytest.mark.parametrize("name", NOISE_SCHEDULERS | FLOW_SCHEDULERS)
def test_the_keys_of_a_scheduler_are_those_of_the_installed_class(name: str) -> None:
    keys = (NOISE_SCHEDULERS | FLOW_SCHEDULERS)[name]
    assert sorted(keys) == sorted(inspect.signature(getattr(diffusers, name)).parameters)


def test_schedulers_fix_keys_of_their_own_classes() -> None:
    for schedulers in (NOISE, FLOW):
        assert schedulers.fixed.keys() <= {key for keys in schedulers.class_keys.values() for key in keys}


FIXED = [
    *((StableDiffusion, "unet", key) for key in networks.UNET.keys.fixed),
    *((SDXL, "unet", key) for key in networks.UNET.keys.fixed),
    *((cls, "vae", key) for cls in (StableDiffusion, SDXL, SD3) for key in networks.KL.keys.fixed),
    *((Sana, "vae", key) for key in networks.DC.keys.fixed),
    *((Sana, "transformer", key) for key in networks.SANA_TRANSFORMER.keys.fixed),
    *((cls, "scheduler", key) for cls in (StableDiffusion, SDXL) for key in NOISE.fixed),
    *((cls, "scheduler", key) for cls in (SD3, Sana) for key in FLOW.fixed),
    *((StableDiffusion, "vae", key) for key in ("shift_factor", "latents_mean", "latents_std")),
    (SDXL, "vae", "shift_factor"),
    *((SD3, "vae", key) for key in ("latents_mean", "latents_std")),
]


@pytest.mark.parametrize(("cls", "name", "key"), FIXED)
def test_a_value_that_needs_more_is_refused_by_name(
    cls: Any, name: str, key: str, edit: Edit, tmp_path: Path
) -> None:
    folder = write_folder(cls, tmp_path / "model")
    file = folder / cls.layout.files[name]
    edit(file, **{key: 16})
    with pytest.raises(
        SourceError, match=rf"{cls.layout.files[name]}: {key}: expected .*, got 16 \(integer\); "
    ):
        cls.infer_spec(cls.Config(pretrained=str(folder)))
    with pytest.raises(ConfigError) as caught:
        cls.infer_spec(tiny_config(cls, **{name: {key: 16}}))
    assert f"config.{name}.{key}" in caught.value.problems


def test_a_key_of_a_new_release_may_have_its_default_alone(
    edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(StableDiffusion, tmp_path / "model")
    config = StableDiffusion.Config(pretrained=str(folder))
    monkeypatch.setitem(networks.KL.__dict__, "defaults", {**networks.KL.defaults, "latent_gain": 1.0})
    edit(folder / "vae" / "config.json", latent_gain=1.0)
    StableDiffusion.infer_spec(config)
    edit(folder / "vae" / "config.json", latent_gain=2.0)
    with pytest.raises(
        SourceError, match=r"latent_gain: expected 1.0 \(number\), got 2.0 .*does not support"
    ):
        StableDiffusion.infer_spec(config)


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler"])
def test_a_folders_key_that_diffusers_lacks_is_refused(name: str, edit: Edit, tmp_path: Path) -> None:
    folder = write_folder(StableDiffusion, tmp_path / "model")
    file = folder / StableDiffusion.layout.files[name]
    config = StableDiffusion.Config(pretrained=str(folder))
    edit(file, **dict.fromkeys(AVERAGING, 1), unheard_of=None, _name_or_path="elsewhere")
    StableDiffusion.infer_spec(config)
    edit(file, unheard_of=0)
    with pytest.raises(SourceError, match=r"unheard_of: unknown key 'unheard_of', which diffusers .* ignore"):
        StableDiffusion.infer_spec(config)


def test_keys_of_other_schedulers_are_ignored_as_in_diffusers(edit: Edit, tmp_path: Path) -> None:
    folder = write_folder(StableDiffusion, tmp_path / "model")
    file = folder / "scheduler" / "scheduler_config.json"
    diffusers.LCMScheduler(original_inference_steps=7).save_pretrained(tmp_path / "lcm")
    values = json.loads((tmp_path / "lcm" / "scheduler_config.json").read_text())
    edit(file, **values | {"_class_name": "EulerDiscreteScheduler"})
    StableDiffusion.infer_spec(StableDiffusion.Config(pretrained=str(folder)))


@pytest.mark.parametrize("name", NOISE_SCHEDULERS)
def test_training_adds_the_noise_that_the_configs_scheduler_removes(name: str) -> None:
    config = replace(
        tiny_config(SDXL), config={**SDXL.tiny_config().config, "scheduler": {"_class_name": name}}
    )
    decoder = SDXL.from_config(config)
    own = getattr(diffusers, name)()
    torch.testing.assert_close(decoder.schedule.alphas_cumprod, own.alphas_cumprod)
    for other in decoder.spec.schedulers:
        torch.testing.assert_close(decoder.scheduler(other).alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize(
    ("scheduler", "key", "message"),
    [
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"},
            "",
            "expected finite latents, got NaN or inf from UniPCMultistepScheduler",
        ),
        (
            {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True},
            ".rescale_betas_zero_snr",
            "set false",
        ),
        (
            {"_class_name": "PNDMScheduler", "prediction_type": "sample"},
            "",
            "cannot draw with PNDMScheduler: ",
        ),
        ({"variance_type": "learned"}, "", "cannot draw with DDPMScheduler: "),
        (
            {"timestep_spacing": "near"},
            "",
            "cannot draw with DDPMScheduler: ValueError: near is not supported",
        ),
        (
            {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "",
            "expected finite latents, got NaN",
        ),
    ],
)
def test_settings_that_cannot_draw_are_refused(scheduler: dict[str, Any], key: str, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ConfigError) as caught:
        SDXL.infer_spec(tiny_config(SDXL, scheduler=scheduler))
    ((actual_key, actual),) = caught.value.problems.items()
    assert actual_key == f"config.scheduler{key}" and message in actual
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls", [StableDiffusion, SDXL, SD3, Sana])
@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1] * 4, "expected 1000 numbers, one for each timestep, got 4"),
        ([], "expected 1000 numbers, one for each timestep, got 0"),
        ([0.1] * 1001, "expected 1000 numbers, one for each timestep, got 1001"),
        ([0.1] * 999 + ["high"], "expected a finite number, got 'high' (string)"),
        (0.1, "expected a list of 1000 numbers, got 0.1 (number)"),
    ],
    ids=["few", "none", "many", "text", "number"],
)
def test_betas_that_do_not_fit_the_timesteps_are_refused_by_name(cls: Any, betas: Any, message: str) -> None:
    names = NOISE_SCHEDULERS if cls.layout.schedulers is NOISE else FLOW_SCHEDULERS
    for name in names:
        scheduler = {"_class_name": name, "num_train_timesteps": 1000}
        with pytest.raises(ConfigError) as caught:
            cls.infer_spec(tiny_config(cls, scheduler={**scheduler, "trained_betas": betas}))
        assert caught.value.problems["config.scheduler.trained_betas"].startswith(f"{message}; set null")


@pytest.mark.parametrize("offset", [-1, 1000, 10**30, 0.5, "1", True, None], ids=str)
@pytest.mark.parametrize("name", NOISE_SCHEDULERS)
def test_an_offset_outside_the_timesteps_is_refused_by_name(name: str, offset: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SDXL.infer_spec(tiny_config(SDXL, scheduler={"_class_name": name, "steps_offset": offset}))
    actual = caught.value.problems["config.scheduler.steps_offset"]
    assert actual.startswith("expected an integer from 0 to 999, got ")


@pytest.mark.parametrize("own", NOISE_SCHEDULERS)
def test_steps_that_an_offset_shifts_out_of_the_timesteps_are_refused(own: str) -> None:
    """With 30 steps, DDIM's first timestep is 957 plus the offset: 1000 / 30 rounded down times 29."""
    spacing = {"timestep_spacing": "leading", "steps_offset": 100}
    config = {"_class_name": own, **spacing}
    SDXL.infer_spec(tiny_config(SDXL, scheduler=config))
    for name in (None, *NOISE.table):
        scheduler = NOISE.create(name, config)
        scheduler.set_timesteps(4)
        try:
            scheduler.set_timesteps(30)
        except ValueError as error:
            assert re.match(
                r"expected timesteps up to 999, got 10\d\d with steps_offset 100; use", str(error)
            )
        else:
            assert scheduler.timesteps.max() <= 999


def test_a_drawing_with_too_many_steps_for_the_offset_is_refused() -> None:
    config = {"_class_name": "DDIMScheduler", "steps_offset": 100}
    with pytest.raises(ValueError, match="expected timesteps up to 999, got 1057 "):
        NOISE.create(None, config).set_timesteps(30, device="cpu")
    NOISE.create(None, {**config, "steps_offset": 42}).set_timesteps(30)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("EDMEulerScheduler", "as EDM models need"),
        ("EDMDPMSolverMultistepScheduler", "as EDM models need"),
        ("LCMScheduler", "name the model that it was distilled from"),
        ("TCDScheduler", "name the model that it was distilled from"),
        ("FlowMatchLCMScheduler", "name the model that it was distilled from"),
        ("FlowMatchEulerDiscreteScheduler", "name another source, or one of DDIMScheduler, "),
        ("DPMSolverSDEScheduler", "name another source, or one of DDIMScheduler, "),
    ],
)
def test_a_scheduler_of_another_method_is_not_taken_for_a_misspelling(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StableDiffusion.infer_spec(tiny_config(StableDiffusion, scheduler={"_class_name": name}))
    actual = caught.value.problems["config.scheduler._class_name"]
    assert actual.startswith("expected a scheduler class for denoising over a noise schedule, got ")
    assert message in actual and "did you mean" not in actual


@pytest.mark.parametrize(
    ("version", "size", "pixels"),
    [("0.2.2", 32, 128), ("0.8.1", 8, 128), ("0.8.1", 96, 192), ("0.9.0", 8, 16), ("0.36.0.dev0", 8, 16)],
)
def test_the_size_in_an_early_config_is_that_of_the_pipeline(
    version: str, size: int, pixels: int, edit: Edit, tmp_path: Path
) -> None:
    folder = write_folder(StableDiffusion, tmp_path / "model")
    edit(folder / "unet" / "config.json", _diffusers_version=version, sample_size=size)
    assert StableDiffusion.infer_spec(StableDiffusion.Config(pretrained=str(folder))).image_size == pixels
    library = pipeline(StableDiffusion, folder)
    assert library.unet.config.sample_size * library.vae_scale_factor == pixels
