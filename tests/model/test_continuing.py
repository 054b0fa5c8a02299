"""Documents that `generate` returned, cut anywhere and continued, equal the uninterrupted ones."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Role, Text
from dreamkit.errors import DocumentError
from dreamkit.model.events import DocumentDone, Event, ImageDone, TextPiece
from talkative import talkative

MODEL = tiny.model()
DREAM = MODEL.token_ids["<dream_start>"]
END = MODEL.language_model.spec.eos_ids[0]
TOKENS = 10
SETTINGS: dict[str, Any] = {"max_images": 99, "steps": 2}


@pytest.fixture(autouse=True, scope="module")
def talks() -> Iterator[None]:
    with talkative(MODEL):
        yield


def generate(prompt: Document, tokens: int, seed: int) -> list[Event]:
    return list(MODEL.generate(prompt, seed=seed, max_tokens=tokens, **SETTINGS))


def result(events: list[Event]) -> Document:
    last = events[-1]
    assert isinstance(last, DocumentDone)
    return last.result


def contents(document: Document) -> list[str | bytes]:
    """Return the text between images, and the pixels of the images."""
    runs = groupby(document, key=lambda segment: isinstance(segment, Text))
    return [
        content
        for is_text, run in runs
        for content in (
            ["".join(text.text for text in run if isinstance(text, Text))]
            if is_text
            else [image.picture.tobytes() for image in run if isinstance(image, Image)]
        )
        if content
    ]


def written(document: Document, start: int) -> int:
    """Return the number of tokens of `max_tokens` that the segments from `start` on took."""
    segments = document.segments[start:]
    return sum(len(part.ids or ()) if isinstance(part, Text) else 1 for part in segments)


@st.composite
def prompts(draw: st.DrawFn) -> Document:
    role: Role | None = draw(st.sampled_from([None, "user"]))
    image = Image(tiny.picture(1), role=role, **draw(st.sampled_from([{}, {"draw": True}])))
    text = Text(draw(st.text("abé ", min_size=1, max_size=8)), role=role)
    return Document(draw(st.sampled_from([(text,), (image, text), (text, image)])))


@settings(max_examples=40)
@given(prompts(), st.integers(0, 2**64 - 1), st.lists(st.integers(1, TOKENS), min_size=1, max_size=3))
def test_a_document_cut_after_any_token_continues_as_if_uncut(
    prompt: Document, seed: int, cuts: list[int]
) -> None:
    whole = generate(prompt, TOKENS, seed)
    document, left = prompt, TOKENS
    for tokens in [*cuts, TOKENS]:
        tokens = min(tokens, left)
        if tokens:
            events = generate(document, tokens, seed)
            left -= written(result(events), len(document))
            document = result(events)
    assert contents(document) == contents(result(whole))
    if left == 0:
        assert events[-1].reason == whole[-1].reason  # type: ignore[union-attr]


@settings(max_examples=40)
@given(prompts(), st.integers(0, 99), st.data())
def test_a_document_cut_after_any_segment_continues_as_if_uncut(
    prompt: Document, seed: int, data: st.DataObject
) -> None:
    whole = result(generate(prompt, TOKENS, seed))
    end = data.draw(st.integers(len(prompt), len(whole)))
    cut = Document(whole.segments[:end])
    left = TOKENS - written(cut, len(prompt))
    if left:
        continued = result(generate(cut, left, seed))
        assert continued.segments[:end] == cut.segments
        assert contents(continued) == contents(whole)


def test_the_tiny_model_writes_and_draws() -> None:
    """The properties above are about documents with texts, images and characters of two bytes."""
    documents = [result(generate(Document((Text(letter),)), TOKENS, 0)) for letter in "abcdefgh"]
    shapes = {tuple(isinstance(segment, Text) for segment in document) for document in documents}
    assert len(shapes) > 3 and max(len(document.images) for document in documents) > 1
    assert any("é" in document.text for document in documents)
    pixels = [image.picture.tobytes() for document in documents for image in document.images]
    assert len(set(pixels)) == len(pixels)


def test_the_streamed_text_is_the_text_of_the_document() -> None:
    for letter in "abcdefgh":
        events = generate(Document((Text(letter),)), TOKENS, 0)
        pieces: list[str | bytes] = [""]
        for event in events:
            if isinstance(event, ImageDone):
                pieces += [event.picture.tobytes(), ""]
            elif isinstance(event, TextPiece):
                pieces[-1] += event.text  # type: ignore[operator]
        assert [piece for piece in pieces if piece] == contents(Document(result(events).segments[1:]))


def test_the_noise_of_an_image_depends_on_the_seed_and_its_number() -> None:
    """Image n of a document is drawn from the same noise after any other images; the first one from the seed itself."""
    noises: list[list[Tensor]] = []
    draw_steps = MODEL.image_decoder.draw_steps

    def spy(*args: Any, generators: list[torch.Generator], **named: Any) -> Any:
        copies = [torch.Generator() for _ in generators]
        for copy, generator in zip(copies, generators, strict=True):
            copy.set_state(generator.get_state())
        noises.append([torch.randn(4, generator=copy) for copy in copies])
        return draw_steps(*args, generators=generators, **named)

    drawn = Image(tiny.picture(1), draw=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.image_decoder, "draw_steps", spy)
        patch.setattr(
            MODEL.language_model,
            "logits",
            lambda hidden: torch.eye(500)[DREAM].expand(*hidden.shape[:-1], -1),
        )
        for prompt in (
            Document((Text("a"),)),
            Document((Text("b"), drawn)),
            Document((Text("c"), drawn, drawn)),
        ):
            list(MODEL.generate(prompt, seed=7, max_tokens=3, max_images=3, size=(16, 16)))
    first, second, third = noises[:3], noises[3:6], noises[6:]
    assert torch.equal(first[0][0], torch.randn(4, generator=torch.Generator().manual_seed(7)))
    for earlier, later in ((first[1:], second[:2]), (second[1:], third[:2])):
        for one, other in zip(earlier, later, strict=True):
            assert torch.equal(one[0], other[0])
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("read", [True, False])
def test_a_drawn_image_has_the_same_tokens_in_a_prompt_as_in_training(read: bool) -> None:
    sequencer = MODEL.sequencer()
    document = Document((Text("a"), Image(tiny.picture(1), draw=True, read=read), Text("b")))
    prompt, whole = sequencer.prompt(document), sequencer.sequence(document)
    assert whole.ids == [*prompt.ids, END]
    assert (prompt.draws, prompt.reads) == (whole.draws, whole.reads)


def test_a_document_of_the_model_s_length_ends_at_once() -> None:
    with pytest.MonkeyPatch.context() as patch:
        token = MODEL.language_model.tokenize("a")[0]
        patch.setattr(
            MODEL.language_model,
            "logits",
            lambda hidden: torch.eye(500)[token].expand(*hidden.shape[:-1], -1),
        )
        (*_, done) = generate(Document((Text("a"),)), 1000, 0)
        (again,) = generate(done.result, 1000, 0)  # type: ignore[union-attr]
        assert isinstance(again, DocumentDone) and again.reason == "length"
        assert again.result == done.result  # type: ignore[union-attr]
        with pytest.raises(DocumentError, match="expected at most 256 tokens, got 257"):
            generate(Document((Text(done.result.segments[1].text), Text("a"))), 1000, 0)  # type: ignore[union-attr]


def test_ids_that_are_not_those_of_the_text_are_not_read() -> None:
    """Another model, or a changed text: the text is tokenized."""
    sequencer = MODEL.sequencer()
    ids = MODEL.language_model.tokenize("ab")
    text = Text("ab", ids=tuple(ids))
    expected = sequencer.prompt(Document((Text("ab"),))).ids
    assert text == Text("ab")
    assert sequencer.prompt(Document((text,))).ids == expected
    for wrong in ((*ids, 10**6), (*ids, -1), (*ids, DREAM), tuple(ids[:1]), ()):
        assert sequencer.prompt(Document((replace(text, ids=wrong),))).ids == expected
    changed = Document((replace(text, text="abc"),))
    assert sequencer.prompt(changed).ids == sequencer.prompt(Document((Text("abc"),))).ids
