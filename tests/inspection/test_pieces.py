"""The pieces of a sequence hold each of its tokens once, in order, by turn."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

import tiny
from dreamkit.data.sequence import IGNORED, Sequencer
from dreamkit.document import Document, Image, Text
from dreamkit.inspection.pieces import Slots, SpecialToken, TextRun, Turn, turns
from dreamkit.model.model import DreamModel
from dreamkit.parts.language import LanguageModel

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
flags = st.booleans()


@pytest.fixture(scope="module")
def model() -> DreamModel:
    return tiny.model()


def segments(role: str | None) -> st.SearchStrategy:
    images = st.builds(
        lambda read, draw, train_on: Image(tiny.picture(0, 4), read or not draw, draw, train_on, role),
        flags,
        flags,
        flags,
    )
    return st.lists(st.builds(Text, texts, flags, st.just(role)) | images, min_size=1, max_size=4)


def tokens_of(turns: list[Turn]) -> list[int]:
    return [getattr(piece, "tokens", 1) for turn in turns for piece in turn.pieces]


@given(st.data(), flags)
def test_pieces_have_every_token_and_every_learned_token(
    model: DreamModel, data: st.DataObject, is_chat: bool
) -> None:
    sequencer = model.sequencer(10_000)
    roles = ["system", "user", "assistant", "user", "assistant"] if is_chat else [None]
    document = Document(tuple(segment for role in roles for segment in data.draw(segments(role))))
    sequence = sequencer.tokens(document)
    shown = turns(document, sequence, sequencer)
    assert sum(tokens_of(shown)) == len(sequence)
    pieces = [piece for turn in shown for piece in turn.pieces]
    learned = [p for p in pieces if not isinstance(p, Slots) and p.is_learned]
    assert sum(getattr(piece, "tokens", 1) for piece in learned) == sequence.targets
    first = [p for p in pieces if not isinstance(p, Slots) and p.is_first]
    has_label = sequence.labels[0] != IGNORED
    assert (
        first == [pieces[0]] * has_label
        and [getattr(piece, "tokens", 1) for piece in first] == [1] * has_label
    )
    slots = [piece for piece in pieces if isinstance(piece, Slots)]
    assert [s.picture for s in slots if not s.is_drawn] == [picture for _, picture in sequence.reads]
    assert [s.picture for s in slots if s.is_drawn] == [picture for _, picture in sequence.draws]
    written = "".join(piece.text for piece in pieces if isinstance(piece, TextRun))
    if not is_chat:
        assert written == "".join(segment.text for segment in document if isinstance(segment, Text))


def test_turns_are_apart_with_the_template_around_them(model: DreamModel) -> None:
    sequencer = model.sequencer()
    document = Document(
        (
            Text("hi", role="user"),
            Text("a", role="assistant"),
            Image(tiny.picture(0), read=False, draw=True, role="assistant"),
            Text("and?", role="user"),
            Text("b", role="assistant"),
        )
    )
    shown = turns(document, sequencer.sequence(document), sequencer)
    assert [turn.roles for turn in shown] == [("user",), ("assistant",), ("user",), ("assistant",)]
    first = shown[0].pieces
    assert first[0] == SpecialToken("<s>", False)
    assert [piece.text for piece in first[1:]] == ["USER:hi"]
    answer = shown[1].pieces
    assert [piece for piece in answer if isinstance(piece, TextRun)] == [
        TextRun("ASSISTANT:", 10, False),
        TextRun("a", 1, True),
    ]
    assert [piece.name for piece in answer if isinstance(piece, SpecialToken)] == [
        "<dream_start>",
        "<dream_end>",
        "</s>",
    ]


class JoiningSequencer(Sequencer):
    """A sequencer whose template puts tokens before a turn only when another one follows."""

    def tokens(self, document: Document):
        sequence = super().tokens(document)
        if len(document) == 1:
            sequence.ids[0] += 1
        return sequence


def test_turns_that_the_template_does_not_keep_apart_are_one(model: DreamModel) -> None:
    plain = model.sequencer()
    joining = JoiningSequencer(
        model.language_model,
        model.token_ids,
        model.special_tokens,
        vision_tokens=plain.vision_tokens,
        dream_queries=plain.dream_queries,
    )
    document = Document((Text("hi", role="user"), Text("a", role="assistant")))
    (turn,) = turns(document, plain.sequence(document), joining)
    assert turn.roles == ("user", "assistant")


def test_a_space_alone_is_text_and_names_of_special_tokens_in_a_text_are_too(model: DreamModel) -> None:
    sequencer = model.sequencer()
    document = Document((Text(" "), Text("<im_start></s>")))
    (turn,) = turns(document, sequencer.sequence(document), sequencer)
    assert [getattr(piece, "text", piece) for piece in turn.pieces] == [
        SpecialToken("<s>", False, is_first=True),
        " <im_start></s>",
        SpecialToken("</s>", True),
    ]


def test_a_part_without_names_of_tokens_shows_texts_or_ids(model: DreamModel) -> None:
    part = model.language_model
    (letter,) = part.tokenize("a")
    assert LanguageModel.token_name(part, letter) == "a"
    assert LanguageModel.token_name(part, part.spec.bos_id) == f"<{part.spec.bos_id}>"
