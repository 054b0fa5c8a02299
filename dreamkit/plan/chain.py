"""The parts of a model in the order of data flow, with the shape of each output."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkit.build.fit_record import part_section
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A part (or a tensor between parts), its component ("" for a tensor), and the shape of one image or row."""

    part: str
    component: str
    shape: Shape

    def __str__(self) -> str:
        label = " ".join(name for name in (self.part, self.component) if name)
        return f"{label} ({', '.join(map(str, self.shape))})"


def chain(model: DreamModel, recipe: Recipe) -> tuple[tuple[Step, ...], ...]:
    """Return the lines of steps that end in the drawn image, in the pooled vector (if any) and in the logits."""
    length = recipe.train.max_length or model.language_model.spec.max_length
    vision, decoder = model.vision_encoder.spec, model.image_decoder.spec
    dim, queries = model.language_model.spec.dim, len(model.dream_queries)

    def part(key: str, *shape: int) -> Step:
        section = part_section(recipe.model, key)
        assert section is not None, "a part of the model has a section"
        return Step(key, section.name, shape)

    context = model.condition_projector.spec
    lines: list[tuple[Step, ...]] = [
        (
            Step("image", "", (3, vision.image_size, vision.image_size)),
            part("vision_encoder", vision.num_tokens, vision.dim),
            part("visual_projector", model.visual_projector.spec.out_tokens, dim),
            part("language_model", length, dim),
            Step("dream states", "", (queries, dim)),
            part("condition_projector", context.out_tokens, context.out_dim),
            part("image_decoder", *decoder.latent_shape((decoder.image_size, decoder.image_size))),
            Step("image", "", (3, decoder.image_size, decoder.image_size)),
        )
    ]
    if model.pooled_projector is not None:
        mean = Step("mean of the dream states", "", (1, dim))
        lines.append((mean, part("pooled_projector", 1, model.pooled_projector.spec.out_dim)))
    vocabulary = model.language_model.head().weight.shape[0]
    lines.append((part("language_model", length, dim), Step("logits", "", (length, vocabulary))))
    return tuple(lines)
