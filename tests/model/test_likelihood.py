"""Log likelihoods: numbers of transformers, of training and of generation; the same alone and in batches; errors."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image as PIL
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import small_language
import tiny
from dreamkit.data.continuation import with_continuation
from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import DocumentError, DreamkitError
from dreamkit.model import likelihood
from dreamkit.model.events import DocumentDone, ImageStarted, TextPiece
from dreamkit.model.likelihood import LogLikelihood
from dreamkit.model.likelihood_pairs import pairs_of
from dreamkit.model.model import DreamModel
from dreamkit.model.offloading import offload, stop_offloading
from dreamkit.model.placing import place
from dreamkit.recipe.sections import WITH_SOURCE

MODEL = tiny.model()
PART = MODEL.language_model
BOS, EOS = PART.spec.bos_id, PART.spec.eos_ids[0]
DIGITS = "pkg:dreamkit_digits/parts/llama"
PROMPTS: list[Any] = [
    Document((Text("a"), Image(tiny.picture(0)), Text("and then")), name="reads"),
    Document((Text("draw", role="user"), Image(tiny.picture(1), role="user")), name="chat"),
    Document((Text("x"), Image(tiny.picture(2), draw=True)), name="draws"),
    Document((), name="empty"),
    "a longer text, of several words",
    "",
    [7, 8, 9, 200],
    [],
]
# names of the vocabulary: no token is added, so that the vocabulary is that of the library's model
OWN_NAMES = dict(
    zip(
        ("dream_start", "dream_end", "dream_patch", "image_start", "image_patch", "image_end"),
        "ĀāĂăĄą",
        strict=True,
    )
)


def random_ids(length: int, seed: int = 0, vocabulary: int = 260) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (length,), generator=generator).tolist()


def assert_close(actual: LogLikelihood, expected: LogLikelihood, tolerance: float = 1e-9) -> None:
    assert actual.ids == expected.ids
    assert actual.log_probs == pytest.approx(expected.log_probs, abs=tolerance, rel=0)
    assert actual.is_greedy == expected.is_greedy


# the library's numbers


@torch.no_grad()
def of_library(model: Any, prompt: list[int], ids: list[int]) -> LogLikelihood:
    """Return the log likelihood by one teacher-forced pass of a model of transformers, of the whole vocabulary."""
    logits = model(torch.tensor([prompt + ids[:-1]])).logits[0, -len(ids) :]
    labels = torch.tensor(ids)[:, None]
    log_probs = logits.double().log_softmax(-1).gather(1, labels)[:, 0]
    return LogLikelihood(
        tuple(ids), tuple(log_probs.tolist()), bool((logits.argmax(-1) == labels[:, 0]).all())
    )


LONG: dict[str, Any] = {
    "original_max_position_embeddings": small_language.SWITCH,
    "rope_parameters": small_language.LONGROPE,
}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "phi": (Phi3ForCausalLM, Phi3Config, {**LONG, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_a_pass_of_the_librarys_model(name: str, tmp_path: Path) -> None:
    """Phi's LongRoPE has other factors for the longer pairs of a batch."""
    kind, config_kind, config = CASES[name]
    folder, library = small_language.write(tmp_path, kind, config_kind, **config)
    source = {"name": name, "pretrained": folder}
    model = tiny.model(**{"model.language_model": source, "model.special_tokens": OWN_NAMES})
    assert len(model.language_model.head().weight) == 260
    lengths = [(1, 1), (5, 3), (9, 4), (9, 5), (12, 1), (20, 10), (40, 25), (1, 50)]
    switched = [sum(each) - 1 > small_language.SWITCH for each in lengths]
    assert any(switched) and not all(switched)
    pairs = [(random_ids(a, a), random_ids(b, b + 99)) for a, b in lengths]
    results = model.log_likelihood(*zip(*pairs, strict=True))
    for result, (prompt, ids) in zip(results, pairs, strict=True):
        assert_close(result, of_library(library.double(), prompt, ids))
    best = library(torch.tensor([pairs[4][0]])).logits[0, -1].argmax().item()
    assert model.log_likelihood([pairs[4][0]], [[best]])[0].is_greedy


@pytest.fixture(scope="module")
def with_words() -> DreamModel:
    """Return a model whose tokenizer joins bytes to words, with a space before each."""
    return tiny.model(**{"model.language_model": {"name": "llama", "pretrained": DIGITS}})


@pytest.mark.parametrize(
    ("prompt", "continuation"),
    [
        ("a two", " is a two"),
        ("a two  ", "is a two"),  # the spaces go to the continuation
        ("a sev", "en is a two"),  # the tokens of a word are others than those of its beginning
        ("  ", "a seven"),
        ("", "a seven"),
        ("what\n", "</s> and <dream_start>"),
    ],
)
def test_texts_are_divided_as_by_the_evaluation_harness(
    prompt: str, continuation: str, with_words: DreamModel
) -> None:
    """`TemplateLM._encode_pair` of lm-evaluation-harness; this model has no bos token."""
    part: Any = with_words.language_model

    def encode(text: str) -> list[int]:
        return part.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    spaces = len(prompt) - len(prompt.rstrip())
    context, rest = prompt[: len(prompt) - spaces], prompt[len(prompt) - spaces :] + continuation
    expected = encode(context + rest)[len(encode(context)) :]
    (result,) = with_words.log_likelihood([prompt], [continuation])
    assert result.ids == tuple(expected)
    assert_close(result, with_words.log_likelihood([encode(context) or [2]], [expected])[0])


# training's numbers


def test_the_numbers_are_those_of_the_training_loss() -> None:
    """A document with an image, and a conversation; also of the tokens that end them."""
    recipe = MODEL.recipe
    assert recipe is not None
    picture = tiny.picture(1)
    cases: list[tuple[tuple[Segment, ...], Text]] = [
        ((Image(picture), Text("is", train_on=False)), Text(" a dog")),
        ((Text("what?", role="user"), Image(picture, role="user")), Text("a bird", role="assistant")),
        ((Text("one", train_on=False), Image(picture, draw=True, train_on=False)), Text(" two")),
    ]
    for segments, answer in cases:
        prompt = Document(segments)
        batch = MODEL.collator(recipe)([Document((*segments, answer))])
        with torch.no_grad():
            hidden = PART(*MODEL.inputs(batch), spans=batch.spans).flatten(0, 1)
            loss = MODEL.label_losses(hidden, batch)
        answered = [*PART.tokenize(answer.text), EOS]
        by_text, by_ids = MODEL.log_likelihood([prompt, prompt], [answer.text, answered])
        assert by_ids.total == pytest.approx(-loss.total.item(), abs=1e-9)
        assert by_ids.log_probs == pytest.approx((-loss.by_row[batch.label_weight_L > 0]).tolist(), abs=1e-9)
        assert by_text.ids == by_ids.ids[:-1]
        assert by_text.log_probs == pytest.approx(by_ids.log_probs[:-1], abs=1e-9)


# generation's


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model write changing tokens, none of which generation suppresses."""
    real = type(PART).logits
    suppressed = [*{*MODEL.token_ids.values(), *PART.suppressed_ids} - {EOS}]

    def logits(hidden: Tensor) -> Tensor:
        return 3 * (100 * real(PART, hidden)).sin().index_fill(-1, torch.tensor(suppressed), -2)

    monkeypatch.setattr(PART, "logits", logits)


@pytest.mark.usefixtures("changing")
def test_what_generation_writes_greedily_is_greedy_and_nothing_else_is() -> None:
    prompts = [prompt for prompt in PROMPTS if not isinstance(prompt, list)]
    options = {"temperature": 0, "max_tokens": 6, "max_images": 0, "log_probs": 1}
    written: list[list[Any]] = [[] for _ in prompts]
    for event in MODEL.generate(prompts, **options):
        if isinstance(event, TextPiece | ImageStarted | DocumentDone):
            written[event.document] += event.scores
    for prompt, scores in zip(prompts, written, strict=True):
        ids = [score.token for score in scores]
        assert len({*ids}) > 1
        altered = [[*ids[:at], (ids[at] + 1) % 260, *ids[at + 1 :]] for at in range(len(ids))]
        if isinstance(prompt, str):  # its own tokens, as generation has them
            prompt = Document((Text(prompt),) if prompt else ())
        result, *others = MODEL.log_likelihood([prompt] * (1 + len(ids)), [ids, *altered])
        assert result.is_greedy and not any(other.is_greedy for other in others)
        assert result.log_probs == pytest.approx([score.log_prob for score in scores], abs=1e-5)


def test_a_text_goes_on_with_the_text_that_a_model_wrote(with_words: DreamModel) -> None:
    part: Any = with_words.language_model
    ids = part.tokenize("a two zqx")
    whole, alone = part.decode(ids), []
    for at in range(1, len(ids)):
        begun = part.decode(ids[:at])
        written = Document((Image(tiny.picture(0)), Text(begun, ids=tuple(ids[:at]))))
        rest = whole[len(begun) :]
        (result,) = with_words.log_likelihood([written], [rest])
        assert result.ids == tuple(ids[at:])
        alone.append(part.tokenize(rest) == ids[at:])
    assert not all(alone)  # inside a word, a text by itself would begin with a space
    # after tokens that would be others, the text has its own tokens
    cut = Document((Text("a tw", ids=tuple(part.tokenize("a tw"))),))
    assert with_continuation(with_words.sequencer(), cut, "o is")[1] == part.tokenize("o is")


@given(
    begun=st.text("a two \n", max_size=12),
    text=st.text("a two \n", min_size=1, max_size=12),
    has_image=st.booleans(),
)
def test_a_document_and_a_text_have_the_same_tokens(
    begun: str, text: str, has_image: bool, with_words: DreamModel
) -> None:
    """Those of the whole text in training, if they begin with the prompt's."""
    sequencer, images = with_words.sequencer(), (Image(tiny.picture(0)),) * has_image
    sequence, ids = with_continuation(sequencer, Document((*images, Text(begun))), text)
    before = sequencer.open_sequence(Document(images)).ids
    tokens: Any = with_words.language_model.tokenize
    assert sequence.ids == ([*before, *tokens(begun.rstrip())] or [EOS])
    assert ids == tokens(begun + text)[len(tokens(begun.rstrip())) :]
    if ids and not has_image:
        one, other = pairs_of(with_words, [begun, Document((Text(begun),))], [text, text])
        assert (one.ids, one.inputs.ids) == (other.ids, other.inputs.ids) == (ids, sequence.ids + ids[:-1])


# batches


@st.composite
def some_pairs(draw: st.DrawFn) -> list[tuple[Any, Any]]:
    text = st.text("ab é", min_size=1, max_size=20)
    ids = st.lists(st.integers(0, 264), min_size=1, max_size=20)
    prompt = st.sampled_from(PROMPTS) | st.lists(st.integers(0, 264), max_size=30) | text
    return draw(st.lists(st.tuples(prompt, text | ids), min_size=1, max_size=8))


@given(pairs=some_pairs(), tokens=st.integers(1, 300), rows=st.integers(1, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pair_has_the_same_result_alone_and_in_any_batch(
    pairs: list[tuple[Any, Any]], tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of at most `tokens` tokens, and logits of `rows` rows at a time."""
    alone = [MODEL.log_likelihood([prompt], [continuation])[0] for prompt, continuation in pairs]
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "TOKENS", tokens)
        patch.setattr(likelihood, "LOGITS", rows * 12 * 260)
        together = MODEL.log_likelihood(*zip(*pairs, strict=True))
    for result, expected in zip(together, alone, strict=True):
        assert_close(result, expected)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_continuation_in_two_parts_has_the_sum_of_both(data: st.DataObject) -> None:
    """log p(ab | c) = log p(a | c) + log p(b | ca)."""
    ids = st.lists(st.integers(0, 264), min_size=1, max_size=12)
    c, a, b = data.draw(ids), data.draw(ids), data.draw(ids)
    whole, first, second = MODEL.log_likelihood([c, c, c + a], [a + b, a, b])
    assert whole.total == pytest.approx(first.total + second.total, abs=1e-9)
    assert whole.log_probs == pytest.approx(first.log_probs + second.log_probs, abs=1e-9)
    assert whole.is_greedy == (first.is_greedy and second.is_greedy)


SIZES = tiny.RECIPE["model"]["language_model"]["config"]
OTHERS: dict[str, dict[str, Any]] = {
    "llama": {"name": "llama", "config": SIZES},
    "window": {"name": "mistral", "config": {**SIZES, "sliding_window": 5}},
    # recurrent states: the library's own masks and positions
    "recurrent": {"name": "causal-lm", "config": {"model_type": "qwen3_next", **small_language.NEXT}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_float32_models_give_the_same_alone_and_in_a_batch(name: str) -> None:
    model = tiny.model(**{"model.language_model": OTHERS[name]}).float()
    prompts = [random_ids(length, length) for length in (1, 7, 30, 3)]
    continuations = [random_ids(length, length + 99) for length in (9, 1, 4, 20)]
    together = model.log_likelihood(prompts, continuations)
    for result, prompt, continuation in zip(together, prompts, continuations, strict=True):
        assert_close(result, model.log_likelihood([prompt], [continuation])[0], 2e-5)


def test_calls_are_bounded_and_have_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rows that predict a token of a continuation have logits."""
    calls: list[tuple[int, int]] = []
    rows: list[int] = []
    forward, logits = PART.forward, PART.logits

    def counted(embeds_BTD: Tensor, *args: Any, cache: Any, **named: Any) -> Tensor:
        assert cache is None
        calls.append((embeds_BTD.shape[0], embeds_BTD.shape[1]))
        return forward(embeds_BTD, *args, cache=cache, **named)

    def counted_logits(hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(PART, "forward", counted)
    monkeypatch.setattr(PART, "logits", counted_logits)
    monkeypatch.setattr(PART, "new_cache", lambda: pytest.fail("a cache was made"))
    monkeypatch.setattr(likelihood, "TOKENS", 40)
    monkeypatch.setattr(likelihood, "LOGITS", 3 * 12 * 260)
    prompts = [random_ids(length) for length in (3, 60, 8, 3, 20, 5, 3)]
    continuations = [random_ids(length) for length in (1, 2, 3, 4, 5, 6, 7)]
    MODEL.log_likelihood(prompts, continuations)
    assert all(count == 1 or count * width <= 40 for count, width in calls)
    assert sum(count for count, _ in calls) == len(prompts) > len(calls)
    widths = [width for _, width in calls]
    assert widths == sorted(widths, reverse=True)
    assert sum(rows) == sum(map(len, continuations)) and max(rows) <= 3


@pytest.mark.parametrize("most", [1, 2])
def test_an_image_object_is_encoded_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[Any]] = []
    preprocess = MODEL.vision_encoder.preprocess

    def counted(pictures: Sequence[Any]) -> Tensor:
        calls.append([*pictures])
        return preprocess(pictures)

    pictures = [tiny.picture(number) for number in range(3)]
    questions = [Document((Image(picture), Text("is"))) for picture in pictures]
    questions += [Document((Text("what is "), Image(pictures[0]), Image(pictures[2])))]
    prompts = [question for question in questions for _ in range(5)]
    answers = ["a", "a dog", "a cat", "a house", "another one"] * 4
    expected = [MODEL.log_likelihood([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    monkeypatch.setattr(MODEL.vision_encoder, "preprocess", counted)
    monkeypatch.setattr(likelihood, "TOKENS", 50)  # a call of a few pairs
    monkeypatch.setattr(likelihood, "IMAGES", most)
    results = MODEL.log_likelihood(prompts, answers)
    assert [len(call) for call in calls] == {1: [1, 1, 1], 2: [2, 1]}[most]
    assert {id(each) for call in calls for each in call} == {*map(id, pictures)}
    for result, each in zip(results, expected, strict=True):
        assert_close(result, each)


def test_pairs_that_read_the_same_images_are_in_neighbouring_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few images are kept at the same time, whatever the lengths of the pairs."""
    monkeypatch.setattr(likelihood, "TOKENS", 60)
    questions = [Document((Image(tiny.picture(number)), Text("is"))) for number in range(4)]
    pairs = pairs_of(MODEL, questions * 6, [random_ids(length) for length in range(2, 26)])
    used: dict[int, set[int]] = {}
    for at, batch in enumerate(likelihood._batches(pairs)):
        for pair in batch:
            used.setdefault(pair.image_keys[0], set()).add(at)
    assert len(used) == 4 and any(len(calls) > 1 for calls in used.values())
    assert all(max(calls) - min(calls) == len(calls) - 1 for calls in used.values())


# long texts


def windows(ids: list[int], prefix: int, length: int, context: int) -> list[tuple[list[int], list[int]]]:
    """Return the pairs that lm-evaluation-harness scores for a long text, at most `length` tokens being read.

    Each window but the first is full, and scores the tokens that the one before left, after at least `context` others.
    """
    ends = [min(length, len(ids))]
    while ends[-1] < len(ids):
        ends.append(min(ends[-1] + length - context + 1, len(ids)))
    text = [prefix, *ids]
    return [
        (text[max(0, end - length) : start + 1], text[start + 1 : end + 1])
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def test_windows_are_those_of_the_evaluation_harness() -> None:
    """The example in the docstring of its `loglikelihood_rolling`."""
    expected = [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert windows([*range(10)], -1, 4, 1) == expected


@pytest.mark.parametrize("context", [1, 100])
def test_a_long_text_is_scored_in_windows(context: int) -> None:
    """Windows of the model's length: the last token of each is not read."""
    ids = random_ids(700)
    pairs = windows(ids, BOS, PART.spec.max_length, context)
    assert len(pairs) > 2 and max(len(a) + len(b) for a, b in pairs) == PART.spec.max_length + 1
    results = MODEL.log_likelihood(*zip(*pairs, strict=True))
    assert [token for result in results for token in result.ids] == ids
    expected = [of_library(Whole(), prompt, continuation).total for prompt, continuation in pairs]
    assert [result.total for result in results] == pytest.approx(expected, abs=1e-9)


class Whole:
    """The model behind `library_forward`, called like one of the library, with the rows of added tokens."""

    def __call__(self, ids_BT: Tensor) -> Any:
        position_ids = torch.arange(ids_BT.shape[1])[None]
        hidden = PART(PART.embed(ids_BT), position_ids, torch.zeros_like(position_ids))
        self.logits = PART.logits(PART.final_norm(hidden))
        return self


# states of a model


def test_the_model_is_in_evaluation_mode_and_then_in_its_own() -> None:
    changed = {"hidden_dropout": 0.5, "attention_dropout": 0.5}
    part = {"name": "causal-lm", "config": {"model_type": "gpt_neox", **SIZES, **changed}}
    del part["config"]["num_key_value_heads"]  # type: ignore[attr-defined]
    model = tiny.model(**{"model.language_model": part})
    model.set_trainable(["language_model"])
    model.train()
    first, second = (model.log_likelihood(["a"], ["bc"])[0] for _ in range(2))
    assert model.language_model.training and first == second
    model.eval()
    assert_close(model.log_likelihood(["a"], ["bc"])[0], first)
    assert not model.language_model.training


def test_a_model_in_bfloat16_has_log_probabilities_in_float32() -> None:
    model = place(tiny.model(), device="cpu", dtype="bfloat16")
    exact = tiny.model()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    prompts, continuations = PROMPTS, ["a bc"] * len(PROMPTS)
    results = model.log_likelihood(prompts, continuations)
    for result, expected in zip(results, exact.log_likelihood(prompts, continuations), strict=True):
        assert result.log_probs == pytest.approx(expected.log_probs, abs=0.05)
        assert any(value != torch.tensor(value).bfloat16().item() for value in result.log_probs)


def test_offloaded_parts_give_the_same_to_the_bit() -> None:
    continuations = ["a bc"] * len(PROMPTS)
    expected = MODEL.log_likelihood(PROMPTS, continuations)
    parts = {name: MODEL.parts()[name] for name in WITH_SOURCE}
    turns = offload(parts, torch.device("cpu"))
    try:
        assert MODEL.log_likelihood(PROMPTS, continuations) == expected
    finally:
        stop_offloading(parts)
    assert turns.moves == 2  # the vision encoder and the language model


# errors


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ("a", ["b"], r"prompts: expected a list, got 'a' \(string\)"),
        (["a"], "b", r"continuations: expected a list, got 'b' \(string\)"),
        (Document(()), ["b"], "prompts: expected a list"),
        (["a"], ["b", "c"], "expected as many prompts as continuations, got 1 prompt and 2 continuations"),
        (
            [1, 2],
            [[1], [2]],
            r"pair 0: prompt: expected a document, a text or token ids .*, got 1 \(integer\)",
        ),
        (["a", None], ["b", "c"], "pair 1: prompt: expected a document, .*, got null"),
        (["a"], [None], "pair 0: continuation: expected a text or token ids .*, got null"),
        (["a"], [b"b"], "pair 0: continuation: expected a text or token ids"),
        (["a"], [bytearray(b"b")], "pair 0: continuation: expected a text or token ids"),
        (["a"], [array("i", [5])], r"pair 0: continuation: .*, got array.*; pass ids.tolist\(\)$"),
        ([np.array([5, 6])], ["a"], r"pair 0: prompt: .*, got array.*; pass ids.tolist\(\)$"),
        (["a"], [torch.tensor([5])], r"pair 0: continuation: .*, got tensor.*; pass ids.tolist\(\)$"),
        (["a"], [[torch.tensor(5)]], r"pair 0: continuation: expected integers .*, got tensor\(5\) .* 0$"),
        (["a"], [["b", "c"]], "got 'b' .* at index 0; name the prompt again for each of its continuations$"),
        (["a"], [[[5], [6]]], "a list .* at index 0; name the prompt again for each of its continuations$"),
        ([["b"]], ["a"], r"pair 0: prompt: expected integers .*, got 'b' \(string\) at index 0$"),
        (
            ["a", [1, 265]],
            ["b", "c"],
            r"pair 1: prompt: expected integers from 0 to 264, got 265 .* at index 1",
        ),
        (["a"], [[5, -1]], r"pair 0: continuation: expected integers from 0 to 264, got -1 \(integer\)"),
        (["a"], [[True]], r"pair 0: continuation: expected integers .*, got true \(boolean\)"),
        (["a"], [[1.0]], r"pair 0: continuation: expected integers .*, got 1.0 \(number\)"),
        (["a"], [""], "pair 0: continuation: expected at least one token, got none$"),
        (["a"], [[]], "pair 0: continuation: expected at least one token, got none$"),
        (["a"], ["\ud800"], "pair 0: continuation: .*surrogate"),
        (["a", "\ud800a"], ["a", "a"], "pair 1: prompt: .*surrogate .* at position 0"),
        (["\ud800a"], [[5]], "pair 0: prompt: .*surrogate"),
        (["a", "b" * 300], ["c", "d"], "pair 1: prompt: expected at most 256 tokens, got 301; shorten it"),
        (
            [[1] * 250],
            [[2] * 8],
            "pair 0: prompt: expected at most 257 tokens with the continuation, got 250 and 8; shorten",
        ),
        (
            [Document((Text("b" * 250),), name="page 7")],
            ["e" * 9],
            "pair 0: page 7: expected at most 257 tokens with the continuation, got 251 and 9",
        ),
    ],
)
def test_bad_pairs_are_errors_that_name_the_pair(prompts: Any, continuations: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        MODEL.log_likelihood(prompts, continuations)


def test_a_text_whose_tokens_are_joined_with_those_of_the_prompt_is_an_error(with_words: DreamModel) -> None:
    assert len(with_words.language_model.tokenize("a tw")) > len(with_words.language_model.tokenize("a two"))
    with pytest.raises(
        DocumentError, match=r"pair 0: .* got none for 'o' \(string\), which .* pass token ids"
    ):
        with_words.log_likelihood(["a tw"], ["o"])


def truncated_picture() -> Any:
    file = BytesIO()
    tiny.picture(0, 64).save(file, "JPEG")
    return PIL.open(BytesIO(file.getvalue()[:900]))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [(PIL.new("F", (8, 8)), "got float values"), (truncated_picture(), "OSError: image file is truncated")],
)
def test_an_image_that_cannot_be_read_is_an_error_that_names_the_pair(picture: Any, reason: str) -> None:
    """The first one that reads it, also if a longer one comes first in the calls."""
    good, bad = Image(tiny.picture(1)), Image(picture)
    prompts = [Document((good, Text("is"))), Document((good, bad)), Document((bad, Text("is")))]
    with pytest.raises(DocumentError, match=f"^pair 1: cannot read an image: .*{reason}"):
        MODEL.log_likelihood(prompts, ["a", "b", "c" * 20])


def test_an_error_that_is_of_no_image_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL.vision_encoder, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        MODEL.log_likelihood([Document((Image(tiny.picture(1)),))], ["a"])


def test_no_pairs_have_no_results() -> None:
    assert MODEL.log_likelihood([], []) == []


def test_a_prompt_without_a_token_is_bos_else_eos() -> None:
    without = tiny.model(**{"model.language_model": {"name": "qwen", "config": SIZES}})
    assert without.language_model.spec.bos_id is None
    for model, first in ((MODEL, BOS), (without, without.language_model.spec.eos_ids[0])):
        expected, *results = model.log_likelihood([[first], "", Document(()), []], ["ab"] * 4)
        for result in results:
            assert_close(result, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_the_pair(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = type(PART).logits

    def overflowing(hidden: Tensor) -> Tensor:
        every = logits(PART, hidden)
        every[2:] = every[2:].index_fill(-1, torch.tensor([9]), value)
        return every

    monkeypatch.setattr(PART, "logits", overflowing)
    with pytest.raises(DreamkitError, match=r"pair 0: expected finite logits for token 2, got NaN or inf"):
        MODEL.log_likelihood([[1, 2], [1]], [[3, 4, 9], [5]])
