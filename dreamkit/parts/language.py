"""The interface of a language model.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit.earlier_names import EarlierName
from dreamkit.parts.conversation import Turn, fixed_conversation
from dreamkit.parts.part import PretrainedPart
from dreamkit.parts.specs import ChatTemplate, Embedding, Head, LanguageSpec, NormWeights


class LanguageModel(PretrainedPart):
    """A part that turns input embeddings into hidden states and logits, with its tokenizer and chat template.

    Attributes:
        spec: shapes and abilities.
        chat: fixed texts around the turns of a conversation; None in a part that overrides `conversation`.
    """

    spec: LanguageSpec
    chat: ChatTemplate | None = None

    new_token_parameters = EarlierName("added_token_parameters")
    unwritten_ids = EarlierName("suppressed_ids")

    @abstractmethod
    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of `text` without bos or eos.

        If `special`, a special token's name in `text` becomes that token; otherwise it is tokenized as plain text.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""

    def token_name(self, token: int) -> str:
        """Return a name of one token for people, such as "<s>" for a special one.

        The default returns its text, or its id if it has none.
        """
        return self.decode([token]) or f"<{token}>"

    def conversation(self, turns: Sequence[Turn], prompt: bool) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation in the chat template, and a flag for each: train on the token.

        With `prompt`, the ids end where the assistant goes on writing: in its own last turn, or at the start of a new
        one. Otherwise all turns are whole. The token that ends an answer is trained on if the answer's last piece is.
        The default puts the texts of `chat` around the turns.

        Raises:
            DocumentError: the template refuses the conversation; the message does not name the document.
        """
        assert self.chat is not None, "a part without `chat` overrides `conversation`"
        return fixed_conversation(self, self.chat, turns, prompt)

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer with its added tokens into `folder`, in the Hugging Face format."""

    @abstractmethod
    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of the special `tokens`, in order; add those that the vocabulary lacks.

        Each added token gets new rows in the embedding and in the head, which can be trained on their own.
        """

    @abstractmethod
    def added_token_parameters(self) -> Sequence[nn.Parameter]:
        """Return the rows of added tokens, in the embedding and in the head; empty if no token was added."""

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Ids of added special tokens that generation never writes, such as padding and placeholders."""
        return frozenset()

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings (..., D) of `ids` (...), of any shape."""

    def embedding(self) -> Embedding | None:
        """Return the present tables whose rows `embed` reads; None if `embed` does more than read rows.

        A fused kernel reads the rows from these tables instead of calling `embed`. The default is None.
        """
        return None

    @abstractmethod
    def new_cache(self) -> Any:
        """Return an empty KV cache, which `forward` fills in place. Called only if `spec.cache` is true.

        The first call of `forward` decides its number of rows. Each later call has as many; a row without new tokens
        gets padding, which leaves an empty slot; without `spec.cache_padding`, there is no such row. The methods below
        change the rows between calls.
        """

    def select_rows(self, cache: Any, rows: Sequence[int]) -> bool:
        """Keep these rows of `cache`, in this order; return False, with `cache` unchanged, if the part cannot.

        A row that is named several times is copied. The memory of other rows is freed, and so are empty slots: a row
        then has at most as many slots as the longest row has tokens. The default returns False. Generation then
        computes rows of finished documents as padding, and in beam search each token with all before it.
        """
        return False

    def join_rows(self, cache: Any, other: Any) -> bool:
        """Append the rows of `other`; return False, with both unchanged, if the part cannot, which is the default.

        A new cache takes over the rows of `other`. Shorter rows get empty slots, as few as `select_rows` leaves. The
        caller does not use `other` again. If False, documents are computed in caches of their own.
        """
        return False

    def truncate_rows(self, cache: Any, lengths: Sequence[int]) -> bool:
        """Keep the first tokens of each row, as many as `lengths` names for it; a shorter row stays as it is.

        Return False, with `cache` unchanged, if the part cannot, which is the default: recurrent states cannot be
        taken back. The tokens are then computed again.
        """
        return False

    def copy_rows(self, cache: Any, rows: Sequence[int]) -> Any | None:
        """Return a new cache with these rows of `cache`, in this order; None if the part cannot.

        `forward` and the other methods change the two caches independently. A row that is named several times is
        copied as often. The new cache has no more empty slots than after `select_rows`. The default makes a deep copy
        of the whole cache, and calls `select_rows`.
        """
        copied = copy.deepcopy(cache)
        return copied if self.select_rows(copied, rows) else None

    def cache_bytes(self, cache: Any) -> int | None:
        """Return the memory of `cache` in bytes; None if it is unknown, which is the default."""
        return None

    @abstractmethod
    def forward(
        self,
        embeds_BTD: Tensor,
        position_ids_BT: Tensor,
        segment_ids_BT: Tensor,
        cache: Any | None = None,
    ) -> Tensor:
        """Compute the hidden states (B, T, D), before the final norm, of input embeddings (B, T, D).

        A token attends to the tokens of its own segment at its own and earlier positions, in this call and in `cache`.
        Positions start at 0 in each segment. Segment -1 is padding: no token attends to it, and its hidden states are
        finite but meaningless.

        A part whose spec has `document_attention` also takes `spans: Spans | None = None`: the tokens of each segment,
        which are known without reading `segment_ids_BT` from the device. The caller passes them in training, and in
        the first call with `cache`; attention then runs in each segment alone.
        """

    def library_forward(self, ids_BT: Tensor) -> Tensor | None:
        """Compute the logits (B, T, vocabulary) with the library behind the part alone; None if there is no library.

        The library uses masks and positions of its own. Tests compare its logits with those of `forward`.
        """
        return None

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the normed hidden states (..., D) of `hidden` (..., D)."""

    @property
    def norm_weights(self) -> NormWeights | None:
        """Weights of the final norm if it is an RMS norm, else None. A fused kernel computes the norm from them."""
        return None

    @abstractmethod
    def head(self) -> Head:
        """Return the head's own weights, with the rows of added tokens but without an adapter of the head.

        The training loss does not use them: it calls `logits`, which may compute more than these weights.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits (..., vocabulary) of normed hidden states (..., D), by the formula of `Head`."""
        weight, bias, soft_cap, scale = self.head()
        logits = F.linear(hidden, weight, bias) * scale
        return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
