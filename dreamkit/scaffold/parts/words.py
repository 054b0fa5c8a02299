"""The tokenizer, embedding and head of a language model; embedding and head share one matrix.

D width, K added tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dreamkit import ChatTemplate, Embedding, Head, LanguageModel, PartConfig, SourceError, locate

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
STD = 0.02  # standard deviation of new embeddings


class Words(LanguageModel):
    """A tokenizer, embedding and head. The rows of added tokens, `new_rows` (K, D), can be trained alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, dim: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        # Training includes the end of the assistant's turn, which must be a token that ends a text.
        self.chat = ChatTemplate(user=("User: ", "\n"), assistant=("Assistant: ", tokenizer.eos_token))
        self.rows = nn.Parameter(STD * torch.randn(len(tokenizer), dim))
        self.new_rows: nn.Parameter | None = None

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        # Unless `special`, '</s>' in a text is five characters and ends nothing.
        encoding = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
        return encoding["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        special = [AddedToken(token, special=True, normalized=False) for token in tokens]
        self.tokenizer.add_tokens(special, special_tokens=True)
        missing = len(self.tokenizer) - len(self.head().weight)
        if missing:  # near the mean row, so that a new token is as likely as an average one
            mean = self.rows.detach().mean(0).expand(missing, -1)
            new = mean + STD * torch.randn_like(mean)
            self.new_rows = nn.Parameter(torch.cat([*self.added_token_parameters(), new]))
        vocabulary = self.tokenizer.get_vocab()
        return [vocabulary[token] for token in tokens]

    def added_token_parameters(self) -> Sequence[nn.Parameter]:
        return [] if self.new_rows is None else [self.new_rows]

    def head(self) -> Head:
        return Head(torch.cat([self.rows, *self.added_token_parameters()]))

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.head().weight)

    def embedding(self) -> Embedding:
        return Embedding(self.head().weight)

    @property
    def suppressed_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder) - {self.tokenizer.eos_token_id}


def tokenizer_of(config: PartConfig) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the `pretrained` folder, or a tokenizer of bytes.

    Raises:
        SourceError: the folder has no tokenizer, or it lacks a bos, eos or pad token.
    """
    if config.pretrained is None:
        return byte_tokenizer()
    folder = locate(config.pretrained, ["tokenizer.json"], weights=False)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the compiled part of the library raises plain Exceptions
        raise SourceError(f"{folder}: cannot read the tokenizer: {error}") from error
    missing = [name for name in SPECIAL if getattr(tokenizer, name) is None]
    if missing:
        raise SourceError(
            f"{folder}: the tokenizer lacks {' and '.join(missing)}; set it in tokenizer_config.json"
        )
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer in memory, with a token for each byte of UTF-8, for any text, and the special tokens."""
    names = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
