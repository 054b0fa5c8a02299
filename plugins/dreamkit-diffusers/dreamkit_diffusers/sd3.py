"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer over the tokens of context and latents together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dreamkit import Condition
from dreamkit_diffusers import miniatures, networks
from dreamkit_diffusers.components import Described, Layout
from dreamkit_diffusers.constant import Place
from dreamkit_diffusers.flow import FlowDecoder
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.schedulers import FLOW, is_count

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


class SD3(FlowDecoder):
    """A transformer that is given a context and a pooled vector; it takes no mask."""

    layout = Layout("transformer", networks.SD3_TRANSFORMER, networks.KL, FLOW)
    transformer: SD3Transformer2DModel
    # those of diffusers' own training script; the second attention of SD3.5's blocks is left as it is
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
        vae = {**miniatures.VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}
        return cls.Config(config={"transformer": transformer, "vae": vae, "scheduler": {"shift": 3.0}})

    @classmethod
    def check(cls, config: FlowDecoder.Config, found: Described) -> None:
        values = found.values["transformer"]
        heads, head, width = (
            values[key] for key in ("num_attention_heads", "attention_head_dim", "caption_projection_dim")
        )
        if is_count(heads) and is_count(head) and width != heads * head:
            found.problem(
                "transformer.caption_projection_dim",
                f"{width!r} found, but the latents' tokens have a width of {heads} heads x {head}; set it to "
                f"{heads * head}",
            )
        positions, own, factor = (
            values["pos_embed_max_size"],
            values["sample_size"],
            cls._factor(found.values["vae"]),
        )
        if not is_count(positions):
            message = f"{positions!r} found, but a whole number from 1 is wanted"
            found.problem("transformer.pos_embed_max_size", message)
            return
        most = positions * cls._patch(values) * factor
        said = f"but the transformer has positions for at most {most} pixels (pos_embed_max_size {positions})"
        if config.image_size is not None and config.image_size > most:
            found.problems["image_size"] = f"{config.image_size} found, {said}; set it to {most} or less"
        elif config.image_size is None and is_count(own) and own * factor > most:
            message = (
                f"{own} found, which makes {own * factor} pixels, {said}; set image_size to {most} or less"
            )
            found.problem("transformer.sample_size", message)

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "context_dim": network["joint_attention_dim"],
            # Its context is a row of two encoders' tokens, CLIP's without a norm and padded with zeros, and T5's;
            # they have no scale in common.
            "context_scale": 1.0,
            "pooled_dim": network["pooled_projection_dim"],
        }

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        if condition.mask is not None:
            raise ValueError(
                "the condition has a mask, but SD3 attends to all of its context; give it without"
            )
        return self.transformer(
            noisy,
            encoder_hidden_states=condition.context,
            pooled_projections=condition.pooled,
            timestep=timesteps_N,
        ).sample

    def constant_layers(self) -> Iterator[Place]:
        # in its blocks, the context's tokens have seen timestep and latents
        yield self.transformer, "context_embedder"
        yield self.transformer.time_text_embed, "text_embedder"
