"""Documents to sequences: the published layout, what is learned, and what is refused."""

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


def words(text: str) -> list[int]:
    return MODEL.language_model.tokenize(text)


def test_published_layout() -> None:
    document = Document((Text("a"), Image(tiny.picture(0), draw=True), Text("b")))
    patch = IDS["<im_patch>"]
    draw = [IDS["<dream_start>"], *[patch] * Q, IDS["<dream_end>"]]
    read = [IDS["<im_start>"], *[patch] * V, IDS["<im_end>"]]
    sequence = SEQUENCER.sequence(document)
    assert sequence.ids == [BOS, *words("a"), *draw, *read, *words("b"), EOS]
    masked = [IGNORED] * (Q + 1 + V + 2)
    assert sequence.labels == [BOS, *words("a"), IDS["<dream_start>"], *masked, *words("b"), EOS]


def test_conversation_learns_what_the_assistant_says() -> None:
    document = Document((Text("hello", role="user"), Text("you", role="assistant")))
    sequence = SEQUENCER.sequence(document)
    learned = [label for label in sequence.labels[1:] if label != IGNORED]
    assert learned == [*words("you"), EOS]
    asked = [*words("USER:"), *words("hello"), *words("ASSISTANT:")]
    assert sequence.ids == [BOS, *asked, *words("you"), EOS]


def test_prompt_opens_the_assistants_turn() -> None:
    prompt = SEQUENCER.prompt(Document((Text("hello", role="user"),)))
    whole = SEQUENCER.sequence(Document((Text("hello", role="user"), Text("you", role="assistant"))))
    assert whole.ids[: len(prompt)] == prompt.ids
    assert whole.ids[len(prompt) :] == [*words("you"), EOS]


def test_names_of_special_tokens_in_a_text_are_only_text() -> None:
    sequence = SEQUENCER.sequence(Document((Text("say <dream_start> and </s>"),)))
    assert IDS["<dream_start>"] not in sequence.ids
    assert sequence.ids.count(EOS) == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document((Text("a", train_on=False),), name="d7"), "d7: nothing to learn"),
        (Document((Text("hi", role="user"),), name="d8"), "d8: nothing to learn"),
        (
            Document((Text("hi", role="user"), Text("x", False, "assistant")), name="d8"),
            "d8: nothing to learn",
        ),
        (Document((Text("x" * 300),), name="d9"), "d9: .* tokens, but a row holds 256"),
        (Document((), name="d10"), "d10: nothing to learn"),
    ],
)
def test_refused(document: Document, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        SEQUENCER.sequence(document)


def test_slots_and_images_must_agree() -> None:
    with pytest.raises(DocumentError, match="d3: 1 images for 2 slots"):
        Document.interleave("<image> plus <image>", [tiny.picture(0)], name="d3")


def test_roles_for_all_or_none() -> None:
    with pytest.raises(DocumentError, match="segment 1 has no role"):
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
def test_slots_are_where_the_sequence_says(parts: list[Segment]) -> None:
    document = Document(tuple(parts))
    try:
        sequence = SEQUENCER.sequence(document)
    except DocumentError:
        assert not any(part.draw if isinstance(part, Image) else part.train_on for part in parts)
        assert not (parts and parts[-1].learn)
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
