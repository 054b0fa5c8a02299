"""The record of how the parts of a recipe fit: the specs that they tell, and the problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dreamkit.errors import RecipeProblem
from dreamkit.parts.projectors import Linear
from dreamkit.parts.specs import DecoderSpec, LanguageSpec, ProjectorSpec, VisionSpec
from dreamkit.recipe.places import refusals
from dreamkit.recipe.sections import PARTS, ModelSection, PartSection, Recipe
from dreamkit.registry.registry import Registry

SPECS: Final[dict[str, type]] = {
    "vision_encoder": VisionSpec,
    "language_model": LanguageSpec,
    "image_decoder": DecoderSpec,
    "projector": ProjectorSpec,
}
# The code of a plug-in, and of the library behind it, may fail in any way.
FAILURES = (Exception, SystemExit)


@dataclass
class Fit:
    """The specs of a recipe's parts, those that could be told, and all that does not fit."""

    recipe: Recipe
    registry: Registry
    vision_encoder: VisionSpec | None = None
    language_model: LanguageSpec | None = None
    image_decoder: DecoderSpec | None = None
    projectors: dict[str, ProjectorSpec] = field(default_factory=dict)
    problems: list[RecipeProblem] = field(default_factory=list)

    def problem(self, key: str, message: str) -> None:
        self.problems.append(RecipeProblem(self.recipe.place(key), key, message))

    def refused(self, key: str, error: BaseException) -> None:
        """The problems that a part has with its section `key`."""
        self.problems += refusals(error, key, self.recipe.places)

    def attempt(self, key: str, make: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Return what `make` returns; None, with problems at `key`, if it raises."""
        try:
            return make(*args, **named)
        except FAILURES as error:
            self.refused(key, error)
            return None

    def spec(self, kind: str, key: str, section: PartSection, **widths: int) -> Any:
        """Return the spec of the component that a section names; None, with problems at `key`, if it has none."""
        cls = self.attempt(key, self.registry.get, kind, section.name)
        if cls is None:
            return None
        before = len(self.problems)
        spec = self.attempt(key, cls.infer_spec, section.config, **widths)
        if isinstance(spec, SPECS[kind]):
            return spec
        if len(self.problems) == before:
            wanted = SPECS[kind].__name__
            self.problem(
                key, f"'{section.name}' gives {spec!r} where a {wanted} is wanted; its plug-in needs mending"
            )
        return None

    def summary(self) -> list[tuple[str, str, str]]:
        """Of a recipe that fits: part, component, and what it takes and gives."""
        vision, language, decoder, model = (
            self.vision_encoder,
            self.language_model,
            self.image_decoder,
            self.recipe.model,
        )
        assert vision and language and decoder, "parts of a recipe that fits have specs"
        context = decoder.context_tokens or "any"
        pooled = f" and a pooled vector of {decoder.pooled_dim}" if decoder.pooled_dim else ""
        lacks = "" if language.packing else ", one document a row"
        lacks += "" if language.cache else ", decoding without a cache"
        shapes = {
            "vision_encoder": f"{vision.image_size} px -> {vision.num_tokens} x {vision.dim}",
            "language_model": f"{language.max_length} x {language.dim}, vocabulary of {language.vocab_size}{lacks}",
            "image_decoder": f"{context} x {decoder.context_dim}{pooled} -> {decoder.image_size} px",
        }
        for key, spec in self.projectors.items():
            shapes[key] = f"{spec.in_tokens} x {spec.in_dim} -> {spec.out_tokens} x {spec.out_dim}"
        sections = {key: part_section(model, key) for key in PARTS if key in shapes}
        return [(key, section.name, shapes[key]) for key, section in sections.items() if section is not None]


def part_section(model: ModelSection, key: str) -> PartSection | None:
    """The section of a part; a pooled projector that is not named is linear."""
    section: PartSection | None = getattr(model, key)
    return (
        PartSection("linear", Linear.Config()) if section is None and key == "pooled_projector" else section
    )
