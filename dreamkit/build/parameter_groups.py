"""Groups of a model's trained parameters by the recipe: learning rate, weight decay and warm-up of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from dreamkit.build.fit_groups import TRAINED_WITH
from dreamkit.errors import RecipeError, RecipeProblem, excerpt, near_hint
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import PARTS, TRAINABLE, GroupSection, Recipe

UNDECAYED: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters with the same settings; `match` is that of their section, "" for all others."""

    match: str
    parameters: list[nn.Parameter]
    learning_rate: float
    weight_decay: float
    warmup: int


def parameter_groups(model: DreamModel, recipe: Recipe) -> list[ParameterGroup]:
    """Return the groups of the trainable parameters of `model`; those of a section may be two, by weight decay.

    Raises:
        RecipeError: a section of `train.groups` matches no trained parameter, or none that is left.
    """
    train = recipe.train
    sections = [*train.groups, GroupSection("*", learning_rate=train.learning_rate)]
    members: list[list[nn.Parameter]] = [[] for _ in sections]
    has_matched = [False] * len(sections)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = {id(row) for row in model.language_model.added_token_parameters()}
    for name, parameter in trained.items():
        parts = _parts(name, is_row=id(parameter) in rows)
        matching = [number for number, section in enumerate(sections) if _matches(section, name, parts)]
        members[matching[0]].append(parameter)
        for number in matching:
            has_matched[number] = True
    problems = [
        RecipeProblem(recipe.place(key), key, _unmatched(section.match, trained, is_late=has_matched[number]))
        for number, section in enumerate(train.groups)
        if not members[number]
        for key in [f"train.groups.{number}.match"]
    ]
    if problems:
        raise RecipeError(problems)
    undecayed = {id(parameter) for parameter in _undecayed(model)}
    groups = []
    for number, (section, own) in enumerate(zip(sections, members, strict=True)):
        decay = train.weight_decay if section.weight_decay is None else section.weight_decay
        is_exact = section.weight_decay is not None and section.match not in PARTS
        decayed = [parameter for parameter in own if is_exact or id(parameter) not in undecayed]
        others = [parameter for parameter in own if not is_exact and id(parameter) in undecayed]
        groups += [
            ParameterGroup(
                match=section.match if number < len(train.groups) else "",
                parameters=parameters,
                learning_rate=section.learning_rate or train.learning_rate,
                weight_decay=weight_decay,
                warmup=train.in_steps(train.warmup if section.warmup is None else section.warmup),
            )
            for parameters, weight_decay in ((decayed, decay), (others, 0.0))
            if parameters
        ]
    return groups


def _parts(name: str, *, is_row: bool) -> set[str]:
    """Return the names of the parts that the parameter of this name belongs to; rows are those of added tokens."""
    part = name.partition(".")[0]
    return {part, TRAINED_WITH.get(part, part)} | ({"new_tokens"} if is_row else set())


def _matches(section: GroupSection, name: str, parts: Collection[str]) -> bool:
    """Return True if the parameter of this name, in these parts, belongs to the part or pattern of `section`."""
    match = section.match
    return match in parts if match in TRAINABLE else fnmatchcase(name, match)


def _unmatched(match: str, names: Iterable[str], *, is_late: bool) -> str:
    """Return the message about a group without parameters."""
    if is_late:
        return f"groups above it have every tensor that '{excerpt(match)}' matches; move it up, or remove it"
    return f"expected a match of a trained tensor, got '{excerpt(match)}'{near_hint(match, names)}"


def _undecayed(model: DreamModel) -> Iterator[nn.Parameter]:
    """Yield the parameters without weight decay by default.

    These are vectors (biases, the weights of norms, scales), embeddings, and what a module names in its method
    `no_weight_decay`, as those of timm do.
    """
    yield model.dream_queries
    yield from model.language_model.added_token_parameters()
    for module in model.modules():
        named = getattr(module, "no_weight_decay", None)
        if callable(named):
            own = dict(module.named_parameters(remove_duplicate=False))
            yield from (own[name] for name in named() if name in own)  # timm names tokens that a model lacks
        for parameter in module.parameters(recurse=False):
            if parameter.dim() < 2 or isinstance(module, UNDECAYED):
                yield parameter
