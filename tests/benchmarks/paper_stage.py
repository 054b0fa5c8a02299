"""The paper's stage II with random weights: LLaMA-7B's layers, CLIP-L, Stable Diffusion 1.5, and documents for it."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

from PIL import Image as PIL

from dreamkit.document import Document, Image, Segment, Text
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage.sources import locate
from tiny import RECIPE as TINY

LANGUAGE = "dreamkit_transformers/known/lmsys/vicuna-7b-v1.1"
VISION = "dreamkit_transformers/known/openai/clip-vit-large-patch14"
DECODER = "dreamkit_diffusers/known/stable-diffusion-v1-5/stable-diffusion-v1-5"
SMALL = ["model.dream_queries=3", "train.max_length=256", "train.global_batch=4"]
ONE_PASS = ["train.global_batch=8", "train.micro_batch=null"]
LONGEST_TEXT = 128  # tokens: four images with a text around each then fit into a row of 2048


def recipe(layers: int, small: bool, registry: Registry) -> Recipe:
    """Return the shipped stage with random parts of the same sizes and `layers` of the language model's 32."""
    sections = parts(small)
    sections["language_model"]["config"]["num_hidden_layers"] = layers
    settings = [f"model.{key}={json.dumps({'pretrained': None, **each})}" for key, each in sections.items()]
    return load_recipe("dreamllm/paper/stage2", [*settings, *(SMALL if small else ONE_PASS)], registry)


def parts(small: bool) -> dict[str, Any]:
    """Return the recipe sections of the parts that have weights, without a source of these."""
    scheduler = known_config(DECODER, "scheduler/scheduler_config.json")
    if small:
        tiny = deepcopy(TINY["model"])
        tiny["image_decoder"]["config"]["scheduler"] = scheduler
        return {key: tiny[key] for key in ("language_model", "vision_encoder", "image_decoder")}
    language = known_config(LANGUAGE, "config.json")
    for key in ("architectures", "rope_theta", "bos_token_id", "eos_token_id", "pad_token_id"):
        language.pop(key, None)
    networks = {name: known_config(DECODER, f"{name}/config.json") for name in ("unet", "vae")}
    return {
        "language_model": {"name": "vicuna", "config": language},
        "vision_encoder": {"name": "clip", "config": known_config(VISION, "config.json")["vision_config"]},
        "image_decoder": {"name": "stable-diffusion", "config": {**networks, "scheduler": scheduler}},
    }


def known_config(source: str, file: str) -> dict[str, Any]:
    """Read a config file of a published model that a plug-in ships."""
    config: dict[str, Any] = json.loads(
        (locate(f"pkg:{source}", [file], weights=False) / file).read_text("utf-8")
    )
    return config


def documents(count: int, words: range, small: bool) -> list[Document]:
    """Return always the same documents: interleaved ones, images to draw, images to read, as 2 : 1 : 1.

    A text lists the numbers of its tokens, each from `words`.
    """
    random = Random(0)

    def text(mean: float, deviation: float) -> Text:  # of the logarithm of its length
        length = min(LONGEST_TEXT, round(random.lognormvariate(mean, deviation))) // (8 if small else 1)
        return Text(" ".join(str(random.choice(words)) for _ in range(max(1, length))))

    def image(**use: bool) -> Image:
        return Image(PIL.frombytes("RGB", (32, 32), random.randbytes(3 * 32 * 32)).resize((256, 256)), **use)

    def segments(number: int) -> list[Segment]:
        if number % 2 == 0:
            pairs = [(text(4.2, 0.5), image(draw=True)) for _ in range(random.randint(1, 4))]
            return [*(segment for pair in pairs for segment in pair), text(4.2, 0.5)]
        if number % 4 == 1:
            return [text(3.0, 0.4), image(read=False, draw=True)]
        return [image(), text(3.0, 0.4)]

    return [Document(tuple(segments(number)), name=f"{number}") for number in range(count)]


def token_numbers(text: str, special: bool = False) -> list[int]:
    """Return the tokens of a text that lists their numbers; replaces `tokenize` of a language model."""
    return [int(number) for number in text.split()]
