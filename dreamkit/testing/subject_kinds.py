"""The subjects of the four kinds of parts, and the subjects of all kinds by name.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.language import LanguageModel
from dreamkit.parts.part import Part, PretrainedPart
from dreamkit.parts.projector import Projector
from dreamkit.parts.specs import Condition
from dreamkit.parts.vision import VisionEncoder
from dreamkit.testing.dataset_subject import DatasetSubject
from dreamkit.testing.expect import KitError
from dreamkit.testing.part_subject import (
    Build,
    Case,
    Inputs,
    PartSubject,
    PictureSubject,
    seeded,
    weighted_sum,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

WIDTHS: Final = {"in_dim": 24, "in_tokens": 16, "out_dim": 32}  # of a tiny projector's neighbours
TOKENS: Final = ("<kit_one>", "<kit_two>")  # added to a vocabulary
PAST_WINDOW: Final = 3  # tokens beyond a sliding window
STEPS: Final = (1, 2, 3, 4, 5, 8, 10, 16, 20, 25, 50, 100)  # of drawing
ROOM: Final = 32  # tokens of a row that checks need beside a window
MANY: Final = 10_000  # random timesteps; the smallest and largest are near the ends of the schedule
LONGEST: Final = 512  # tokens of the longest row that checks try


class VisionSubject(PictureSubject):
    kind, interface = "vision_encoder", VisionEncoder
    output, legend, pixels = "features", "(N, V, dim)", "pixels"
    differentiable = ("pixels",)

    def inputs(self, case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
        side = self.part.spec.image_size
        with seeded(case.seed):
            return {"pixels": torch.randn(case.rows, 3, side, side).to(dtype)}

    def compute(self, part: Any, inputs: Inputs) -> Tensor:
        return part(inputs["pixels"])

    def shape(self, inputs: Inputs) -> tuple[int, ...]:
        return len(inputs["pixels"]), self.part.spec.num_tokens, self.part.spec.dim

    def loss(self, part: Any, inputs: Inputs) -> Tensor:
        return weighted_sum(part(inputs["pixels"]))

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        return self.part.preprocess(pictures)


class LanguageSubject(PartSubject):
    kind, interface = "language_model", LanguageModel
    output, legend = "hidden", "(B, T, D)"
    differentiable = ("embeds",)

    def prepare(self, part: Any) -> Any:
        """Add two tokens, as a DreamModel does when it is built."""
        ids = list(part.add_tokens(TOKENS))
        if len(ids) != len(TOKENS):
            raise ValueError(f"expected {len(TOKENS)} ids from add_tokens({list(TOKENS)}), got {ids}")
        self.token_ids = dict(zip(TOKENS, ids, strict=True))
        return part

    @property
    def window(self) -> int:
        """The number of tokens that is longer than the sliding window; 0 if a row cannot be so long."""
        spec = self.part.spec
        fits = spec.sliding_window is not None and spec.sliding_window + ROOM <= spec.max_length
        return spec.sliding_window + PAST_WINDOW if fits else 0

    def inputs(self, case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
        embeds = self.embeds(case.rows, case.length, case.seed).to(dtype)
        return {"embeds": embeds, **positions([case.length], case.rows)}

    def embeds(self, rows: int, length: int, seed: int) -> Tensor:
        """Return random input embeddings (rows, length, D)."""
        with seeded(seed):
            return torch.randn(rows, length, self.part.spec.dim)

    def extremes(self, case: Case) -> Iterator[Inputs]:
        """Yield the longest row, of at most `LONGEST` tokens."""
        yield self.inputs(case._replace(length=min(self.part.spec.max_length, LONGEST)))

    def compute(self, part: Any, inputs: Inputs) -> Tensor:
        return part(inputs["embeds"], inputs["position_ids"], inputs["segment_ids"])

    def shape(self, inputs: Inputs) -> tuple[int, ...]:
        return (*inputs["position_ids"].shape, self.part.spec.dim)

    def loss(self, part: Any, inputs: Inputs) -> Tensor:
        known = torch.tensor(list(self.token_ids.values()), device=inputs["embeds"].device)
        ids = known[inputs["position_ids"] % len(known)]
        hidden = part(inputs["embeds"] + part.embed(ids), inputs["position_ids"], inputs["segment_ids"])
        return weighted_sum(part.logits(part.final_norm(hidden)))


class ProjectorSubject(PartSubject):
    kind, interface = "projector", Projector
    output, legend = "projected", "(N, out_tokens, out_dim)"
    differentiable = ("tokens",)

    def inputs(self, case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
        spec = self.part.spec
        with seeded(case.seed):
            return {"tokens": torch.randn(case.rows, spec.in_tokens, spec.in_dim).to(dtype)}

    def compute(self, part: Any, inputs: Inputs) -> Tensor:
        return part(inputs["tokens"])

    def shape(self, inputs: Inputs) -> tuple[int, ...]:
        return len(inputs["tokens"]), self.part.spec.out_tokens, self.part.spec.out_dim

    def loss(self, part: Any, inputs: Inputs) -> Tensor:
        return weighted_sum(part(inputs["tokens"]))

    def infer_spec_again(self) -> Any:
        return self.infer_spec({name: getattr(self.part.spec, name) for name in WIDTHS})

    def infer_spec(self, widths: Mapping[str, int]) -> Any:
        """Return the spec that `infer_spec` returns for the part's config between neighbours of these widths."""
        self.call_text = (
            f"infer_spec(config, {', '.join(f'{name}={width}' for name, width in widths.items())})"
        )
        return type(self.part).infer_spec(self.part.config, **widths)


class DecoderSubject(PictureSubject):
    kind, interface, method = "image_decoder", ImageDecoder, "denoise"
    output, legend, pixels, bounds = "prediction", "(N, c, h, w)", "targets", (-1.0, 1.0)
    differentiable = ("context", "pooled")

    def inputs(self, case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
        spec, rows = self.part.spec, case.rows
        tokens = case.length if spec.context_tokens is None else spec.context_tokens
        with seeded(case.seed):
            tensors = {
                "latents": torch.randn(rows, *spec.latent_shape((spec.image_size, spec.image_size))),
                "context": spec.context_scale * torch.randn(rows, tokens, spec.context_dim),
            }
            if spec.pooled_dim is not None:
                tensors["pooled"] = torch.randn(rows, spec.pooled_dim)
            steps = self.part.timesteps(rows, torch.Generator().manual_seed(case.seed))
        return {name: tensor.to(dtype) for name, tensor in tensors.items()} | {"timesteps": steps}

    def extremes(self, case: Case) -> Iterator[Inputs]:
        """Yield inputs with the smallest and the largest of many random timesteps."""
        inputs = self.inputs(case)
        steps = self.part.timesteps(MANY, torch.Generator().manual_seed(0))
        for step in (steps.min(), steps.max()):
            yield {**inputs, "timesteps": step.expand(case.rows)}

    def condition(self, inputs: Inputs) -> Condition:
        return Condition(inputs["context"], pooled=inputs.get("pooled"))

    def extras(self, rows: int, device: torch.device | None = None) -> Mapping[str, Tensor]:
        side = self.part.spec.image_size
        extras = self.part.default_extras(rows, (side, side))
        return {name: extra.to(device) for name, extra in extras.items()}

    def compute(self, part: Any, inputs: Inputs) -> Tensor:
        latents = inputs["latents"]
        extras = self.extras(len(latents), latents.device)
        return part.denoise(latents, inputs["timesteps"], self.condition(inputs), extras)

    def shape(self, inputs: Inputs) -> tuple[int, ...]:
        return tuple(inputs["latents"].shape)

    def loss(self, part: Any, inputs: Inputs) -> Tensor:
        return self.loss_N(part, inputs).sum()

    def loss_N(self, part: Any, inputs: Inputs, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the decoder's loss (N,) of each image, with noise that depends only on the latents' shape."""
        latents = inputs["latents"]
        with seeded(1):
            noise = torch.randn(latents.shape).to(latents)
        if extras is None:
            extras = self.extras(len(latents), latents.device)
        return part.loss(latents, self.condition(inputs), extras, noise=noise, timesteps=inputs["timesteps"])

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        return self.part.preprocess(pictures)[0]

    def steps(self, part: Any, preferred: int = 2, scheduler: str | None = None) -> int:
        """Return a number of steps that the scheduler accepts, `preferred` if possible."""
        for steps in (preferred, *STEPS):
            try:
                part.scheduler(scheduler).set_timesteps(steps, device="cpu")
            except ValueError:
                continue
            return steps
        return preferred  # drawing then reports the scheduler's error

    def draw(self, part: Any, inputs: Inputs, **options: Any) -> Tensor:
        """Draw an image for each condition of `inputs`, without guidance unless `options` set it."""
        steps = self.steps(part)
        options = {"guidance": 1.0, **options}
        shown = [
            f"{name}={value}" for name, value in options.items() if isinstance(value, int | float | tuple)
        ]
        self.call_text = (
            f"draw(context of shape {tuple(inputs['context'].shape)}, steps={steps}, {', '.join(shown)})"
        )
        return part.draw(self.condition(inputs), steps=steps, **options)


PART_SUBJECTS: Final[Mapping[str, type[PartSubject]]] = {
    cls.kind: cls for cls in (VisionSubject, LanguageSubject, ProjectorSubject, DecoderSubject)
}
PARTS: Final = tuple(PART_SUBJECTS)
SUBJECTS: Final[Mapping[str, type[Any]]] = {**PART_SUBJECTS, DatasetSubject.kind: DatasetSubject}
KINDS: Final = tuple(SUBJECTS)


def tiny_part(cls: type[Part]) -> Build:
    """Return a function that builds the part of `cls.tiny_config()`; a projector gets neighbours of small widths.

    Raises:
        KitError: `cls` is not a class of one of the four kinds of parts.
    """
    if not (isinstance(cls, type) and issubclass(cls, Projector | PretrainedPart)):
        interfaces = ", ".join(subject.interface.__name__ for subject in PART_SUBJECTS.values())
        raise KitError(f"expected a subclass of {interfaces}, got {cls!r}")

    @wraps(cls, updated=())
    def build() -> Part:
        config = cls.tiny_config()
        if issubclass(cls, Projector):
            return cls.from_config(config, cls.infer_spec(config, **WIDTHS))
        return cls.from_config(config)

    return build


def positions(lengths: Sequence[int], rows: int = 1) -> Inputs:
    """Return position and segment ids (rows, T) of rows that each hold documents of these lengths."""
    position_ids = torch.cat([torch.arange(length) for length in lengths])
    segment_ids = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths)])
    return {"position_ids": position_ids.repeat(rows, 1), "segment_ids": segment_ids.repeat(rows, 1)}
