"""Log probabilities of written tokens and P(draw): those of one pass of the model over the finished document."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DreamkitError
from dreamkit.model.document_rows import Rows
from dreamkit.model.events import DocumentDone, Event, ImageStarted, TextPiece, TokenScore
from dreamkit.model.input_maker import InputMaker

MODEL = tiny.model()
DREAM = MODEL.token_ids["<dream_start>"]
END = MODEL.language_model.spec.eos_ids[0]
PROMPTS = [
    Document((Text("a"), Image(tiny.picture(0)), Text("and then")), name="reads"),
    Document((Text("what?", role="user"),), name="chat"),
    Document((), name="empty"),
]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model write changing tokens, draw and end often, as its hidden states decide."""
    head = type(MODEL.language_model).logits

    def logits(hidden: Tensor) -> Tensor:
        changing = 3 * (100 * head(MODEL.language_model, hidden)).sin()
        changing[..., [DREAM, END]] *= 2
        return changing

    monkeypatch.setattr(MODEL.language_model, "logits", logits)


def scores(events: list[Event], document: int = 0) -> list[TokenScore]:
    """Return the scores of all events of a document."""
    return [
        score
        for event in events
        if event.document == document and isinstance(event, TextPiece | ImageStarted | DocumentDone)
        for score in event.scores
    ]


def result(events: list[Event], document: int = 0) -> DocumentDone:
    (done,) = [event for event in events if isinstance(event, DocumentDone) and event.document == document]
    return done


@torch.no_grad()
def one_pass(document: Document, prompt: Document) -> tuple[list[int], Tensor]:
    """Return the tokens that were written after `prompt`, and the log probabilities (T, V) in the place of each.

    There is one more place than tokens: that after the document.
    """
    maker = InputMaker(MODEL)
    sequence = maker.sequencer.prompt(document)
    start = len(maker.sequencer.prompt(prompt))
    (inputs,) = maker.prompt_inputs([maker.sequencer.prompt(document)])
    hidden = Rows(MODEL, [0]).feed({0: inputs})[0]
    log_probs = MODEL.language_model.logits(MODEL.language_model.final_norm(hidden)).double().log_softmax(-1)
    slots = {*MODEL.token_ids.values()} - {DREAM}  # what follows the dream token by itself
    places = [place for place in range(start, len(sequence)) if sequence.ids[place] not in slots]
    return [sequence.ids[place] for place in places], log_probs[[place - 1 for place in [*places, 0]]]


SAMPLED: dict[str, Any] = {"temperature": 1.3, "top_k": 200, "top_p": 0.95, "repetition_penalty": 1.2}


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_scores_are_those_of_one_pass_over_the_finished_document(sampling: dict[str, Any]) -> None:
    """They do not depend on temperature, truncation, the penalty or suppressed tokens."""
    options = {
        "max_tokens": 10,
        "max_images": 2,
        "guidance": 1,
        "log_probs": 3,
        "dream_probs": True,
        **sampling,
    }
    events = list(MODEL.generate(PROMPTS, seed=[1, 2, 3], **options))
    kinds = set()
    for number, prompt in enumerate(PROMPTS):
        done, written = result(events, number), scores(events, number)
        kinds |= {done.reason, *(type(segment) for segment in done.result.segments[len(prompt) :])}
        tokens, log_probs = one_pass(done.result, prompt)
        assert [score.token for score in written[: len(tokens)]] == tokens
        assert len(written) - len(tokens) == (done.reason in ("end", "images"))
        for score, row in zip(written, log_probs[: len(written)], strict=True):
            assert score.log_prob == pytest.approx(row[score.token].item(), abs=1e-5)
            assert score.dream_prob == pytest.approx(row[DREAM].exp().item(), abs=1e-5)
            best = row.topk(3)
            assert [token for token, _ in score.alternatives] == best.indices.tolist()
            values = [value for _, value in score.alternatives]
            assert values == pytest.approx(best.values.tolist(), abs=1e-5)
    assert kinds >= {Text, Image} and kinds & {"end", "images"}


def test_settings_decide_which_scores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    head = type(MODEL.language_model).logits
    raised = torch.zeros(len(MODEL.language_model.head().weight))
    raised[DREAM] = 4.0
    monkeypatch.setattr(
        MODEL.language_model, "logits", lambda hidden: head(MODEL.language_model, hidden) + raised
    )

    def write(**options: Any) -> list[TokenScore]:
        return scores(list(MODEL.generate("a", max_images=0, max_tokens=3, ignore_eos=True, **options)))

    assert write() == []
    every = write(log_probs=2, dream_probs=True)
    assert len(every) == 3
    assert [len(score.alternatives) for score in every] == [2, 2, 2]
    # the model would draw, but the token is suppressed
    assert all(score.dream_prob is not None and score.dream_prob > 0.1 for score in every)
    assert all(DREAM in [token for token, _ in score.alternatives] for score in every)
    for score, least, other in zip(every, write(log_probs=0), write(dream_probs=True), strict=True):
        assert least == TokenScore(score.token, score.log_prob)
        assert other == TokenScore(score.token, dream_prob=score.dream_prob)
    (first, *_) = write(log_probs=1000)
    assert len(first.alternatives) == len(MODEL.language_model.head().weight)
    assert math.fsum(math.exp(value) for _, value in first.alternatives) == pytest.approx(1)


def test_each_event_has_the_scores_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (MODEL.language_model.tokenize(letter)[0] for letter in "abc")
    written = [a, DREAM, c, a, b]
    ids = iter(written)
    monkeypatch.setattr(
        MODEL.language_model,
        "logits",
        lambda hidden: torch.eye(500)[next(ids)].expand(*hidden.shape[:-1], -1).clone(),
    )
    events = list(MODEL.generate("x", steps=1, guidance=1, stop=["ab"], log_probs=0))
    assert [score.token for score in scores(events)] == written
    for event in events:
        if isinstance(event, TextPiece):
            assert [score.token for score in event.scores] == list(event.ids)
        elif isinstance(event, ImageStarted):
            assert [score.token for score in event.scores] == [DREAM]
        elif isinstance(event, DocumentDone):
            assert (event.reason, [score.token for score in event.scores]) == ("stop", [a, b])


def test_a_log_probability_that_is_nan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN of a suppressed token spoils the probabilities, not the text."""
    suppressed = MODEL.token_ids["<im_start>"]

    def logits(hidden: Tensor) -> Tensor:
        row = torch.zeros(*hidden.shape[:-1], 500)
        row[..., suppressed] = torch.nan
        return row

    monkeypatch.setattr(MODEL.language_model, "logits", logits)
    assert list(MODEL.generate("x", max_tokens=1))
    for options in ({"log_probs": 0}, {"dream_probs": True}):
        with pytest.raises(DreamkitError, match="prompt 0: expected finite logits for token 1, got NaN"):
            list(MODEL.generate("x", max_tokens=1, **options))
