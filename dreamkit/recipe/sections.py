"""The recipe: what a model is made of, what it learns from and how, as typed sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from dreamkit.errors import DreamkitError, PluginError, RecipeError, RecipeProblem
from dreamkit.recipe.files import RecipeFiles
from dreamkit.recipe.schema import SchemaReader, join, own_keys, place, setting
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit.recipe.tree import BROKEN, Broken, Node
from dreamkit.registry.registry import Registry
from dreamkit.storage.paths import written_path

Adaptable: TypeAlias = Literal["language_model", "vision_encoder", "image_decoder"]
PartName: TypeAlias = Literal[Adaptable, "visual_projector", "condition_projector", "pooled_projector"]
Trainable: TypeAlias = Literal[PartName, "dream_queries", "new_tokens"]
WITH_SOURCE: Final[tuple[str, ...]] = get_args(Adaptable)  # kinds that have weights to name
PARTS: Final[tuple[str, ...]] = get_args(PartName)
TRAINABLE: Final[tuple[str, ...]] = get_args(Trainable)
SOURCES: Final = (
    "pretrained",
    "tokenizer",
)  # keys that name a folder where there is one, and else a hub name


@dataclass(frozen=True)
class PartSection:
    """A part: the `name` of its component, and beside it in the recipe the fields of that component's `Config`."""

    name: str
    config: Any = setting(inner=True)


@dataclass(frozen=True)
class DataSection:
    """A data set, drawn from in proportion to `weight`."""

    name: str
    config: Any = setting(inner=True)
    weight: float = setting(1.0, above=0)


@dataclass(frozen=True)
class AdapterSection:
    """A LoRA adapter (arXiv 2106.09685) on a part; its layers are those of `modules`, or the ones the part names."""

    target: Adaptable
    rank: int = setting(16, least=1, most=4096)
    alpha: float = setting(32, above=0)
    dropout: float = setting(0.0, least=0, below=1)
    modules: list[str] | None = None
    use_dora: bool = False
    use_rslora: bool = False


@dataclass(frozen=True)
class ModelSection:
    """The parts. `pooled_projector` is a linear one where the decoder wants a pooled vector and none is named."""

    language_model: PartSection = setting(kind="language_model")
    vision_encoder: PartSection = setting(kind="vision_encoder")
    visual_projector: PartSection = setting(kind="projector")
    condition_projector: PartSection = setting(kind="projector")
    image_decoder: PartSection = setting(kind="image_decoder")
    pooled_projector: PartSection | None = setting(None, kind="projector")
    dream_queries: int = setting(64, least=1)
    special_tokens: SpecialTokens = SpecialTokens()
    adapters: tuple[AdapterSection, ...] = ()


@dataclass(frozen=True)
class LossSection:
    """Loss = lm * language modelling + vm * denoising. `condition_drop`: share of images drawn without a condition."""

    lm: float = setting(1.0, least=0)
    vm: float = setting(10.0, least=0)
    condition_drop: float = setting(0.0, least=0, most=1)

    def __post_init__(self) -> None:
        if self.lm == self.vm == 0:
            raise ValueError("lm is 0 and vm is 0, so nothing would be learned; give one of them a weight")


@dataclass(frozen=True)
class TrainSection:
    """`steps` updates, of `accumulation` batches of `batch_size` documents each on each device.

    `trainable` names what learns besides adapters. `warmup` is in steps, `max_length` in tokens of a row (None: the
    language model's). `packing` puts several documents into a row (None: where the language model keeps them apart).
    `log_every` and `save_every` in steps (0: only at the end). `cache` is the folder of latents and features that were
    computed before.
    """

    trainable: tuple[Trainable, ...]
    steps: int = setting(least=1)
    batch_size: int = setting(least=1)
    accumulation: int = setting(1, least=1)
    learning_rate: float = setting(2e-5, above=0, most=100)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = setting(0, least=0)
    weight_decay: float = setting(0.0, least=0)
    max_grad_norm: float = setting(1.0, above=0)
    max_length: int | None = setting(None, least=1)
    packing: bool | None = None
    seed: int = setting(0, least=0, most=2**32 - 1)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    log_every: int = setting(10, least=1)
    save_every: int = setting(0, least=0)
    workers: int = setting(0, least=0, most=256)
    cache: str | None = setting(None, path=True)


@dataclass(frozen=True)
class GenerationSection:
    """`max_tokens` of text and `max_images` at most; `steps` of denoising; `guidance` is the classifier-free scale."""

    scheduler: str | None = None
    steps: int = setting(50, least=1)
    guidance: float = setting(7.5, least=0)
    max_tokens: int = setting(256, least=1)
    max_images: int = setting(8, least=0)
    temperature: float = setting(0.0, least=0)
    top_p: float = setting(1.0, above=0, most=1)


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training. `init` is a checkpoint to start from.

    `places` says where keys were written. A recipe may leave out `train` and `data`; then it only describes a model.
    """

    model: ModelSection
    train: TrainSection = TrainSection(trainable=(), steps=1, batch_size=1)
    init: str | None = setting(None, path=True)
    data: tuple[DataSection, ...] = setting((), kind="dataset")
    loss: LossSection = LossSection()
    generation: GenerationSection = GenerationSection()
    places: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def place(self, key: str) -> str:
        """Where `key`, or else the section around it, was written: `file:line`."""
        return place(self.places, key)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, resolved: absolute paths and every default. `from_dict` makes the same recipe of them."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.init}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], registry: Registry, where: str = "recipe") -> Recipe:
        """The recipe of plain values, checked as strictly as one read from a file; `where` is said in errors.

        Raises:
            RecipeError: with every problem.
        """
        reader = _RecipeSchema(registry)
        return _sound(reader.recipe(Node.of(data, where, Path.cwd())), reader.problems)


def load_recipe(name: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """Reads the recipe `name`, a file or a shipped name, with `key=value` overrides.

    Raises:
        RecipeError: with every problem. Whether the parts fit each other is for `dreamkit.build.fit.check`.
    """
    return _sound(*draft_recipe(name, overrides, registry))


def draft_recipe(
    name: str, overrides: Sequence[str], registry: Registry
) -> tuple[Recipe | None, list[RecipeProblem]]:
    """As `load_recipe`, but returns the problems, and the recipe as far as it can be read.

    In a recipe with problems, a section that cannot be read is None, so that the others can still be checked.
    """
    files = RecipeFiles(registry.recipes(), registry.about_problems())
    tree = files.read(name, overrides)
    reader = _RecipeSchema(registry, complete=files.complete)
    recipe = reader.recipe(tree)
    return recipe, [*files.problems, *reader.problems]


def _sound(recipe: Recipe | None, problems: Sequence[RecipeProblem]) -> Recipe:
    if problems:
        raise RecipeError(problems)
    assert recipe is not None, "what is not a recipe is a problem"
    return recipe


class _RecipeSchema(SchemaReader):
    """Knows sections that name a component, whose other keys are those of the component's `Config`."""

    def __init__(self, registry: Registry, *, complete: bool = True) -> None:
        super().__init__(complete=complete)
        self.registry = registry

    def recipe(self, tree: Node) -> Recipe | None:
        recipe = self.section(Recipe, tree, "", draft=True)
        if not isinstance(recipe, Recipe):
            return None
        object.__setattr__(recipe, "places", self.places)
        return recipe

    def nested(self, cls: type, node: Node, key: str, meta: Mapping[str, Any]) -> Any:
        if "kind" in meta:
            return self._component(cls, meta["kind"], node, key)
        is_draft = cls in (ModelSection, TrainSection, LossSection, GenerationSection)
        return self.section(cls, node, key, draft=is_draft)

    def _component(self, cls: type, kind: str, node: Node, key: str) -> Any:
        if not isinstance(node.value, dict):
            return self.section(cls, node, key)
        own = own_keys(cls)
        given = {name: item for name, item in node.value.items() if name in own}
        # `config` stands in for the component's own, so that the section's own keys are read like any others.
        section = self.section(
            cls, Node({**given, "config": Node(None, node.where, node.folder)}, node.where, node.folder), key
        )
        name = given.get("name")
        if name is None or not isinstance(name.value, str):
            return BROKEN
        try:
            config_class = self.registry.get(kind, name.value).Config
        except PluginError as error:
            return self.problem(name, join(key, "name"), str(error))
        clash = sorted({f.name for f in dataclasses.fields(config_class)} & set(own))
        if clash:
            return self.problem(
                name, key, f"the Config of {kind} '{name.value}' has '{clash[0]}', which is the section's own"
            )
        rest = {
            k: self._source(item, join(key, k)) if k in SOURCES else item
            for k, item in node.value.items()
            if k not in own
        }
        config = self.section(config_class, Node(rest, node.where, node.folder), key, reserved=own)
        is_sourced = kind not in WITH_SOURCE or self._has_one_source(rest, node, key)
        if not is_sourced or section is BROKEN or config is BROKEN:
            return BROKEN
        return dataclasses.replace(section, config=config)

    def _has_one_source(self, rest: Mapping[str, Node], node: Node, key: str) -> bool:
        given = {k: rest[k] for k in ("pretrained", "config") if k in rest and rest[k].value is not None}
        if len(given) == 2:
            places = " and ".join(f"'{k}' ({item.where})" for k, item in given.items())
            self.problem(node, key, f"{places} found, but only one is wanted; set the other to null")
        elif not given and self.complete:
            self.problem(
                node,
                key,
                "neither 'pretrained' nor 'config' found; name the weights, or describe random ones",
            )
        return len(given) == 1

    def _source(self, node: Node, key: str) -> Node:
        """A source that is a folder, beside the file it is written in or by its form, as an absolute path."""
        name = node.value
        if not isinstance(name, str) or not name:
            return node
        value: str | Broken = name
        try:
            path = written_path(name, node.folder)
            if name.startswith(("./", "../", "/", "~")) or name in (".", "..") or path.is_dir():
                value = str(path.resolve())
        except DreamkitError as error:
            value = self.problem(node, key, str(error))
        return Node(value, node.where, node.folder)


def plain(value: Any) -> Any:
    if isinstance(value, PartSection | DataSection):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "config"}
        return {**own, **plain(value.config)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
