"""The result of checking a recipe's parts: their specs and the problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from dreamkit.errors import RecipeError, RecipeProblem, article, excerpt
from dreamkit.parts.projectors import Linear
from dreamkit.parts.specs import DecoderSpec, LanguageSpec, PartConfig, ProjectorSpec, VisionSpec
from dreamkit.recipe.places import config_problems
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
    """The specs of a recipe's parts, each None if it could not be inferred, and every problem."""

    recipe: Recipe
    registry: Registry
    vision_encoder: VisionSpec | None = None
    language_model: LanguageSpec | None = None
    image_decoder: DecoderSpec | None = None
    projectors: dict[str, ProjectorSpec] = field(default_factory=dict)
    problems: list[RecipeProblem] = field(default_factory=list)

    def problem(self, key: str, message: str) -> None:
        self.problems.append(RecipeProblem(self.recipe.place(key), key, message))

    def require_valid(self) -> None:
        """Raise a RecipeError if there are problems."""
        if self.problems:
            raise RecipeError(self.problems)

    def attempt(self, key: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Return the result of `function`; if it raises, add problems at `key` and return None."""
        try:
            return function(*args, **named)
        except FAILURES as error:
            self.problems += config_problems(error, key, self.recipe.places, source_of(args))
            return None

    def infer_spec(self, kind: str, key: str, section: PartSection, **widths: int) -> Any:
        """Return the spec of the component that `section` names; add problems at `key` and return None if it fails."""
        cls = self.attempt(key, self.registry.get, kind, section.name)
        if cls is None:
            return None
        before = len(self.problems)
        spec = self.attempt(key, cls.infer_spec, section.config, **widths)
        if isinstance(spec, SPECS[kind]):
            return spec
        if len(self.problems) == before:
            expected = SPECS[kind].__name__
            self.problem(
                key,
                f"expected {article(expected)} {expected} from '{section.name}', got {excerpt(repr(spec))}; "
                "fix its plug-in",
            )
        return None

    def summary(self) -> list[tuple[str, str, str]]:
        """Return part, component, and input and output shapes of each part. The recipe must have no problems."""
        vision, language, decoder = self.vision_encoder, self.language_model, self.image_decoder
        assert vision and language and decoder, "parts of a valid recipe have specs"
        context = decoder.context_tokens or "any"
        pooled = f" and a pooled vector of {decoder.pooled_dim}" if decoder.pooled_dim else ""
        limits = "" if language.packing else ", one document a row"
        limits += "" if language.cache else ", decoding without a cache"
        shapes = {
            "vision_encoder": f"{vision.image_size} px -> {vision.num_tokens} x {vision.dim}",
            "language_model": f"{language.max_length} x {language.dim}, vocabulary of {language.vocab_size}{limits}",
            "image_decoder": f"{context} x {decoder.context_dim}{pooled} -> {decoder.image_size} px",
        }
        for key, spec in self.projectors.items():
            shapes[key] = f"{spec.in_tokens} x {spec.in_dim} -> {spec.out_tokens} x {spec.out_dim}"
        sections = {key: part_section(self.recipe.model, key) for key in PARTS if key in shapes}
        return [(key, section.name, shapes[key]) for key, section in sections.items() if section is not None]


def source_of(arguments: Iterable[Any]) -> str | None:
    """Return the source of the part's config among the arguments of a function, or None."""
    return next((each.pretrained for each in arguments if isinstance(each, PartConfig)), None)


def part_section(model: ModelSection, key: str) -> PartSection | None:
    """Return the section of a part; that of a pooled projector defaults to a linear one."""
    section: PartSection | None = getattr(model, key)
    if section is None and key == "pooled_projector":
        return PartSection("linear", Linear.Config())
    return section
