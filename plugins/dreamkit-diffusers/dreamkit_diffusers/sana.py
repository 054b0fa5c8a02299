"""Sana (arXiv 2410.10629): a linear-attention transformer on the latents of a deep-compression autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dreamkit import Condition
from dreamkit_diffusers import networks
from dreamkit_diffusers.cached_condition import Child, key_value_layers
from dreamkit_diffusers.configs import Layout
from dreamkit_diffusers.flow import FlowDecoder
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.schedulers import FLOW

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel


class Sana(FlowDecoder):
    """A transformer that normalizes its context, attends to it, and has no positions."""

    layout = Layout("transformer", networks.SANA_TRANSFORMER, networks.DC, FLOW)
    transformer: SanaTransformer2DModel
    adapter_targets = networks.ATTENTION_LAYERS
    adapter_root = "transformer"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # not diffusers' patch embedding: FSDP warns of a unit that returns a view
        self.transformer._no_split_modules = ["SanaTransformerBlock"]

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
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        # MetaQuery (arXiv 2504.06256) scales its condition for Sana to Gemma 2's last hidden states
        return {"context_dim": network["caption_channels"], "context_scale": math.sqrt(5.5)}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        return self.transformer(
            noisy,
            encoder_hidden_states=condition.context,
            encoder_attention_mask=condition.mask,
            timestep=timesteps_N * self.transformer.config.timestep_scale,
        ).sample

    def condition_layers(self) -> Iterator[Child]:
        yield from ((self.transformer, name) for name in ("caption_projection", "caption_norm"))
        for block in self.transformer.transformer_blocks:
            yield from key_value_layers(block.attn2)
