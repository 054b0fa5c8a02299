"""Descriptions of parts, and the values that one part passes to another.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamkit.earlier_names import with_earlier_fields
from dreamkit.errors import count

# (start, stop) of the tokens of each document in each row, in ascending order; other tokens are padding
Spans = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """The base of the recipe section of a part that has weights. A recipe sets exactly one of the two fields.

    Attributes:
        pretrained: source of the weights: a hub name, a local folder in the Hugging Face format, or
            `pkg:package/folder` for files inside an installed package.
        config: a small dict from which the same part is built with random weights.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None

    @property
    def is_local(self) -> bool:
        """Flag: `pretrained` names a folder of this machine, where looking for weights takes no network."""
        return self.pretrained is not None and self.pretrained.startswith(("pkg:", "/", ".", "~"))


@dataclass(frozen=True)
class VisionSpec:
    """The shapes of a vision encoder.

    Attributes:
        image_size: height and width of the pixels it reads.
        num_tokens: number V of tokens of an image.
        dim: width of a token.
        resized_side: pixels of the shorter side of an image after `preprocess` resizes it, before any crop. It is None
            if they are unknown, or if the pixels depend on the image's own size. Equality ignores it.
    """

    image_size: int
    num_tokens: int
    dim: int
    resized_side: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LanguageSpec:
    """The shapes and abilities of a language model.

    Attributes:
        dim: width D of embeddings and hidden states.
        vocab_size: number of ids before tokens are added.
        max_length: greatest number of tokens of a document, and of a row of packed documents.
        bos_id: id that starts a document; None if documents start without one.
        eos_ids: ids that end a document. Training appends the first one; generation stops at any.
        pad_id: id that fills a row.
        packing: flag: several documents may share a row. Otherwise a row holds one document.
        cache: flag: decoding can continue from cached keys and values. Otherwise generation recomputes the whole
            document for each token.
        cache_padding: flag: a call with a cache may have padding. Otherwise each row gets the same number of tokens.
        sliding_window: greatest number of positions, its own included, that a token sees in an attention layer; None
            if there is no limit.
        reserved_tokens: names of bos, eos and pad, which a recipe may not use for another special token.
        conversation_problem: reason why the part refuses every conversation, with a remedy; None if it does not.
        document_attention: flag: `forward` takes `spans`, and its attention then costs what the documents cost.
            Otherwise attention costs what whole rows cost.
    """

    dim: int
    vocab_size: int
    max_length: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    packing: bool = True
    cache: bool = True
    cache_padding: bool = True
    sliding_window: int | None = None
    reserved_tokens: tuple[str, ...] = ()
    conversation_problem: str | None = None
    document_attention: bool = False


@with_earlier_fields(out_scale="out_rms")
@dataclass(frozen=True)
class ProjectorSpec:
    """The shapes of a projector: it maps tokens (N, in_tokens, in_dim) to tokens (N, out_tokens, out_dim).

    Attributes:
        in_dim: width of an input token.
        out_dim: width of an output token.
        in_tokens: number of input tokens of an image.
        out_tokens: number of output tokens of an image.
        out_rms: root mean square that the reader of the output expects: for a condition projector, the decoder's
            `context_scale`. A projector that ends in a norm starts it at this value. dreamkit sets it after
            `infer_spec`.
    """

    in_dim: int
    out_dim: int
    in_tokens: int
    out_tokens: int
    out_rms: float = 1.0


@dataclass(frozen=True)
class DecoderSpec:
    """The shapes and abilities of an image decoder.

    Attributes:
        context_dim: width C of a token of context.
        image_size: default height and width of a drawn image, in pixels.
        latent_channels: channels c of the latents.
        latent_factor: pixels per latent along a side: latents are (c, H / latent_factor, W / latent_factor).
        context_tokens: number Q' of tokens of context; None for any number.
        context_scale: root mean square of the context from the decoder's own text encoder.
        pooled_dim: width P of the pooled vector; None if the decoder takes none.
        size_multiple: height and width of an image must be multiples of this number of pixels.
        schedulers: names that `ImageDecoder.scheduler` accepts, those that fit `objective`; None if unknown.
        float32_modules: names of submodules that fail in half precision, such as SDXL's autoencoder. They stay in
            float32 or more, whatever dtype the decoder is moved to.
        objective: training objective in words, such as "flow matching"; None if unknown.
        resized_side: pixels of the shorter side of an image after `preprocess` resizes it, before any crop. It is None
            if they are unknown, or if targets or extras depend on the image's own size. Equality ignores it.
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
    resized_side: int | None = field(default=None, compare=False)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the (channels, height, width) of the latents of an image of `size` (height, width) in pixels.

        Raises:
            ValueError: `size` is not a positive multiple of `size_multiple`.
        """
        height, width = size
        if height % self.size_multiple or width % self.size_multiple or min(size) <= 0:
            raise ValueError(
                f"expected positive multiples of {count(self.size_multiple, 'pixel')} as image size, got "
                f"{height} x {width}"
            )
        return self.latent_channels, height // self.latent_factor, width // self.latent_factor


class Head(NamedTuple):
    """The head of a language model: logits = soft_cap(scale * (hidden @ weight.T + bias)).

    soft_cap(x) is `soft_cap` * tanh(x / `soft_cap`) (Gemma 2, arXiv 2408.00118, section 2).

    Attributes:
        weight: matrix (vocabulary, D).
        bias: vector (vocabulary,), or None.
        soft_cap: bound of the logits, or None.
        scale: factor of the logits.
    """

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    scale: float = 1.0


class Embedding(NamedTuple):
    """The tables whose rows are the input embeddings.

    The embedding of an id is scale * weight[id], or scale * added[added_rows[id]] for an added token.

    Attributes:
        weight: table (vocabulary, D).
        added: table (K, D) of added tokens, or None.
        added_rows: row of `added` for each id (ids,), -1 if the id's row is in `weight`; None without `added`.
        scale: factor (), cast to the dtype of the table; None for 1.
        padding_id: id whose row gets no gradient, or None.
    """

    weight: Tensor
    added: Tensor | None = None
    added_rows: Tensor | None = None
    scale: Tensor | None = None
    padding_id: int | None = None


class NormWeights(NamedTuple):
    """An RMS norm (arXiv 1910.07467): hidden / sqrt(mean(hidden ** 2) + eps) * (offset + weight).

    Attributes:
        weight: vector (D,).
        eps: constant under the root.
        offset: 1 for Gemma's norms, else 0.
    """

    weight: Tensor
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class ChatTemplate:
    """The text that a language model expects around the turns of a conversation.

    Special tokens in it are parsed. The assistant's turns, and the text after them, are trained on.

    Attributes:
        user: text before and after a user's turn.
        assistant: text before and after an assistant's turn.
        system: text before and after a system message.
        default_system: system message of a conversation that has none; "" for no message.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] = ("", "")
    default_system: str = ""


@dataclass
class Condition:
    """The input from which a decoder draws N images.

    Attributes:
        context: tokens (N, Q', C) for cross-attention.
        mask: (N, Q'), 1 for tokens to attend to and 0 for others; None for all tokens.
        pooled: vector (N, P) for a decoder with `pooled_dim`, else None.
    """

    context: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __getitem__(self, index: Any) -> Condition:
        """Return the condition of some of the images; `index` is any index of a tensor's first dimension."""
        mask = None if self.mask is None else self.mask[index]
        return Condition(self.context[index], mask, None if self.pooled is None else self.pooled[index])

    @staticmethod
    def cat(first: Condition, second: Condition) -> Condition:
        """Return the condition of the images of `first`, then those of `second`.

        Raises:
            ValueError: only one of the two has a mask, or only one has a pooled vector.
        """

        def join(name: str) -> Tensor | None:
            a, b = getattr(first, name), getattr(second, name)
            if (a is None) != (b is None):
                raise ValueError(f"expected a {name} tensor in both conditions or in neither, got one in one")
            return None if a is None else torch.cat([a, b])

        return Condition(torch.cat([first.context, second.context]), join("mask"), join("pooled"))
