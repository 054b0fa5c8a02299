"""The four parts of a model as abstract classes; their specs are in `dreamkit.specs`.

Shape suffixes, here and everywhere: B rows of a batch, T tokens of a row, S cached tokens, N images (N >= 1),
V vision tokens of an image, Q dream queries, D language width, C context width, P pooled width, H and W pixels,
L labelled tokens. Images are float, in [-1, 1] where a decoder trains on them and in [0, 1] where one is drawn.

A part is an `nn.Module` whose class names a frozen dataclass `Config`: its section of a recipe. It is made by
`from_config` (random weights) or `from_pretrained` (weights of a named source), and `spec_from` tells its shapes
beforehand, from config and tokenizer files alone. `dreamkit.testing` checks what is said here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit.diffusion import Scheduler, drawn_latents, unit_noise
from dreamkit.drawing import Drawing, Extras
from dreamkit.precision import keeping_float32
from dreamkit.specs import (
    ChatTemplate,
    Condition,
    DecoderSpec,
    Embedding,
    Head,
    LanguageSpec,
    NormWeights,
    ProjectorSpec,
    VisionSpec,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class Part(nn.Module, ABC):
    """What the four interfaces have in common.

    `config` is the section it was made from, and `spec` describes the made part. `adapter_targets` names the linear
    layers (by the end of their module name) that LoRA attaches to when a recipe names none; a part without any cannot
    be adapted (one that finds them in its model may set them in `__init__`, and so does its `outline`). They are
    looked for in `adapter_root`, the name of the submodule that is the library's own model, so that the library can
    open what was learned; "" is the part itself.
    """

    Config: ClassVar[type]
    adapter_targets: ClassVar[tuple[str, ...]] = ()
    adapter_root: ClassVar[str] = ""
    config: Any
    spec: Any

    @classmethod
    def miniature(cls) -> Any:
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

    @classmethod
    @abstractmethod
    def spec_from(cls, config: Any) -> Any:
        """The spec of the part that `config` describes, without reading or making weights.

        Raises:
            ConfigError: what cannot be, by the keys of `config`; a SourceError where `config.pretrained` names
                something that cannot be found.
        """

    @classmethod
    def miniature(cls) -> Any:
        raise NotImplementedError(
            f"{cls.__qualname__} has no miniature to be tested by; return a small Config with random weights from "
            "its classmethod `miniature`"
        )

    @classmethod
    def outline(cls, config: Any) -> nn.Module | None:
        """Modules of the names and types that the part of `config` has, on the meta device; None: it does not tell.

        What it gives is asked, before any weights are read, whether an adapter finds its layers.
        """
        return None

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """The part with random weights, drawn from torch's global generator."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, config: Any) -> Self:
        """The part with the weights of `config.pretrained`, in float32."""


class VisionEncoder(PretrainedPart):
    """Pictures to vision tokens."""

    spec: VisionSpec

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        """Any pictures, of any size and mode -> pixels (N, 3, image_size, image_size)."""

    @abstractmethod
    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> features (N, V, dim)."""

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor | None:
        """The features as the library behind the part computes them by itself; None: no library is behind it."""
        return None


class LanguageModel(PretrainedPart):
    """Token ids and embeddings to hidden states, and back to words."""

    spec: LanguageSpec
    chat: ChatTemplate

    @abstractmethod
    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text` alone, without bos or eos; names of special tokens are parsed only where `special`."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer, added tokens included, in the Hugging Face format."""

    @abstractmethod
    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Ids of the special `tokens`, in order; those the vocabulary lacks get new, separately trained rows."""

    @abstractmethod
    def new_token_parameters(self) -> Sequence[nn.Parameter]:
        """The rows of added tokens, in the embedding and in the head; empty where nothing was added."""

    @property
    def unwritten_ids(self) -> frozenset[int]:
        """Ids of added special tokens, such as padding and placeholders, that a text never holds."""
        return frozenset()

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Ids of any shape (...) -> input embeddings (..., D)."""

    def embedding(self) -> Embedding | None:
        """The tables whose rows `embed` gives, as they are now; None: it does more than that, or does not tell."""
        return None

    @abstractmethod
    def new_cache(self) -> Any:
        """An empty cache for `forward`, which fills it in place; asked for where `spec.cache` is true."""

    @abstractmethod
    def forward(
        self, embeds_BTD: Tensor, position_ids_BT: Tensor, segment_ids_BT: Tensor, cache: Any | None = None
    ) -> Tensor:
        """Input embeddings (B, T, D) -> hidden states (B, T, D) before the final norm.

        A token sees those of its own segment at its own and earlier positions, in this call and in `cache`. Segment -1
        is padding: nobody sees it, and its hidden states are finite but meaningless. Positions start at 0 in a segment.
        """

    def library_forward(self, ids_BT: Tensor) -> Tensor | None:
        """Logits (B, T, vocabulary) of the library behind the part, with masks and positions of its own; None: none."""
        return None

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> normed hidden states (..., D)."""

    @property
    def norm_weights(self) -> NormWeights | None:
        """The final norm's weights where it is an RMS norm, else None."""
        return None

    @abstractmethod
    def head(self) -> Head:
        """The head's own weights, rows of added tokens included; an adapter of the head is in `logits` alone.

        The loss is computed from `logits`, some rows at a time, which may therefore be anything.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed hidden states (..., D) -> logits (..., vocabulary)."""
        weight, bias, soft_cap, scale = self.head()
        logits = F.linear(hidden, weight, bias) * scale
        return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


class Projector(Part):
    """Tokens of one width to tokens of another. Its widths come from its neighbours, never from the recipe."""

    spec: ProjectorSpec

    @classmethod
    @abstractmethod
    def spec_from(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        """The spec between neighbours of these widths, the number of output tokens decided by `config`."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, spec: ProjectorSpec) -> Self:
        """The projector with random weights, drawn from torch's global generator."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """(N, in_tokens, in_dim) -> (N, out_tokens, out_dim)."""

    def dense_layers(self) -> Sequence[nn.Linear] | None:
        """Its matrices in order, GELU between them, where it is nothing else; None otherwise."""
        return None


class ImageDecoder(Drawing, PretrainedPart):
    """A condition to a picture, by diffusion or flow in a latent space. It owns objective, schedulers and scales.

    `latent_root` names the submodule whose weights alone make `posterior` ("": the part itself); None: it has none.
    """

    spec: DecoderSpec
    latent_root: ClassVar[str | None] = None

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        """Any pictures -> targets (N, 3, H, W) in [-1, 1], and extras (N, ...) such as original size and crop."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()`, `.bfloat16()` and the like go through, also those of a model this is in."""
        modules = [self.get_submodule(name) for name in self.spec.float32_modules]
        return super()._apply(keeping_float32(modules, fn), recurse)

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """The extras (count, ...) to draw images of `size` (height, width) with."""
        return {}

    def posterior(self, targets_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Targets -> mean and standard deviation (None: it is 0) of their scaled latents, without gradient."""
        raise NotImplementedError(f"{type(self).__qualname__} has neither `posterior` nor its own `encode`")

    def encode(self, targets_NCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets (N, 3, H, W) in [-1, 1] -> scaled latents, drawn from the posterior with `generator`."""
        return drawn_latents(*self.posterior(targets_NCHW), generator)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (N, 3, H, W) in [0, 1]."""

    @abstractmethod
    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Training timesteps (count,) drawn as the objective wants them."""

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents of the given timesteps, and what the network should predict from them."""

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        """The network's prediction for noisy latents (N, c, h, w)."""

    def constant(self, condition: Condition) -> AbstractContextManager[None]:
        """Within it, `denoise` may keep what it computes from `condition` alone.

        That is from this very object, whose tensors stay as they are within, as do the part's weights. What is
        predicted, from it and from any other, is the same to the bit. Contexts may overlap. The default keeps nothing.
        """
        return nullcontext()

    def library_forward(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras
    ) -> Tensor | None:
        """The prediction as the library behind the part computes it by itself; None: no library is behind it."""
        return None

    @abstractmethod
    def scheduler(self, name: str | None = None) -> Scheduler:
        """A fresh sampling scheduler by name (None: the decoder's own).

        Raises:
            ValueError: no such scheduler, or one that does not fit the objective.
        """

    def loss(
        self,
        latents: Tensor,
        condition: Condition,
        extras: Extras,
        *,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The denoising loss (N,), one an image: mean squared error over the latent's elements, in float32."""
        if noise is None:
            noise = unit_noise(latents.shape, generator, latents)
        if timesteps is None:
            timesteps = self.timesteps(latents.shape[0], generator).to(latents.device)
        noisy, target = self.noisy(latents, noise, timesteps)
        prediction = self.denoise(noisy, timesteps, condition, extras)
        return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
