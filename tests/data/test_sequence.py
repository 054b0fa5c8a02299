"""Documents to sequences: the published layout, the labels, and errors."""

import pytest
from hypothesis import given, strategies as st

import tiny
from dreamkit.data.sequence import IGNORED
from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import DocumentError

MODEL = tiny.model()
SEQUENCER = MODEL.sequencer()
IDS = MODEL.token_ids
Q, V = len(MODEL.dream_queries), MODEL.visual_projector.spec.out_tokens
BOS, EOS = MODEL.language_model.spec.bos_id, MODEL.language_model.spec.eos_ids[0]


def tokens(text: str) -> list[int]:
    return MODEL.language_model.tokenize(text)


def test_a_sequence_has_the_published_layout() -> None:
    document = Document((Text("a"), Image(tiny.picture(0), draw=True), Text("b")))
    patch = IDS["<im_patch>"]
    draw = [IDS["<dream_start>"], *[patch] * Q, IDS["<dream_end>"]]
    read = [IDS["<im_start>"], *[patch] * V, IDS["<im_end>"]]
    sequence = SEQUENCER.sequence(document)
    assert sequence.ids == [BOS, *tokens("a"), *draw, *read, *tokens("b"), EOS]
    masked = [IGNORED] * (Q + 1 + V + 2)
    assert sequence.labels == [BOS, *tokens("a"), IDS["<dream_start>"], *masked, *tokens("b"), EOS]


def test_only_the_assistants_turns_of_a_conversation_have_labels() -> None:
    document = Document((Text("hello", role="user"), Text("you", role="assistant")))
    sequence = SEQUENCER.sequence(document)
    labels = [label for label in sequence.labels[1:] if label != IGNORED]
    assert labels == [*tokens("you"), EOS]
    user_turn = [*tokens("USER:"), *tokens("hello"), *tokens("ASSISTANT:")]
    assert sequence.ids == [BOS, *user_turn, *tokens("you"), EOS]


def test_a_prompt_ends_with_an_open_turn_of_the_assistant() -> None:
    prompt = SEQUENCER.prompt(Document((Text("hello", role="user"),)))
    whole = SEQUENCER.sequence(Document((Text("hello", role="user"), Text("you", role="assistant"))))
    assert whole.ids[: len(prompt)] == prompt.ids
    assert whole.ids[len(prompt) :] == [*tokens("you"), EOS]


def test_names_of_special_tokens_in_a_text_are_plain_text() -> None:
    sequence = SEQUENCER.sequence(Document((Text("say <dream_start> and </s>"),)))
    assert IDS["<dream_start>"] not in sequence.ids
    assert sequence.ids.count(EOS) == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document((Text("a", train_on=False),), name="d7"), "d7: nothing to train on"),
        (Document((Text("hi", role="user"),), name="d8"), "d8: nothing to train on"),
        (
            Document((Text("hi", role="user"), Text("x", False, "assistant")), name="d8"),
            "d8: nothing to train on",
        ),
        (Document((Text("x" * 300),), name="d9"), "d9: expected at most 256 tokens, got"),
        (Document((), name="d10"), "d10: nothing to train on"),
    ],
)
def test_documents_without_labels_or_too_long_are_errors(document: Document, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        SEQUENCER.sequence(document)


def test_each_placeholder_needs_an_image() -> None:
    with pytest.raises(DocumentError, match=r"d3: expected one image for each .*, got 1 for 2"):
        Document.interleave("<image> plus <image>", [tiny.picture(0)], name="d3")


def test_a_role_in_some_segments_is_an_error() -> None:
    with pytest.raises(DocumentError, match="got one in 1 of 2; segment 1 has none"):
        Document((Text("a", role="user"), Text("b")))


segments = st.lists(
    st.one_of(
        st.builds(Text, st.text("ab c", min_size=1, max_size=6), st.booleans()),
        st.builds(Image, st.just(tiny.picture(0)), st.just(True), st.booleans(), st.booleans()),
        st.builds(Image, st.just(tiny.picture(0)), st.just(False), st.just(True), st.booleans()),
    ),
    max_size=6,
)


@given(segments)
def test_slots_are_at_the_indices_of_the_sequence(parts: list[Segment]) -> None:
    document = Document(tuple(parts))
    try:
        sequence = SEQUENCER.sequence(document)
    except DocumentError:
        assert not any(part.draw if isinstance(part, Image) else part.train_on for part in parts)
        assert not (parts and parts[-1].train_on)
        return
    patch = IDS["<im_patch>"]
    assert len(sequence.labels) == len(sequence.ids)
    assert len(sequence.draws) == sum(isinstance(part, Image) and part.draw for part in parts)
    assert len(sequence.reads) == sum(isinstance(part, Image) and part.read for part in parts)
    for slots, before, width, after in (
        (sequence.draws, IDS["<dream_start>"], Q, IDS["<dream_end>"]),
        (sequence.reads, IDS["<im_start>"], V, IDS["<im_end>"]),
    ):
        for at, _ in slots:
            assert sequence.ids[at - 1 : at + width + 1] == [before, *[patch] * width, after]
            assert set(sequence.labels[at : at + width + 1]) == {IGNORED}
    assert sequence.ids.count(patch) == Q * len(sequence.draws) + V * len(sequence.reads)
    assert all(label in (IGNORED, token) for label, token in zip(sequence.labels, sequence.ids, strict=True))
