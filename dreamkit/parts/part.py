"""The base classes of all parts: `Part`, and `PretrainedPart` for parts whose weights have a named source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from dreamkit.earlier_names import EarlierName, adopt_earlier_names
from dreamkit.parts.precision import keep_float32


class Part(nn.Module, ABC):
    """The base class of the four interfaces.

    Attributes:
        Config: frozen dataclass of the part's recipe section.
        config: the section that this part was built from, an instance of `Config`.
        spec: the shapes of this part.
        adapter_targets: ends of the names of the linear layers that LoRA adapts when a recipe names none. A part
            without any cannot be adapted. A part that looks them up in its model sets them in `__init__`, and on the
            result of `meta_modules`.
        adapter_root: name of the submodule that is the library's own model; "" is the part itself. Adapters go into
            this submodule, so that the library can load them.
        shard_units: names of the classes of modules that several devices shard on their own, beside those in
            `_no_split_modules` of a library's model. Such a module is gathered while its `forward` runs, so nothing
            else may use its tensors; `"Name.method"` names another method that the part calls.
        unquantized: names of modules, at any depth, whose layers keep their weights if a recipe quantizes the part,
            such as a time embedding. The head of a language model, an image decoder's `posterior_module` and
            `float32_modules` keep theirs without being named.
    """

    Config: ClassVar[type]
    adapter_targets: ClassVar[tuple[str, ...]] = ()
    adapter_root: ClassVar[str] = ""
    shard_units: ClassVar[tuple[str, ...]] = ()
    unquantized: ClassVar[tuple[str, ...]] = ()
    config: Any
    spec: Any

    miniature = EarlierName("tiny_config")
    spec_from = EarlierName("infer_spec")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_earlier_names(cls)

    @classmethod
    def tiny_config(cls) -> Any:
        """Return the `Config` of a tiny part with random weights, built offline; `dreamkit test-plugin` builds it.

        Aim at widths of about 16, two layers and images of 16 to 32 pixels: a forward pass then takes milliseconds.
        The default is `Config()`.
        """
        return cls.Config()

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters to train when a recipe trains this part: exactly those the training loss reaches.

        The default is all parameters.
        """
        return self.parameters()

    def float32_tensors(self) -> Iterable[Tensor]:
        """Return the parameters and buffers that stay in float32 or more, whatever dtype the part is moved to.

        Name those that half precision makes wrong, such as the frequencies of rotary embeddings. The default is none.
        """
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn`, as `.to()` and `.bfloat16()` of this part or of a model around it do, to all tensors."""
        return super()._apply(keep_float32(self.float32_tensors(), fn), recurse)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of storing them; gradients stay the same.

        The default does nothing.
        """


class PretrainedPart(Part):
    """The base class of parts with weights of a named source, or random weights from a small config."""

    outline = EarlierName("meta_modules")

    @classmethod
    @abstractmethod
    def infer_spec(cls, config: Any) -> Any:
        """Return the spec of the part that `config` describes, without reading or creating weights.

        Raises:
            ConfigError: invalid settings, by their keys in `config`.
            SourceError: missing files of `config.pretrained`.
        """

    @classmethod
    def tiny_config(cls) -> Any:
        """Return the `Config` of a tiny part with random weights, built offline; `dreamkit test-plugin` builds it.

        Aim at widths of about 16, two layers and images of 16 to 32 pixels: a forward pass then takes milliseconds.

        Raises:
            NotImplementedError: the class does not define it. There is no default, as `Config()` names no weights.
        """
        raise NotImplementedError(
            f"{cls.__qualname__} has no tiny config to test it with; return a small Config with random weights from "
            "its classmethod `tiny_config`"
        )

    @classmethod
    def meta_modules(cls, config: Any) -> nn.Module | None:
        """Return modules with the names and types of the part of `config`, on the meta device; None if unsupported.

        dreamkit uses them to find the layers of an adapter before it reads any weights. The default is None.

        Raises:
            ConfigError: invalid settings, by their keys in `config`.
        """
        return None

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """Build the part with random weights from torch's global generator, in float32.

        Raises:
            ConfigError: invalid settings, by their keys in `config`.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(cls, config: Any) -> Self:
        """Build the part with the weights of `config.pretrained`, in float32.

        Raises:
            ConfigError: invalid settings, by their keys in `config`.
            SourceError: missing or damaged files of `config.pretrained`.
        """

    @classmethod
    def from_stored(cls, config: Any) -> Self | None:
        """Build the part of `from_pretrained` with weights of the types in their files; None if unsupported.

        Parameters are mapped from the files (see `dreamkit.stored_weights`), not copied. Training with several
        processes then reads only the slices that each process keeps. A cast of all floating-point tensors to float32
        must give the part of `from_pretrained`, bit by bit. So values that the part computes, now or in a later call
        such as `add_tokens`, are in float32 and use the same random numbers. The default is None.

        Raises:
            ConfigError: invalid settings, by their keys in `config`.
            SourceError: missing or damaged files of `config.pretrained`.
        """
        return None
