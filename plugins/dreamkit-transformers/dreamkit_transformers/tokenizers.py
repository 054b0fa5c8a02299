"""Tokenizers: read one from a source, build one in memory, add special tokens, save."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dreamkit import SourceError, library_errors, locate
from dreamkit_transformers.configs import quiet_library

TOKENIZER_FILES = "tokenizer.json|tokenizer.model"
KNOWN_TOKENS = "known_tokens.json"  # the vocabulary size and special tokens of a well-known model

# keys of a saved tokenizer: the tokens that its vocabulary lacked, and a flag that release 0.1 did not write
_NEW_TOKENS = "dreamkit_new_tokens"
_OWN_LAYOUT = "dreamkit_own_layout"


def tokenizer_files(or_known: bool) -> str:
    """Return the pattern of tokenizer files, with `or_known` including the stand-ins of well-known models."""
    return f"{TOKENIZER_FILES}|{KNOWN_TOKENS}" if or_known else TOKENIZER_FILES


def read_tokenizer(
    pretrained: str, key: str = "tokenizer", known: str | None = None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a source.

    With `known`, the folder of well-known models, a model there whose own files are missing gets a stand-in: a
    tokenizer with the same size and special tokens.

    Raises:
        SourceError: the source has no tokenizer or it cannot be read; `key` is the setting that names the source.
    """
    try:
        pattern = tokenizer_files(or_known=known is not None)
        folder = locate(pretrained, [pattern], weights=False, known=known)
    except SourceError as error:
        raise SourceError(str(error), key) from error
    if known is not None and (folder / KNOWN_TOKENS).is_file():
        return _stand_in(folder / KNOWN_TOKENS)
    # quiet, since the folder may hold another library's config.json
    with library_errors(f"{folder}: the tokenizer cannot be read", key), quiet_library(), _panics():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        settings = [tokenizer.init_kwargs, tokenizer.chat_template]
        json.dumps(settings, ensure_ascii=False, default=str).encode()  # a lone surrogate could not be saved
        tokenizer("a")  # the tokens around a text may be unknown
        return tokenizer


@contextmanager
def _panics() -> Iterator[None]:
    """Raise a panic of the library's Rust code, which is no `Exception`, as a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"panic of the library tokenizers: {error}") from error


def byte_tokenizer(has_bos: bool = True) -> PreTrainedTokenizerBase:
    """Return a tokenizer of 256 bytes and a few special tokens, which needs no files."""
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
        add_bos_token=has_bos,
        clean_up_tokenization_spaces=False,
    )


def _stand_in(file: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the size and special tokens in `file`, and no other words."""
    content = json.loads(file.read_text(encoding="utf-8"))
    names = {index: f"<{index}>" for index in range(content["size"])}
    names |= {index: name for name, index in content["special"].items()}
    words = models.WordLevel({name: index for index, name in names.items()}, unk_token=names[0])
    roles = {f"{role}_token": content[role] for role in ("bos", "eos", "pad") if content.get(role)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words),
        additional_special_tokens=list(content["special"]),
        add_bos_token=content.get("adds_bos", "bos_token" in roles),
        **roles,
    )


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of embedding rows for ordinary text; special tokens that a model lacks get added rows."""
    return 1 + max(set(tokenizer.get_vocab().values()) - special_ids(tokenizer), default=-1)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens."""
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def bos_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that the tokenizer puts before a text, or None.

    Raises:
        SourceError: it puts several tokens there.
    """
    if is_of_release_0_1(tokenizer):
        return tokenizer.bos_token_id
    text, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next((at for at in range(len(whole)) if whole[at : at + len(text)] == text), 0)
    if start > 1:
        names = ", ".join(tokenizer.convert_ids_to_tokens(whole[:start]))
        raise SourceError(
            f"expected at most one token before a text, got {start} ({names}) from the tokenizer "
            f"'{tokenizer.name_or_path}'; name another tokenizer",
            "tokenizer",
        )
    return whole[0] if start else None


def is_of_release_0_1(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True for the tokenizer of a checkpoint of release 0.1.

    That release put a bos before every text if the tokenizer has one, and the family's texts around turns.
    """
    return _NEW_TOKENS in tokenizer.init_kwargs and _OWN_LAYOUT not in tokenizer.init_kwargs


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that `add_special` added to the vocabulary, also before the tokenizer was saved."""
    return list(tokenizer.init_kwargs.get(_NEW_TOKENS, ()))


def add_special(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Make all `tokens` special, and record in `new_tokens` those that the vocabulary lacked."""
    if not is_of_release_0_1(tokenizer):
        tokenizer.init_kwargs[_OWN_LAYOUT] = True
    known = tokenizer.get_vocab()
    unknown = [token for token in dict.fromkeys(tokens) if token not in known]
    # a token of the vocabulary keeps its id; decoded text leaves it out from now on
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
    )
    tokenizer.init_kwargs[_NEW_TOKENS] = [*new_tokens(tokenizer), *unknown]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer to `folder` so that it has the same ids when read back."""
    legacy = getattr(tokenizer, "legacy", None)
    if legacy is not None:
        # where LLaMA's tokenizer puts spaces depends on this setting, which the library does not save
        tokenizer.init_kwargs["legacy"] = legacy
    tokenizer.save_pretrained(folder)
