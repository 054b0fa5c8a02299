"""What parts say of themselves, and what is handed between them.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamkit.earlier_names import with_earlier_fields


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """The recipe section of a part that has weights of its own to name: exactly one of the two is given.

    `pretrained`: a hub name, a local folder in the Hugging Face format, or `pkg:package/folder`.
    `config`: a small dict from which the same part is built with random weights.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None

    @property
    def is_local(self) -> bool:
        """Whether `pretrained` names a folder of this machine, in which weights can be looked for at no cost."""
        return self.pretrained is not None and self.pretrained.startswith(("pkg:", "/", ".", "~"))


@dataclass(frozen=True)
class VisionSpec:
    """`image_size` in pixels (square), `num_tokens` V, `dim` of one token."""

    image_size: int
    num_tokens: int
    dim: int


@dataclass(frozen=True)
class LanguageSpec:
    """`dim` D; `vocab_size` before tokens are added; `max_length` in tokens; ids of the special tokens.

    `bos_id` is None where the model starts without one; `eos_ids` all end a text, the first one is written.
    `packing`: several documents may share a row; without it, a row holds one. `cache`: decoding can go on from cached
    keys and values; without it, all that was written is computed again for each token.
    `sliding_window`: how many positions an attention layer sees at most, its own included; None where all see all.
    `reserved_tokens`: the names of bos, eos and pad, which can stand for nothing else.
    """

    dim: int
    vocab_size: int
    max_length: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    packing: bool = True
    cache: bool = True
    sliding_window: int | None = None
    reserved_tokens: tuple[str, ...] = ()


@with_earlier_fields(out_scale="out_rms")
@dataclass(frozen=True)
class ProjectorSpec:
    """Tokens (N, in_tokens, in_dim) go in, (N, out_tokens, out_dim) come out.

    `out_rms` is the root mean square that whoever takes the tokens is used to, where it says (a decoder's
    `context_scale`): what a projector that ends in a norm brings them to. It is set by what is built around it.
    """

    in_dim: int
    out_dim: int
    in_tokens: int
    out_tokens: int
    out_rms: float = 1.0


@dataclass(frozen=True)
class DecoderSpec:
    """`context_dim` C; `context_tokens` Q' or None for any number; `pooled_dim` P or None.

    `context_scale` is the root mean square the decoder's own text encoder gives its context.
    `image_size` is the side in pixels it draws unasked, and every size must be a multiple of `size_multiple`.
    Latents of an H x W image are (latent_channels, H / latent_factor, W / latent_factor).
    `schedulers` are the names its `scheduler` takes, those that fit its `objective`, which is said in words, such as
    "flow matching"; None where it does not tell.
    `float32_modules` names the submodules that half precision breaks, such as SDXL's autoencoder: whatever dtype a
    decoder is brought to, they are never in less than float32.
    """

    context_dim: int
    image_size: int
    latent_channels: int
    latent_factor: int
    context_tokens: int | None = None
    context_scale: float = 1.0
    pooled_dim: int | None = None
    size_multiple: int = 8
    schedulers: tuple[str, ...] | None = None
    float32_modules: tuple[str, ...] = ()
    objective: str | None = None

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of an image of `size` (height, width) in pixels."""
        height, width = size
        if height % self.size_multiple or width % self.size_multiple or min(size) <= 0:
            raise ValueError(
                f"image size {height}x{width}, but both must be positive multiples of {self.size_multiple} pixels"
            )
        return self.latent_channels, height // self.latent_factor, width // self.latent_factor


class Head(NamedTuple):
    """The language-model head: logits = soft_cap(scale * (hidden @ weight.T + bias)). `weight` (vocabulary, D)."""

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    scale: float = 1.0


class Embedding(NamedTuple):
    """Input embeddings that are rows of tables: scale * weight[id], or scale * added[added_rows[id]] of added tokens.

    `weight` (vocabulary, D); `added` (K, D), with which `added_rows` (ids,) says the row of each id, -1 where it is one
    of `weight`. `scale` () is brought to a table's dtype, None: there is none. The row of `padding_id` learns nothing.
    """

    weight: Tensor
    added: Tensor | None = None
    added_rows: Tensor | None = None
    scale: Tensor | None = None
    padding_id: int | None = None


class NormWeights(NamedTuple):
    """An RMS norm: hidden / rms(hidden, eps) * (offset + weight). `offset` is 1 for Gemma, else 0."""

    weight: Tensor
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class ChatTemplate:
    """What a language model was taught to see around a conversation's turns.

    Each of `user` and `assistant` is the text before and after what that role says; special tokens in it are parsed.
    `system` is the text before and after a system message, and `default_system` is said where a conversation has none.
    What the assistant says, and the text after it, is learned.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] = ("", "")
    default_system: str = ""


@dataclass
class Condition:
    """What a decoder draws from: context (N, Q', C), an optional mask (N, Q') and, where wanted, pooled (N, P)."""

    context: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __getitem__(self, index: Any) -> Condition:
        """The condition of some of the images; `index` is anything that indexes a first dimension."""
        mask = None if self.mask is None else self.mask[index]
        return Condition(self.context[index], mask, None if self.pooled is None else self.pooled[index])

    @staticmethod
    def cat(first: Condition, second: Condition) -> Condition:
        """`first`'s images, then `second`'s.

        Raises:
            ValueError: one of them has a mask or a pooled vector, and the other has not.
        """

        def join(name: str) -> Tensor | None:
            a, b = getattr(first, name), getattr(second, name)
            if (a is None) != (b is None):
                raise ValueError(
                    f"one condition has a {name} tensor, the other has none; give it to both or neither"
                )
            return None if a is None else torch.cat([a, b])

        return Condition(torch.cat([first.context, second.context]), join("mask"), join("pooled"))
