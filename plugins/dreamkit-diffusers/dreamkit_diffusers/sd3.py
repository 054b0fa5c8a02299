"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer over the tokens of context and latents together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dreamkit import Condition, count, describe_value
from dreamkit_diffusers import networks, tiny_configs
from dreamkit_diffusers.cached_condition import Child
from dreamkit_diffusers.configs import Configs, Layout
from dreamkit_diffusers.flow import FlowDecoder
from dreamkit_diffusers.keys import NO_MEAN
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.schedulers import FLOW
from dreamkit_diffusers.values import count_error, is_count

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


class SD3(FlowDecoder):
    """A transformer over a context without mask and a pooled vector."""

    layout = Layout("transformer", networks.SD3_TRANSFORMER, networks.KL, FLOW, {"vae": NO_MEAN})
    transformer: SD3Transformer2DModel
    # the targets of diffusers' training script, without the second attention of SD3.5's blocks
    adapter_targets = tuple(
        f"attn.{layer}"
        for layer in (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        )
    )
    adapter_root = "transformer"

    @classmethod
    def tiny_config(cls) -> FlowDecoder.Config:
        transformer = {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 12,
        }
        vae = {**tiny_configs.VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}
        return cls.Config(config={"transformer": transformer, "vae": vae, "scheduler": {"shift": 3.0}})

    @classmethod
    def check(cls, config: FlowDecoder.Config, configs: Configs) -> None:
        values, factor = configs.values["transformer"], cls._factor(configs.values["vae"])
        heads, head_dim = values["num_attention_heads"], values["attention_head_dim"]
        width, positions = values["caption_projection_dim"], values["pos_embed_max_size"]
        if is_count(heads) and is_count(head_dim) and width != heads * head_dim:
            configs.add_problem(
                "transformer.caption_projection_dim",
                f"expected {heads * head_dim}, the width of the latents' tokens ({count(heads, 'head')} x {head_dim}), "
                f"got {describe_value(width)}",
            )
        error = count_error(positions)
        if error is not None:
            configs.add_problem("transformer.pos_embed_max_size", error)
            return
        largest, own = positions * cls._patch(values) * factor, values["sample_size"]
        expected = f"expected at most {count(largest, 'pixel')}, which pos_embed_max_size {positions} allows"
        if config.image_size is not None and config.image_size > largest:
            configs.problems["image_size"] = f"{expected}, got {config.image_size}"
        elif config.image_size is None and is_count(own) and own * factor > largest:
            configs.add_problem(
                "transformer.sample_size",
                f"{expected}, got {own}, which is {count(own * factor, 'pixel')}; set image_size to {largest} or less",
            )

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "context_dim": network["joint_attention_dim"],
            # The context joins tokens of CLIP, unnormalized and padded with zeros, and of T5. They share no scale.
            "context_scale": 1.0,
            "pooled_dim": network["pooled_projection_dim"],
        }

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        if condition.mask is not None:
            raise ValueError("expected a condition without a mask: SD3 attends to its whole context")
        return self.transformer(
            noisy,
            encoder_hidden_states=condition.context,
            pooled_projections=condition.pooled,
            timestep=timesteps_N,
        ).sample

    def condition_layers(self) -> Iterator[Child]:
        # inside the blocks, the context's tokens also depend on timestep and latents
        yield self.transformer, "context_embedder"
        yield self.transformer.time_text_embed, "text_embedder"
