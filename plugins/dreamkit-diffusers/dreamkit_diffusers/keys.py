"""The keys of each class's config that this plug-in supports.

A test compares these lists with the installed diffusers, so a key of a new release fails it. Until the key is listed,
a config may have only its default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple


class Fixed(NamedTuple):
    """The values of a key with which drawing and training are right, and the remedy if a config has another one."""

    values: tuple[Any, ...]
    remedy: str

    def accepts(self, value: Any) -> bool:
        return any(value == allowed for allowed in self.values)


@dataclass(frozen=True)
class Keys:
    """The keys of one class's config.

    `honoured`: the class computes with the key, or the decoder does so as diffusers' pipeline does.
    `unused`: nothing in the pipeline's drawing depends on the key.
    `fixed`: another value would need an input or a computation that the decoders lack.
    """

    honoured: frozenset[str]
    unused: frozenset[str] = frozenset()
    fixed: Mapping[str, Fixed] = field(default_factory=dict)

    def __iter__(self) -> Any:
        return iter((*self.honoured, *self.unused, *self.fixed))


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


def _all_fixed(values: tuple[Any, ...], remedy: str, names: Iterable[str]) -> dict[str, Fixed]:
    return dict.fromkeys(names, Fixed(values, remedy))


_ANOTHER_UNET: Final = "no image decoder of this plug-in supports this UNet; name another one"

UNET: Final = Keys(
    honoured=_words(
        "sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift",
        "down_block_types mid_block_type up_block_types only_cross_attention mid_block_only_cross_attention",
        "block_out_channels layers_per_block downsample_padding mid_block_scale_factor dropout act_fn",
        "norm_num_groups norm_eps cross_attention_dim cross_attention_norm transformer_layers_per_block",
        "reverse_transformer_layers_per_block attention_head_dim use_linear_projection upcast_attention",
        "resnet_time_scale_shift resnet_skip_time_act resnet_out_scale_factor",
        "time_embedding_type time_embedding_dim time_embedding_act_fn timestep_post_act",
        "conv_in_kernel conv_out_kernel",
        "addition_embed_type addition_time_embed_dim projection_class_embeddings_input_dim",
    ),
    unused=_words(
        "addition_embed_type_num_heads"
    ),  # of addition_embed_type 'text', which no decoder supports
    fixed={
        **_all_fixed(
            (None,),
            _ANOTHER_UNET,
            # inputs that replace or extend the context
            ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"),
        ),
        "num_attention_heads": Fixed((None,), "set attention_head_dim, as diffusers requires"),
        "class_embeddings_concat": Fixed((False,), _ANOTHER_UNET),
        "dual_cross_attention": Fixed((False,), _ANOTHER_UNET),
        "attention_type": Fixed(
            ("default",), "no image decoder takes the boxes of GLIGEN; name another UNet"
        ),
        "time_cond_proj_dim": Fixed(
            (None,),
            "no image decoder of this plug-in takes a guidance scale as input, as UNets distilled to latent "
            "consistency models (LCM) do; name the UNet that it was distilled from",
        ),
    },
)
SD3_TRANSFORMER: Final = Keys(
    honoured=_words(
        "sample_size patch_size in_channels num_layers attention_head_dim num_attention_heads joint_attention_dim",
        "caption_projection_dim pooled_projection_dim out_channels pos_embed_max_size dual_attention_layers qk_norm",
    )
)
SANA_TRANSFORMER: Final = Keys(
    honoured=_words(
        "in_channels out_channels num_attention_heads attention_head_dim num_layers num_cross_attention_heads",
        "cross_attention_head_dim cross_attention_dim caption_channels mlp_ratio dropout attention_bias sample_size",
        "patch_size norm_elementwise_affine norm_eps interpolation_scale qk_norm timestep_scale",
    ),
    unused=_words("guidance_embeds_scale"),  # of guidance_embeds
    fixed={
        "guidance_embeds": Fixed(
            (False, None),
            "'sana' does not support models that take a guidance scale as input, such as Sana Sprint",
        )
    },
)

_RGB: Final = Fixed((3,), "images have 3 channels; name another autoencoder")
KL: Final = Keys(
    honoured=_words(
        "down_block_types up_block_types block_out_channels layers_per_block act_fn latent_channels norm_num_groups",
        "scaling_factor shift_factor latents_mean latents_std force_upcast use_quant_conv use_post_quant_conv",
        "mid_block_add_attention",
    ),
    unused=_words("sample_size"),  # of tiles, which no decoder uses
    fixed={"in_channels": _RGB, "out_channels": _RGB},
)
DC: Final = Keys(
    honoured=_words(
        "latent_channels attention_head_dim encoder_block_types decoder_block_types encoder_block_out_channels",
        "decoder_block_out_channels encoder_layers_per_block decoder_layers_per_block encoder_qkv_multiscales",
        "decoder_qkv_multiscales upsample_block_type downsample_block_type decoder_norm_types decoder_act_fns",
        "encoder_out_shortcut decoder_in_shortcut decoder_conv_act_fn scaling_factor",
    ),
    fixed={"in_channels": _RGB},
)

# What the pipeline of a decoder does not compute with. Published weights may have been trained with it or not.
_NOT_IN_PIPELINE: Final = (
    "diffusers' pipeline for this image decoder ignores other values; name another autoencoder"
)
NO_SHIFT: Final = {"shift_factor": Fixed((None, 0), _NOT_IN_PIPELINE)}
NO_MEAN: Final = _all_fixed((None,), _NOT_IN_PIPELINE, ("latents_mean", "latents_std"))

# keys that `EMAModel.save_pretrained` of diffusers' training scripts adds to a model's config
AVERAGING: Final = _words(
    "decay min_decay optimization_step update_after_step use_ema_warmup inv_gamma power"
)

_BETAS: Final = _words(
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type timestep_spacing",
    "steps_offset",
)
_THRESHOLD: Final = _words("thresholding dynamic_thresholding_ratio sample_max_value")
_SPACINGS: Final = _words("use_karras_sigmas use_exponential_sigmas use_beta_sigmas")
# of flow matching alone; `use_dynamic_shifting` and its type need a `mu`, which no pipeline here passes over betas
_FLOW_OF_SOLVERS: Final = _words("use_flow_sigmas flow_shift use_dynamic_shifting time_shift_type")
_SOLVER: Final = (
    _SPACINGS | _THRESHOLD | _FLOW_OF_SOLVERS | _words("solver_order solver_type lower_order_final")
)
_DPM: Final = _SOLVER | _words("algorithm_type final_sigmas_type lambda_min_clipped variance_type")
_ZERO_SNR: Final = _words("rescale_betas_zero_snr")

# the keys of each scheduler of a noise schedule; its layout fixes some of them
NOISE_SCHEDULERS: Final[dict[str, frozenset[str]]] = {
    "DDIMScheduler": _BETAS
    | _THRESHOLD
    | _ZERO_SNR
    | _words("clip_sample clip_sample_range set_alpha_to_one"),
    "DDPMScheduler": _BETAS | _THRESHOLD | _ZERO_SNR | _words("clip_sample clip_sample_range variance_type"),
    "PNDMScheduler": _BETAS | _words("skip_prk_steps set_alpha_to_one"),
    "LMSDiscreteScheduler": _BETAS | _SPACINGS,
    "EulerDiscreteScheduler": _BETAS
    | _SPACINGS
    | _ZERO_SNR
    | _words("interpolation_type sigma_min sigma_max timestep_type final_sigmas_type"),
    "HeunDiscreteScheduler": _BETAS | _SPACINGS | _words("clip_sample clip_sample_range"),
    "EulerAncestralDiscreteScheduler": _BETAS | _ZERO_SNR,
    "DPMSolverMultistepScheduler": _BETAS | _DPM | _ZERO_SNR | _words("euler_at_final use_lu_lambdas"),
    "DPMSolverSinglestepScheduler": (_BETAS - {"timestep_spacing", "steps_offset"}) | _DPM,
    "KDPM2DiscreteScheduler": _BETAS | _SPACINGS,
    "KDPM2AncestralDiscreteScheduler": _BETAS | _SPACINGS,
    "DEISMultistepScheduler": _BETAS | _SOLVER | _words("algorithm_type"),
    "UniPCMultistepScheduler": _BETAS
    | _SOLVER
    | _ZERO_SNR
    | _words("predict_x0 disable_corrector solver_p final_sigmas_type sigma_min sigma_max shift_terminal"),
}
FLOW_SCHEDULERS: Final[dict[str, frozenset[str]]] = {
    "FlowMatchEulerDiscreteScheduler": _SPACINGS
    | _words(
        "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len",
        "invert_sigmas shift_terminal time_shift_type stochastic_sampling",
    ),
    **{name: NOISE_SCHEDULERS[name] for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")},
}
NOISE_FIXED: Final = {
    "use_flow_sigmas": Fixed((False, None), "set false, or use an image decoder for flow matching"),
    "timestep_type": Fixed(("discrete", None), "name a model that was trained with discrete timesteps"),
    "solver_p": Fixed((None,), "a config file cannot hold a scheduler; set null"),
}
FLOW_FIXED: Final = {
    "use_dynamic_shifting": Fixed((False, None), "set a fixed shift"),
    "invert_sigmas": Fixed((False, None), "no image decoder supports inverted noise levels, as in Mochi"),
    "stochastic_sampling": Fixed((False, None), "its noise would not depend on the seed; set false"),
    "solver_p": NOISE_FIXED["solver_p"],
}
