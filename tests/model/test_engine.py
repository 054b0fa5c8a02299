"""The engine: documents are the same whoever shares the batch, and share it fairly within a budget."""

from __future__ import annotations

import gc
import io
import re
import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings, strategies as st
from PIL import Image as PIL
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError, DreamkitError
from dreamkit.model.engine import Engine, Handle
from dreamkit.model.events import DenoisingStep, DocumentDone, DocumentFailed, Event, TextPiece, collect
from dreamkit.model.model import DreamModel
from dreamkit.recipe.generation_section import GenerationSection
from recorded_calls import filled, recorded
from small_language import LFM2, MAMBA2

MODEL = tiny.model()
DREAM = MODEL.token_ids["<dream_start>"]
PROMPTS = [
    Document((), name="empty"),
    Document((Text("hello there, what is this?"),), name="text"),
    Document((Text("a"), Image(tiny.picture(0)), Text("and then")), name="reads"),
    Document((Text("draw", role="user"), Image(tiny.picture(1), role="user")), name="chat"),
]
SHORT = GenerationSection(max_tokens=6, max_images=1, steps=2, guidance=2.0, ignore_eos=True)


class Request(NamedTuple):
    """A document to submit in step `arrives`, and to cancel in a later one, if `leaves` is not None."""

    arrives: int
    leaves: int | None
    prompt: Document
    options: GenerationSection
    seed: int


OPTIONS = st.builds(
    GenerationSection,
    max_tokens=st.integers(1, 8),
    max_images=st.integers(0, 2),
    temperature=st.sampled_from([0.0, 3.0]),
    steps=st.integers(1, 3),
    guidance=st.sampled_from([1.0, 2.0]),
    scheduler=st.sampled_from([None, "ddim", "ddpm"]),
    negative_prompt=st.sampled_from(["", "dull"]),
    size=st.sampled_from([None, (16, 24)]),
    ignore_eos=st.just(True),
)
REQUESTS = st.lists(
    st.builds(
        Request,
        st.integers(0, 12),
        st.none() | st.integers(0, 25),
        st.sampled_from(PROMPTS),
        OPTIONS,
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=4,
)


def with_dreams(hidden: Tensor) -> Tensor:
    """Return logits with which the model draws often: the dream token is as likely as the best other one, or more."""
    logits = LOGITS(MODEL.language_model, hidden)
    logits[..., DREAM] = logits.max(-1).values + torch.sin(1e4 * logits[..., 0])
    return logits


LOGITS = type(MODEL.language_model).logits
MODEL.language_model.logits = with_dreams


def events_by_step(engine: Engine, requests: list[Request]) -> Iterator[list[Event]]:
    """Submit and cancel as `requests` say; yield the events of each step."""
    handles: dict[int, Handle] = {}
    for step in range(1000):
        for index, request in enumerate(requests):
            if request.arrives == step:
                handles[index] = engine.submit(request.prompt, request.options, request.seed)
            if request.leaves == step and index in handles:
                handles[index].cancel()
        if engine.is_idle and step > max(request.arrives for request in requests):
            assert all(handle.last is not None for handle in handles.values())
            return
        yield engine.step()
    raise AssertionError("the engine does not end")


def written(document: Document, prompt: Document) -> list[str | np.ndarray]:
    """Return what follows a prompt: texts, and pixels of images."""
    return [
        segment.text if isinstance(segment, Text) else np.asarray(segment.picture)
        for segment in document.segments[len(prompt) :]
    ]


def assert_same(one: Document, other: Document, prompt: Document) -> None:
    one_parts, other_parts = written(one, prompt), written(other, prompt)
    assert [type(each) for each in one_parts] == [type(each) for each in other_parts]
    for a, b in zip(one_parts, other_parts, strict=True):
        np.testing.assert_array_equal(a, b)


def alone(request: Request, model: DreamModel = MODEL) -> Document:
    (document,) = collect(events_alone(request, model))
    return document


def events_alone(request: Request, model: DreamModel = MODEL) -> list[Event]:
    engine = Engine(model)
    engine.submit(request.prompt, request.options, request.seed)
    return [*engine.drain()]


def kinds(events: list[Event]) -> list[str]:
    return [f"{type(event).__name__} {getattr(event, 'reason', '')}" for event in events]


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(REQUESTS, st.sampled_from([None, 40, 400]), st.sampled_from([1, 3, 512]))
def test_a_document_is_the_same_whoever_shares_the_batch(
    requests: list[Request], budget: int | None, prefill: int
) -> None:
    engine = Engine(MODEL, budget_tokens=None if budget is None else 4 * budget, prefill_tokens=prefill)
    ordered = sorted(requests, key=lambda request: request.arrives)
    events = [event for step in events_by_step(engine, ordered) for event in step]
    done = {event.document: event for event in events if isinstance(event, DocumentDone)}
    assert done.keys() == set(range(len(ordered)))
    for number, request in enumerate(ordered):
        pieces = "".join(e.text for e in events if isinstance(e, TextPiece) and e.document == number)
        texts = [part for part in written(done[number].result, request.prompt) if isinstance(part, str)]
        assert pieces == "".join(texts)
        mine = events_alone(request)
        (expected,) = collect(mine)
        if done[number].reason != "cancelled":
            assert_same(done[number].result, expected, request.prompt)
            assert kinds([event for event in events if event.document == number]) == kinds(mine)
        else:
            whole = [part for part in written(expected, request.prompt) if isinstance(part, str)]
            assert "".join(whole).startswith(pieces)


def by_document(events: list[Event]) -> dict[int, list[Event]]:
    found = defaultdict(list)
    for event in events:
        found[event.document].append(event)
    return found


def count_tokens(events: list[Event]) -> int:
    return sum(len(event.ids) for event in events if isinstance(event, TextPiece))


WRITES = GenerationSection(max_tokens=40, max_images=0, ignore_eos=True)
DRAWS = GenerationSection(max_tokens=40, max_images=1, steps=6, guidance=2.0, ignore_eos=True)
LONG = Document((Text("a very long prompt " * 8),), name="long")


def test_a_long_prompt_does_not_stop_another_document() -> None:
    engine = Engine(MODEL, prefill_tokens=10)
    engine.submit("x", WRITES)
    engine.step()
    engine.submit(LONG, WRITES)
    for _ in range(len(MODEL.sequencer().prompt(LONG)) // 10):
        tokens = engine._writers[0].tokens
        events = by_document(engine.step())
        assert engine._writers[0].tokens == tokens + 1 and events.keys() <= {0}


def test_several_long_prompts_share_the_tokens_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(MODEL, prefill_tokens=12)
    calls = recorded(monkeypatch, MODEL.language_model, "forward", filled)
    for letter in "abc":
        engine.submit(Document((Text(f"{letter} very long prompt " * 6),)), WRITES)
    for _ in range(6):
        engine.step()
    assert calls == [12] * 6


def test_dream_states_are_computed_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the language model's keys change at a length, a state of a piece would be another one."""
    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    engine = Engine(MODEL, prefill_tokens=1)
    engine.submit("x", replace(DRAWS, max_tokens=1, guidance=1.0))
    calls = recorded(monkeypatch, MODEL.language_model, "forward", filled)
    assert collect(engine.drain())
    assert calls == [1, 1, 1 + len(MODEL.dream_queries)]


def test_a_drawing_and_other_text_take_turns_step_by_step() -> None:
    """Two drawings begin in different steps, so that each is a group of its own."""
    engine = Engine(MODEL)
    engine.submit("x", DRAWS)
    engine.submit("y", DRAWS, 1)
    engine.submit("writes", WRITES)
    steps = [engine.step() for _ in range(30)]
    denoising = [[event for event in step if isinstance(event, DenoisingStep)] for step in steps]
    assert max(len({(event.step) for event in each}) for each in denoising) == 1
    assert sum(map(len, denoising)) == 2 * DRAWS.steps
    assert engine._writers[2].tokens == len(steps)  # a token in each of them


def test_text_waits_for_images_if_parts_are_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(2 * seed, None, prompt, SHORT, seed) for seed, prompt in enumerate(PROMPTS)]
    expected = [alone(request) for request in requests]
    monkeypatch.setattr("dreamkit.model.engine.is_offloaded", lambda part: True)
    steps = [*events_by_step(Engine(MODEL), requests)]
    kinds = [{type(event) for event in step} for step in steps]
    assert any(DenoisingStep in each for each in kinds)
    last: set[type[Event]] = set()
    for each in kinds:
        assert not (DenoisingStep in last and TextPiece in each)
        last = each
    documents = collect([event for step in steps for event in step])
    for document, other, request in zip(documents, expected, requests, strict=True):
        assert_same(document, other, request.prompt)


def test_drawings_of_one_schedule_share_the_calls_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    rows = recorded(monkeypatch, MODEL.image_decoder, "denoise")
    engine = Engine(MODEL)
    for number in range(3):
        engine.submit(PROMPTS[number], DRAWS, number)
    assert len(collect(engine.drain())) == 3
    assert rows == [6] * DRAWS.steps  # with the negative condition of each


def test_previews_are_decoded_together_in_a_step_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of three have previews, after steps 2 and 4 of 6."""
    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    decoded = recorded(monkeypatch, MODEL.image_decoder, "decode")
    engine = Engine(MODEL)
    for seed, every in enumerate((2, 0, 2)):
        engine.submit("x", replace(DRAWS, preview_every=every), seed)
    steps: list[list[DenoisingStep]] = []
    while not engine.is_idle:
        steps.append([each for each in engine.step() if isinstance(each, DenoisingStep)])
    assert decoded == [2, 2, 3]
    events = [[(each.document, each.step, each.picture is not None) for each in step] for step in steps]
    assert [each for each in events if each] == [
        [(number, step, step in (1, 3) and number != 1) for number in range(3)] for step in range(DRAWS.steps)
    ]
    first = events.index([(0, 0, False), (1, 0, False), (2, 0, False)])
    assert [len(each) for each in events[first : first + 8]] == [3, 0, 3, 3, 0, 3, 3, 3]
    shown = [each for step in steps for each in step if each.picture is not None]
    assert all(each.preview() is each.picture for each in shown)
    options = replace(DRAWS, max_tokens=1)
    steps_alone = [
        each
        for each in events_alone(Request(0, None, PROMPTS[1], options, 0))
        if isinstance(each, DenoisingStep)
    ]
    previewed = events_alone(Request(0, None, PROMPTS[1], replace(options, preview_every=2), 0))
    pictures = [each.picture for each in previewed if isinstance(each, DenoisingStep)]
    for one, picture in zip(steps_alone, pictures, strict=True):
        if picture is not None:
            np.testing.assert_array_equal(np.asarray(one.preview()), np.asarray(picture))


def test_previews_of_a_cancelled_document_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    decoded = recorded(monkeypatch, MODEL.image_decoder, "decode")
    engine = Engine(MODEL)
    handles = [engine.submit("x", replace(DRAWS, preview_every=every), 0) for every in (1, 0)]
    while not decoded:
        engine.step()
    handles[0].cancel()
    [*engine.drain()]
    assert decoded == [1, 2]  # the second call is that at the end, of all rows


@pytest.mark.parametrize("most", [1, 0], ids=["of two together", "of one"])
def test_a_preview_that_fails_ends_no_document(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    decode, drawn = type(MODEL.image_decoder).decode, [False]

    def fails(latents: Tensor) -> Tensor:
        if len(latents) > most and not drawn[0]:
            raise RuntimeError("out of memory")
        return decode(MODEL.image_decoder, latents)

    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    monkeypatch.setattr(MODEL.image_decoder, "decode", fails)
    engine, steps = Engine(MODEL), []
    handles = [engine.submit("x", replace(DRAWS, preview_every=3), seed) for seed in range(2)]
    for event in engine.drain():
        if isinstance(event, DenoisingStep):
            steps.append((event.document, event.step, event.picture is not None))
            drawn[0] = event.step == DRAWS.steps - 1
    assert all(isinstance(each.last, DocumentDone) for each in handles)
    assert sorted(steps) == [
        (number, step, step == 2 and most == 1) for number in range(2) for step in range(6)
    ]


def test_a_group_that_fails_later_repeats_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    denoise, calls = type(MODEL.image_decoder).denoise, []

    def fails(noisy: Tensor, *args: Any) -> Tensor:
        calls.append(len(noisy))
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return denoise(MODEL.image_decoder, noisy, *args)

    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    monkeypatch.setattr(MODEL.image_decoder, "denoise", fails)
    engine = Engine(MODEL)
    for seed in range(2):
        engine.submit("x", DRAWS, seed)
    steps = [(each.document, each.step) for each in engine.drain() if isinstance(each, DenoisingStep)]
    assert sorted(steps) == [(number, step) for number in range(2) for step in range(DRAWS.steps)]


def always_draws(hidden: Tensor) -> Tensor:
    logits = LOGITS(MODEL.language_model, hidden)
    logits[..., DREAM] = 1e3
    return logits


@pytest.mark.parametrize("most", [2, 0], ids=["too large a batch", "one of them"])
def test_a_crash_inside_a_drawing_ends_that_document_alone(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The decoder fails for more than two rows, or for the condition of one document."""
    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    requests = [Request(0, None, prompt, DRAWS, seed) for seed, prompt in enumerate(PROMPTS[1:])]
    expected = [alone(request) for request in requests]
    denoise, bad = type(MODEL.image_decoder).denoise, MODEL.condition(MODEL.dream_states(PROMPTS[2])).context

    def fails(noisy: Tensor, timesteps: Tensor, condition: Any, extras: Any) -> Tensor:
        is_bad = len(noisy) > most if most else (condition.context - bad).abs().amax((1, 2)).min() < 1e-9
        if is_bad:
            raise RuntimeError("out of memory")
        return denoise(MODEL.image_decoder, noisy, timesteps, condition, extras)

    monkeypatch.setattr(MODEL.image_decoder, "denoise", fails)
    engine = Engine(MODEL)
    handles = [engine.submit(request.prompt, request.options, request.seed) for request in requests]
    events = [*engine.drain()]
    failed = [event for event in events if isinstance(event, DocumentFailed)]
    assert [event.document for event in failed] == ([] if most else [1])
    for event in failed:
        assert str(event.error) == "out of memory" and event.result.segments == PROMPTS[2].segments
        assert handles[1].last is event
    for handle, request, document in zip(handles, requests, expected, strict=True):
        if isinstance(handle.last, DocumentDone):
            assert_same(handle.last.result, document, request.prompt)
    if failed:
        with pytest.raises(RuntimeError, match="out of memory"):
            [*MODEL.generate(PROMPTS[2], max_images=1, steps=6, guidance=2.0)]


def test_logits_that_are_not_finite_end_that_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first document's third token has none."""
    calls = iter(range(100))

    def logits(hidden: Tensor) -> Tensor:
        values = LOGITS(MODEL.language_model, hidden)
        if next(calls) == 2:
            values[0] = torch.nan
        return values

    expected = alone(Request(0, None, PROMPTS[2], WRITES, 1))
    monkeypatch.setattr(MODEL.language_model, "logits", logits)
    engine = Engine(MODEL)
    bad, good = engine.submit(PROMPTS[1], WRITES), engine.submit(PROMPTS[2], WRITES, 1)
    (document,) = collect(engine.drain())
    assert isinstance(bad.last, DocumentFailed) and "expected finite logits for token 3" in str(
        bad.last.error
    )
    assert isinstance(good.last, DocumentDone) and good.last.result is document
    monkeypatch.setattr(MODEL.language_model, "logits", with_dreams)
    assert_same(document, expected, PROMPTS[2])


def test_a_text_that_cannot_be_decoded_ends_its_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(Request(0, None, PROMPTS[2], WRITES, 1))
    written_ids = {each for text in expected.segments if isinstance(text, Text) for each in text.ids or ()}
    decode, broken = type(MODEL.language_model).decode, set[int]()

    def fails(ids: Any) -> str:
        if broken & {*ids}:
            raise RuntimeError("no text")
        return decode(MODEL.language_model, ids)

    monkeypatch.setattr(MODEL.language_model, "decode", fails)
    engine = Engine(MODEL)
    bad, good = engine.submit(PROMPTS[1], WRITES), engine.submit(PROMPTS[2], WRITES, 1)
    while not broken:
        engine.step()
        broken |= {engine._writers[0].token} - written_ids - {-1}
    (document,) = collect(engine.drain())
    assert isinstance(bad.last, DocumentFailed) and isinstance(good.last, DocumentDone)
    assert_same(document, expected, PROMPTS[2])


def test_a_document_that_is_complete_does_not_fail_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one writes its end while the token of the second one cannot be embedded."""
    eos = MODEL.language_model.spec.eos_ids[0]
    embed = type(MODEL.language_model).embed

    def logits(hidden: Tensor) -> Tensor:
        values = LOGITS(MODEL.language_model, hidden)
        values[0, eos] = 1e3
        return values

    engine = Engine(MODEL)
    handles = [
        engine.submit(letter, replace(WRITES, ignore_eos=number == 1)) for number, letter in enumerate("ab")
    ]
    engine.step()
    monkeypatch.setattr(MODEL.language_model, "logits", logits)
    monkeypatch.setattr(MODEL.language_model, "embed", None)
    engine.step()
    monkeypatch.setattr(MODEL.language_model, "embed", lambda ids: embed(MODEL.language_model, ids))
    [*engine.drain()]
    assert isinstance(handles[0].last, DocumentDone) and handles[0].last.reason == "end"
    assert isinstance(handles[1].last, DocumentFailed)


def test_a_budget_of_tokens_is_kept_in_the_order_of_arrival() -> None:
    most = 2 * (len(MODEL.sequencer().prompt(Document((Text("abc"),)))) + WRITES.max_tokens)
    engine = Engine(MODEL, budget_tokens=most)
    handles = [engine.submit(letters, WRITES) for letters in ("abc", "def", "ghi", "jkl")]
    order, together = [], 0
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, DocumentDone):
                order.append(event.document)
        assert sum(writer.position for writer in engine._writers.values()) <= most
        together = max(together, len(engine._writers))
    assert together == 2
    assert order == [0, 1, 2, 3] and all(handle.last for handle in handles)


def test_a_document_that_may_exceed_the_budget_alone_is_refused() -> None:
    with pytest.raises(
        DreamkitError, match=r"prompt 0: expected at most 10 \(budget_tokens\), got a document of"
    ):
        Engine(MODEL, budget_tokens=10).submit("x", WRITES)
    engine = Engine(MODEL, budget_bytes=10**3)
    handle = engine.submit("x", WRITES)
    (event,) = engine.drain()
    message = "expected a KV cache of at most 1,000 bytes (budget_bytes)"
    assert isinstance(event, DocumentFailed) and handle.last is event and message in str(event.error)
    with pytest.raises(DreamkitError, match=re.escape(message)):  # the bytes of a position are known now
        engine.submit("x", WRITES)


def test_a_budget_of_bytes_is_kept() -> None:
    engine = Engine(MODEL)
    engine.submit("a", WRITES)
    sizes = [engine._lanes.cache_bytes() for _ in engine.drain()]
    most = int(3.5 * max(size for size in sizes if size is not None))
    engine = Engine(MODEL, budget_bytes=most)
    for letter in "abcdefgh":
        engine.submit(letter, WRITES)
    together = 0
    while not engine.is_idle:
        engine.step()
        together = max(together, len(engine._writers))
        assert (engine._lanes.cache_bytes() or 0) <= most
    assert together == 3


def test_the_memory_of_a_cancelled_document_is_freed() -> None:
    engine = Engine(MODEL)
    short, long = engine.submit("x", WRITES), engine.submit(LONG, WRITES)
    for _ in range(3):
        engine.step()
    both = engine._lanes.cache_bytes()
    long.cancel()
    (done,) = [event for event in engine.step() if isinstance(event, DocumentDone)]
    assert done.reason == "cancelled" and long.last is done and short.last is None
    assert engine._lanes.cache_bytes() < both / 5  # type: ignore[operator]


ABILITIES = ["select_rows", "join_rows", "truncate_rows"]


@pytest.mark.parametrize("lacks", [ABILITIES, ["join_rows"], ["select_rows"], ["cache"]], ids=str)
def test_a_part_that_cannot_move_rows_writes_the_same(
    lacks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request(seed, None, prompt, SHORT, seed) for seed, prompt in enumerate(PROMPTS)]
    expected = [alone(request) for request in requests]
    for name in lacks:
        if name == "cache":
            monkeypatch.setattr(MODEL.language_model, "spec", replace(MODEL.language_model.spec, cache=False))
        else:
            monkeypatch.setattr(MODEL.language_model, name, lambda cache, other: False)
    events = [event for step in events_by_step(Engine(MODEL), requests) for event in step]
    for document, other, request in zip(collect(events), expected, requests, strict=True):
        assert_same(document, other, request.prompt)


def test_a_language_model_without_cache_bytes_has_no_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL.language_model, "cache_bytes", lambda cache: None)
    with pytest.raises(
        DreamkitError, match="budget_bytes: the size of this language model's KV cache is unknown"
    ):
        Engine(MODEL, budget_bytes=10**9)


def test_wrong_requests_are_refused_and_leave_the_engine_as_it_is() -> None:
    engine = Engine(MODEL)
    with pytest.raises(DocumentError, match="expected at most 256 tokens"):
        engine.submit("x" * 300, WRITES)
    with pytest.raises(DreamkitError, match="seed: expected an integer from 0"):
        engine.submit("x", WRITES, -1)
    with pytest.raises(DreamkitError, match="cannot draw in 2 steps with scheduler 'best'"):
        engine.submit("x", replace(SHORT, scheduler="best"))
    assert engine.is_idle and engine.step() == [] and engine.submit("x").number == 0


def test_probabilities_agree_in_float32() -> None:
    """Those of a document alone differ by rounding: by at most 2e-5 of the largest logit."""
    model = tiny.model().float()
    options = replace(WRITES, log_probs=0, max_tokens=12)
    requests = [Request(seed, None, prompt, options, seed) for seed, prompt in enumerate(PROMPTS)]

    def scores(events: list[Event]) -> list[float]:
        pieces = [event for event in events if isinstance(event, TextPiece | DocumentDone)]
        return [score.log_prob for event in pieces for score in event.scores if score.log_prob is not None]

    together = by_document([event for step in events_by_step(Engine(model), requests) for event in step])
    for number, request in enumerate(requests):
        engine = Engine(model)
        engine.submit(request.prompt, request.options, request.seed)
        mine, others = scores([*engine.drain()]), scores(together[number])
        assert len(mine) == len(others) == 12
        np.testing.assert_allclose(mine, others, rtol=0, atol=2e-5)


@pytest.mark.parametrize("part", ["language_model", "vision_encoder"])
def test_an_engine_goes_on_after_a_call_that_fails(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error once ends the documents in the batch, with events; those that wait and come later are whole."""
    requests = [Request(0, None, PROMPTS[number], SHORT, number) for number in (2, 3)]
    expected = [alone(request) for request in requests]
    module = getattr(MODEL, part)
    method, calls = type(module).forward, iter(range(10**6))

    def fails(*args: Any, **named: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("once")
        return method(module, *args, **named)

    monkeypatch.setattr(module, "forward", fails)
    engine = Engine(MODEL)
    first = [engine.submit(request.prompt, request.options, request.seed) for request in requests]
    events = [*engine.drain()]
    assert engine.is_idle and all(handle.last is not None for handle in first)
    assert "once" in [str(event.error) for event in events if isinstance(event, DocumentFailed)]
    for request, document in zip(requests, expected, strict=True):
        engine.submit(request.prompt, request.options, request.seed)
        assert_same(collect(engine.drain())[0], document, request.prompt)


def test_an_image_that_cannot_be_read_ends_its_document_alone() -> None:
    tiny.picture(0).resize((64, 64)).save(whole := io.BytesIO(), "bmp")
    bad = Document((Image(PIL.open(io.BytesIO(whole.getvalue()[:3000]))),), name="cut")
    engine = Engine(MODEL)
    handles = [engine.submit(bad, SHORT), engine.submit(PROMPTS[1], SHORT, 1)]
    (document,) = collect(engine.drain())
    assert isinstance(handles[0].last, DocumentFailed) and isinstance(handles[1].last, DocumentDone)
    assert_same(document, alone(Request(0, None, PROMPTS[1], SHORT, 1)), PROMPTS[1])


def test_no_event_is_lost_if_the_loop_over_them_ends_early() -> None:
    engine = Engine(MODEL)
    for letter in "abc":
        engine.submit(letter, WRITES)
    for event in engine.drain():
        if isinstance(event, DocumentDone):
            break
    assert [event.document for event in engine.step() if isinstance(event, DocumentDone)] == [1, 2]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"steps": 0}, {"max_tokens": 0}, {"scheduler": 3}], ids=str
)
def test_settings_that_a_recipe_could_not_have_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DreamkitError, match=next(iter(wrong))):
        Engine(MODEL).submit("x", replace(SHORT, **wrong))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("budget_tokens", 0, "an integer of at least 1 or None, got 0"),
        ("budget_bytes", "1G", "an integer of at least 1 or None, got '1G'"),
        ("prefill_tokens", None, "an integer of at least 1, got null"),
        ("prefix_bytes", -1, "an integer of at least 0, got -1"),
        ("prefix_bytes", 1.5, "an integer of at least 0, got 1.5"),
    ],
)
def test_wrong_bounds_of_an_engine_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(DreamkitError, match=re.escape(f"{name}: expected {expected}")):
        Engine(MODEL, **{name: value})


def test_an_engine_keeps_no_model_alive() -> None:
    model = tiny.model()
    engine = Engine(model)
    engine.submit("x", WRITES)
    engine.step()
    reference = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert reference() is None
    finally:
        gc.enable()


def test_an_image_that_nothing_follows_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL.language_model, "logits", always_draws)
    monkeypatch.setattr(MODEL.vision_encoder, "forward", None)
    (document,) = collect(events_alone(Request(0, None, PROMPTS[1], replace(SHORT, max_tokens=1), 0)))
    assert len(document.images) == 1


@pytest.mark.parametrize(("name", "config"), [("lfm2", LFM2), ("mamba2", MAMBA2)])
def test_recurrent_states_write_as_without_a_cache(
    name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each position is computed once, and each document alone."""
    section = {"name": "causal-lm", "config": {"model_type": name, **config}}
    model = tiny.model(**{"model.language_model": section})
    language_model = model.language_model
    calls = recorded(monkeypatch, language_model, "forward", lambda embeds, *_: embeds.shape[:2])
    requests = [Request(2 * seed, None, prompt, SHORT, seed) for seed, prompt in enumerate(PROMPTS[:3])]
    together = [event for step in events_by_step(Engine(model), requests) for event in step]
    assert {rows for rows, _ in calls} == {1}
    computed = sum(tokens for _, tokens in calls)
    calls.clear()
    monkeypatch.setattr(language_model, "spec", replace(language_model.spec, cache=False))
    for document, request in zip(collect(together), requests, strict=True):
        assert_same(document, alone(request, model), request.prompt)
    assert computed < sum(tokens for _, tokens in calls) / 4
