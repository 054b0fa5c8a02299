"""A tiny model of the real classes with random weights, its recipe and its documents."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PIL
from transformers import CLIPVisionConfig, CLIPVisionModel

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.document import Document, Image, Text
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.registry.registry import Registry
from dreamkit_transformers.tokenizers import byte_tokenizer

RECIPE: dict[str, Any] = {
    "model": {
        "language_model": {
            "name": "vicuna",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
            },
            "system_prompt": "",
        },
        "vision_encoder": {
            "name": "clip",
            "config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
        },
        "visual_projector": {"name": "linear"},
        "condition_projector": {"name": "linear", "bias": False},
        "image_decoder": {
            "name": "stable-diffusion",
            "config": {
                "unet": {
                    "sample_size": 8,
                    "block_out_channels": [8, 16],
                    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                    "layers_per_block": 1,
                    "cross_attention_dim": 12,
                    "attention_head_dim": 4,
                    "norm_num_groups": 4,
                },
                "vae": {
                    "block_out_channels": [8, 8],
                    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
                    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
                    "layers_per_block": 1,
                    "norm_num_groups": 4,
                    "sample_size": 16,
                },
                "scheduler": {
                    "beta_schedule": "scaled_linear",
                    "beta_start": 0.00085,
                    "beta_end": 0.012,
                    "clip_sample": False,
                },
            },
        },
        "dream_queries": 3,
    },
    "generation": {"steps": 2, "guidance": 2.0, "max_tokens": 12, "max_images": 2},
}


def recipe(**changes: Any) -> dict[str, Any]:
    """Return the recipe with changed dotted keys: `recipe(**{"model.dream_queries": 4})`."""
    changed = deepcopy(RECIPE)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = changed
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return changed


def model(**changes: Any) -> DreamModel:
    """Build the model in float64, in which sums in another order agree to many digits."""
    registry = Registry.load()
    return build(fit(recipe_from_dict(recipe(**changes), registry, where="tiny"), registry)).double()


def write_sources(folder: Path) -> Path:
    """Write random weights of the tiny parts to `folder`, as pretrained models in the Hugging Face format."""
    registry = Registry.load()
    parts = build(fit(recipe_from_dict(recipe(), registry, where="tiny"), registry))
    language, decoder = parts.language_model, parts.image_decoder
    language.model.model.norm = language.norm
    language.model.save_pretrained(folder / "language_model")
    byte_tokenizer().save_pretrained(folder / "language_model")
    tower = CLIPVisionModel(CLIPVisionConfig(**RECIPE["model"]["vision_encoder"]["config"]))
    tower.save_pretrained(folder / "vision_encoder")
    parts.vision_encoder.processor.save_pretrained(folder / "vision_encoder")
    decoder.unet.save_pretrained(folder / "image_decoder/unet")
    decoder.vae.save_pretrained(folder / "image_decoder/vae")
    decoder.schedule.save_pretrained(folder / "image_decoder/scheduler")
    return folder


def on_sources(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the changed recipe, with parts whose weights are in `folder`."""
    changed = recipe(**changes)
    for part in WITH_SOURCE:
        section = changed["model"][part]
        changed["model"][part] = {"name": section["name"], "pretrained": str(folder / part)}
    return changed


def projector(
    cls: Any, in_dim: int = 24, in_tokens: int = 6, out_dim: int = 32, out_rms: float = 1.0, **options: Any
) -> Any:
    """Build a projector between neighbours of these sizes, with settings `options`, in float64."""
    config = cls.Config(**options)
    spec = cls.infer_spec(config, in_dim=in_dim, in_tokens=in_tokens, out_dim=out_dim)
    return cls.from_config(config, replace(spec, out_rms=out_rms)).double()


def perturb(part: Any) -> Any:
    """Add noise to the parameters of `part`, so that none is 0 or 1 or equal to another; return it."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part


def picture(seed: int, size: int = 16) -> PIL.Image:
    """Return a PIL image of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
    return PIL.fromarray(pixels.numpy())


def documents() -> list[Document]:
    """Return documents of different lengths with images to read, to draw, both and none."""
    return [
        Document((Text("a cat"), Image(picture(0), draw=True)), name="draws"),
        Document((Image(picture(1)), Text("is a dog")), name="reads"),
        Document((Text("no picture at all"),), name="text"),
        Document(
            (
                Text("one"),
                Image(picture(2), draw=True),
                Text("two"),
                Image(picture(3), draw=True),
                Image(picture(4)),
            ),
            name="interleaved",
        ),
        Document(
            (Text("what?", role="user"), Image(picture(5), role="user"), Text("a bird", role="assistant")),
            name="chat",
        ),
    ]
