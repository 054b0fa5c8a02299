"""Stop strings: the text ends before the first one, and no piece has a character of it, however tokens divide it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.model.events import DocumentDone, Event, ImageDone, TextPiece
from dreamkit.model.stop_strings import begun_length, stop_start
from dreamkit.model.text_stream import BROKEN, TextStream, lead_byte
from talkative import talkative
from token_streams import CASES, FIRST_BYTE, MODELS

MODEL = tiny.model()
DREAM = MODEL.token_ids["<dream_start>"]
END = MODEL.language_model.spec.eos_ids[0]
TEXTS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def first_start(text: str, stops: list[str]) -> int | None:
    """Return the start of the first stop string, found as a reader does: character by character."""
    for end in range(len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths)
    return None


@given(TEXTS, STOPS, st.integers(0, 12))
def test_the_first_stop_string_is_found(text: str, stops: list[str], searched: int) -> None:
    searched = min(searched, len(text))
    if first_start(text[:searched], stops) is None:
        assert stop_start(text, stops, searched) == first_start(text, stops)


@given(TEXTS, STOPS)
def test_an_end_that_begins_a_stop_string_is_the_longest(text: str, stops: list[str]) -> None:
    beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
    ends = [length for length in range(1, len(text) + 1) if text[-length:] in beginnings]
    assert begun_length(text, stops) == max(ends, default=0)


@st.composite
def stopped_cases(draw: st.DrawFn) -> tuple[str, list[int], list[str]]:
    """Return a model, ids, and stop strings: parts of the text, of what follows it, or others."""
    name, ids = draw(CASES)
    text = MODELS[name].decode(ids)
    stops = draw(st.lists(st.text("abé日😀 ", min_size=1, max_size=3), max_size=2))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, max(0, len(text) - 1)))
        stops.append(text[start : start + draw(st.integers(1, 4))])
    return name, ids, [stop for stop in stops if stop and BROKEN not in stop]


def expected_text(name: str, ids: list[int], stops: list[str]) -> tuple[str, int | None]:
    """Return the text before the first stop string, and the number of tokens at which it is there."""
    for count in range(1, len(ids) + 1):
        text = MODELS[name].decode(ids[:count]).rstrip(BROKEN)
        if (start := first_start(text, stops)) is not None:
            return text[:start], count
    return MODELS[name].decode(ids), None


def write(
    name: str, ids: list[int], stops: list[str], earlier: list[Text] | None = None
) -> tuple[list[tuple[str, tuple[int, ...]]], list[Text], int | None]:
    """Return the pieces of `ids`, all texts afterwards, and the number of tokens at a stop string."""
    language_model: Any = MODELS[name]
    stream = TextStream(language_model, lead_byte(language_model), earlier or (), stops)
    pieces, stopped = [], None
    for number, token in enumerate(ids):
        pieces.append(stream.take(token))
        if stream.is_stopped:
            stopped = number + 1
            break
    pieces.append(stream.take())
    new = stream.segment(None)
    changed = new is not None or stopped is not None
    texts = [*(stream.earlier_texts() if changed else earlier or []), *([new] if new else [])]
    return [piece for piece in pieces if piece is not None], texts, stopped


@settings(max_examples=300)
@given(stopped_cases())
def test_pieces_joined_are_the_text_before_the_first_stop_string(
    case: tuple[str, list[int], list[str]],
) -> None:
    name, ids, stops = case
    pieces, texts, stopped = write(name, ids, stops)
    assert ("".join(text for text, _ in pieces), stopped) == expected_text(name, ids, stops)
    assert "".join(text.text for text in texts) == "".join(text for text, _ in pieces)
    streamed = [token for _, tokens in pieces for token in tokens]
    assert streamed == ids[: len(streamed)]
    for text in texts:
        if text.ids is not None:
            assert MODELS[name].decode(list(text.ids)) == text.text and list(text.ids) == streamed
        else:  # no beginning of the ids is this text
            assert all(MODELS[name].decode(ids[:count]) != text.text for count in range(len(ids) + 1))
    if stopped is None:
        assert streamed == ids


@settings(max_examples=300)
@given(stopped_cases(), st.data())
def test_a_text_that_is_continued_ends_before_the_same_stop_string(
    case: tuple[str, list[int], list[str]], data: st.DataObject
) -> None:
    name, ids, stops = case
    texts: list[Text] = []
    start, stopped = 0, None
    while start < len(ids) and stopped is None:
        end = data.draw(st.integers(start + 1, len(ids)))
        _, texts, stopped = write(name, ids[start:end], stops, texts)
        stopped = None if stopped is None else start + stopped
        start = end
    assert ("".join(text.text for text in texts), stopped) == expected_text(name, ids, stops)


def test_text_that_begins_no_stop_string_comes_at_once() -> None:
    language_model: Any = MODELS["bytes"]
    stream = TextStream(language_model, lead_byte(language_model), (), ["abc"])
    ids = language_model.tokenize("xaababxab")
    taken = [piece and piece[0] for piece in map(stream.take, ids)]
    assert taken == ["x", None, "a", None, "ab", None, "abx", None, None]
    assert stream.take() == ("ab", tuple(ids[-2:]))


def test_ids_of_a_token_with_a_part_of_a_stop_string_are_not_those_of_the_text() -> None:
    """The word " a" ends the text inside the token, so a model tokenizes the text when it reads it."""
    name = "no bytes"
    ids = [2, 1, 2]  # b, " a", b
    assert MODELS[name].decode(ids) == "b ab"
    pieces, texts, stopped = write(name, ids, ["a"])
    assert (pieces, texts, stopped) == ([("b", (2,)), (" ", ())], [Text("b ")], 2)
    assert texts[0].ids is None
    pieces, texts, stopped = write(name, ids, [" a"])
    assert (pieces, texts, stopped) == ([("b", (2,))], [Text("b")], 2)
    assert texts[0].ids == (2,)


def test_a_stop_string_in_bytes_ends_the_text_with_its_last_byte() -> None:
    """SentencePiece has a line break as a byte, which the next byte could still change."""
    newline, letter = FIRST_BYTE + 10, 2
    pieces, texts, stopped = write("byte fallback", [letter, newline, letter], ["\n"])
    assert (pieces, stopped) == ([("b", (letter,))], 2)
    assert texts == [Text("b")] and texts[0].ids == (letter,)


@pytest.fixture(autouse=True, scope="module")
def talks() -> Iterator[None]:
    with talkative(MODEL):
        yield


def generate(prompt: Document, **options: Any) -> list[Event]:
    return list(
        MODEL.generate(prompt, **{"max_tokens": 12, "max_images": 99, "steps": 1, "guidance": 1, **options})
    )


def done(events: list[Event]) -> DocumentDone:
    assert isinstance(events[-1], DocumentDone)
    return events[-1]


def runs(document: Document, start: int = 0) -> list[str]:
    """Return the texts between images."""
    texts = [""]
    for segment in document.segments[start:]:
        if isinstance(segment, Image):
            texts.append("")
        else:
            texts[-1] += segment.text
    return texts


@settings(max_examples=15)
@given(st.text("abcdé ", min_size=1, max_size=6), st.sampled_from([None, "user"]), st.data())
def test_a_document_ends_before_a_stop_string_and_continues_as_if_uncut(
    letters: str, role: Any, data: st.DataObject
) -> None:
    """Without the stop string, the document goes on as the one that was never stopped."""
    prompt = Document((Text(letters, role=role),))
    whole = generate(prompt)
    texts = [text for text in runs(done(whole).result, 1) if text.strip(BROKEN)]
    if not texts:
        return
    text = data.draw(st.sampled_from(texts)).rstrip(BROKEN)
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 3))]
    if BROKEN in stop:
        return
    events = generate(prompt, stop=[stop])
    stopped = done(events)
    assert stopped.reason == "stop"
    every, kept = runs(done(whole).result, 1), runs(stopped.result, 1)
    number = next(
        number for number, text in enumerate(every) if stop in text
    )  # of the text with the stop string
    assert kept == [*every[:number], every[number][: every[number].index(stop)]]
    streamed = [""]
    for event in events:
        if isinstance(event, ImageDone):
            streamed.append("")
        elif isinstance(event, TextPiece):
            streamed[-1] += event.text
    assert streamed == kept
    ids = [token for event in events if isinstance(event, TextPiece) for token in event.ids]
    stored = [text.ids or () for text in stopped.result.segments[1:] if isinstance(text, Text)]
    assert ids == [token for each in stored for token in each]
    left = 12 - len(ids) - len(stopped.result.images)
    assert runs(done(generate(stopped.result, max_tokens=left)).result) == runs(done(whole).result)
    again = done(generate(stopped.result, max_tokens=left, stop=[stop]))
    assert again.reason == "stop" and runs(again.result) == runs(stopped.result)


def test_a_stop_string_does_not_reach_over_an_image() -> None:
    a, b = (MODEL.language_model.tokenize(letter)[0] for letter in "ab")
    ids = iter([a, DREAM, b, a, b, a])

    def logits(hidden: Tensor) -> Tensor:
        return torch.eye(500)[next(ids)].expand(*hidden.shape[:-1], -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.language_model, "logits", logits)
        events = generate(Document((Text("x"),)), stop=["ab", "never"])
    assert done(events).reason == "stop" and runs(done(events).result) == ["xa", "b"]


def test_the_beginning_of_a_stop_string_is_text_if_the_document_ends() -> None:
    a = MODEL.language_model.tokenize("a")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MODEL.language_model, "logits", lambda hidden: torch.eye(500)[a].expand(*hidden.shape[:-1], -1)
        )
        events = generate(Document((Text("x"),)), stop=["aaab"], max_tokens=5)
    assert done(events).reason == "tokens" and runs(done(events).result) == ["xaaaaa"]
    assert [event.text for event in events if isinstance(event, TextPiece)] == ["a", "a", "aaa"]


def test_a_stop_string_may_begin_in_text_that_an_earlier_call_wrote() -> None:
    """The document then ends before it, as the uninterrupted one does; no event has text."""
    c, a, b = (MODEL.language_model.tokenize(letter)[0] for letter in "cab")
    ids = iter([c, a, b])

    def logits(hidden: Tensor) -> Tensor:
        return torch.eye(500)[next(ids)].expand(*hidden.shape[:-1], -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.language_model, "logits", logits)
        first = done(generate(Document((Text("x"),)), stop=["ab"], max_tokens=2))
        (last,) = generate(first.result, stop=["ab"])
    assert first.reason == "tokens" and runs(first.result) == ["xca"]
    assert isinstance(last, DocumentDone) and last.reason == "stop" and runs(last.result) == ["xc"]
    written = last.result.segments[1]
    assert isinstance(written, Text) and written.ids == (c,)
