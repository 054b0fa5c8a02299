"""The base classes of all parts: made from a recipe section, and from a named source where they have weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from torch import nn

from dreamkit.earlier_names import EarlierName, adopt_earlier_names


class Part(nn.Module, ABC):
    """What the four interfaces have in common.

    `config` is the section it was made from, and `spec` describes the made part. `adapter_targets` names the linear
    layers (by the end of their module name) that LoRA attaches to when a recipe names none; a part without any cannot
    be adapted (one that finds them in its model may set them in `__init__`, and so does its `meta_modules`). They are
    looked for in `adapter_root`, the name of the submodule that is the library's own model, so that the library can
    open what was learned; "" is the part itself.
    """

    Config: ClassVar[type]
    adapter_targets: ClassVar[tuple[str, ...]] = ()
    adapter_root: ClassVar[str] = ""
    config: Any
    spec: Any

    miniature = EarlierName("tiny_config")
    spec_from = EarlierName("infer_spec")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_earlier_names(cls)

    @classmethod
    def tiny_config(cls) -> Any:
        """The Config of a tiny part with random weights, made offline: what `dreamkit test-plugin` builds.

        Widths of about 16, two layers, pictures of 16 to 32 pixels: a forward pass takes milliseconds. Unless a class
        says otherwise, it is a Config of defaults.
        """
        return cls.Config()

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """What is trained when a recipe trains this part: every parameter the training loss reaches."""
        return self.parameters()

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass, where the part can; the default does nothing."""


class PretrainedPart(Part):
    """A part whose weights come from a named source, or at random from a small config."""

    outline = EarlierName("meta_modules")

    @classmethod
    @abstractmethod
    def infer_spec(cls, config: Any) -> Any:
        """The spec of the part that `config` describes, without reading or making weights.

        Raises:
            ConfigError: what cannot be, by the keys of `config`; a SourceError where `config.pretrained` names
                something that cannot be found.
        """

    @classmethod
    def tiny_config(cls) -> Any:
        raise NotImplementedError(
            f"{cls.__qualname__} has no tiny config to test it with; return a small Config with random weights from "
            "its classmethod `tiny_config`"
        )

    @classmethod
    def meta_modules(cls, config: Any) -> nn.Module | None:
        """Modules of the names and types that the part of `config` has, on the meta device; None: it does not tell.

        What it gives is asked, before any weights are read, whether an adapter finds its layers.
        """
        return None

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """The part with random weights from torch's global generator."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, config: Any) -> Self:
        """The part with the weights of `config.pretrained`, in float32."""
