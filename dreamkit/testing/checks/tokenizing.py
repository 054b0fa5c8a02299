"""Checks of a language model's tokenizer, of tokens added to it, and of its chat template."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from dreamkit.data.sequence import IGNORED, Sequencer
from dreamkit.document import Document, Text
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit.testing.check import check
from dreamkit.testing.expect import expect, expect_true
from dreamkit.testing.subject import weighted_sum
from dreamkit.testing.subject_kinds import TOKENS, LanguageSubject, positions

KIND = "language_model"

# positions in the vocabulary, counted round and round
words = st.lists(st.integers(0, 9999), min_size=1, max_size=6)


def raw_text(part: Any, word: list[int]) -> str:
    """The text of ordinary tokens of the vocabulary."""
    special = {*part.spec.eos_ids, part.spec.pad_id, part.spec.bos_id, *part.suppressed_ids}
    ordinary = [index for index in range(part.spec.vocab_size) if index not in special]
    return part.decode([ordinary[number % len(ordinary)] for number in word]).strip()


def text_of(part: Any, word: list[int]) -> str:
    """Such text as the tokenizer gives it back; whether it is the same is a check of its own."""
    return part.decode(part.tokenize(raw_text(part, word))).strip()


@check(KIND)
def vocabulary(subject: LanguageSubject) -> None:
    """The ids that begin and end a text stand for no words, and those of `reserved_tokens` are bos, eos and pad.

    A text ends where the model ends it, and a special token of a recipe cannot take the place of its end.
    """
    part, spec = subject.part, subject.part.spec
    expect_true(spec.eos_ids, f"spec.eos_ids={spec.eos_ids}", "not empty: something ends a text")
    silent = [*spec.eos_ids, *([] if spec.bos_id is None else [spec.bos_id])]
    for index in silent:
        subject.doing = f"decode([{index}])"
        expect(part.decode([index]), "", f"the text of id {index}")
    ids = [*silent, spec.pad_id]
    for name in spec.reserved_tokens:
        subject.doing = f"tokenize('{name}', special=True)"
        found = part.tokenize(name, special=True)
        expect_true(len(found) == 1 and found[0] in ids, f"the ids of '{name}' are {found}", f"one of {ids}")
    unwritten = sorted(set(spec.eos_ids) & part.suppressed_ids)
    expect(unwritten, [], "eos_ids among suppressed_ids")


@check(KIND, word=st.lists(st.integers(0, 9999), min_size=12, max_size=24))
def text_round_trip(subject: LanguageSubject, word: list[int]) -> None:
    """Text that was tokenized and decoded is the same text, and no special token is added to it.

    What a model reads is what was written.
    """
    part = subject.part
    text = raw_text(part, word)
    subject.doing = f"decode(tokenize({text!r}))"
    ids = part.tokenize(text)
    added = {part.spec.bos_id, *part.spec.eos_ids} & set(ids)
    expect_true(not added, f"tokenize adds the special ids {sorted(added)}", "nothing but the text's own")
    expect(part.decode(ids).strip(), text, "the text")
    expect(part.tokenize(""), [], "tokenize('')")


@check(KIND, word=words)
def special_tokens(subject: LanguageSubject, word: list[int]) -> None:
    """An added token is one id, found only where special tokens are asked for, and left out of decoded text.

    Nobody can make the model draw by writing `<dream_start>` in a caption, and no answer shows such names.
    """
    part, text = subject.part, text_of(subject.part, word)
    ids = list(subject.token_ids.values())
    expect(len(set(ids)), len(TOKENS), "the number of ids of two added tokens")
    subject.doing = f"add_tokens({list(TOKENS)}) a second time"
    expect(part.add_tokens(TOKENS), ids, "their ids")
    for token, index in subject.token_ids.items():
        subject.doing = f"tokenize({text + token + text!r}, special=True)"
        found = part.tokenize(text + token + text, special=True)
        expect(found.count(index), 1, f"the number of times that id {index} is found")
        at = found.index(index)
        expect(part.decode(found[:at]).strip(), text, f"the text before '{token}'")
        expect(part.decode(found[at + 1 :]).strip(), text, f"the text behind '{token}'")
        expect(part.decode([index]), "", f"the text of '{token}'")
        subject.doing = f"tokenize({text + token!r})"
        expect(part.tokenize(text + token).count(index), 0, f"the number of times that id {index} is found")


@check(KIND)
def special_tokens_saved(subject: LanguageSubject) -> None:
    """A saved tokenizer, read by transformers, gives added tokens and plain text the same ids.

    A checkpoint reads its own documents, and tools of others can open its tokenizer.
    """
    from transformers import AutoTokenizer  # seconds to import, and only language models have tokenizers

    part = subject.part
    text = text_of(part, list(range(7)))
    with tempfile.TemporaryDirectory() as folder:
        subject.doing = "save_tokenizer(folder)"
        part.save_tokenizer(Path(folder))
        subject.doing = "AutoTokenizer.from_pretrained(folder)"
        again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for token, index in subject.token_ids.items():
            expect(again.convert_tokens_to_ids(token), index, f"the id of '{token}' in the saved tokenizer")
        expect(
            again(text, add_special_tokens=False)["input_ids"], part.tokenize(text), f"the ids of {text!r}"
        )


@check(KIND)
def new_token_rows(subject: LanguageSubject) -> None:
    """Rows of added tokens learn under a frozen model: those of `added_token_parameters()`.

    Stage I teaches a frozen language model when to draw.
    """
    part = subject.make()
    rows = list(part.added_token_parameters())
    expect_true(rows, "added_token_parameters() is empty", "the rows of the added tokens")
    part.requires_grad_(False)
    for row in rows:
        row.requires_grad_(True)
    ids = torch.tensor([list(subject.token_ids.values())] * 2)
    subject.doing = f"backward of the loss after logits of the added tokens {ids[0].tolist()}"
    given = positions([ids.shape[1]], len(ids))
    hidden = part(part.embed(ids), given["position_ids"], given["segment_ids"])
    weighted_sum(part.logits(part.final_norm(hidden))).backward()
    for number, row in enumerate(rows):
        reached = row.grad is not None and bool((row.grad.abs().sum(-1) > 0).any())
        expect_true(reached, f"added_token_parameters()[{number}] has no gradient", "reached by the loss")


@check(KIND, turns=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def chat_template(subject: LanguageSubject, turns: list[tuple[list[int], list[int]]]) -> None:
    """Of a conversation exactly the assistant's words are learned, and the end of its turn, which is an end of text.

    A model that was taught to chat answers, stops, and never learned to speak for its user.
    """
    part = subject.make_as_built()
    names = SpecialTokens().names()
    token_ids = dict(zip(names, part.add_tokens(names), strict=True))
    sequencer = Sequencer(
        part, token_ids, SpecialTokens(), vision_tokens=1, dream_queries=1, max_length=1_000_000
    )
    said = [(text_of(part, asked) or "a", text_of(part, answered) or "a") for asked, answered in turns]
    segments = chain.from_iterable(
        (Text(asked, role="user"), Text(answered, role="assistant")) for asked, answered in said
    )
    subject.doing = f"a conversation of {said} in the chat template"
    sequence = sequencer.sequence(Document(tuple(segments)))
    learned = [label for label in sequence.labels[part.spec.bos_id is not None :] if label != IGNORED]
    end = part.tokenize(part.chat.assistant[1], special=True)
    expect(
        learned, [i for _, answer in said for i in (*part.tokenize(answer), *end)], "the ids that are learned"
    )
    ends = set(end) & set(part.spec.eos_ids)
    expect_true(
        ends,
        f"chat.assistant ends in {part.chat.assistant[1]!r}, ids {end}",
        f"with one of {part.spec.eos_ids}",
    )
