"""Stable Diffusion XL (arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit import Condition, read_json, to_rgb
from dreamkit_diffusers.configs import Configs
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.pixels import crop_corner
from dreamkit_diffusers.unet import UNetDecoder
from dreamkit_diffusers.values import count_error

TIME_IDS = 6  # original height and width, top and left of the crop, target height and width
REFINER_TIME_IDS = 5  # original height and width, top and left of the crop, aesthetic score


def is_refiner(folder: Path, unet: Mapping[str, Any]) -> bool:
    """Return True if the UNet of a folder is an SDXL refiner: it takes five time ids.

    Only the files of pipeline and text encoder name that. If a folder lacks them, the widths decide. The context of a
    base model joins the states of two text encoders, and one of these computes the pooled vector, so the context is
    wider. A refiner has one encoder, whose states and pooled vector have one width (arXiv 2307.01952, table 1).
    """
    dim, context = unet["addition_time_embed_dim"], unet["cross_attention_dim"]
    width = unet["projection_class_embeddings_input_dim"]
    as_base, as_refiner = width - TIME_IDS * dim, width - REFINER_TIME_IDS * dim
    takes_score = _read_value(folder / "model_index.json", "requires_aesthetics_score")
    if takes_score is not None:
        return bool(takes_score)
    pooled = _read_value(folder / "text_encoder_2" / "config.json", "projection_dim")
    if pooled is not None:
        return bool(pooled == as_refiner)
    return bool(as_refiner == context or as_base > context)


def _read_value(file: Path, key: str) -> Any:
    """Return a value of a JSON file that a source may lack, or None."""
    return read_json(file).get(key) if file.exists() else None


class SDXL(UNetDecoder):
    """A UNet conditioned on a context, a pooled vector, and each image's original size and crop.

    Its extras are `time_ids` (N, 6): original height and width, top and left of the crop in the resized image, and
    target height and width, all in pixels. Half precision breaks its autoencoder, unless `force_upcast` is false.
    """

    addition_embed_type = "text_time"

    @classmethod
    def tiny_config(cls) -> UNetDecoder.Config:
        dim, pooled = 4, 10
        unet = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": dim,
            "projection_class_embeddings_input_dim": pooled + TIME_IDS * dim,
        }
        return cls.tiny_unet_config(use_linear_projection=True, **unet)

    @classmethod
    def check(cls, config: UNetDecoder.Config, configs: Configs) -> None:
        super().check(config, configs)
        unet = configs.values["unet"]
        if unet["addition_embed_type"] != cls.addition_embed_type:
            return
        for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            error = count_error(unet[key])
            if error is not None:
                configs.add_problem(f"unet.{key}", error)
                return
        dim, width = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
        if width <= TIME_IDS * dim:
            configs.add_problem(
                "unet.projection_class_embeddings_input_dim",
                f"expected more than {TIME_IDS * dim}, got {width}; {TIME_IDS} numbers of addition_time_embed_dim "
                f"{dim} each leave no room for a pooled vector",
            )
        elif configs.folder is not None and is_refiner(configs.folder, unet):
            configs.add_problem(
                "unet.projection_class_embeddings_input_dim",
                f"expected {TIME_IDS} numbers of addition_time_embed_dim {dim} and the pooled vector of a base model, "
                f"got {width}; this UNet is an SDXL refiner, which takes an aesthetic score; name a base model",
            )

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        times = TIME_IDS * network["addition_time_embed_dim"]
        return {
            "context_dim": network["cross_attention_dim"],
            # The context is the states of CLIP's two text encoders before their last layer. No norm fixes their
            # scale, but it is close to that of the normalized output.
            "context_scale": 1.0,
            "pooled_dim": network["projection_class_embeddings_input_dim"] - times,
            "float32_modules": ("vae",) if vae["force_upcast"] else (),
            "resized_side": None,  # the extras have an image's own size
        }

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = [to_rgb(picture) for picture in pictures]
        targets, _ = super().preprocess(pictures)
        side, rows = self.spec.image_size, []
        for picture in pictures:
            left, top = crop_corner(picture.width, picture.height, side)
            rows.append([picture.height, picture.width, top, left, side, side])
        return targets, {"time_ids": torch.tensor(rows, dtype=torch.float32)}

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return extras of images whose original size is `size`, as in diffusers' pipeline."""
        return {"time_ids": torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(count, 1)}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        if "time_ids" not in extras:
            raise ValueError(
                f"expected extras with 'time_ids' (N, {TIME_IDS}), got {sorted(extras)}; pass the extras of preprocess "
                "or default_extras"
            )
        time_ids = extras["time_ids"].to(noisy.device)
        return self.unet(
            noisy,
            timesteps_N,
            condition.context,
            encoder_attention_mask=condition.mask,
            added_cond_kwargs={"text_embeds": condition.pooled, "time_ids": time_ids},
        ).sample
