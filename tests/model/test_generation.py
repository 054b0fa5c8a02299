"""Generation: one pass over every position, the same document alone and in a batch, events and limits."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
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
from dreamkit.model.finite import check_drawn, finite_rows
from dreamkit.model.model import DreamModel
from dreamkit.model.token_choice import TokenChooser
from dreamkit.recipe.generation_section import GenerationSection
from host_reads import HostReads

MODEL = tiny.model()
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": 25,  # some documents of a batch are longer
}
SWITCHING = tiny.model(**{"model.language_model.config.rope_parameters": LONGROPE})
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
    """Return a function that makes the model write token `choose(n)` in the n-th call of the head."""

    def install(choose: Callable[[int], int]) -> None:
        calls = iter(range(10**6))

        def logits(hidden: Tensor) -> Tensor:
            logits = torch.full((*hidden.shape[:-1], len(MODEL.language_model.head().weight)), -5.0)
            logits[..., choose(next(calls))] = 5.0
            return logits

        monkeypatch.setattr(MODEL.language_model, "logits", logits)

    return install


def texts(document: Document) -> list[str]:
    return [segment.text if isinstance(segment, Text) else "[image]" for segment in document]


def reasons(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, DocumentDone)]


A, B = (MODEL.language_model.tokenize(letter)[-1] for letter in "AB")


def test_text_and_images_alternate(script: Callable) -> None:
    script(lambda n: [A, DREAM, B, B, DREAM, A, END][n])
    events = list(MODEL.generate("x"))
    (document,) = collect(events)
    assert texts(document) == ["x", "A", "[image]", "BB", "[image]", "A"]
    assert reasons(events) == ["end"]
    kinds = [type(event) for event in events]
    image = [ImageStarted, DenoisingStep, DenoisingStep, ImageDone]
    assert kinds == [TextPiece, *image, TextPiece, TextPiece, *image, TextPiece, DocumentDone]
    assert all(image.picture.size == (16, 16) for image in document.images)


def test_every_position_passes_through_the_model_once(
    script: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt, text, dream queries and the image that is read back have positions 0, 1, 2 ... without repetition."""
    script(lambda n: [A, DREAM, B, DREAM, B, END][n])
    counters: list[Counter[int]] = [Counter() for _ in PROMPTS]
    forward = type(MODEL.language_model).forward

    def spy(
        embeds: Tensor, positions: Tensor, segments: Tensor, cache: object = None, **spans: object
    ) -> Tensor:
        if len(positions) == len(PROMPTS):  # not the unconditional prompt of guidance
            for row, counter in enumerate(counters):
                counter.update(positions[row][segments[row] >= 0].tolist())
        return forward(MODEL.language_model, embeds, positions, segments, cache, **spans)

    monkeypatch.setattr(MODEL.language_model, "forward", spy)
    list(MODEL.generate(PROMPTS))
    image_length = len(MODEL.dream_queries) + MODEL.visual_projector.spec.out_tokens + 4
    for prompt, counter in zip(PROMPTS, counters, strict=True):
        written = 1 + image_length + 1 + image_length + 1
        assert counter == Counter(range(len(MODEL.sequencer().prompt(prompt)) + written))


def test_the_cached_pass_equals_one_full_pass(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    script(lambda n: [A, DREAM, B, A, END][n])
    inputs: list[dict[int, Tensor]] = [{} for _ in PROMPTS]
    hidden: list[dict[int, Tensor]] = [{} for _ in PROMPTS]
    forward = type(MODEL.language_model).forward

    def spy(
        embeds: Tensor, positions: Tensor, segments: Tensor, cache: object = None, **spans: object
    ) -> Tensor:
        out = forward(MODEL.language_model, embeds, positions, segments, cache, **spans)
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


def draw_and_end_often(model: DreamModel, hidden: Tensor) -> Tensor:
    raised = type(model.language_model).logits(model.language_model, hidden)
    raised[..., [DREAM, END]] += 3.5
    return raised


@pytest.mark.parametrize("model", [MODEL, SWITCHING], ids=["default", "longrope"])
def test_no_row_is_computed_for_a_document_that_has_ended(
    model: DreamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = type(model.language_model).forward

    def spy(embeds: Tensor, positions: Tensor, segments: Tensor, *args: object, **named: object) -> Tensor:
        assert (segments >= 0).any(1).all()
        rows.append(len(segments))
        return forward(model.language_model, embeds, positions, segments, *args, **named)

    monkeypatch.setattr(model.language_model, "logits", partial(draw_and_end_often, model))
    monkeypatch.setattr(model.language_model, "forward", spy)
    collect(model.generate(PROMPTS, seed=range(len(PROMPTS)), temperature=1.0, max_tokens=10, guidance=1.0))
    assert rows == sorted(rows, reverse=True) and len(set(rows)) > 1


@pytest.mark.parametrize("model", [MODEL, SWITCHING], ids=["default", "longrope"])
def test_a_document_does_not_depend_on_its_batch(model: DreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the batch, some documents draw while others write text or have ended."""
    monkeypatch.setattr(model.language_model, "logits", partial(draw_and_end_often, model))
    prompts = [*PROMPTS, "one more", "and another"]
    options = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 10, "max_images": 3}
    together = collect(model.generate(prompts, seed=range(6), **options))
    kinds = {tuple(isinstance(segment, Text) for segment in document) for document in together}
    assert len(kinds) > 2 and sum(len(document.images) for document in together) > 5
    for number, prompt in enumerate(prompts):
        (alone,) = collect(model.generate(prompt, seed=number, **options))
        assert texts(alone) == texts(together[number])
        for image, expected in zip(alone.images, together[number].images, strict=True):
            assert image.picture.tobytes() == expected.picture.tobytes()


def test_the_text_depends_on_the_seed() -> None:
    def write(seed: int) -> list[str]:
        return texts(collect(MODEL.generate("a", seed=seed, temperature=1.0, max_images=0))[0])

    assert write(1) == write(1)
    assert len({tuple(write(seed)) for seed in range(4)}) > 1


def test_text_ends_at_the_limit_of_tokens(script: Callable) -> None:
    script(lambda n: A)
    events = list(MODEL.generate("x", max_tokens=5))
    assert reasons(events) == ["tokens"]
    assert texts(collect(events)[0]) == ["x", "AAAAA"]


@pytest.mark.parametrize(("images", "tokens", "reason"), [(2, 6, "images"), (5, 2, "tokens")])
def test_images_end_at_the_limits(script: Callable, images: int, tokens: int, reason: str) -> None:
    script(lambda n: DREAM)
    events = list(MODEL.generate("x", max_images=images, max_tokens=tokens))
    assert sum(isinstance(event, ImageDone) for event in events) == 2
    assert reasons(events) == [reason]


def test_max_images_0_suppresses_the_dream_token(script: Callable) -> None:
    script(lambda n: DREAM)
    events = list(MODEL.generate("x", max_images=0, max_tokens=6))
    assert not any(isinstance(event, ImageStarted) for event in events)
    assert reasons(events) == ["tokens"]


def test_text_ends_at_the_length_of_the_model(script: Callable) -> None:
    script(lambda n: A)
    max_length = MODEL.language_model.spec.max_length
    events = list(MODEL.generate("x", max_tokens=10 * max_length))
    assert reasons(events) == ["length"]
    ids = [token for event in events if isinstance(event, TextPiece) for token in event.ids]
    assert len(MODEL.sequencer().prompt(Document((Text("x"),)))) + len(ids) == max_length + 1


def test_an_image_that_does_not_fit_is_not_started(script: Callable) -> None:
    script(lambda n: DREAM)
    prompt = "x" * (MODEL.language_model.spec.max_length - 8)
    events = list(MODEL.generate(prompt, max_tokens=4))
    assert not any(isinstance(event, ImageStarted) for event in events)
    assert reasons(events) == ["length"]


def test_special_tokens_are_never_written() -> None:
    suppressed = {*MODEL.token_ids.values(), MODEL.language_model.spec.pad_id} - {DREAM, END}
    events = MODEL.generate(["a", "b"], temperature=50.0, max_tokens=60, ignore_eos=True, max_images=0)
    ids = {token for event in events if isinstance(event, TextPiece) for token in event.ids}
    assert ids and not ids & suppressed


def test_previews_lead_to_the_finished_image(script: Callable) -> None:
    script(lambda n: DREAM if n == 0 else END)
    events = list(MODEL.generate("x", steps=3))
    steps = [event for event in events if isinstance(event, DenoisingStep)]
    assert [(step.step, step.steps) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    (image_done,) = [event for event in events if isinstance(event, ImageDone)]
    assert steps[-1].preview().tobytes() == image_done.picture.tobytes()
    assert steps[0].preview().tobytes() != image_done.picture.tobytes()


def test_the_scheduler_of_the_call_draws_the_image(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    script(lambda n: DREAM if n == 0 else END)
    names: list[str | None] = []
    create = MODEL.image_decoder.scheduler

    def scheduler(name: str | None = None) -> object:
        names.append(name)
        return create(name)

    monkeypatch.setattr(MODEL.image_decoder, "scheduler", scheduler)
    events = list(MODEL.generate("x", steps=2, scheduler="ddim"))
    assert set(names) == {"ddim"} and len(names) > 1  # checked before the text, then created for the image
    assert [event.steps for event in events if isinstance(event, DenoisingStep)] == [2, 2]


def test_guidance_1_needs_no_unconditional_pass(script: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    script(lambda n: DREAM if n == 0 else END)
    monkeypatch.setattr(DreamModel, "dream_states", None)
    assert collect(MODEL.generate("x", guidance=1.0))[0].images


def test_the_training_mode_is_restored_when_the_iterator_closes() -> None:
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
        ({"steps": 100_000}, "cannot draw in 100000 steps with the decoder's own scheduler"),
        ({"scheduler": "dmpm"}, "cannot draw in 2 steps with scheduler 'dmpm'"),
    ],
)
def test_an_invalid_schedule_is_an_error_before_any_text(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        next(iter(MODEL.generate("x", **settings)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": float("nan")}, "guidance: expected a finite number, got nan"),
        ({"guidance": -1}, "guidance: expected at least 0, got -1"),
        ({"guidance": None}, "guidance: expected a number, got null"),
        ({"max_images": -1}, "max_images: expected at least 0 and at most 100000000, got -1"),
        ({"max_images": 1.0}, r"max_images: expected an integer, got 1.0 \(number\)"),
        ({"max_tokens": True}, r"max_tokens: expected an integer, got true \(boolean\)"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1 and at most 100000000, got 0"),
        ({"steps": 0}, "steps: expected at least 1 and at most 100000, got 0"),
        ({"steps": 10**12, "max_images": 0}, "steps: expected at least 1 and at most 100000, got 10"),
        ({"steps": "3"}, r"steps: expected an integer, got '3' \(string\)"),
        ({"steps": torch.tensor(3)}, "steps: expected an integer"),
        ({"temperature": float("inf")}, "temperature: expected a finite number, got inf"),
        ({"top_p": 0}, "top_p: expected more than 0 and at most 1, got 0"),
        ({"scheduler": 3}, r"scheduler: expected a string, got 3 \(integer\)"),
        ({"seed": -1}, "seed: expected an integer from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed: expected an integer from 0"),
        ({"seed": [1.5]}, "seed: expected an integer from 0 to 18446744073709551615, got 1.5"),
        ({"size": (16,)}, r"size: expected a list of 2 integers, got a list of length 1"),
        ({"size": 16}, r"size: expected a list of 2 integers, got 16"),
        ({"size": (16.0, 16)}, r"size.0: expected an integer, got 16.0"),
        ({"size": (0, 16)}, r"size.0: expected at least 1 and at most 65536, got 0"),
        ({"size": (16, 10**9)}, r"size.1: expected at least 1 and at most 65536"),
        ({"size": (16, 17)}, "size: expected positive multiples of 2 pixels as image size, got 16 x 17"),
        ({"top_k": -1}, "top_k: expected at least 0"),
        ({"top_k": 1.5}, "top_k: expected an integer, got 1.5"),
        ({"min_p": 1.5}, "min_p: expected at least 0 and at most 1, got 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected at least 0.001 and at most 1000.0, got 0"),
        ({"repetition_penalty": None}, "repetition_penalty: expected a number, got null"),
        ({"stop": "end"}, r"stop: expected a list of strings, got 'end' \(string\); write \[end\]"),
        ({"stop": ["a", ""]}, "stop: expected texts of whole characters, at least one each, got ''"),
        ({"stop": ["a\ufffd"]}, "stop: expected texts of whole characters, at least one each, got 'a"),
        ({"stop": ["a", 3]}, r"stop.1: expected a string, got 3 \(integer\)"),
        ({"stop": ["\ud800"]}, "stop.0: "),
        ({"ignore_eos": 1}, r"ignore_eos: expected true or false, got 1 \(integer\)"),
        ({"log_probs": 1001}, "log_probs: expected at least 0 and at most 1000, got 1001"),
        ({"log_probs": True}, "log_probs: expected an integer, got true"),
        ({"dream_probs": 1}, "dream_probs: expected true or false, got 1"),
        ({"negative_prompt": None}, "negative_prompt: expected a string, got null"),
        ({"negative_prompt": 300 * "a"}, "negative_prompt: expected at most 256 tokens, got 301"),
        ({"negative_prompt": 252 * "a"}, "negative_prompt: expected at most 256 tokens, got 253 and 5 of an"),
        ({"seed": torch.tensor(3)}, "seed: expected an integer from 0 to"),
    ],
)
def test_a_setting_that_a_recipe_could_not_have_is_an_error_before_any_text(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DreamkitError, match=message):
        next(iter(MODEL.generate("x", **settings)))


def test_all_wrong_settings_are_in_one_error() -> None:
    with pytest.raises(DreamkitError) as caught:
        next(iter(MODEL.generate("x", steps=0, guidance=float("nan"))))
    assert {line.split(":")[0] for line in str(caught.value).splitlines()} == {"steps", "guidance"}


def test_numbers_of_numpy_are_settings(script: Callable) -> None:
    script(lambda n: A)
    numbers = {"max_tokens": np.int64(2), "steps": np.int32(2), "guidance": np.float32(2), "top_p": 1}
    numbers["size"] = (np.int64(16), 16)  # type: ignore[assignment]
    assert texts(collect(MODEL.generate("x", seed=np.int64(3), **numbers))[0]) == ["x", "AA"]


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(DreamkitError, match="unknown setting 'max_image'; did you mean 'max_images'"):
        next(iter(MODEL.generate("x", max_image=2)))


def test_a_wrong_number_of_seeds_is_an_error() -> None:
    with pytest.raises(DocumentError, match="expected 2 seeds for 2 prompts, got 3"):
        list(MODEL.generate(["a", "b"], seed=[1, 2, 3]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(
    value: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, calls = MODEL.language_model.logits, iter(range(100))

    def spoilt(hidden: Tensor) -> Tensor:
        return logits(hidden) if next(calls) < 2 else torch.full_like(logits(hidden), value)

    monkeypatch.setattr(MODEL.language_model, "logits", spoilt)
    events = MODEL.generate(PROMPTS[1], temperature=temperature, max_images=0, ignore_eos=True)
    with pytest.raises(DreamkitError, match=r"^longer: expected finite logits for token 3, got NaN"):
        collect(events)


def test_a_single_infinite_logit_is_an_error_and_those_of_minus_infinity_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some models give the ids without a token a logit of -inf."""
    for value, is_error in ((-torch.inf, False), (torch.inf, True), (torch.nan, True)):

        def spoilt(hidden: Tensor, value: float = value) -> Tensor:
            row = torch.zeros(*hidden.shape[:-1], len(MODEL.language_model.head().weight))
            row[..., A] = value
            row[..., END] = 1.0
            return row

        monkeypatch.setattr(MODEL.language_model, "logits", spoilt)
        if is_error:
            with pytest.raises(DreamkitError, match="expected finite logits for token 1"):
                collect(MODEL.generate("x"))
        else:
            collect(MODEL.generate("x"))


@pytest.mark.parametrize("name", ["predict", "decode"])
def test_images_that_are_not_finite_are_an_error(
    script: Callable, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The second image of one document is spoilt in its second step, or when it is decoded."""
    script(lambda n: [DREAM, A, DREAM][n])
    decoder = MODEL.image_decoder
    method, calls = getattr(decoder, name), iter(range(100))
    spoilt_call = {"predict": 3, "decode": 1}[name]  # two steps an image; one decoding

    def spoilt(*args: Any, **named: Any) -> Tensor:
        output = method(*args, **named)
        return output * torch.nan if next(calls) == spoilt_call else output

    monkeypatch.setattr(decoder, name, spoilt)
    values = {"predict": "latents in step 2 of 2", "decode": "pixels"}[name]
    events = []
    with pytest.raises(DreamkitError, match=f"^prompt 0: image 2: expected finite {values}, got NaN or inf"):
        for event in MODEL.generate("x"):
            events.append(event)
    assert sum(isinstance(event, ImageDone) for event in events) == 1


def test_finite_values_are_read_with_the_token_and_once_for_all_steps_of_an_image() -> None:
    reads = HostReads()
    with reads.watch():
        rows = [finite_rows(torch.zeros(2, 4, 8, 8)) for _ in range(5)]
    assert reads.reads == []
    with reads.watch():
        check_drawn(["a", "b"], rows[:4], rows[4])
    assert reads.reads == ["tolist"]
    reads = HostReads()
    with reads.watch():
        none = torch.tensor([], dtype=torch.long)
        chooser = TokenChooser(GenerationSection(temperature=0.0), torch.Generator(), none, 0, set())
        score = chooser.choose(torch.tensor([0.0, 2.0, 1.0]))
    assert score is not None and score.token == 1 and reads.reads == ["tolist"]
