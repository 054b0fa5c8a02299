"""Whether the parts of a recipe fit each other, told from their specs, without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dreamkit.errors import RecipeProblem
from dreamkit.model.adapters import unfit
from dreamkit.parts.projectors import Linear
from dreamkit.parts.specs import DecoderSpec, LanguageSpec, ProjectorSpec, VisionSpec
from dreamkit.recipe.places import refusals
from dreamkit.recipe.sections import PARTS, WITH_SOURCE, AdapterSection, ModelSection, PartSection, Recipe
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
        """What `make` returns; None, and problems at `key`, where it raises."""
        try:
            return make(*args, **named)
        except FAILURES as error:
            self.refused(key, error)
            return None

    def spec(self, kind: str, key: str, section: PartSection, **widths: int) -> Any:
        """What the component of a section says of it; None, and problems at `key`, where it cannot."""
        cls = self.attempt(key, self.registry.get, kind, section.name)
        if cls is None:
            return None
        before = len(self.problems)
        spec = self.attempt(key, cls.spec_from, section.config, **widths)
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


def check(recipe: Recipe, registry: Registry) -> list[RecipeProblem]:
    """Everything that does not fit, told without weights. Sections that are None are passed over."""
    return fit(recipe, registry).problems


def fit(recipe: Recipe, registry: Registry) -> Fit:
    """The specs of the parts and what does not fit. Sections of a draft that are None are passed over."""
    found = Fit(recipe, registry)
    model = recipe.model
    if model is None:
        return found
    for kind in WITH_SOURCE:
        section = getattr(model, kind)
        if section is not None:
            setattr(found, kind, found.spec(kind, f"model.{kind}", section))
    _fit_projectors(found, model)
    _fit_lengths(found, model)
    _fit_adapters(found, model)
    _fit_tokens(found, model)
    _fit_generation(found)
    _fit_loss(found, model)
    return found


def _fit_projectors(found: Fit, model: ModelSection) -> None:
    language, vision, decoder = found.language_model, found.vision_encoder, found.image_decoder

    def project(
        key: str, in_dim: int, in_tokens: int, out_dim: int, out_scale: float = 1.0
    ) -> ProjectorSpec | None:
        section = part_section(model, key)
        if section is None:
            return None
        widths = {"in_dim": in_dim, "in_tokens": in_tokens, "out_dim": out_dim}
        spec: ProjectorSpec | None = found.spec("projector", f"model.{key}", section, **widths)
        for name, width in widths.items() if spec is not None else ():
            if getattr(spec, name) != width:
                found.problem(
                    f"model.{key}",
                    f"'{section.name}' has {name} {getattr(spec, name)}, but its neighbours have {width}; "
                    "name another projector",
                )
                return None
        if spec is not None:
            spec = replace(spec, out_scale=out_scale)
            found.projectors[key] = spec
        return spec

    if language and vision:
        project("visual_projector", vision.dim, vision.num_tokens, language.dim)
    if language and decoder and model.dream_queries is not None:
        spec = project(
            "condition_projector",
            language.dim,
            model.dream_queries,
            decoder.context_dim,
            decoder.context_scale,
        )
        if spec and decoder.context_tokens not in (None, spec.out_tokens):
            follows = spec.out_tokens == model.dream_queries  # else the projector's own settings say how many
            queries = f"set model.dream_queries to {decoder.context_tokens}, or " if follows else ""
            found.problem(
                "model.condition_projector",
                f"it gives {spec.out_tokens} tokens for {model.dream_queries} dream queries "
                f"({found.recipe.place('model.dream_queries')}), but the image decoder takes {decoder.context_tokens} "
                f"({found.recipe.place('model.image_decoder')}); {queries}name a projector that gives "
                f"{decoder.context_tokens}, such as {{name: resampler, tokens: {decoder.context_tokens}}}",
            )
    if language and decoder and decoder.pooled_dim is not None:
        spec = project("pooled_projector", language.dim, 1, decoder.pooled_dim)
        if spec and spec.out_tokens != 1:
            found.problem(
                "model.pooled_projector",
                f"it makes {spec.out_tokens} tokens of 1, but a pooled vector is 1; set its tokens to 1 where it has "
                "such a setting, or name another projector, such as linear",
            )
    if decoder and decoder.pooled_dim is None and model.pooled_projector is not None:
        found.problem(
            "model.pooled_projector",
            f"'{model.pooled_projector.name}' found, but the image decoder takes no pooled vector "
            f"({found.recipe.place('model.image_decoder')}); remove it, or set it to null",
        )
    trainable = found.recipe.train.trainable if found.recipe.train else None
    if decoder and decoder.pooled_dim is None and "pooled_projector" in (trainable or ()):
        found.problem(
            "train.trainable",
            "'pooled_projector' found, but this model has none: its image decoder takes no pooled vector; remove it",
        )


def _fit_lengths(found: Fit, model: ModelSection) -> None:
    train, language = found.recipe.train, found.language_model
    if not train or not language:
        return
    if train.max_length is not None and train.max_length > language.max_length:
        found.problem(
            "train.max_length",
            f"rows of {train.max_length} tokens, but the language model takes at most {language.max_length} "
            f"({found.recipe.place('model.language_model')}); set it to {language.max_length} or less",
        )
    if train.packing and not language.packing:
        found.problem(
            "train.packing",
            "true found, but the language model cannot keep documents in one row apart "
            f"({found.recipe.place('model.language_model')}); set it to false, or leave it out",
        )
    visual = found.projectors.get("visual_projector")
    room = language.max_length if train.max_length is None else train.max_length
    if visual and model.dream_queries is not None:
        # as in `dreamkit.data.sequence`: both kinds of slots stand between two tokens, all between <s> and </s>
        drawn, read = model.dream_queries + 2, visual.out_tokens + 2
        if drawn + read + 2 > room:
            key = "model.dream_queries" if train.max_length is None else "train.max_length"
            longer = "raise train.max_length, " if room < language.max_length else ""
            found.problem(
                key,
                f"an image that is drawn and read back takes {drawn} + {read} tokens, and <s> and </s> one each, but a "
                f"row holds {room}; {longer}lower model.dream_queries ({model.dream_queries}), or take "
                f"a vision encoder or visual projector with fewer than {visual.out_tokens} tokens",
            )


def _fit_adapters(found: Fit, model: ModelSection) -> None:
    seen: set[str] = set()
    trainable = (found.recipe.train.trainable if found.recipe.train else None) or ()
    for index, adapter in enumerate(model.adapters or ()):
        key = f"model.adapters.{index}.target"
        if adapter.target in seen:
            found.problem(key, f"'{adapter.target}' found a second time; a part takes one adapter")
        seen.add(adapter.target)
        section = getattr(model, adapter.target)
        cls = section and found.attempt(
            f"model.{adapter.target}", found.registry.get, adapter.target, section.name
        )
        if cls and getattr(found, adapter.target):
            _fit_modules(found, index, adapter, cls, section)
        if adapter.target in trainable:
            found.problem(
                "train.trainable",
                f"'{adapter.target}' found, but it has an adapter ({found.recipe.place(key)}), beside which its own "
                "weights stay frozen; remove it here, or remove the adapter",
            )


def _fit_modules(found: Fit, index: int, adapter: AdapterSection, cls: Any, section: PartSection) -> None:
    """The layers that an adapter names must be there, and of a type that can be adapted; or the part names them."""
    if adapter.modules is None and cls.adapter_targets:
        return
    key = f"model.adapters.{index}"
    before = len(found.problems)
    outline = found.attempt(key, cls.outline, section.config)
    if len(found.problems) > before:
        return
    if adapter.modules is None:
        if not getattr(outline, "adapter_targets", ()):
            said = f"'{section.name}' names no layers to adapt; list them in 'modules'"
            found.problem(f"{key}.target", said)
        return
    if not adapter.modules:
        found.problem(f"{key}.modules", "an empty list found; name layers, or leave it out")
    root = outline and found.attempt(key, outline.get_submodule, cls.adapter_root)
    for number, message in unfit(root, adapter.modules, section.name, adapter.rank) if root else ():
        found.problem(f"{key}.modules.{number}", message)


def _fit_loss(found: Fit, model: ModelSection) -> None:
    """What only the denoising loss reaches learns nothing where that has no weight."""
    loss, train = found.recipe.loss, found.recipe.train
    if not loss or loss.vm != 0 or not train or not train.trainable:
        return
    learning = {*train.trainable, *(adapter.target for adapter in model.adapters or ())}
    if learning <= {"condition_projector", "pooled_projector", "image_decoder"}:
        found.problem(
            "train.trainable",
            f"{', '.join(sorted(learning))} found, which only drawing reaches, but loss.vm is 0 "
            f"({found.recipe.place('loss')}), so nothing would learn; give loss.vm a weight, or train another part",
        )


def _fit_generation(found: Fit) -> None:
    name, decoder = found.recipe.generation and found.recipe.generation.scheduler, found.image_decoder
    known = None if decoder is None else decoder.schedulers
    if decoder is not None and name is not None and known is not None and name not in known:
        objective = f", {decoder.objective}" if decoder.objective else ""
        found.problem(
            "generation.scheduler",
            f"'{name}' is none of the schedulers that fit the image decoder's objective{objective} "
            f"({found.recipe.place('model.image_decoder')}); name one of these: {', '.join(known)}",
        )


def _fit_tokens(found: Fit, model: ModelSection) -> None:
    tokens = model.special_tokens
    if tokens is None:
        return
    apart: dict[str, str] = {}
    for name in ("dream_start", "dream_end", "image_start", "image_end", "image_patch", "dream_patch"):
        token = getattr(tokens, name)
        other = apart.setdefault(token, name)
        if not token.strip():
            found.problem(
                f"model.special_tokens.{name}", f"'{token}' found, but a token has a name, such as <{name}>"
            )
        elif other != name and (other, name) != ("image_patch", "dream_patch"):
            found.problem(
                f"model.special_tokens.{name}",
                f"'{token}' found, which is also {other}; give one another name",
            )
        elif found.language_model and token in found.language_model.reserved_tokens:
            found.problem(
                f"model.special_tokens.{name}",
                f"'{token}' found, which starts, ends or pads the language model's texts "
                f"({found.recipe.place('model.language_model')}); give it another name",
            )


def part_section(model: ModelSection, key: str) -> PartSection | None:
    """The section of a part; a pooled projector that is not named is linear."""
    section: PartSection | None = getattr(model, key)
    return (
        PartSection("linear", Linear.Config()) if section is None and key == "pooled_projector" else section
    )
