"""Sana (arXiv 2410.10629): a linear-attention transformer on the latents of a deep-compression autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dreamkit import Condition
from dreamkit_diffusers import networks
from dreamkit_diffusers.components import Described, Layout
from dreamkit_diffusers.constant import Place, key_value_layers
from dreamkit_diffusers.flow import FlowDecoder
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.schedulers import FLOW

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel


class Sana(FlowDecoder):
    """A transformer that attends to a context, which it norms, and has no positions."""

    layout = Layout("transformer", networks.SANA_TRANSFORMER, networks.DC, FLOW)
    transformer: SanaTransformer2DModel
    adapter_targets = tuple(
        f"{attention}.{layer}"
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )
    adapter_root = "transformer"

    @classmethod
    def tiny_config(cls) -> FlowDecoder.Config:
        transformer = {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 8,
        }
        vae = {
            "latent_channels": 4,
            "attention_head_dim": 4,
            "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
            "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
            "encoder_block_out_channels": [4, 8],
            "decoder_block_out_channels": [4, 8],
            "encoder_layers_per_block": [1, 1],
            "decoder_layers_per_block": [1, 1],
            "encoder_qkv_multiscales": [[], [3]],
            "decoder_qkv_multiscales": [[], [3]],
            "scaling_factor": 0.41407,
        }
        return cls.Config(config={"transformer": transformer, "vae": vae, "scheduler": {"shift": 3.0}})

    @classmethod
    def check(cls, config: FlowDecoder.Config, found: Described) -> None:
        if found.values["transformer"]["guidance_embeds"]:
            found.problem(
                "transformer.guidance_embeds",
                "true found: it is distilled to be told a guidance scale (as Sana Sprint is), which 'sana' does not "
                "do; name a model with false",
            )

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        # what MetaQuery (arXiv 2504.06256) brings its condition of Sana to: that of Gemma 2's last hidden states
        return {"context_dim": network["caption_channels"], "context_scale": math.sqrt(5.5)}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        return self.transformer(
            noisy,
            encoder_hidden_states=condition.context,
            encoder_attention_mask=condition.mask,
            timestep=timesteps_N * self.transformer.config.timestep_scale,
        ).sample

    def constant_layers(self) -> Iterator[Place]:
        yield from ((self.transformer, name) for name in ("caption_projection", "caption_norm"))
        for block in self.transformer.transformer_blocks:
            yield from key_value_layers(block.attn2)
