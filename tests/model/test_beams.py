"""Beam search in an engine: the texts of transformers' `generate`, alone and beside documents that come and go."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.errors import ConfigError, DreamkitError
from dreamkit.model.engine import Engine, Handle
from dreamkit.model.events import DocumentDone, DocumentFailed, Event, TextPiece, collect
from dreamkit.model.model import DreamModel
from dreamkit.recipe.generation_section import GenerationSection
from small_language import library_model

PROMPTS = ("", "a", "hello there, what is this?")


@cache
def model(seed: int = 0, ends: int = 1) -> DreamModel:
    """Return a random model with probabilities that vary, and with `ends` end tokens."""
    torch.manual_seed(seed)
    made = tiny.model()
    part = made.language_model
    part.model.get_output_embeddings().weight.data.mul_(30)
    every = torch.randperm(200, generator=torch.Generator().manual_seed(seed)) + 50
    part.spec = replace(part.spec, eos_ids=(*part.spec.eos_ids, *every[: ends - 1].tolist()))
    return made


@cache
def library_texts(seed: int, ends: int, prompt: str, options: GenerationSection) -> list[int]:
    """Return the tokens of the library's beam search: without an end token, with those of a stop string."""
    dreams = model(seed, ends)
    part = dreams.language_model
    ids = dreams.sequencer().prompt(Document((Text(prompt),) if prompt else ())).ids
    suppressed = {*dreams.token_ids.values(), *part.suppressed_ids} - {*part.spec.eos_ids}
    library = library_model(part)
    rows = library.get_output_embeddings().weight.shape[0]

    def has_stop(sequences: Tensor, scores: Any) -> Tensor:
        texts = [part.decode(tokens[len(ids) :]) for tokens in sequences.tolist()]
        return torch.tensor([any(stop in text for stop in options.stop) for text in texts])

    out = library.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        num_beams=options.beams,
        length_penalty=options.length_penalty,
        early_stopping=False,
        repetition_penalty=options.repetition_penalty,
        suppress_tokens=sorted(token for token in suppressed if token < rows),
        max_new_tokens=options.max_tokens,
        eos_token_id=None if options.ignore_eos else [*part.spec.eos_ids],
        pad_token_id=0,
        stopping_criteria=[has_stop],
    )
    tokens = out[0, len(ids) :].tolist()
    ends_at = (
        [] if options.ignore_eos else [at for at, token in enumerate(tokens) if token in part.spec.eos_ids]
    )
    return tokens[: min(ends_at, default=len(tokens))]


def written(events: list[Event], document: int = 0) -> list[int]:
    pieces = [event for event in events if isinstance(event, TextPiece) and event.document == document]
    return [token for piece in pieces for token in piece.ids]


BEAMS = {
    "five": GenerationSection(beams=5, max_tokens=20),
    "one token": GenerationSection(beams=5, max_tokens=1),
    "no end token": GenerationSection(beams=4, max_tokens=12, ignore_eos=True),
    "short texts": GenerationSection(beams=3, max_tokens=30, length_penalty=-1.0),
    "long texts": GenerationSection(beams=2, max_tokens=20, length_penalty=2.0),
    "new tokens": GenerationSection(beams=5, max_tokens=15, length_penalty=0.0, repetition_penalty=1.5),
    "the same tokens": GenerationSection(beams=4, max_tokens=15, repetition_penalty=0.8),
}

REASONS = {
    "one token": {"tokens"},
    "no end token": {"tokens"},
    "short texts": {"end"},
    "long texts": {"tokens"},
    "new tokens": {"end"},
}


@pytest.mark.parametrize("name", BEAMS)
def test_the_text_is_that_of_the_library(name: str) -> None:
    options, reasons = BEAMS[name], set[str]()
    for seed, ends, prompt in ((0, 1, ""), (0, 12, "a"), (1, 12, PROMPTS[2]), (2, 12, ""), (2, 1, "a")):
        events = [*model(seed, ends).generate(prompt, **vars(options))]
        assert written(events) == library_texts(seed, ends, prompt, options)
        (done,) = [event for event in events if isinstance(event, DocumentDone)]
        assert written(events) == [token for text in added(done.result, prompt) for token in text.ids or ()]
        assert "".join(text.text for text in added(done.result, prompt)) == "".join(
            event.text for event in events if isinstance(event, TextPiece)
        )
        reasons.add(done.reason)
    assert reasons == REASONS.get(name, {"tokens", "end"})


def added(document: Document, prompt: str) -> list[Text]:
    """Return the texts after a prompt that is one text, or empty."""
    return [each for each in document.segments[1 if prompt else 0 :] if isinstance(each, Text)]


class Request(NamedTuple):
    """A document to submit in step `arrives`, and to cancel in a later one, if `leaves` is not None."""

    arrives: int
    leaves: int | None
    prompt: str
    options: GenerationSection


OTHERS = (
    GenerationSection(max_tokens=9, max_images=0),
    GenerationSection(max_tokens=20, max_images=0, temperature=2.0),
    GenerationSection(max_tokens=9, max_images=1, steps=1, temperature=1.0, ignore_eos=True),
)
REQUESTS = st.lists(
    st.builds(
        Request,
        st.integers(0, 15),
        st.none() | st.integers(0, 25),
        st.sampled_from(PROMPTS),
        st.sampled_from((*BEAMS.values(), *OTHERS)),
    ),
    min_size=2,
    max_size=5,
)


def run(engine: Engine, requests: list[Request]) -> list[Event]:
    """Submit and cancel as `requests` say; return all events. Document n is the n-th that is submitted."""
    handles: list[tuple[Request, Handle]] = []
    events: list[Event] = []
    for step in range(200):
        if engine.is_idle and step > max(request.arrives for request in requests):
            return events
        handles += [
            (each, engine.submit(each.prompt, each.options)) for each in requests if each.arrives == step
        ]
        for request, handle in handles:
            if request.leaves == step:
                handle.cancel()
        events += engine.step()
    raise AssertionError("the engine does not end")


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(REQUESTS, st.sampled_from([3, 512]))
def test_the_text_is_that_of_the_library_beside_documents_that_come_and_go(
    requests: list[Request], prefill: int
) -> None:
    requests = sorted(requests, key=lambda request: request.arrives)
    events = run(Engine(model(1, 12), prefill_tokens=prefill), requests)
    done = {event.document: event for event in events if isinstance(event, DocumentDone)}
    assert done.keys() == {*range(len(requests))}
    for number, request in enumerate(requests):
        tokens, reason = written(events, number), done[number].reason
        if request.options.beams > 1:
            expected = library_texts(1, 12, request.prompt, request.options)
            assert tokens == (expected[: len(tokens)] if reason == "cancelled" else expected)
        elif reason != "cancelled":
            (alone,) = collect(model(1, 12).generate(request.prompt, **vars(request.options)))
            assert done[number].result.segments == alone.segments


def calls_of(dreams: DreamModel, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that gets the segments (B, T) of each call of the language model."""
    part, calls = dreams.language_model, list[Tensor]()
    forward = type(part).forward

    def spy(embeds: Tensor, positions: Tensor, segments: Tensor, **named: Any) -> Tensor:
        calls.append(segments)
        return forward(part, embeds, positions, segments, **named)

    monkeypatch.setattr(part, "forward", spy)
    return calls


def test_the_prompt_is_read_once_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    dreams = model()
    calls, images = calls_of(dreams, monkeypatch), list[int]()
    encoder = dreams.vision_encoder
    monkeypatch.setattr(
        encoder,
        "forward",
        lambda pixels: (images.append(len(pixels)), type(encoder).forward(encoder, pixels))[1],
    )
    prompt = PICTURED
    collect(dreams.generate(prompt, beams=5, max_tokens=8, ignore_eos=True))
    length = len(dreams.sequencer().prompt(prompt))
    assert [segments.shape for segments in calls] == [(1, length), *[(5, 1)] * 7]
    assert all((segments == 0).all() for segments in calls) and images == [1]


ABILITIES = ["select_rows", "join_rows", "truncate_rows"]
PICTURED = Document((Text("a"), Image(tiny.picture(0)), Text("and then")))


def texts_of(engine: Engine, events: list[Event]) -> list[str]:
    """Return the texts of the documents, from the first event that names one."""
    return [document.text for document in collect([*events, *engine.drain()])]


@pytest.mark.parametrize("lacks", [ABILITIES, ["join_rows"], ["select_rows"], ["cache"]], ids=str)
def test_a_part_that_cannot_move_rows_writes_the_same(
    lacks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerationSection(beams=3, max_tokens=6)

    def texts() -> list[str]:
        engine = Engine(model(), prefill_tokens=10)
        engine.submit(PICTURED, options)
        engine.submit("a", OTHERS[1], 1)
        early = engine.step()
        engine.submit("a", replace(options, beams=2))
        return texts_of(engine, early)

    expected, part = texts(), model().language_model
    for name in lacks:
        if name == "cache":
            monkeypatch.setattr(part, "spec", replace(part.spec, cache=False))
        else:
            monkeypatch.setattr(part, name, lambda cache, other: False)
    calls = calls_of(model(), monkeypatch)
    assert texts() == expected
    length = len(model().sequencer().prompt(PICTURED))
    whole = max(int((segments == 0).sum(1).max()) for segments in calls)
    assert (whole > length) == ("cache" in lacks)  # otherwise a document is read in pieces


@pytest.mark.parametrize("has_cache", [True, False])
def test_fewer_hypotheses_than_beams_may_run(has_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one letter and the end token may be written."""
    part = model().language_model
    (letter,) = part.tokenize("a")
    others = frozenset(range(part.spec.vocab_size)) - {letter, *part.spec.eos_ids}
    monkeypatch.setattr(type(part), "suppressed_ids", property(lambda self: others))
    monkeypatch.setattr(part, "spec", replace(part.spec, cache=has_cache))
    calls = calls_of(model(), monkeypatch)
    (document,) = collect(model().generate("x", beams=4, max_tokens=5, length_penalty=30.0))
    assert {len(segments) for segments in calls} == {1}
    assert document.segments[-1] == Text("aaaa", ids=(letter,) * 4)  # and the end token


def test_the_text_ends_before_a_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's search ends hypotheses at the same strings. Only a few letters are written."""
    dreams = model(3)
    part = dreams.language_model
    letters = {*part.tokenize("abcdefghijklmnop"), *part.spec.eos_ids}
    others = frozenset(range(part.spec.vocab_size)) - letters
    monkeypatch.setattr(type(part), "suppressed_ids", property(lambda self: others))
    lengths = set[int]()
    for stop in (("b",), ("ca", "lg"), ("jj", "om", "z"), ("zz",)):
        for beams, penalty in ((2, 1.0), (4, 1.0), (4, -1.0)):
            options = GenerationSection(
                beams=beams, length_penalty=penalty, max_tokens=16, stop=stop, ignore_eos=True
            )
            (*events, done) = dreams.generate("x", **vars(options))
            text = "".join(event.text for event in events if isinstance(event, TextPiece))
            whole = part.decode(library_texts(3, 1, "x", options))
            starts = [at for each in stop if (at := whole.find(each)) >= 0]
            assert text == whole[: min(starts, default=None)]
            assert isinstance(done, DocumentDone) and done.reason == ("stop" if starts else "tokens")
            lengths.add(len(whole))
    assert len(lengths) > 2, lengths


def test_a_document_ends_at_the_length_of_the_model() -> None:
    prompt = "long " * 49
    options = GenerationSection(beams=3, ignore_eos=True)
    dreams = model()
    room = dreams.language_model.spec.max_length - len(dreams.sequencer().prompt(Document((Text(prompt),))))
    events = [*dreams.generate(prompt, **vars(options))]
    assert isinstance(events[-1], DocumentDone) and events[-1].reason == "length"
    assert written(events) == library_texts(0, 1, prompt, replace(options, max_tokens=room + 1))
    assert len(written(events)) == room + 1


def test_text_on_which_all_hypotheses_agree_comes_before_the_end() -> None:
    engine = Engine(model())
    engine.submit("", GenerationSection(beams=2, max_tokens=40, ignore_eos=True))
    steps = [engine.step() for _ in range(40)]
    early = [event for step in steps[:35] for event in step]
    assert early and all(isinstance(event, TextPiece) for event in early)


def test_a_cancelled_document_has_the_text_on_which_all_hypotheses_agree() -> None:
    engine = Engine(model())
    other = engine.submit("a", OTHERS[0])
    options = GenerationSection(beams=2, max_tokens=40, ignore_eos=True)
    handle = engine.submit("", options)
    events = [event for _ in range(12) for event in engine.step()]
    size = engine._lanes.cache_bytes()
    handle.cancel()
    events += engine.step()
    assert isinstance(handle.last, DocumentDone) and handle.last.reason == "cancelled"
    tokens = written(events, handle.number)
    assert 0 < len(tokens) < 12 and tokens == library_texts(0, 1, "", options)[: len(tokens)]
    assert other.last is not None and engine.is_idle and size and not engine._lanes.cache_bytes()


def test_a_document_counts_with_each_of_its_beams() -> None:
    options = GenerationSection(beams=3, max_tokens=5, ignore_eos=True)
    most = len(model().sequencer().prompt(Document((Text("a"),)))) + options.max_tokens
    with pytest.raises(
        DreamkitError, match=rf"expected at most {3 * most - 1} .*up to {3 * most} positions; .*beams"
    ):
        Engine(model(), budget_tokens=3 * most - 1).submit("a", options)
    engine = Engine(model(), budget_tokens=6 * most)
    for _ in range(4):
        engine.submit("a", options)
    together = []
    while not engine.is_idle:
        engine.step()
        together.append(len(engine._writers))
    assert max(together) == 2


def test_a_budget_of_bytes_is_kept() -> None:
    options = GenerationSection(beams=3, max_tokens=9, ignore_eos=True)
    engine = Engine(model())
    engine.submit("a", options)
    largest = max(engine._lanes.cache_bytes() or 0 for _ in engine.drain())
    engine = Engine(model(), budget_bytes=int(2.5 * largest))
    for _ in range(4):
        engine.submit("a", options)
    together = 0
    while not engine.is_idle:
        engine.step()
        together = max(together, len(engine._writers))
        assert (engine._lanes.cache_bytes() or 0) <= 2.5 * largest
    assert together == 2


def test_documents_that_begin_alike_start_from_the_cache_of_a_beam() -> None:
    """A search starts from the cache of greedy text, and text that continues its result from that of its best beam."""
    engine, prompt = Engine(model()), PROMPTS[2] * 2
    options = GenerationSection(beams=3, max_tokens=10, ignore_eos=True)
    length = len(model().sequencer().prompt(Document((Text(prompt),))))

    def assert_same(prompt: str | Document, settings: GenerationSection, reused: int) -> Document:
        handle = engine.submit(prompt, settings)
        (document,) = collect(engine.drain())
        assert handle.reused >= reused
        assert document.segments == collect(model().generate(prompt, **vars(settings)))[0].segments
        return document

    assert_same(prompt, OTHERS[0], 0)
    searched = assert_same(prompt, options, length - 1)
    assert_same(searched, OTHERS[0], length + 2)
    assert_same(searched, options, length + 9)


def test_logits_that_are_not_finite_end_that_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hypothesis of the first document has none for its third token."""
    part, calls = model().language_model, iter(range(100))

    def logits(hidden: Tensor) -> Tensor:
        values = type(part).logits(part, hidden)
        if next(calls) == 2:
            assert len(values) == 2 * 3
            values[1] = torch.nan
        return values

    monkeypatch.setattr(part, "logits", logits)
    engine, options = Engine(model()), BEAMS["short texts"]
    bad, good = engine.submit("", options), engine.submit("a", options)
    events = [*engine.drain()]
    assert isinstance(bad.last, DocumentFailed)
    assert "expected finite logits for token 3, got NaN or inf" in str(bad.last.error)
    assert isinstance(good.last, DocumentDone) and written(events, 1) == library_texts(0, 1, "a", options)


def test_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the dream token is the most likely one; settings of drawings are not even tried."""
    part, dream = model().language_model, model().token_ids["<dream_start>"]

    def logits(hidden: Tensor) -> Tensor:
        values = type(part).logits(part, hidden)
        values[..., dream] = 1e3
        return values

    monkeypatch.setattr(part, "logits", logits)
    events = [*model().generate("a", beams=2, max_tokens=5, size=(7, 7), ignore_eos=True)]
    assert {type(event) for event in events} == {TextPiece, DocumentDone}
    assert len(written(events)) == 5 and dream not in written(events)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"temperature": 0.7},
            "temperature: expected 0 with beams 2, got 0.7; beam search does not sample, so set",
        ),
        ({"log_probs": 0}, "log_probs: expected null with beams 2, got 0"),
        ({"dream_probs": True}, "dream_probs: expected false with beams 2, got true"),
        ({"beams": 0}, "beams: expected at least 1 and at most 1000, got 0"),
        ({"length_penalty": 31}, "length_penalty: expected at least -30.0 and at most 30.0, got 31"),
    ],
)
def test_settings_that_beam_search_cannot_have_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        next(model().generate("a", **{"beams": 2} | wrong))
    assert message in str(error.value)
    assert [*model().generate("a", beams=2, max_images=0, max_tokens=2)]
    assert GenerationSection(
        beams=2, top_k=5, top_p=0.5, min_p=0.1
    )  # without effect, as at any temperature of 0


def test_a_value_of_the_recipe_that_beam_search_cannot_have_is_named_as_such() -> None:
    sampling = tiny.model(**{"generation.temperature": 0.7})
    with pytest.raises(ConfigError) as error:
        next(sampling.generate("a", beams=2))
    assert "got 0.7; beam search does not sample" in str(error.value)
    assert str(error.value).endswith("(the value is the recipe's)")
    assert [*sampling.generate("a", beams=2, temperature=0.0, max_tokens=2)]
