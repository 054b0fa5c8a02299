"""The memory that generation takes, computed like that of a training step: on tensors that have shapes but no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.errors import DreamkitError, describe_error
from dreamkit.model.model import DreamModel
from dreamkit.parts.specs import Condition
from dreamkit.plan.live_bytes import LiveBytes
from dreamkit.plan.memory import total_bytes
from dreamkit.plan.step import replace_tensors
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry

DTYPES: Final = ("bfloat16", "float32")


@dataclass(frozen=True)
class GenerationMemory:
    """Bytes of live tensors while one document is generated, in one dtype.

    Attributes:
        weights: parameters and buffers of each part, and of the dream queries, by name.
        kv_cache: the KV cache of a document of `length` tokens, with a row for each beam; 0 if the language model has
            none, or names no size.
        activations: those of each part with a source, by name, in its largest computation: a prompt of `length` tokens,
            an image that is read, an image that is drawn at the decoder's size.
        length: tokens of the longest document.
    """

    weights: dict[str, int]
    kv_cache: int
    activations: dict[str, int]
    length: int

    @property
    def kv_cache_token(self) -> int:
        """The bytes of the KV cache for each token, rounded up."""
        return -(-self.kv_cache // self.length)

    @property
    def peak(self) -> int:
        """The most bytes on a device that holds all parts."""
        return sum(self.weights.values()) + self.kv_cache + max(self.activations.values())

    @property
    def offloaded_peak(self) -> int:
        """The most bytes on a device that holds one part with a source at a time."""
        staying = sum(size for name, size in self.weights.items() if name not in WITH_SOURCE)
        turns = (self.weights[name] + self.activations[name] for name in WITH_SOURCE)
        return staying + self.kv_cache + max(turns)


def generation_memory(recipe: Recipe, registry: Registry, dtype: str) -> GenerationMemory:
    """Return the memory of generating one document with the model of `recipe` in `dtype`, with its guidance.

    Raises:
        RecipeError: parts do not fit, or a part has no `meta_modules`.
        DreamkitError: a part reads the values of tensors.
    """
    model = build_on_meta(fit(recipe, registry)).to(getattr(torch, dtype)).requires_grad_(False).eval()
    length = recipe.train.max_length or model.language_model.spec.max_length
    weights = {
        name: total_bytes((*part.parameters(), *part.buffers())) for name, part in model.parts().items()
    }
    weights["dream_queries"] = model.dream_queries.nbytes
    fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return fakes.fake_tensor_converter.from_meta_and_device(fakes, meta, torch.device("cpu"))

    replace_tensors(model, fake)
    cache_bytes: list[int] = []
    works: dict[str, Callable[[], None]] = {
        "language_model": lambda: cache_bytes.append(_read_prompt(model, length)),
        "vision_encoder": lambda: _read_image(model),
        "image_decoder": lambda: _draw(model, guided=recipe.generation.guidance != 1.0),
    }
    activations = {}
    for name, work in works.items():
        with fakes, LiveBytes(uncounted=[*model.parameters(), *model.buffers()]) as live, torch.no_grad():
            try:
                work()
            except Exception as error:  # of any part, and of the library behind it
                raise DreamkitError(
                    f"cannot plan the memory of generation, because the {name} reads the values of tensors: "
                    f"{describe_error(error)}; plan it with another part in its place"
                ) from error
        activations[name] = live.peak.total
    (cache,) = cache_bytes
    activations["language_model"] -= cache
    return GenerationMemory(weights, cache * recipe.generation.beams, activations, length)


def _read_prompt(model: DreamModel, length: int) -> int:
    """Compute the logits after a prompt of `length` tokens; return the bytes of the KV cache, 0 without one."""
    language_model = model.language_model
    positions = torch.arange(length)[None]
    segments = torch.zeros_like(positions)
    cache = language_model.new_cache() if language_model.spec.cache else None
    spans = {"spans": [[(0, length)]]} if language_model.spec.document_attention else {}
    hidden = language_model(language_model.embed(segments), positions, segments, cache=cache, **spans)
    language_model.logits(language_model.final_norm(hidden[:, -1])).float()
    return 0 if cache is None else language_model.cache_bytes(cache) or 0


def _read_image(model: DreamModel) -> None:
    side = model.vision_encoder.spec.image_size
    model.visual_projector(model.vision_encoder(model.dream_queries.new_zeros(1, 3, side, side)))


def _draw(model: DreamModel, *, guided: bool) -> None:
    """Run one denoising step and decode an image, with the tensors around it that a drawing keeps."""
    decoder, spec = model.image_decoder, model.image_decoder.spec
    condition = model.condition(model.dream_queries[None])
    extras = decoder.default_extras(1, (spec.image_size, spec.image_size))
    shape = spec.latent_shape((spec.image_size, spec.image_size))
    latents = torch.zeros(1, *shape)  # in float32
    if guided:
        condition = Condition.cat(condition, condition)
        extras = {name: torch.cat([extra, extra]) for name, extra in extras.items()}
    images = len(condition.context)
    noisy = latents.to(condition.context.dtype).expand(images, *shape).contiguous()
    with decoder.cache_condition(condition):
        decoder.denoise(noisy, torch.zeros(images, dtype=torch.long), condition, extras)
    decoder.decode(latents.to(condition.context.dtype))
