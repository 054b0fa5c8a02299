"""The paper's stage II with random weights: LLaMA-7B's layers, CLIP-L, Stable Diffusion 1.5, and documents for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import torch
from PIL import Image as PIL
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit.document import Document, Image, Segment, Text
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import Recipe, plain
from dreamkit.registry.registry import Registry
from dreamkit.storage.sources import locate

STAGE = "dreamllm/paper/stage2"
LANGUAGE = "dreamkit_transformers/known/lmsys/vicuna-7b-v1.1"
VISION = "dreamkit_transformers/known/openai/clip-vit-large-patch14"
DECODER = "dreamkit_diffusers/known/stable-diffusion-v1-5/stable-diffusion-v1-5"
SCHEDULER = "scheduler/scheduler_config.json"

WEIGHT_STD = 0.02  # as LLaMA's are initialized
IMAGES = (1, 4)  # of an interleaved document: fewest and most
TEXT, CAPTION = (4.2, 0.5), (3.0, 0.4)  # mean and deviation of the logarithm of a text's tokens
LARGE = 2**20  # elements; what a part makes of itself to learn what it can is smaller
MOST_TEXT = 128  # tokens: four images, and a text around each, then fit into a row of 2048

_aten = torch.ops.aten
Module = TypeVar("Module", bound=nn.Module)


def recipe(layers: int, small: bool, registry: Registry) -> Recipe:
    """The shipped stage, with parts of the same sizes made at random, and `layers` of the language model's 32."""
    parts = _miniatures(layers, registry) if small else _real(layers)
    settings = [f"model.{key}={json.dumps({'pretrained': None, **part})}" for key, part in parts.items()]
    if small:
        settings += ["model.dream_queries=3", "train.max_length=256", "train.batch_size=4"]
    return load_recipe(STAGE, settings, registry)


def decoder_config(small: bool, registry: Registry) -> dict[str, Any]:
    """The section of the image decoder."""
    parts = _miniatures(1, registry) if small else _real(1)
    return {key: value for key, value in parts["image_decoder"].items() if key != "name"}


def _known(source: str, file: str) -> dict[str, Any]:
    folder = locate(f"pkg:{source}", [file], weights=False)
    found: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
    return found


def _real(layers: int) -> dict[str, dict[str, Any]]:
    language = _known(LANGUAGE, "config.json")
    others = {"architectures", "rope_theta", "bos_token_id", "eos_token_id", "pad_token_id"}
    language = {key: value for key, value in language.items() if key not in others}
    language["num_hidden_layers"] = layers
    files = {"unet": "unet/config.json", "vae": "vae/config.json", "scheduler": SCHEDULER}
    return {
        "language_model": {"name": "vicuna", "config": language},
        "vision_encoder": {"name": "clip", "config": _known(VISION, "config.json")["vision_config"]},
        "image_decoder": {
            "name": "stable-diffusion",
            "config": {name: _known(DECODER, file) for name, file in files.items()},
        },
    }


def _miniatures(layers: int, registry: Registry) -> dict[str, dict[str, Any]]:
    names = {"language_model": "vicuna", "vision_encoder": "clip", "image_decoder": "stable-diffusion"}
    found = {}
    for key, name in names.items():
        cls: Any = registry.get(key, name)
        found[key] = {"name": name, **plain(cls.tiny_config())}
    found["image_decoder"]["config"]["scheduler"] = _known(
        DECODER, SCHEDULER
    )  # as many calls as of the real one
    found["language_model"]["config"] |= {"num_hidden_layers": layers, "max_position_embeddings": 256}
    return found


class _Unfilled(TorchDispatchMode):
    """Leaves large tensors as they are where they would be filled at random, which takes long on a CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (_aten.normal_.default, _aten.uniform_.default) and args[0].numel() > LARGE:
            return args[0]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def at_random(make: Callable[[], Module], device: torch.device) -> Module:
    """The module on the device, its matrices filled there."""
    with _Unfilled():
        module = make()
    module.to(device)
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, WEIGHT_STD)
        elif name.endswith("bias"):
            parameter.zero_()
    return module


def documents(count: int, words: range, small: bool) -> list[Document]:
    """Interleaved ones, captioned images to draw, and captioned images to read, as 2 : 1 : 1, always the same.

    A text is the numbers of its tokens, out of `words`.
    """
    random = Random(0)

    def text(mean: float, deviation: float) -> Text:
        length = max(1, min(MOST_TEXT, round(random.lognormvariate(mean, deviation))) // (8 if small else 1))
        return Text(" ".join(str(random.choice(words)) for _ in range(length)))

    def picture() -> PIL.Image:
        return PIL.frombytes("RGB", (32, 32), random.randbytes(3 * 32 * 32)).resize((256, 256))

    made = []
    for number in range(count):
        segments: list[Segment]
        if number % 2 == 0:
            segments = []
            for _ in range(random.randint(*IMAGES)):
                segments += [text(*TEXT), Image(picture(), draw=True)]
            segments.append(text(*TEXT))
        elif number % 4 == 1:
            segments = [text(*CAPTION), Image(picture(), read=False, draw=True)]
        else:
            segments = [Image(picture()), text(*CAPTION)]
        made.append(Document(tuple(segments), name=f"{number}"))
    return made
