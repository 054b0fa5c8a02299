"""Documents that begin alike are computed once, and are the same as without the others."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st
from PIL import ExifTags, Image as PIL
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.model.engine import Engine
from dreamkit.model.events import DocumentDone, DocumentFailed, collect
from dreamkit.model.prefixes import common_length
from dreamkit.recipe.generation_section import GenerationSection
from recorded_calls import filled, recorded

MODEL = tiny.model()
DREAM = MODEL.token_ids["<dream_start>"]
WRITES = GenerationSection(max_tokens=8, max_images=0, ignore_eos=True)
DRAWS = GenerationSection(max_tokens=8, max_images=1, steps=2, guidance=2.0, ignore_eos=True)
COMMON = "You are a painter of small things. "  # longer than `LEAST`
PIECES: list[Text | Image] = [
    Text(COMMON),
    Text("And of others."),
    Image(tiny.picture(0)),
    Image(tiny.picture(1)),
    Image(tiny.picture(2), draw=True),
]
LOGITS = type(MODEL.language_model).logits
LETTERS = MODEL.language_model.tokenize("abcdefghijklmnopqrstuvwxyz")


def letters_and_dreams(hidden: Tensor) -> Tensor:
    """Return logits with which the model writes letters, and draws often: the dream token is as likely as the best."""
    logits = LOGITS(MODEL.language_model, hidden)
    written = torch.full_like(logits, -1e3)
    written[..., LETTERS] = logits[..., LETTERS]
    written[..., DREAM] = written.max(-1).values + torch.sin(1e4 * logits[..., 0])
    return written


MODEL.language_model.logits = letters_and_dreams


@pytest.fixture
def positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the positions that the language model computes in each call."""
    return recorded(monkeypatch, MODEL.language_model, "forward", filled)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the images that the vision encoder reads in each call."""
    return recorded(monkeypatch, MODEL.vision_encoder, "forward")


def length(prompt: Document) -> int:
    return len(MODEL.sequencer().prompt(prompt))


def chat(*texts: str | PIL.Image) -> Document:
    return Document(
        tuple(
            Text(each, role="user") if isinstance(each, str) else Image(each, role="user") for each in texts
        )
    )


def done(
    engine: Engine, prompt: Document, options: GenerationSection = WRITES, seed: int = 0
) -> tuple[Document, int]:
    """Return a document written to its end, and its number of reused positions."""
    handle = engine.submit(prompt, options, seed)
    [*engine.drain()]
    assert isinstance(handle.last, DocumentDone)
    return handle.last.result, handle.reused


def alone(prompt: Document, options: GenerationSection = WRITES, seed: int = 0) -> Document:
    return done(Engine(MODEL, prefix_bytes=0), prompt, options, seed)[0]


def contents(document: Document) -> list[object]:
    return [each.text if isinstance(each, Text) else each.picture.tobytes() for each in document.segments]


def test_the_next_turn_of_a_conversation_computes_only_what_is_new(
    positions: list[int], encoded: list[int]
) -> None:
    engine = Engine(MODEL)
    first, reused = done(engine, chat("What is this? ", tiny.picture(0)))
    assert reused == 0
    positions.clear(), encoded.clear()
    prompt = Document((*first.segments, Text("Are you sure?", role="user")))
    second, reused = done(engine, prompt)
    assert reused == length(first) - 1  # the last token of a document is written and never read
    assert sum(positions) == length(prompt) - reused + WRITES.max_tokens - 1
    assert encoded == []
    assert contents(second) == contents(alone(prompt))


def test_a_drawn_image_is_part_of_the_next_turn(encoded: list[int]) -> None:
    engine = Engine(MODEL)
    first, _ = done(engine, chat("Draw what I like to see."), DRAWS, 2)
    assert [type(each) for each in first.segments[1:]].count(Image) == 1
    encoded.clear()
    prompt = Document((*first.segments, Text("More of it.", role="user")))
    second, reused = done(engine, prompt)
    assert reused == length(first) - isinstance(first.segments[-1], Text) and encoded == []
    assert contents(second) == contents(alone(prompt))


def test_documents_with_one_prompt_read_it_once(positions: list[int], encoded: list[int]) -> None:
    prompt = Document((Text(COMMON), Image(tiny.picture(0)), Text("Tell me.")))
    options = GenerationSection(max_tokens=4, max_images=0, temperature=1.0, ignore_eos=True)
    engine = Engine(MODEL)
    handles = [engine.submit(prompt, options, seed) for seed in range(16)]
    documents = collect(engine.drain())
    assert [handle.reused for handle in handles] == [0] + [length(prompt) - 1] * 15
    assert sum(positions) == length(prompt) + 15 + 16 * 3
    assert sum(encoded) == 1
    for seed in (0, 7):
        assert contents(documents[seed]) == contents(alone(prompt, options, seed))


def test_images_are_compared_by_their_pixels() -> None:
    engine = Engine(MODEL)
    picture = tiny.picture(0)
    prompt = Document((Text(COMMON), Image(picture), Text("What is it?")))
    done(engine, prompt)
    assert (
        done(engine, Document((Text(COMMON), Image(picture.copy()), Text("What is it?"))))[1]
        == length(prompt) - 1
    )
    changed = picture.copy()
    changed.putpixel((0, 0), tuple(value ^ 1 for value in picture.getpixel((0, 0))))
    other = Document((Text(COMMON), Image(changed), Text("What is it?")))
    written, reused = done(engine, other)
    assert reused == length(Document((Text(COMMON),))) + 1  # up to the start of the image
    assert contents(written) == contents(alone(other))


def stored(picture: PIL.Image, **settings: Any) -> PIL.Image:
    """Return an image as read from a file that was written with these settings."""
    picture.save(file := io.BytesIO(), "png", **settings)
    return PIL.open(io.BytesIO(file.getvalue()))


def test_images_of_the_same_bytes_that_are_read_differently_are_different_ones() -> None:
    exif = PIL.Exif()
    exif[ExifTags.Base.Orientation] = 3  # upside down
    shades = PIL.linear_gradient("L").resize((16, 16))
    grey = shades.convert("P")
    red = grey.copy()
    red.putpalette([255, 0, 0] * 256)
    for one, other in (
        (stored(shades), stored(shades, exif=exif)),
        (stored(grey), stored(red)),
        (stored(grey), stored(grey, transparency=grey.getpixel((0, 0)))),
    ):
        assert one.tobytes() == other.tobytes()
        engine = Engine(MODEL)
        prompts = [Document((Text(COMMON), Image(each), Text("What is it?"))) for each in (one, other)]
        done(engine, prompts[0])
        written, reused = done(engine, prompts[1])
        assert reused == length(Document((Text(COMMON),))) + 1
        assert contents(written) == contents(alone(prompts[1]))


def test_kept_bytes_are_bounded_and_the_least_recently_used_leave_first() -> None:
    engine = Engine(MODEL)
    prompts = [Document((Text(letter * 60),)) for letter in "abc"]
    done(engine, prompts[0])
    size = engine._prefixes.bytes
    assert size > 0
    engine = Engine(MODEL, prefix_bytes=2 * size)
    whole = length(prompts[0]) - 1
    for number, expected in ((0, 0), (1, 0), (0, whole), (2, 0), (0, whole), (1, 0), (2, 0)):
        assert done(engine, prompts[number])[1] == expected
        assert engine._prefixes.bytes <= 2 * size
    assert engine._prefixes.bytes == 2 * size
    tight = Engine(MODEL, prefix_bytes=size - 1)
    assert [done(tight, prompts[0])[1] for _ in range(2)] == [0, 0] and tight._prefixes.bytes == 0


def test_a_longer_conversation_replaces_its_beginning() -> None:
    engine = Engine(MODEL)
    document = chat("What do you see in the dark?")
    for _ in range(3):
        document, _ = done(engine, document)
        document = Document((*document.segments, Text("And then?", role="user")))
    assert len(engine._prefixes._kept) == 1


def test_few_documents_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkit.model.prefixes.MOST", 2)
    engine, prompts = Engine(MODEL), [Document((Text(letter * 60),)) for letter in "abc"]
    done(engine, prompts[0])
    done(engine, prompts[1])
    assert done(engine, prompts[0])[1] > 0  # "b" is now the one that was used least recently
    done(engine, prompts[2])
    assert len(engine._prefixes._kept) == 2
    assert [done(engine, prompt)[1] > 0 for prompt in (prompts[0], prompts[2], prompts[1])] == [
        True,
        True,
        False,
    ]


def test_a_document_that_failed_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(MODEL)
    prompt = Document((Text(COMMON * 2),))
    monkeypatch.setattr(
        MODEL.language_model, "logits", lambda hidden: torch.full((len(hidden), 9), torch.nan)
    )
    handle = engine.submit(prompt, WRITES)
    [*engine.drain()]
    assert isinstance(handle.last, DocumentFailed) and engine._prefixes.bytes == 0


def test_without_memory_for_a_copy_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompts = Engine(MODEL), [Document((Text(letter * 60),)) for letter in "ab"]
    done(engine, prompts[0])
    assert engine._prefixes.bytes > 0

    def fails(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(MODEL.language_model, "copy_rows", fails)
        document, _ = done(engine, prompts[1])
    assert engine._prefixes.bytes == 0
    assert contents(document) == contents(alone(prompts[1]))


def test_a_part_that_fails_to_copy_ends_no_document(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MODEL.language_model, "cache_bytes", lambda cache: 1 / 0)
    engine = Engine(MODEL)
    lengths = [WRITES, replace(WRITES, max_tokens=12)]
    handles = [
        engine.submit(Document((Text(letter * 60),)), options)
        for letter, options in zip("ab", lengths, strict=True)
    ]
    [*engine.drain()]
    assert [type(each.last) for each in handles] == [DocumentDone, DocumentDone]
    assert caplog.messages == [
        "cannot keep the KV caches of documents that have ended: ZeroDivisionError: division by zero"
    ]


def test_a_document_that_awaits_a_beginning_keeps_its_place_in_the_budget() -> None:
    prompts = [Document((Text(text),)) for text in (COMMON * 3 + "a", COMMON * 3 + "b", "c" * 100, "d" * 100)]
    engine = Engine(MODEL, budget_tokens=2 * (length(prompts[0]) + WRITES.max_tokens), prefill_tokens=5)
    handles = [engine.submit(prompt, WRITES) for prompt in prompts]
    engine.step()
    assert {*engine._writers} == {0}
    order = [event.document for event in engine.drain() if isinstance(event, DocumentDone)]
    assert order[:2] == [0, 1] and handles[1].reused > 100


def test_a_document_waits_for_no_beam_search_that_reads_its_prompt_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODEL.language_model, "select_rows", lambda cache, rows: False)
    monkeypatch.setattr(MODEL.language_model, "copy_rows", lambda cache, rows: None)
    engine, prompt = Engine(MODEL), Document((Text(COMMON * 2),))
    engine.submit(prompt, GenerationSection(beams=3, max_tokens=30, ignore_eos=True))
    engine.step()
    quick = engine.submit(prompt, replace(WRITES, max_tokens=4))
    for _ in range(8):
        engine.step()
    assert isinstance(quick.last, DocumentDone)


@pytest.mark.parametrize("lacks", ["copy_rows", "truncate_rows", "cache", "cache_bytes"])
def test_a_part_that_cannot_do_it_computes_again(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = MODEL.language_model
    if lacks == "cache":
        monkeypatch.setattr(part, "spec", replace(part.spec, cache=False))
    elif lacks == "truncate_rows":
        monkeypatch.setattr(part, lacks, lambda cache, lengths: False)
    else:
        monkeypatch.setattr(part, lacks, lambda *args: None)
    engine = Engine(MODEL)
    prompts = [Document((Text(COMMON + each),)) for each in ("one", "two", "three")]
    handles = [engine.submit(prompt, WRITES) for prompt in prompts]
    documents = collect(engine.drain())
    again, _ = done(engine, prompts[0])
    for prompt, document in zip([*prompts, prompts[0]], [*documents, again], strict=True):
        assert contents(document) == contents(alone(prompt))
    if lacks != "cache_bytes":
        assert [handle.reused for handle in handles] == [0, 0, 0]


DOCUMENTS = st.lists(st.sampled_from(PIECES), max_size=4).map(lambda pieces: Document(tuple(pieces)))
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 12), st.none() | st.integers(0, 20), DOCUMENTS, st.sampled_from([WRITES, DRAWS])
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(ARRIVALS, st.sampled_from([0, 20_000, 2**30]), st.sampled_from([3, 512]), st.booleans())
def test_documents_are_as_without_the_others(
    arrivals: list[tuple[int, int | None, Document, GenerationSection]],
    kept: int,
    prefill: int,
    goes_on: bool,
) -> None:
    """Some leave early. With `goes_on`, each document that ends is the prompt of another one."""
    engine = Engine(MODEL, prefix_bytes=kept, prefill_tokens=prefill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamkit.model.prefixes.LEAST", 1)
        prompts: dict[int, tuple[Document, GenerationSection]] = {}
        handles: dict[int, Any] = {}
        continued: set[int] = set()
        for step in range(200):
            for index, (arrives, leaves, prompt, options) in enumerate(arrivals):
                if arrives == step:
                    handles[index] = engine.submit(prompt, options, index)
                    prompts[handles[index].number] = prompt, options
                if leaves == step and index in handles:
                    handles[index].cancel()
            for event in engine.step():
                if isinstance(event, DocumentDone) and event.reason != "cancelled":
                    prompt, options = prompts[event.document]
                    seed = next((i for i, h in handles.items() if h.number == event.document), 0)
                    assert contents(event.result) == contents(alone(prompt, options, seed))
                    if goes_on and event.document not in continued and length(event.result) < 150:
                        more = Document((*event.result.segments, Text("go on")))
                        handle = engine.submit(more, WRITES)
                        prompts[handle.number] = more, WRITES
                        continued.add(handle.number)
                assert not isinstance(event, DocumentFailed)
            assert engine._prefixes.bytes <= kept
        assert engine.is_idle


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.integers(0, 5))
def test_common_length_counts_equal_first_names(one: list[int], other: list[int], more_than: int) -> None:
    expected = next(number for number in range(len(one), -1, -1) if one[:number] == other[:number])
    found = common_length(one, other, more_than)
    assert found == expected or (found == 0 and expected <= more_than)
