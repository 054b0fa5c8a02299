"""Checks of a language model's tokenizer, added tokens and chat template."""

from __future__ import annotations

import tempfile
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from dreamkit.data.sequence import IGNORED, Sequencer
from dreamkit.document import Document, Text
from dreamkit.parts.conversation import Turn, TurnPiece
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit.testing.check import check
from dreamkit.testing.expect import expect, expect_true
from dreamkit.testing.part_subject import weighted_sum
from dreamkit.testing.subject_kinds import TOKENS, LanguageSubject, positions

KIND = "language_model"

# positions in the vocabulary, modulo its size
words = st.lists(st.integers(0, 9999), min_size=1, max_size=6)


def raw_text(part: Any, word: list[int]) -> str:
    """Return the text of ordinary tokens: `word` has their positions in the vocabulary."""
    special = {*part.spec.eos_ids, part.spec.pad_id, part.spec.bos_id, *part.suppressed_ids}
    ordinary = [index for index in range(part.spec.vocab_size) if index not in special]
    return part.decode([ordinary[number % len(ordinary)] for number in word]).strip()


def normalized_text(part: Any, word: list[int]) -> str:
    """Return such a text after tokenizing and decoding; `text_round_trip` checks that these change nothing."""
    return part.decode(part.tokenize(raw_text(part, word))).strip()


@check(KIND)
def vocabulary(subject: LanguageSubject) -> None:
    """The ids of bos and eos decode to no text, and `reserved_tokens` lists only names of bos, eos and pad.

    A text ends where the model ends it, and a recipe's special token never replaces the end token.
    """
    part, spec = subject.part, subject.part.spec
    expect_true(spec.eos_ids, f"{spec.eos_ids}", "at least one id that ends a text in spec.eos_ids")
    silent = [*spec.eos_ids, *([] if spec.bos_id is None else [spec.bos_id])]
    for index in silent:
        subject.call_text = f"decode([{index}])"
        expect(part.decode([index]), "", f"the text of id {index}")
    ids = [*silent, spec.pad_id]
    for name in spec.reserved_tokens:
        subject.call_text = f"tokenize('{name}', special=True)"
        tokenized = part.tokenize(name, special=True)
        holds = len(tokenized) == 1 and tokenized[0] in ids
        expect_true(holds, f"{tokenized}", f"one id of {ids} for '{name}'")
    expect(sorted(set(spec.eos_ids) & part.suppressed_ids), [], "the eos_ids among suppressed_ids")


@check(KIND, word=st.lists(st.integers(0, 9999), min_size=12, max_size=24))
def text_round_trip(subject: LanguageSubject, word: list[int]) -> None:
    """Tokenizing and decoding a text gives the same text, and `tokenize` adds no special tokens.

    The model reads exactly what was written.
    """
    part = subject.part
    text = raw_text(part, word)
    subject.call_text = f"decode(tokenize({text!r}))"
    ids = part.tokenize(text)
    added = {part.spec.bos_id, *part.spec.eos_ids} & set(ids)
    expect_true(not added, f"the special ids {sorted(added)} too", "the text's own ids from tokenize")
    expect(part.decode(ids).strip(), text, "the text")
    expect(part.tokenize(""), [], "tokenize('')")


@check(KIND, word=words)
def special_tokens(subject: LanguageSubject, word: list[int]) -> None:
    """An added token has one id, which `tokenize` finds only with `special=True` and `decode` leaves out.

    Nobody can make the model draw by writing `<dream_start>` in a caption, and no answer shows such names.
    """
    part, text = subject.part, normalized_text(subject.part, word)
    ids = list(subject.token_ids.values())
    expect(len(set(ids)), len(TOKENS), "the number of ids of two added tokens")
    subject.call_text = f"add_tokens({list(TOKENS)}) a second time"
    expect(part.add_tokens(TOKENS), ids, "their ids")
    for token, index in subject.token_ids.items():
        subject.call_text = f"tokenize({text + token + text!r}, special=True)"
        parsed = part.tokenize(text + token + text, special=True)
        expect(parsed.count(index), 1, f"the count of id {index}")
        at = parsed.index(index)
        expect(part.decode(parsed[:at]).strip(), text, f"the text before '{token}'")
        expect(part.decode(parsed[at + 1 :]).strip(), text, f"the text after '{token}'")
        expect(part.decode([index]), "", f"the text of '{token}'")
        subject.call_text = f"tokenize({text + token!r})"
        expect(part.tokenize(text + token).count(index), 0, f"the count of id {index}")


@check(KIND)
def special_tokens_saved(subject: LanguageSubject) -> None:
    """transformers loads the saved tokenizer, with the same ids for added tokens and plain text.

    A checkpoint reads its own documents, and other tools can open its tokenizer.
    """
    from transformers import AutoTokenizer  # takes seconds to import, and only this check needs it

    part = subject.part
    text = normalized_text(part, list(range(7)))
    with tempfile.TemporaryDirectory() as folder:
        subject.call_text = "save_tokenizer(folder)"
        part.save_tokenizer(Path(folder))
        subject.call_text = "AutoTokenizer.from_pretrained(folder)"
        again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for token, index in subject.token_ids.items():
            expect(again.convert_tokens_to_ids(token), index, f"the id of '{token}' in the saved tokenizer")
        expect(
            again(text, add_special_tokens=False)["input_ids"], part.tokenize(text), f"the ids of {text!r}"
        )


@check(KIND)
def new_token_rows(subject: LanguageSubject) -> None:
    """`added_token_parameters()` returns the rows of added tokens, which can be trained while the model is frozen.

    Stage I trains a frozen language model to start drawing.
    """
    part = subject.make()
    rows = list(part.added_token_parameters())
    expect_true(rows, "none", "the rows of the added tokens from added_token_parameters()")
    part.requires_grad_(False)
    for row in rows:
        row.requires_grad_(True)
    ids = torch.tensor([list(subject.token_ids.values())] * 2)
    subject.call_text = f"backward of the loss after logits of the added tokens {ids[0].tolist()}"
    places = positions([ids.shape[1]], len(ids))
    hidden = part(part.embed(ids), places["position_ids"], places["segment_ids"])
    weighted_sum(part.logits(part.final_norm(hidden))).backward()
    for number, row in enumerate(rows):
        reached = row.grad is not None and bool((row.grad.abs().sum(-1) > 0).any())
        expect_true(reached, "none", f"a gradient of added_token_parameters()[{number}]")


@check(KIND, turns=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def chat_template(subject: LanguageSubject, turns: list[tuple[list[int], list[int]]]) -> None:
    """A conversation trains exactly the assistant's words and the end of its turn, which is one of `eos_ids`.

    A chat model answers, stops, and never speaks for the user.
    """
    part = subject.make_as_built()
    names = SpecialTokens().names()
    token_ids = dict(zip(names, part.add_tokens(names), strict=True))
    sequencer = Sequencer(
        part, token_ids, SpecialTokens(), vision_tokens=1, dream_queries=1, max_length=1_000_000
    )
    texts = [tuple(normalized_text(part, word) or "a" for word in turn) for turn in turns]
    segments = chain.from_iterable(
        (Text(question, role="user"), Text(answer, role="assistant")) for question, answer in texts
    )
    subject.call_text = f"a conversation of {texts} in the chat template"
    sequence = sequencer.sequence(Document(tuple(segments)))
    runs = [
        [label for label in run if label != IGNORED]
        for is_labelled, run in groupby(sequence.labels, key=lambda label: label != IGNORED)
        if is_labelled
    ]
    expect(len(runs), len(texts), "the number of runs of labels, one for each answer")
    for number, (run, (_, answer)) in enumerate(zip(runs, texts, strict=True)):
        end = next((at for at, index in enumerate(run) if index in part.spec.eos_ids), None)
        expect_true(
            end is not None, f"{run}", f"one of eos_ids={part.spec.eos_ids} at the end of an answer's labels"
        )
        # A template may write more before an answer, which the model writes too, and blanks after its end.
        text = part.decode(run).strip()
        expect_true(text.endswith(answer), f"{text!r}", f"labels of the words of answer {number}, {answer!r}")
        if part.chat is not None:
            words = [*part.tokenize(answer), *part.tokenize(part.chat.assistant[1], special=True)]
            expect(run, words, f"the labels of answer {number}")


@check(KIND, question=words, answer=words)
def chat_prompt(subject: LanguageSubject, question: list[int], answer: list[int]) -> None:
    """A prompt ends where the assistant goes on writing, without an end of its turn, and has a flag for each token.

    A model that reads an end of its turn starts another turn instead of an answer.
    """
    part = subject.make_as_built()
    asks = Turn("user", (TurnPiece(normalized_text(part, question) or "a"),))
    text = normalized_text(part, answer) or "a"
    turns = [asks, Turn("assistant", (TurnPiece(text, train_on=True),))]
    prompts = []
    for some, prompt in ((turns[:1], True), (turns, True), (turns, False)):
        subject.call_text = f"conversation({some}, prompt={prompt})"
        ids, labelled = part.conversation(some, prompt)
        expect(len(labelled), len(ids), "the number of flags, one for each id")
        prompts.append(ids)
    start, opened, whole = prompts
    subject.call_text = f"conversation({turns}, prompt=True)"
    ends = [sum(index in part.spec.eos_ids for index in ids) for ids in (start, opened)]
    expect(ends[1], ends[0], f"the count of eos_ids={part.spec.eos_ids}, as in the prompt before the answer")
    decoded = part.decode(opened).strip()
    expect_true(decoded.endswith(text), f"{decoded!r}", f"a prompt that ends with {text!r}")
    if part.chat is not None:
        subject.call_text = f"conversation({turns[:1]}, prompt=True)"
        expect(start, whole[: labelled.index(True)], "the ids before the answer of the whole conversation")
