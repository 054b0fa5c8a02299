"""Real parts with one change that does not fit, and a registry of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from dreamkit.parts.projectors import Linear
from dreamkit.parts.specs import DecoderSpec, LanguageSpec, ProjectorSpec
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.hookspecs import Component
from dreamkit.registry.kinds import KINDS, Registered
from dreamkit.registry.registry import Registry
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.llama import Llama
from tiny import recipe


class FixedTokens(StableDiffusion):
    """A decoder for contexts of exactly 4 tokens."""

    @classmethod
    def infer_spec(cls, config: Any) -> DecoderSpec:
        return replace(super().infer_spec(config), context_tokens=4)


class Pooled(StableDiffusion):
    """A decoder that takes a pooled vector."""

    @classmethod
    def infer_spec(cls, config: Any) -> DecoderSpec:
        return replace(super().infer_spec(config), pooled_dim=6)


class Apart(Llama):
    """A language model without packing."""

    @classmethod
    def infer_spec(cls, config: Any) -> LanguageSpec:
        return replace(super().infer_spec(config), packing=False)


class Unadaptable(Clip):
    """An encoder without layers for an adapter."""

    adapter_targets = ()


class Halving(Linear):
    """A projector from two tokens to one."""

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        if in_tokens % 2:
            raise ValueError(f"{in_tokens} tokens go in, but pairs are needed; make them even")
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=in_tokens // 2)


class Doubling(Linear):
    """A projector from one token to two."""

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=in_tokens * 2)


class Narrow(Linear):
    """A projector to width 5, for any neighbours."""

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        return ProjectorSpec(in_dim=in_dim, out_dim=5, in_tokens=in_tokens, out_tokens=in_tokens)


class Crashing(Linear):
    """A projector whose code fails."""

    @dataclass(frozen=True)
    class Config:
        names: tuple[str, int] = ("a", 1)

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        raise KeyError(config.names[0])


class Exiting(Linear):
    """A projector that exits the program."""

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        raise SystemExit(0)


class Silent(Linear):
    """A projector that returns no spec."""

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:  # type: ignore
        pass


class Wordy(Clip):
    """An encoder that returns a string as its spec."""

    @classmethod
    def infer_spec(cls, config: Any) -> Any:
        return "16 px"


class Unmakeable(Linear):
    """A projector with a spec that cannot be built."""

    @classmethod
    def from_config(cls, config: Any, spec: ProjectorSpec) -> Unmakeable:
        raise RuntimeError("no room")


class Reserved(Linear):
    """A projector whose Config has a key of every section."""

    @dataclass(frozen=True)
    class Config:
        name: str = ""


class Unreadable(Linear):
    """A projector whose Config has an undefined annotation."""

    @dataclass(frozen=True)
    class Config:
        depth: Nothing = None  # type: ignore[name-defined]  # noqa: F821


class Unholdable(Linear):
    """A projector whose Config has a type that YAML lacks."""

    @dataclass(frozen=True)
    class Config:
        layers: set[int] = field(default_factory=set)


ODD = {
    "image_decoder": (FixedTokens, Pooled),
    "language_model": (Apart,),
    "vision_encoder": (Unadaptable, Wordy),
    "projector": (
        Halving,
        Doubling,
        Narrow,
        Crashing,
        Exiting,
        Silent,
        Unmakeable,
        Reserved,
        Unreadable,
        Unholdable,
    ),
}


def registry() -> Registry:
    """Return a registry of the installed components and of these parts, by their names in lower case."""
    installed = Registry.load()
    known = [component for kind in KINDS for component in installed.components(kind).values()]
    odd = [
        Registered(Component(cls.__name__.lower(), f"odd_parts:{cls.__name__}"), kind, "odd", "1.0", "odd")
        for kind, classes in ODD.items()
        for cls in classes
    ]
    return Registry([*known, *odd])


def read(registry: Registry, **changes: Any) -> Recipe:
    return recipe_from_dict(
        recipe(**{key.replace("__", "."): value for key, value in changes.items()}), registry
    )


def tiny_part(key: str, name: str) -> dict[str, Any]:
    """Return a section of the tiny recipe with another component of the same config."""
    return {"name": name, "config": recipe()["model"][key]["config"]}
