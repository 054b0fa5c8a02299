"""A folder draws as in diffusers' own pipeline, whichever of the honoured keys it sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit_diffusers.keys import NOISE_SCHEDULERS
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from library_pipelines import LIBRARY_WARNINGS, NETWORKS, drawings, write_folder
from tiny_decoders import tiny_decoder

pytestmark = LIBRARY_WARNINGS

Edit = Callable[..., None]


# A change of each honoured key, with what it needs. Empty: the tiny config's value, which is not the default.
UNET: dict[str, dict[str, Any]] = {
    "sample_size": {"sample_size": 4},
    "in_channels": {},
    "out_channels": {},
    "center_input_sample": {"center_input_sample": True},
    "flip_sin_to_cos": {"flip_sin_to_cos": False},
    "freq_shift": {"freq_shift": 1},
    "down_block_types": {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]},
    "mid_block_type": {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    "up_block_types": {"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]},
    "only_cross_attention": {"only_cross_attention": True},
    "mid_block_only_cross_attention": {"mid_block_only_cross_attention": True},
    "block_out_channels": {"block_out_channels": [16, 8]},
    "layers_per_block": {"layers_per_block": [1, 2]},
    "downsample_padding": {"downsample_padding": 0},
    "mid_block_scale_factor": {"mid_block_scale_factor": 2},
    "dropout": {"dropout": 0.5},
    "act_fn": {"act_fn": "mish"},
    "norm_num_groups": {"norm_num_groups": 2},
    "norm_eps": {"norm_eps": 0.1},
    "cross_attention_dim": {"cross_attention_dim": 16},
    "cross_attention_norm": {
        "cross_attention_norm": "layer_norm",
        "cross_attention_dim": 16,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    },
    "transformer_layers_per_block": {"transformer_layers_per_block": [2, 1]},
    "reverse_transformer_layers_per_block": {
        "transformer_layers_per_block": [1, 2],
        "reverse_transformer_layers_per_block": [2, 1],
    },
    "attention_head_dim": {"attention_head_dim": [4, 2]},
    "use_linear_projection": {"use_linear_projection": True},
    "upcast_attention": {"upcast_attention": True},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "resnet_skip_time_act": {"resnet_skip_time_act": True},
    "resnet_out_scale_factor": {"resnet_out_scale_factor": 1.5},
    "time_embedding_type": {"time_embedding_type": "fourier", "time_embedding_dim": 8},
    "time_embedding_dim": {"time_embedding_dim": 16},
    "time_embedding_act_fn": {"time_embedding_act_fn": "gelu"},
    "timestep_post_act": {"timestep_post_act": "gelu"},
    "conv_in_kernel": {"conv_in_kernel": 1},
    "conv_out_kernel": {"conv_out_kernel": 1},
}
XL_UNET: dict[str, dict[str, Any]] = {
    "addition_embed_type": {},
    "addition_time_embed_dim": {"addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 20},
    "projection_class_embeddings_input_dim": {"projection_class_embeddings_input_dim": 33},
}
KL: dict[str, dict[str, Any]] = {
    "down_block_types": {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
    "up_block_types": {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
    "block_out_channels": {"block_out_channels": [8, 4]},
    "layers_per_block": {"layers_per_block": 2},
    "act_fn": {"act_fn": "mish"},
    "latent_channels": {},
    "norm_num_groups": {"norm_num_groups": 4},
    "scaling_factor": {"scaling_factor": 0.5},
    "force_upcast": {"force_upcast": False},
    "use_quant_conv": {"use_quant_conv": False},
    "use_post_quant_conv": {"use_post_quant_conv": False},
    "mid_block_add_attention": {"mid_block_add_attention": False},
}
MEAN = {"latents_mean": [-1.7, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2], "scaling_factor": 0.5}
SD3_TRANSFORMER: dict[str, dict[str, Any]] = {
    "sample_size": {"sample_size": 4},
    "patch_size": {"patch_size": 1},
    "in_channels": {},
    "num_layers": {"num_layers": 3},
    "attention_head_dim": {"attention_head_dim": 16, "caption_projection_dim": 32},
    "num_attention_heads": {"num_attention_heads": 1, "caption_projection_dim": 8},
    "joint_attention_dim": {"joint_attention_dim": 16},
    "caption_projection_dim": {},
    "pooled_projection_dim": {"pooled_projection_dim": 8},
    "out_channels": {"out_channels": None},
    "pos_embed_max_size": {"pos_embed_max_size": 8},
    "dual_attention_layers": {"dual_attention_layers": [0]},
    "qk_norm": {"qk_norm": "rms_norm"},
}
SANA_TRANSFORMER: dict[str, dict[str, Any]] = {
    "in_channels": {},
    "out_channels": {},
    "num_attention_heads": {"num_attention_heads": 1, "attention_head_dim": 16},
    "attention_head_dim": {"attention_head_dim": 16, "num_attention_heads": 1},
    "num_layers": {"num_layers": 1},
    "num_cross_attention_heads": {"num_cross_attention_heads": 4, "cross_attention_head_dim": 4},
    "cross_attention_head_dim": {"cross_attention_head_dim": 16, "num_cross_attention_heads": 1},
    "cross_attention_dim": {},
    "caption_channels": {"caption_channels": 16},
    "mlp_ratio": {"mlp_ratio": 2.0},
    "dropout": {"dropout": 0.5},
    "attention_bias": {"attention_bias": True},
    "sample_size": {"sample_size": 4},
    "patch_size": {"patch_size": 2},
    "norm_elementwise_affine": {"norm_elementwise_affine": True},
    "norm_eps": {"norm_eps": 0.1},
    "interpolation_scale": {"interpolation_scale": 1.0, "sample_size": 16},
    "qk_norm": {"qk_norm": "rms_norm_across_heads"},
    "timestep_scale": {"timestep_scale": 0.01},
}
DC: dict[str, dict[str, Any]] = {
    "latent_channels": {},
    "attention_head_dim": {"attention_head_dim": 2},
    "encoder_block_types": {"encoder_block_types": "ResBlock"},
    "decoder_block_types": {"decoder_block_types": "ResBlock"},
    "encoder_block_out_channels": {"encoder_block_out_channels": [8, 8]},
    "decoder_block_out_channels": {"decoder_block_out_channels": [8, 8]},
    "encoder_layers_per_block": {"encoder_layers_per_block": [2, 1]},
    "decoder_layers_per_block": {"decoder_layers_per_block": [2, 1]},
    "encoder_qkv_multiscales": {"encoder_qkv_multiscales": [[], [5]]},
    "decoder_qkv_multiscales": {"decoder_qkv_multiscales": [[], [5]]},
    "upsample_block_type": {"upsample_block_type": "interpolate"},
    "downsample_block_type": {"downsample_block_type": "Conv"},
    "decoder_norm_types": {"decoder_norm_types": "batch_norm"},
    "decoder_act_fns": {"decoder_act_fns": "relu"},
    "encoder_out_shortcut": {"encoder_out_shortcut": False},
    "decoder_in_shortcut": {"decoder_in_shortcut": False},
    "decoder_conv_act_fn": {"decoder_conv_act_fn": "silu"},
    "scaling_factor": {"scaling_factor": 0.7},
}
# decoder, model of its layout, changes by key
MODELS: list[tuple[Any, str, dict[str, dict[str, Any]]]] = [
    (StableDiffusion, "unet", UNET),
    (SDXL, "unet", XL_UNET),
    (StableDiffusion, "vae", KL),
    (SDXL, "vae", {"latents_mean": MEAN, "latents_std": MEAN}),
    (SD3, "vae", {"shift_factor": {"shift_factor": 0.7}}),
    (SD3, "transformer", SD3_TRANSFORMER),
    (Sana, "transformer", SANA_TRANSFORMER),
    (Sana, "vae", DC),
]


def dpm(**values: Any) -> dict[str, Any]:
    return {"_class_name": "DPMSolverMultistepScheduler", **values}


def unipc(**values: Any) -> dict[str, Any]:
    return {"_class_name": "UniPCMultistepScheduler", **values}


def euler(**values: Any) -> dict[str, Any]:
    return {"_class_name": "EulerDiscreteScheduler", **values}


def ddim(**values: Any) -> dict[str, Any]:
    return {"_class_name": "DDIMScheduler", "clip_sample": False, **values}


# settings of a noise schedule: each key of each class, but for fixed ones and those of flow matching
NOISE_CHANGES: list[dict[str, Any]] = [
    *({"_class_name": name, "clip_sample": False} for name in NOISE_SCHEDULERS),
    {"_class_name": "HeunDiscreteScheduler", "beta_start": 0.001, "beta_schedule": "squaredcos_cap_v2"},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": True},
    ddim(num_train_timesteps=500, beta_schedule="linear", beta_end=0.02),
    ddim(trained_betas=[0.01] * 100, num_train_timesteps=100),
    ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    ddim(clip_sample=True, clip_sample_range=0.5),
    ddim(set_alpha_to_one=False, steps_offset=0),
    ddim(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
    {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample": True},
    euler(use_karras_sigmas=True, sigma_min=0.05, sigma_max=9.0),
    euler(use_exponential_sigmas=True),
    euler(use_beta_sigmas=True),
    euler(interpolation_type="log_linear", final_sigmas_type="sigma_min"),
    dpm(solver_order=3, solver_type="heun", lower_order_final=False),
    dpm(algorithm_type="sde-dpmsolver++"),
    dpm(euler_at_final=True, final_sigmas_type="zero"),
    dpm(use_lu_lambdas=True),
    dpm(lambda_min_clipped=-2.0),
    dpm(use_dynamic_shifting=True, time_shift_type="linear", flow_shift=2.0),
    unipc(predict_x0=False, disable_corrector=[0, 1], solver_type="bh1", final_sigmas_type="sigma_min"),
    {"_class_name": "DEISMultistepScheduler", "algorithm_type": "deis", "solver_type": "logrho"},
]
FLOW_DPM = dpm(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
FLOW_UNIPC = {**FLOW_DPM, "_class_name": "UniPCMultistepScheduler"}
FLOW_CHANGES: list[dict[str, Any]] = [
    {"shift": 2.0, "num_train_timesteps": 500},
    {"shift_terminal": 0.1},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"base_shift": 0.1, "max_shift": 2.0, "base_image_seq_len": 9, "max_image_seq_len": 99},
    {"time_shift_type": "linear"},
    FLOW_DPM,
    {**FLOW_DPM, "solver_order": 3, "euler_at_final": True},
    FLOW_UNIPC,
    {**FLOW_UNIPC, "shift_terminal": 0.1},
    {**FLOW_UNIPC, "use_karras_sigmas": True},
]


def model_cases() -> Iterator[Any]:
    for cls, name, changes in MODELS:
        for key, values in changes.items():
            yield pytest.param(cls, {name: values}, id=f"{cls.__name__}-{name}-{key}")


def scheduler_cases() -> Iterator[Any]:
    for cls, changes in ((SDXL, NOISE_CHANGES), (Sana, FLOW_CHANGES), (SD3, [FLOW_DPM])):
        for number, values in enumerate(changes):
            name = values.get("_class_name", "own")
            yield pytest.param(cls, {"scheduler": values}, id=f"{cls.__name__}-{number}-{name}")
    yield pytest.param(StableDiffusion, {"scheduler": ddim(clip_sample=True)}, id="clipped")


def test_each_honoured_key_has_a_change() -> None:
    changed: dict[str, list[str]] = {}
    for cls, name, changes in MODELS:
        changed.setdefault(cls.layout.models[name].name, []).extend(changes)
    assert {name: sorted(keys) for name, keys in changed.items()} == {
        name: sorted(network.keys.honoured) for name, network in NETWORKS.items()
    }


@pytest.mark.parametrize(("cls", "changes"), [*model_cases(), *scheduler_cases()])
def test_a_folder_draws_as_in_diffusers_pipeline(
    cls: Any, changes: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    images, expected = drawings(cls, write_folder(cls, tmp_path / "model", **changes))
    assert expected.isfinite().all()
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)


def test_normalized_latents_are_encoded_as_in_the_pipeline() -> None:
    """The inverse of the decoding that `StableDiffusionXLPipeline` does, as in its image-to-image variant."""
    decoder = tiny_decoder(SDXL, vae=MEAN)
    targets = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = (torch.tensor(MEAN[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        expected = decoder.vae.encode(targets).latent_dist
    actual_mean, actual_std = decoder.posterior(targets)
    torch.testing.assert_close(actual_mean, (expected.mean - mean) * 0.5 / std)
    torch.testing.assert_close(actual_std, expected.std * 0.5 / std)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cls", [StableDiffusion, SDXL, SD3, Sana])
def test_the_pipelines_guide_only_above_1(cls: Any, scale: float, tmp_path: Path) -> None:
    """docs/generation.md has this convention: a scale of 1 or less means dreamkit's 1."""
    folder = write_folder(cls, tmp_path / "model")
    images, expected = drawings(cls, folder, guidance=1.0, library_guidance=scale)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
