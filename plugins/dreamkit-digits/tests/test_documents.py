"""The data set: documents match their images, and hold no held-out digits."""

import pytest
from hypothesis import given, strategies as st

from dreamkit import Document, Image, Text
from dreamkit_digits import digits, phrases
from dreamkit_digits.documents import DOCUMENTS, KINDS, Digits
from dreamkit_digits.phrases import Line, Picture

LABELS = {
    split: {part.pixels[index].tobytes(): int(part.labels[index]) for index in range(len(part))}
    for split, part in (("train", digits.load("train")), ("heldout", digits.load("heldout")))
}
LINES: dict[str, set[Line]] = {
    "reading": {phrases.reading(digit) for digit in range(10)},
    "drawing": {phrases.drawing(digit) for digit in range(10)},
    "counting": {phrases.counting(start) for start in phrases.COUNTING_STARTS},
    "sums": {phrases.summing(*pair) for pair in phrases.TRAIN_PAIRS},
}
TURNS = {
    (turn.user, turn.assistant)
    for digit in range(10)
    for turn in (
        *(phrases.question(digit, wording) for wording in range(len(phrases.QUESTIONS))),
        *(phrases.request(digit, wording) for wording in range(len(phrases.REQUESTS))),
    )
}
numbers = st.integers(0, DOCUMENTS - 1)


def documents(kind: str, split: digits.Split = "train", seed: int = 0) -> Digits:
    return Digits(Digits.Config(documents={kind: 1}, split=split, seed=seed))


def line(segments: tuple[Text | Image, ...], split: str = "train") -> Line:
    """The line that segments were written from, the digits looked up by their pixels."""
    return tuple(
        segment.text
        if isinstance(segment, Text)
        else Picture(LABELS[split][segment.picture.tobytes()], drawn=segment.draw)
        for segment in segments
    )


@given(number=numbers, seed=st.integers(0, 5), kind=st.sampled_from(sorted(LINES)))
def test_the_images_of_a_document_match_its_text(number: int, seed: int, kind: str) -> None:
    document = documents(kind, seed=seed)[number]
    assert line(document.segments) in LINES[kind]
    assert not document.is_conversation


@given(number=numbers)
def test_a_conversation_answers_its_questions(number: int) -> None:
    segments = list(documents("chat")[number])
    turns = []
    while segments:
        user = [segment for segment in segments[:2] if segment.role == "user"]
        rest = segments[len(user) :]
        end = next((n for n, segment in enumerate(rest) if segment.role == "user"), len(rest))
        turns.append((line(tuple(user)), line(tuple(rest[:end]))))
        segments = rest[end:]
    assert 1 <= len(turns) <= 2
    assert set(turns) <= TURNS


@given(number=numbers, kind=st.sampled_from(sorted(KINDS)), split=st.sampled_from(["train", "heldout"]))
def test_a_document_is_reproducible_and_uses_one_split(number: int, kind: str, split: digits.Split) -> None:
    once, again = documents(kind, split)[number], documents(kind, split)[number]
    assert pixels(once) == pixels(again)
    assert once.name == again.name and kind in once.name and str(number) in once.name
    assert [line((segment,), split) for segment in once] == [line((segment,), split) for segment in again]


def pixels(document: Document) -> list[bytes]:
    return [image.picture.tobytes() for image in document.images]


def test_the_splits_share_no_picture() -> None:
    assert not LABELS["train"].keys() & LABELS["heldout"].keys()


def test_other_indices_and_seeds_give_other_documents() -> None:
    first = documents("sums")
    assert len({tuple(pixels(first[number])) for number in range(100)}) > 95
    assert [pixels(first[n]) for n in range(5)] != [pixels(documents("sums", seed=1)[n]) for n in range(5)]


def test_every_line_occurs() -> None:
    for kind, lines in LINES.items():
        data = documents(kind)
        assert {line(data[number].segments) for number in range(500)} == lines


def test_the_answer_of_a_sum_is_trained_on_and_its_question_is_not() -> None:
    first, plus, second, answer, drawing = documents("sums")[0]
    assert (plus.train_on, answer.train_on, drawing.train_on) == (False, True, True)
    assert isinstance(first, Image) and isinstance(second, Image) and isinstance(drawing, Image)
    assert (first.draw, second.draw, drawing.draw) == (False, False, True)
    assert drawing.read


def test_weights_set_the_frequency_of_kinds() -> None:
    data = Digits(Digits.Config(documents={"reading": 1, "counting": 3}))
    kinds = [data[number].name.rpartition(" ")[2] for number in range(400)]
    assert set(kinds) == {"reading", "counting"}
    assert 0.68 < kinds.count("counting") / len(kinds) < 0.82


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"counting": 1, "sum": 1}, "'sum'; did you mean 'sums'"),
        ({"counting": 0}, "documents.counting: expected a positive number, got 0"),
        ({"counting": float("nan")}, "documents.counting: expected a positive number, got nan"),
        ({}, "documents: expected one or more of reading, .*, got none"),
    ],
)
def test_an_invalid_mixture_is_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits.Config(documents=weights)


def test_an_index_beyond_the_last_is_refused() -> None:
    with pytest.raises(IndexError, match=f"{DOCUMENTS:,}"):
        documents("reading")[DOCUMENTS]
