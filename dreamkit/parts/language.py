"""The interface of a language model.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit.earlier_names import EarlierName
from dreamkit.parts.part import PretrainedPart
from dreamkit.parts.specs import ChatTemplate, Embedding, Head, LanguageSpec, NormWeights


class LanguageModel(PretrainedPart):
    """Token ids and embeddings to hidden states, and back to words."""

    spec: LanguageSpec
    chat: ChatTemplate

    new_token_parameters = EarlierName("added_token_parameters")
    unwritten_ids = EarlierName("suppressed_ids")

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
    def added_token_parameters(self) -> Sequence[nn.Parameter]:
        """The rows of added tokens, in the embedding and in the head; empty where nothing was added."""

    @property
    def suppressed_ids(self) -> frozenset[int]:
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
