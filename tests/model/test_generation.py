"""Generation: one cache, one pass over every position, the same document alone or in a batch, and limits that hold."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError, DreamkitError
from dreamkit.model.events import (
    DenoisingStep,
    DocumentDone,
    Event,
    ImageDone,
    ImageStarted,
    TextPiece,
    collect,
)
from dreamkit.model.model import DreamModel

MODEL = tiny.model()
DREAM = MODEL.token_ids["<dream_start>"]
END = MODEL.language_model.spec.eos_ids[0]
PROMPTS = [
    Document((Text("a"), Image(tiny.picture(0)), Text("and then")), name="reads"),
    Document((Text("hello there, what is this?"),), name="longer"),
    Document((), name="empty"),
    Document((Text("draw", role="user"), Image(tiny.picture(1), role="user")), name="chat"),
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], int]], None]:
    """Makes `choose(n)` what every document says at the n-th call of the head, as if it had been trained to."""

    def install(choose: Callable[[int], int]) -> None:
        calls = iter(range(10**6))

        def logits(hidden: Tensor) -> Tensor:
            chosen = torch.full((*hidden.shape[:-1], len(MODEL.language_model.head().weight)), -5.0)
            chosen[..., choose(next(calls))] = 5.0
            return chosen

        monkeypatch.setattr(MODEL.language_model, "logits", logits)

    return install


def texts(document: Document) -> list[str]:
    return [segment.text if isinstance(segment, Text) else "[image]" for segment in document]


def reasons(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, DocumentDone)]


A, B = (MODEL.language_model.tokenize(letter)[-1] for letter in "AB")


def test_interleaves_text_and_images(script: Callable) -> None:
    script(lambda n: [A, DREAM, B, B, DREAM, A, END][n])
    events = list(MODEL.generate("x"))
    (document,) = collect(events)
    assert texts(document) == ["x", "A", "[image]", "BB", "[image]", "A"]
    assert reasons(events) == ["end"]
    kinds = [type(event) for event in events]
    drawing = [ImageStarted, DenoisingStep, DenoisingStep, ImageDone]
    assert kinds == [TextPiece, *drawing, TextPiece, TextPiece, *drawing, TextPiece, DocumentDone]
    assert all(image.picture.size == (16, 16) for image in document.images)


def test_every_position_passes_once(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, words, queries and the picture read back: positions 0, 1, 2 ... of each document, each exactly once."""
    script(lambda n: [A, DREAM, B, DREAM, B, END][n])
    seen: list[Counter[int]] = [Counter() for _ in PROMPTS]
    forward = type(MODEL.language_model).forward

    def spy(embeds: Tensor, positions: Tensor, segments: Tensor, cache: object = None) -> Tensor:
        if len(positions) == len(PROMPTS):  # the unconditional prompt of guidance is a document of its own
            for row, counter in enumerate(seen):
                counter.update(positions[row][segments[row] >= 0].tolist())
        return forward(MODEL.language_model, embeds, positions, segments, cache)

    monkeypatch.setattr(MODEL.language_model, "forward", spy)
    list(MODEL.generate(PROMPTS))
    picture = len(MODEL.dream_queries) + MODEL.visual_projector.spec.out_tokens + 4
    for prompt, counter in zip(PROMPTS, seen, strict=True):
        written = 1 + picture + 1 + picture + 1
        assert counter == Counter(range(len(MODEL.sequencer().prompt(prompt)) + written))


def test_cached_pass_equals_one_full_pass(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hidden states of the whole loop, through cache and padding, are those of the finished documents."""
    script(lambda n: [A, DREAM, B, A, END][n])
    inputs: list[dict[int, Tensor]] = [{} for _ in PROMPTS]
    hidden: list[dict[int, Tensor]] = [{} for _ in PROMPTS]
    forward = type(MODEL.language_model).forward

    def spy(embeds: Tensor, positions: Tensor, segments: Tensor, cache: object = None) -> Tensor:
        out = forward(MODEL.language_model, embeds, positions, segments, cache)
        if len(positions) == len(PROMPTS):
            for row, column in (segments >= 0).nonzero().tolist():
                inputs[row][int(positions[row, column])] = embeds[row, column]
                hidden[row][int(positions[row, column])] = out[row, column]
        return out

    monkeypatch.setattr(MODEL.language_model, "forward", spy)
    list(MODEL.generate(PROMPTS))
    for row in range(len(PROMPTS)):
        count = len(inputs[row])
        embeds = torch.stack([inputs[row][p] for p in range(count)])[None]
        whole = forward(
            MODEL.language_model, embeds, torch.arange(count)[None], torch.zeros(1, count).long()
        )[0]
        torch.testing.assert_close(
            torch.stack([hidden[row][p] for p in range(count)]), whole, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_document_does_not_depend_on_its_batch(temperature: float) -> None:
    options = {"temperature": temperature, "top_p": 0.9, "max_tokens": 16}
    seeds = [3, 1, 4, 1]
    together = collect(MODEL.generate(PROMPTS, seed=seeds, **options))
    for prompt, seed, expected in zip(PROMPTS, seeds, together, strict=True):
        (alone,) = collect(MODEL.generate(prompt, seed=seed, **options))
        assert texts(alone) == texts(expected)
        for ours, theirs in zip(alone.images, expected.images, strict=True):
            assert ours.picture.tobytes() == theirs.picture.tobytes()


def test_pictures_do_not_depend_on_their_batch(script: Callable) -> None:
    script(lambda n: DREAM if n == 0 else END)
    together = collect(MODEL.generate(["a", "another one"], seed=[0, 7]))
    script(lambda n: DREAM if n == 0 else END)
    (alone,) = collect(MODEL.generate("another one", seed=7))
    assert alone.images[-1].picture.tobytes() == together[1].images[-1].picture.tobytes()
    assert together[0].images[-1].picture.tobytes() != together[1].images[-1].picture.tobytes()


def test_documents_that_part_ways_do_not_touch_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draws while another writes and a third has ended: each is as it is alone."""
    logits = type(MODEL.language_model).logits

    def eager(hidden: Tensor) -> Tensor:
        chosen = logits(MODEL.language_model, hidden)
        chosen[..., [DREAM, END]] += 3.5
        return chosen

    monkeypatch.setattr(MODEL.language_model, "logits", eager)
    prompts = [*PROMPTS, "one more", "and another"]
    options = {"temperature": 1.0, "max_tokens": 10, "max_images": 3}
    together = collect(MODEL.generate(prompts, seed=range(6), **options))
    courses = [[isinstance(segment, Text) for segment in document] for document in together]
    assert len({tuple(course) for course in courses}) > 2 and sum(len(d.images) for d in together) > 5
    for number, prompt in enumerate(prompts):
        (alone,) = collect(MODEL.generate(prompt, seed=number, **options))
        assert texts(alone) == texts(together[number])
        for ours, theirs in zip(alone.images, together[number].images, strict=True):
            assert ours.picture.tobytes() == theirs.picture.tobytes()


def test_the_seed_decides() -> None:
    def write(seed: int) -> list[str]:
        return texts(collect(MODEL.generate("a", seed=seed, temperature=1.0, max_images=0))[0])

    assert write(1) == write(1)
    assert len({tuple(write(seed)) for seed in range(4)}) > 1


def test_never_drawing_ends_at_the_limit_on_tokens(script: Callable) -> None:
    script(lambda n: A)
    events = list(MODEL.generate("x", max_tokens=5))
    assert reasons(events) == ["tokens"]
    assert texts(collect(events)[0]) == ["x", "AAAAA"]


@pytest.mark.parametrize(("images", "tokens", "reason"), [(2, 6, "images"), (5, 2, "tokens")])
def test_endless_drawing_ends_at_the_limits(script: Callable, images: int, tokens: int, reason: str) -> None:
    script(lambda n: DREAM)
    events = list(MODEL.generate("x", max_images=images, max_tokens=tokens))
    assert sum(isinstance(event, ImageDone) for event in events) == 2
    assert reasons(events) == [reason]


def test_no_images_at_all_leaves_the_text(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dream token is then never chosen, however much the model wants to."""
    script(lambda n: DREAM)
    events = list(MODEL.generate("x", max_images=0, max_tokens=6))
    assert not any(isinstance(event, ImageStarted) for event in events)
    assert reasons(events) == ["tokens"]


def test_ends_at_the_models_length(script: Callable) -> None:
    script(lambda n: A)
    longest = MODEL.language_model.spec.max_length
    events = list(MODEL.generate("x", max_tokens=10 * longest))
    assert reasons(events) == ["length"]
    ids = [token for event in events if isinstance(event, TextPiece) for token in event.ids]
    assert len(MODEL.sequencer().prompt(Document((Text("x"),)))) + len(ids) == longest + 1


def test_a_picture_that_would_not_fit_is_not_begun(script: Callable) -> None:
    script(lambda n: DREAM)
    prompt = "x" * (MODEL.language_model.spec.max_length - 8)
    events = list(MODEL.generate(prompt, max_tokens=4))
    assert not any(isinstance(event, ImageStarted) for event in events)
    assert reasons(events) == ["length"]


def test_special_tokens_are_never_written() -> None:
    never = {*MODEL.token_ids.values(), MODEL.language_model.spec.pad_id} - {DREAM, END}
    events = MODEL.generate(["a", "b"], temperature=50.0, max_tokens=60, ignore_eos=True, max_images=0)
    ids = {token for event in events if isinstance(event, TextPiece) for token in event.ids}
    assert ids and not ids & never


def test_preview_shows_the_picture_as_it_stands(script: Callable) -> None:
    script(lambda n: DREAM if n == 0 else END)
    events = list(MODEL.generate("x", steps=3))
    steps = [event for event in events if isinstance(event, DenoisingStep)]
    assert [(step.step, step.steps) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    (done,) = [event for event in events if isinstance(event, ImageDone)]
    assert steps[-1].preview().tobytes() == done.picture.tobytes()
    assert steps[0].preview().tobytes() != done.picture.tobytes()


def test_steps_are_those_the_scheduler_takes(script: Callable) -> None:
    script(lambda n: DREAM if n == 0 else END)
    events = list(MODEL.generate("x", steps=2, scheduler="ddim"))
    assert [e.steps for e in events if isinstance(e, DenoisingStep)] == [2, 2]


def test_guidance_one_needs_no_unconditional_pass(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    script(lambda n: DREAM if n == 0 else END)
    monkeypatch.setattr(DreamModel, "dream_states", None)
    assert collect(MODEL.generate("x", guidance=1.0))[0].images


def test_training_mode_comes_back() -> None:
    MODEL.set_trainable(["visual_projector"])
    MODEL.train()
    events = MODEL.generate("x")
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert MODEL.visual_projector.training
    MODEL.eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 100_000}, "cannot draw in 100000 steps of the decoder's own scheduler"),
        ({"scheduler": "dmpm"}, "cannot draw in 2 steps of the scheduler 'dmpm'"),
    ],
)
def test_a_schedule_is_tried_before_anything_is_written(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        next(iter(MODEL.generate("x", **settings)))


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(DreamkitError, match="there is no setting 'max_image'; did you mean 'max_images'"):
        next(iter(MODEL.generate("x", max_image=2)))


def test_wrong_number_of_seeds() -> None:
    with pytest.raises(DocumentError, match="3 seeds for 2 prompts"):
        list(MODEL.generate(["a", "b"], seed=[1, 2, 3]))
