"""Conversations: the ids of the library's `apply_chat_template`, and labels on the answers alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken

from chat_tokenizers import EACH, ENDLESS, SPECIAL, TEMPLATES, TOKENIZERS
from chats import DRAWN, PICTURE, READ, conversation, conversations, library_ids, part_of, sequencer_of
from dreamkit import Document, DocumentError, Image, Text
from dreamkit.data.continuation import with_continuation
from dreamkit.data.sequence import IGNORED
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.llama import Llama, tiny_gated_config


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(template=st.sampled_from([*TEMPLATES]), document=conversations())
def test_a_conversation_has_the_ids_of_the_library(kind: str, template: str, document: Document) -> None:
    part = part_of(kind, template)
    sequencer = sequencer_of(part)
    has_names = any(name in segment.text for segment in document for name in SPECIAL)
    options = {"sanitize_control_tokens": True} if has_names else {}
    for prompt in (False, True):
        convert = sequencer.prompt if prompt else sequencer.sequence
        try:
            expected = library_ids(part, document, prompt, **options)
        except Exception:  # of the template, or of a text that it leaves out
            with pytest.raises(
                DocumentError, match=r"^d1: the tokenizer '.*' (has a chat .* refuses a conv|reads)"
            ):
                convert(document)
            continue
        answers = [segment.text for segment in document if segment.role == "assistant"]
        try:
            ids = convert(document).ids
        except DocumentError as error:  # a template may end no answer but the last one
            assert not prompt and not any(map(str.strip, answers)) and "nothing to train on" in str(error)
        else:
            assert ids == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_continuation_of_a_prompt_has_the_tokens_of_training(kind: str) -> None:
    """With what the template puts before an answer and not into the prompt."""
    question, own = Text("1 2", role="user"), set()
    for template in TEMPLATES:
        part = part_of(kind, template)
        sequencer = sequencer_of(part)
        for answer in ("8 9", " 89", "8 "):
            prompt = Document((question,))
            trained = sequencer.sequence(Document((question, Text(answer, role="assistant"))))
            labels = [label for label in trained.labels if label != IGNORED]
            sequence, ids = with_continuation(sequencer, prompt, answer)
            before = sequence.ids
            assert before == sequencer.prompt(prompt).ids
            if trained.ids[: len(before)] != before:
                assert ids == part.tokenize(answer)
                own.add(template)
            else:
                assert ids and ids == labels[: len(ids)] and trained.ids[len(before) :] == labels
                assert not set("89") & set(part.decode(labels[len(ids) :]))
    assert own == {"thinks in the prompt"}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_continuation_of_an_open_turn_has_the_tokens_of_training(kind: str, template: str) -> None:
    """Without the space at the end of the turn, which is part of the next token."""
    part = part_of(kind, template)
    sequencer = sequencer_of(part)
    drawn = Image(PICTURE, draw=True, role="assistant")
    starts = Document((Text("1 2", role="user"),)), Document((Text("1", role="user"), drawn))
    for start, begun, answer in product(starts, ("8", "8 ", "8 9\n\n", " 9 8", " ", ""), ("9", " 9", "89 8")):
        prompt, stripped, whole = (
            start + Document((Text(text, role="assistant"),))
            for text in (begun, begun.rstrip(), begun + answer)
        )
        sequence, ids = with_continuation(sequencer, prompt, answer)
        assert sequence.ids == library_ids(part, stripped, prompt=True)
        assert ids == library_ids(part, whole, prompt=True)[len(sequence.ids) :]
        trained = sequencer.sequence(whole).ids
        assert trained[len(sequence.ids) :][: len(ids)] == ids
        if begun != begun.rstrip():
            assert [*sequence.ids, *ids] == trained[: len(sequence.ids) + len(ids)]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_space_before_a_choice_is_part_of_its_token(kind: str) -> None:
    part = part_of(kind, "chatml")
    turns = Text("1", role="user"), Text("2: ", role="assistant")
    _, ids = with_continuation(sequencer_of(part), Document(turns), "9")
    assert len(ids) == 1 and part.tokenizer.convert_ids_to_tokens(ids)[0] in ("Ġ9", "▁9")


def test_a_continuation_that_makes_the_template_cut_the_text_before_it_is_an_error() -> None:
    part = part_of("byte-level", "cuts reasoning")
    prompt = conversation(("user", "1"), ("assistant", "8 9"))
    with pytest.raises(DocumentError, match=r"^d1: .* deletes portions of the final message"):
        with_continuation(sequencer_of(part), prompt, "</think>9")


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(template=st.sampled_from([*TEMPLATES]), document=conversations())
def test_labels_are_on_the_answers_and_their_ends(kind: str, template: str, document: Document) -> None:
    part = part_of(kind, template)
    answers = [segment.text for segment in document if segment.role == "assistant"]
    try:
        sequence = sequencer_of(part).sequence(document)
    except DocumentError:
        assert not answers or template in ("alternating roles", "system inside") or kind == "unigram"
        return
    pairs = list(zip(sequence.ids, sequence.labels, strict=True))
    labelled = part.decode([token for token, label in pairs if label != IGNORED])
    others = part.decode([token for token, label in pairs if label == IGNORED])
    assert not set("012") & set(labelled) and not set("89") & set(others)
    assert all(labelled.count(digit) == "".join(answers).count(digit) for digit in "89")
    ends = [label for label in sequence.labels if label in part.spec.eos_ids]
    is_open = document.segments[-1].role == "user"
    assert len(ends) == (1 - is_open if template == "ends once" else len(answers))


@st.composite
def illustrated(draw: st.DrawFn) -> Document:
    """Return a conversation with images among the texts of each turn."""
    segments: list[Text | Image] = []
    for role, digits in (("user", "12"), ("assistant", "89"), ("user", "12"), ("assistant", "89")):
        words = st.text(f"{digits} \n", max_size=4).map(lambda each, role=role: Text(each, role=role))
        image = st.just(Image(PICTURE, role=role, draw=role == "assistant"))  # type: ignore[arg-type]
        segments += draw(st.lists(words | image, min_size=1, max_size=4))
    return Document(tuple(segments))


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(template=st.sampled_from([*TEMPLATES]), document=illustrated())
def test_an_image_is_its_tokens_in_the_text_of_the_library(
    kind: str, template: str, document: Document
) -> None:
    part = part_of(kind, template)
    sequencer = sequencer_of(part)
    sequence = sequencer.sequence(document)
    assert sequence.ids == library_ids(part, document, prompt=False)
    drawn = [image for image in document.images if image.draw]
    assert (len(sequence.reads), len(sequence.draws)) == (len(document.images), len(drawn))
    assert sequence.labels.count(sequencer.dream_start) == len(drawn)
    assert sequencer.image_start not in sequence.labels


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_a_model_wrote_follows_the_prompt_that_it_read(template: str) -> None:
    part = part_of("sentencepiece", template)
    sequencer = sequencer_of(part)
    ids = part.tokenize("89 8")
    words = Text(part.decode(ids), role="assistant", ids=tuple(ids))
    image = Image(PICTURE, draw=True, role="assistant")
    for start in (conversation(("user", "1 ")), conversation(("user", "1"), ("assistant", "8 "))):
        prompt = sequencer.prompt(start)
        continued = sequencer.prompt(start + Document((words, image, words)))
        picture = part.tokenizer(DRAWN + READ, add_special_tokens=False).input_ids
        assert continued.ids == [*prompt.ids, *ids, *picture, *ids]


def test_the_segments_of_an_answer_can_be_trained_on_apart() -> None:
    part = part_of("byte-level", "trims")
    segments = (
        Text("1", role="user"),
        Text(" 8 ", role="assistant", train_on=False),
        Text("\n9", role="assistant"),
        Image(PICTURE, draw=True, role="assistant", train_on=False),
        Text(" 98 ", role="assistant"),
    )
    sequence = sequencer_of(part).sequence(Document(segments))
    labels = [label for label in sequence.labels if label != IGNORED]
    assert part.tokenizer.decode(labels) == "\n9 98<|im_end|>\n"


def test_a_segment_keeps_its_labels_when_the_template_cuts_the_reasoning_before_it() -> None:
    part = part_of("byte-level", "cuts reasoning")
    segments = (
        Text("1", role="user"),
        Text("8</think>", role="assistant", train_on=False),
        Text("8", role="assistant"),
    )
    sequence = sequencer_of(part).sequence(Document(segments))
    labels = [label for label in sequence.labels if label != IGNORED]
    assert part.tokenizer.decode(labels) == "8<|im_end|>\n"


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(document=conversations(), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_names_of_special_tokens_over_segments_are_plain_text(
    kind: str, document: Document, cuts: list[int]
) -> None:
    sequencer = sequencer_of(part_of(kind, "chatml"))
    segments = [
        Text(piece.text[start:end], role=piece.role)
        for piece in document
        for start, end in pairwise([0, *sorted(cuts), len(piece.text)])
    ]
    try:
        expected = sequencer.prompt(document).ids
    except DocumentError:  # names that are no plain text for this tokenizer
        return
    assert sequencer.prompt(Document(tuple(segments))).ids == expected


def test_a_name_over_segments_has_the_labels_of_its_start() -> None:
    part = part_of("byte-level", "chatml")
    turn = [Text("8<|im_", role="assistant", train_on=False), Text("end|>9", role="assistant")]
    sequence = sequencer_of(part).sequence(Document((Text("1", role="user"), *turn)))
    labels = [label for label in sequence.labels if label != IGNORED]
    assert part.tokenizer.decode(labels) == "9<|im_end|>\n"
    assert sequence.ids.count(labels[-2]) == 2


# as in early files of Phi-3: tokens that are not special, whose names the template joins from texts
JOINED = EACH + "{{ '<|' + m.role + '_turn|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
JOINED += "{% if add_generation_prompt %}<|assistant_turn|>\n<think>\n{% endif %}"
WRITTEN = ["<|system_turn|>", "<|user_turn|>", "<|assistant_turn|>", "<|end|>", "<think>"]
OTHER = "<other>"


@cache
def part_with_added_tokens(kind: str) -> Any:
    """Return a part whose tokenizer has the tokens of `JOINED`, which none of its files lists, and another one."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in [*WRITTEN, OTHER]])
    tokenizer.chat_template = JOINED
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config = {"model_type": "llama", **tiny_gated_config()}
        part = CausalLM.from_config(LanguageConfig(config=config, tokenizer=folder))
    part.tokenizer.chat_control_tokens = (
        WRITTEN  # for the library, which sees only names in the template's source
    )
    return part


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(
    roles=st.sampled_from([("user", "assistant"), ("system", "user")]),
    words=st.lists(st.sampled_from([*WRITTEN, OTHER, *SPECIAL[1:], "1", " ", "\n"]), max_size=6).map("".join),
)
def test_names_of_the_templates_tokens_in_other_texts_than_answers_are_plain_text(
    kind: str, roles: tuple[str, str], words: str
) -> None:
    part = part_with_added_tokens(kind)
    document = conversation((roles[0], words), (roles[1], "8"))
    try:
        expected = library_ids(part, document, prompt=True, sanitize_control_tokens=True)
    except ValueError:  # names that are no plain text for this tokenizer
        with pytest.raises(DocumentError, match=r"reads '.*' in a speaker's text"):
            sequencer_of(part).prompt(document)
        return
    assert sequencer_of(part).prompt(document).ids == expected


def test_names_of_the_templates_tokens_in_an_answer_are_tokens() -> None:
    part = part_with_added_tokens("byte-level")
    document = conversation(("user", f"1{OTHER}"), ("assistant", "<think>8<|end|>"))
    ids = sequencer_of(part).sequence(document).ids
    assert ids == library_ids(part, document, prompt=False)
    counts = [ids.count(part.tokenizer.convert_tokens_to_ids(name)) for name in [*WRITTEN, OTHER]]
    assert counts == [0, 1, 1, 3, 1, 1]


@pytest.mark.parametrize("template", ["channels", "ends at the next turn"])
def test_every_answer_has_an_end_that_ends_a_text(template: str) -> None:
    part = part_of("byte-level", template)
    document = conversation(("user", "1"), ("assistant", "8"), ("user", "2"), ("assistant", "9"))
    sequence = sequencer_of(part).sequence(document)
    labels = part.tokenizer.decode([label for label in sequence.labels if label != IGNORED])
    expected = {
        "channels": "<|system|>final<|user|>8<|im_end|><|system|>final<|user|>9</s>",
        "ends at the next turn": "8<|user|>9",
    }
    assert labels == expected[template]
    inner = {"channels": "<|im_end|>", "ends at the next turn": "<|user|>"}[template]
    assert part.tokenizer.convert_tokens_to_ids(inner) in part.spec.eos_ids


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [*TEMPLATES, *ENDLESS])
def test_a_token_with_a_label_is_never_suppressed(kind: str, template: str) -> None:
    part = part_of(kind, template)
    turns = [("user", "1"), ("assistant", "8"), ("user", "2"), ("assistant", "9")]
    for document in (conversation(*turns), conversation(*turns[:2])):
        labels = sequencer_of(part).sequence(document).labels
        assert not part.suppressed_ids & {*labels}


def test_a_token_that_opens_an_answer_is_never_its_end() -> None:
    part = part_of("byte-level", "opens alone")
    opening = part.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert opening not in part.spec.eos_ids and opening not in part.suppressed_ids


def test_a_saved_tokenizer_has_the_same_conversations(tmp_path: Any) -> None:
    part = part_of("sentencepiece", "decorates the last answer", Llama)
    document = conversation(("user", " 1 "), ("assistant", "8 </s>"))
    expected = sequencer_of(part).sequence(document)
    part.save_tokenizer(tmp_path)
    config = replace(part.config, tokenizer=str(tmp_path))
    again = sequencer_of(Llama.from_config(config)).sequence(document)
    assert (again.ids, again.labels) == (expected.ids, expected.labels)


def test_families_use_the_template_of_their_tokenizer() -> None:
    part = part_of("byte-level", "chatml", Llama)
    document = conversation(("user", "1"), ("assistant", "8"))
    assert part.chat is None
    assert sequencer_of(part).sequence(document).ids == library_ids(part, document, prompt=False)
    assert part_of("byte-level", None, Llama).chat.user == ("[INST]", "[/INST]")


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(words=st.text("12 \né", max_size=6))
def test_a_text_starts_as_the_tokenizer_starts_it(kind: str, words: str) -> None:
    part = part_of(kind, None)
    library = part.tokenizer(words)["input_ids"]
    library = library[:-1] if library and library[-1] == part.spec.eos_ids[0] else library
    document = Document((Text(words),))
    assert sequencer_of(part).prompt(document).ids == (library or [part.spec.eos_ids[0]])
