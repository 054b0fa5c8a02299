"""Documents longer than a row are cut between segments or turns, with something to train on."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

import tiny
from dreamkit.data.cutting import cut_sequence
from dreamkit.data.sequence import IGNORED, Sequence, Sequencer
from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import DocumentError

MODEL = tiny.model()
Q, V = len(MODEL.dream_queries), MODEL.visual_projector.spec.out_tokens
BOS, EOS = MODEL.language_model.spec.bos_id, MODEL.language_model.spec.eos_ids[0]
WHOLE = MODEL.sequencer()
PICTURE = tiny.picture(0)

plain_segments = st.lists(
    st.one_of(
        st.builds(Text, st.text("ab c", min_size=1, max_size=12), st.booleans()),
        st.builds(Image, st.just(PICTURE), st.just(True), st.booleans(), st.booleans()),
        st.builds(Image, st.just(PICTURE), st.just(False), st.just(True), st.booleans()),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def turns(draw: st.DrawFn) -> list[Segment]:
    segments: list[Segment] = []
    for number in range(draw(st.integers(1, 5))):
        role = ("user", "assistant")[number % 2]
        for _ in range(draw(st.integers(1, 3))):
            if draw(st.booleans()):
                text = draw(st.text("ab", min_size=1, max_size=12))
                segments.append(Text(text, train_on=draw(st.booleans()), role=role))
            else:
                segments.append(Image(PICTURE, draw=role == "assistant", role=role))
    return segments


def cut(document: Document, length: int) -> Sequence:
    return cut_sequence(MODEL.sequencer(length), document)


def assert_images_are_whole(sequence: Sequence) -> None:
    starts = [token for token in sequence.ids if token in (WHOLE.dream_start, WHOLE.image_start)]
    ends = [token for token in sequence.ids if token in (WHOLE.dream_end, WHOLE.image_end)]
    assert len(starts) == len(ends) == len(sequence.reads) + len(sequence.draws)
    for images, width, end in (
        (sequence.reads, V, WHOLE.image_end),
        (sequence.draws, Q, WHOLE.dream_end),
    ):
        assert all(sequence.ids[at + width] == end for at, _ in images)


@given(segments=plain_segments | turns(), length=st.integers(1, 90))
def test_a_cut_document_fits_with_whole_images_and_something_to_train_on(
    segments: list[Segment], length: int
) -> None:
    document = Document(tuple(segments), name="d")
    try:
        sequence = cut(document, length)
    except DocumentError as error:
        assert "d: nothing to train on" in str(error)
        whole = WHOLE.tokens(document)
        assert not any(label != IGNORED for label in whole.labels[1:length]) or any(
            label == WHOLE.dream_start and at + Q + 2 > length
            for at, label in enumerate(whole.labels[:length])
        )
        return
    whole = WHOLE.sequence(document)
    assert 1 < len(sequence) <= length and sequence.is_trained
    assert sequence.is_cut == (len(whole) > length)
    if not sequence.is_cut:
        assert sequence == whole
    assert_images_are_whole(sequence)
    assert sequence.ids == whole.ids[: len(sequence)]
    assert all(label in (IGNORED, token) for label, token in zip(sequence.labels, sequence.ids, strict=True))


@given(segments=plain_segments, length=st.integers(1, 90))
def test_a_cut_is_after_the_last_segment_that_fits(segments: list[Segment], length: int) -> None:
    document = Document(tuple(segments), name="d")
    try:
        sequence = cut(document, length)
    except DocumentError:
        return
    ends = WHOLE.sequence(document).ends
    if sequence.is_cut and len(sequence) in ends:
        assert len(sequence) == max(end for end in ends if end <= length)
    elif sequence.is_cut:  # no segment that fits has something to train on
        before = max((end for end in ends if end <= length), default=0)
        assert all(label == IGNORED for label in WHOLE.sequence(document).labels[1:before])


def test_each_length_cuts_a_document_at_its_segments() -> None:
    document = Document((Text("abcd"), Image(PICTURE, draw=True), Text("efgh"), Image(PICTURE)), name="d")
    read, draw = V + 2, Q + 2
    ends = [5, 5 + draw + read, 9 + draw + read, 9 + draw + 2 * read]
    for length in range(2, 60):
        sequence = cut(document, length)
        fitting = [end for end in ends if end <= length]
        expected = length if not fitting else ends[-1] + 1 if length > ends[-1] else fitting[-1]
        assert len(sequence) == expected
        assert (EOS in sequence.ids) == (not sequence.is_cut) == (length > ends[-1])


def conversation(*texts: str) -> Document:
    return Document(
        tuple(Text(text, role=("user", "assistant")[n % 2]) for n, text in enumerate(texts)), name="d"
    )


def test_a_conversation_is_cut_after_a_whole_turn_of_the_assistant() -> None:
    questions = ["one", "two", "three", "four", "five", "six", "seven"]
    for turns_of_all in (6, 7):
        document = conversation(*questions[:turns_of_all])
        wholes = [WHOLE.sequence(conversation(*questions[:end])) for end in (2, 4, 6)]
        for length in range(len(wholes[0]), len(WHOLE.sequence(document))):
            sequence = cut(document, length)
            expected = [whole for whole in wholes if len(whole) <= length][-1]
            assert sequence.is_cut and (sequence.ids, sequence.labels) == (expected.ids, expected.labels)
            assert sequence.labels[-1] == EOS


def test_an_answer_that_alone_is_too_long_is_cut_between_two_tokens() -> None:
    document = conversation("hi", "x" * 50, "more", "y")
    whole = WHOLE.sequence(document)
    sequence = cut(document, 30)
    assert (sequence.ids, sequence.labels) == (whole.ids[:30], whole.labels[:30]) and sequence.is_cut
    with pytest.raises(DocumentError, match=r"d: nothing to train on in the first 30 tokens of \d+; shorten"):
        cut(conversation("x" * 50, "an answer"), 30)
    with pytest.raises(DocumentError, match=r"d: nothing to train on: "):
        cut(Document((Text("x" * 50, train_on=False),), name="d"), 30)


def test_a_prompt_is_not_cut() -> None:
    with pytest.raises(DocumentError, match="expected at most 20 tokens, got"):
        MODEL.sequencer(20).prompt(Document((Text("x" * 50),)))


def test_a_long_conversation_is_cut_with_few_calls_of_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    tokens = Sequencer.tokens

    def counted(sequencer: Sequencer, document: Document) -> Sequence:
        calls.append(len(document))
        return tokens(sequencer, document)

    monkeypatch.setattr(Sequencer, "tokens", counted)
    assert len(cut(conversation(*["a"] * 2000), 200)) > 150
    assert len(calls) <= 12
