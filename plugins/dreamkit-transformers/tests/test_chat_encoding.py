"""Long conversations: they are tokenized once, in divisions, with the labels of each answer found alone."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken

from chat_tokenizers import SPECIAL, TEMPLATES, TOKENIZERS
from chats import conversation, conversations, part_of, sequencer_of
from dreamkit import Document, DocumentError
from dreamkit_transformers.chat_encoding import Encoding
from dreamkit_transformers.chat_rendering import Rendering, common_length

ADDED = {
    "<|turn|>": {"normalized": False},
    "<|Turn of all|>": {"normalized": False, "rstrip": True},
    "<|left|>": {"normalized": False, "lstrip": True},
    "wo": {"normalized": False, "single_word": True},
    "<|Normal|>": {"normalized": True},
    "rd": {"normalized": True},
}


@cache
def tokenizer_with_added_tokens(kind: str) -> Any:
    """Return a tokenizer with the tokens of `ADDED`, none of which is special."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_tokens([AddedToken(name, special=False, **options) for name, options in ADDED.items()])
    return tokenizer


def long_conversation(turns: int) -> Document:
    return conversation(*[("user", "12 1"), ("assistant", "8 98")] * (turns // 2))


@pytest.mark.parametrize("template", [*TEMPLATES])
def test_a_long_conversation_takes_the_renderings_of_a_short_one(template: str, monkeypatch: Any) -> None:
    part = part_of("byte-level", template)
    sequencer, kind = sequencer_of(part), type(part.tokenizer)
    render, encode = kind.apply_chat_template, kind.__call__
    work = Counter[str]()

    def count_rendering(self: Any, *args: Any, **options: Any) -> Any:
        work["renderings"] += 1
        return render(self, *args, **options)

    def count_characters(self: Any, text: str, **options: Any) -> Any:
        work["characters"] += len(text)
        return encode(self, text, **options)

    monkeypatch.setattr(kind, "apply_chat_template", count_rendering)
    monkeypatch.setattr(kind, "__call__", count_characters)
    renderings, characters = [], []
    for turns in (6, 60, 200):
        work.clear()
        sequence = sequencer.sequence(long_conversation(turns))
        renderings.append(work["renderings"])
        characters.append(work["characters"] / len(part.decode([*sequence.ids])))
    assert renderings == [renderings[0]] * 3
    # without special tokens between turns, each answer is found by tokenizing all before it
    assert template == "ends once" or max(characters) < 5


@pytest.mark.parametrize("is_special", [True, False], ids=["special", "not special"])
def test_added_tokens_divide_a_long_conversation(is_special: bool, monkeypatch: Any) -> None:
    """Early tokenizers of Phi-3 have turns between tokens that are not special."""
    tokenizer = TOKENIZERS["byte-level"]()
    names = [f"<|turn of {role}|>" for role in ("user", "assistant")]
    tokenizer.add_tokens(
        [AddedToken(name, special=is_special, normalized=False, rstrip=True) for name in names]
    )
    text = "".join(f"{name}\n8 98 " for name in names * 100)
    encoding, characters = Encoding(tokenizer, text, {}), Counter[str]()
    encode = encoding._ids

    def count_characters(text: str, **options: bool) -> list[int]:
        characters["encoded"] += len(text)
        return encode(text, **options)

    monkeypatch.setattr(encoding, "_ids", count_characters)
    for match in re.finditer("8 98", text):
        assert tokenizer.decode(encoding.ids[: encoding.tokens_before(match.end())]).endswith("8 98")
    assert characters["encoded"] <= len(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*ADDED, *SPECIAL[1:], "1", " ", "\n", "word", "é"]), max_size=12),
    end=st.integers(0, 12),
)
def test_the_tokens_before_a_place_are_those_of_the_whole_text_before_it(
    kind: str, pieces: list[str], end: int
) -> None:
    tokenizer = tokenizer_with_added_tokens(kind)
    text, before = "".join(pieces), "".join(pieces[:end])
    encoding = Encoding(tokenizer, text, {})
    expected = common_length(Encoding(tokenizer, before, {}).ids, encoding.ids)
    assert encoding.tokens_before(len(before)) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(template=st.sampled_from([*TEMPLATES]), document=conversations())
def test_answers_found_together_have_the_labels_of_each_found_alone(
    kind: str, template: str, document: Document
) -> None:
    sequencer = sequencer_of(part_of(kind, template))
    try:
        sequence = sequencer.sequence(document)
    except DocumentError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rendering, "_inner", {})
        patch.setattr(Encoding, "_divisions", [(0, 0)])
        assert sequencer.sequence(document).labels == sequence.labels
