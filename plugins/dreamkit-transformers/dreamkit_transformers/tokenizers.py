"""Tokenizers: reading one from a source, making one in memory, and giving it special tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dreamkit import SourceError, locate
from dreamkit_transformers.configs import one_line, quiet

TOKENIZER_FILES = "tokenizer.json|tokenizer.model"
KNOWN_TOKENS = (
    "known_tokens.json"  # of a well-known model: the size of its vocabulary, and its special tokens
)

# Where a saved tokenizer says which of its tokens a model without them was given.
_NEW_TOKENS = "dreamkit_new_tokens"


def known_or(files: str, is_local: bool) -> str:
    """The pattern of a tokenizer's files, or of what stands in for those of a well-known model of the hub."""
    return files if is_local else f"{files}|{KNOWN_TOKENS}"


def read_tokenizer(
    pretrained: str, key: str = "tokenizer", known: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a source; `key` is the setting that names it.

    With `known`, the folder of well-known models, one of those gets a stand-in of the same size and special tokens,
    where its own files are not there.

    Raises:
        SourceError: the source has none, or it cannot be read.
    """
    try:
        pattern = known_or(TOKENIZER_FILES, is_local=known is None)
        folder = locate(pretrained, [pattern], weights=False, known=known)
    except SourceError as error:
        raise SourceError(str(error), key) from error
    if known is not None and (folder / KNOWN_TOKENS).is_file():
        return _stand_in(folder / KNOWN_TOKENS)
    try:
        with quiet():  # the folder may hold another library's config.json
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library and its compiled parts raise what they like about a damaged file
        raise SourceError(f"{folder}: the tokenizer cannot be read: {one_line(error)}", key) from error


def byte_tokenizer(has_bos: bool = True) -> PreTrainedTokenizerBase:
    """A tokenizer that needs no files: a few special tokens, and one for each byte of UTF-8."""
    pad, bos, eos, unk = special = ["<pad>", "<s>", "</s>", "<unk>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos if has_bos else None,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )


def _stand_in(file: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with the size and the special tokens that a file tells; it knows no other word."""
    told = json.loads(file.read_text(encoding="utf-8"))
    names = {index: f"<{index}>" for index in range(told["size"])}
    names |= {index: name for name, index in told["special"].items()}
    words = models.WordLevel({name: index for index, name in names.items()}, unk_token=names[0])
    roles = {f"{role}_token": told[role] for role in ("bos", "eos", "pad") if told.get(role)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), additional_special_tokens=list(told["special"]), **roles
    )


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows the tokens of ordinary text need: special ones that a model lacks are given rows."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return 1 + max(set(tokenizer.get_vocab().values()) - special, default=-1)


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that `add_special` gave this tokenizer, before or after it was saved."""
    return list(tokenizer.init_kwargs.get(_NEW_TOKENS, ()))


def add_special(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Makes every one of `tokens` special, and remembers which of them the vocabulary did not have."""
    known = tokenizer.get_vocab()
    unknown = [token for token in dict.fromkeys(tokens) if token not in known]
    # a token that is in the vocabulary keeps its id, but is from now on left out of decoded text
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )
    tokenizer.init_kwargs[_NEW_TOKENS] = [*new_tokens(tokenizer), *unknown]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer so that reading it back gives the same ids."""
    legacy = getattr(tokenizer, "legacy", None)
    if legacy is not None:
        # where LLaMA's puts its spaces depends on it, and the library does not write it down
        tokenizer.init_kwargs["legacy"] = legacy
    tokenizer.save_pretrained(folder)
