"""Conversations: the ids of the library's `apply_chat_template`, and labels on the answers alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image as PIL
from tokenizers import AddedToken

from chat_tokenizers import EACH, ENDLESS, SPECIAL, TEMPLATES, TOKENIZERS
from dreamkit import Document, DocumentError, Image, Text
from dreamkit.data.sequence import IGNORED, Sequencer
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.chat_encoding import Encoding
from dreamkit_transformers.chat_rendering import Rendering, common_length
from dreamkit_transformers.library_chat import LibraryChat
from dreamkit_transformers.llama import Llama, tiny_gated_config
from dreamkit_transformers.tokenizers import byte_tokenizer

NAMES = SpecialTokens()
Q, V = 2, 3
DRAWN = NAMES.dream_start + NAMES.dream_patch * Q + NAMES.dream_end
READ = NAMES.image_start + NAMES.image_patch * V + NAMES.image_end
PICTURE = PIL.new("RGB", (8, 8))


@cache
def part_of(kind: str, template: str | None, family: Any = CausalLM) -> Any:
    """Return a part with random weights whose tokenizer is of `kind` and has the named template."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = None if template is None else {**TEMPLATES, **ENDLESS}[template]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config = {"model_type": "llama", **tiny_gated_config()}
        return family.from_config(LanguageConfig(config=config, tokenizer=folder))


def sequencer_of(part: Any) -> Sequencer:
    token_ids = dict(zip(NAMES.names(), part.add_tokens(NAMES.names()), strict=True))
    return Sequencer(part, token_ids, NAMES, vision_tokens=V, dream_queries=Q, max_length=10**6)


def library_ids(part: Any, document: Document, prompt: bool, **options: bool) -> list[int]:
    """Return the ids of the library for a document, whose images are the names of their tokens in the text."""
    messages: list[dict[str, str]] = []
    for segment in document:
        if not messages or messages[-1]["role"] != segment.role:
            messages.append({"role": str(segment.role), "content": ""})
        content = segment.text if isinstance(segment, Text) else DRAWN * segment.draw + READ * segment.read
        messages[-1]["content"] += content
    if prompt:
        is_open = messages[-1]["role"] == "assistant"
        options["continue_final_message" if is_open else "add_generation_prompt"] = True
    return part.tokenizer.apply_chat_template(messages, return_dict=False, **options)


def conversation(*turns: tuple[str, str]) -> Document:
    return Document(tuple(Text(text, role=role) for role, text in turns), name="d1")  # type: ignore[arg-type]


def text(digits: str) -> st.SearchStrategy[str]:
    blanks = st.sampled_from(["", " ", "\n", "  ", "\n\n"])
    words = st.lists(st.sampled_from([*digits, *digits, " ", "\n", "é", *SPECIAL[1:]]), max_size=6).map(
        "".join
    )
    return st.tuples(blanks, words, blanks).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> Document:
    turns = [("system", draw(text("0")))] * draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", draw(text("12"))), ("assistant", draw(text("89")))]
    return conversation(*turns[: len(turns) - draw(st.booleans())])


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
            assert not prompt and not any(answers) and "nothing to train on" in str(error)
        else:
            assert ids == expected


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


ADDED = {
    "<|turn|>": {"normalized": False},
    "<|Turn of all|>": {"normalized": False, "rstrip": True},
    "<|left|>": {"normalized": False, "lstrip": True},
    "wo": {"normalized": False, "single_word": True},
    "<|Normal|>": {"normalized": True},
    "rd": {"normalized": True},
}


@cache
def tokenizer_with_added_tokens(kind: str) -> Any:
    """Return a tokenizer with the tokens of `ADDED`, none of which is special."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_tokens([AddedToken(name, special=False, **options) for name, options in ADDED.items()])
    return tokenizer


def long_conversation(turns: int) -> Document:
    return conversation(*[("user", "12 1"), ("assistant", "8 98")] * (turns // 2))


@pytest.mark.parametrize("template", [*TEMPLATES])
def test_a_long_conversation_takes_the_renderings_of_a_short_one(template: str, monkeypatch: Any) -> None:
    part = part_of("byte-level", template)
    sequencer, kind = sequencer_of(part), type(part.tokenizer)
    render, encode = kind.apply_chat_template, kind.__call__
    work = Counter[str]()

    def count_rendering(self: Any, *args: Any, **options: Any) -> Any:
        work["renderings"] += 1
        return render(self, *args, **options)

    def count_characters(self: Any, text: str, **options: Any) -> Any:
        work["characters"] += len(text)
        return encode(self, text, **options)

    monkeypatch.setattr(kind, "apply_chat_template", count_rendering)
    monkeypatch.setattr(kind, "__call__", count_characters)
    renderings, characters = [], []
    for turns in (6, 60, 200):
        work.clear()
        sequence = sequencer.sequence(long_conversation(turns))
        renderings.append(work["renderings"])
        characters.append(work["characters"] / len(part.decode([*sequence.ids])))
    assert renderings == [renderings[0]] * 3
    # without special tokens between turns, each answer is found by tokenizing all before it
    assert template == "ends once" or max(characters) < 5


@pytest.mark.parametrize("is_special", [True, False], ids=["special", "not special"])
def test_added_tokens_divide_a_long_conversation(is_special: bool, monkeypatch: Any) -> None:
    """Early tokenizers of Phi-3 have turns between tokens that are not special."""
    tokenizer = TOKENIZERS["byte-level"]()
    names = [f"<|turn of {role}|>" for role in ("user", "assistant")]
    tokenizer.add_tokens(
        [AddedToken(name, special=is_special, normalized=False, rstrip=True) for name in names]
    )
    text = "".join(f"{name}\n8 98 " for name in names * 100)
    encoding, characters = Encoding(tokenizer, text, {}), Counter[str]()
    encode = encoding._ids

    def count_characters(text: str, **options: bool) -> list[int]:
        characters["encoded"] += len(text)
        return encode(text, **options)

    monkeypatch.setattr(encoding, "_ids", count_characters)
    for match in re.finditer("8 98", text):
        assert tokenizer.decode(encoding.ids[: encoding.tokens_before(match.end())]).endswith("8 98")
    assert characters["encoded"] <= len(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*ADDED, *SPECIAL[1:], "1", " ", "\n", "word", "é"]), max_size=12),
    end=st.integers(0, 12),
)
def test_the_tokens_before_a_place_are_those_of_the_whole_text_before_it(
    kind: str, pieces: list[str], end: int
) -> None:
    tokenizer = tokenizer_with_added_tokens(kind)
    text, before = "".join(pieces), "".join(pieces[:end])
    encoding = Encoding(tokenizer, text, {})
    expected = common_length(Encoding(tokenizer, before, {}).ids, encoding.ids)
    assert encoding.tokens_before(len(before)) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(template=st.sampled_from([*TEMPLATES]), document=conversations())
def test_answers_found_together_have_the_labels_of_each_found_alone(
    kind: str, template: str, document: Document
) -> None:
    sequencer = sequencer_of(part_of(kind, template))
    try:
        sequence = sequencer.sequence(document)
    except DocumentError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rendering, "_inner", {})
        patch.setattr(Encoding, "_divisions", [(0, 0)])
        assert sequencer.sequence(document).labels == sequence.labels


def test_a_refused_conversation_names_what_the_template_raises() -> None:
    sequencer = sequencer_of(part_of("byte-level", "alternating roles"))
    document = conversation(("system", "0"), ("user", "1"), ("assistant", "8"))
    message = (
        r"d1: the tokenizer '.*' has a chat template that refuses a conversation of system, user, assistant "
    )
    message += r"\(TemplateError: roles must alternate\); change the turns, or name a tokenizer with another template"
    with pytest.raises(DocumentError, match=message):
        sequencer.sequence(document)


def test_the_message_about_a_long_conversation_is_short() -> None:
    part = part_of("byte-level", "alternating roles")
    document = conversation(*[("user", "1"), ("assistant", "8")] * 500, ("system", "0"))
    with pytest.raises(DocumentError, match=r"a conversation of user, assistant, .*\.\.\.") as raised:
        sequencer_of(part).sequence(document)
    assert len(str(raised.value)) < 400


def test_a_tokenizer_with_other_ids_is_refused_with_the_difference(monkeypatch: Any) -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.chat_template = TEMPLATES["chatml"]
    original = type(tokenizer).apply_chat_template

    def apply(self: Any, *args: Any, **options: Any) -> Any:
        result = original(self, *args, **options)
        return result if isinstance(result, str) else [*result[:3], 5, *result[3:]]

    assert LibraryChat(tokenizer).problem is None
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", apply)
    problem = LibraryChat(tokenizer).problem
    assert problem is not None
    assert "got others from token 3 on" in problem and "a conversation of user ('What is this?')" in problem


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('never') }}",
            r"refuses a conversation of user, assistant \(TemplateError: never\)",
        ),
        ("{{ messages[0].content }}", "leaves out an answer, turn 1 of a conversation of user, assistant"),
    ],
)
def test_a_template_for_no_conversation_is_logged_and_refused(
    template: str, message: str, tmp_path: Any, caplog: Any
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    part = CausalLM.from_config(replace(CausalLM.tiny_config(), tokenizer=str(tmp_path)))
    assert "conversations are refused" in caplog.text
    problem = CausalLM.infer_spec(part.config).conversation_problem
    assert problem is not None and re.search(f"{message}.*; name a tokenizer with another template$", problem)
    sequencer = sequencer_of(part)
    assert sequencer.sequence(Document((Text("other documents"),))).ids
    with pytest.raises(DocumentError, match=message):
        sequencer.sequence(conversation(("user", "1"), ("assistant", "8")))


def test_a_template_that_requires_a_system_turn_has_conversations(tmp_path: Any) -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn first') }}"
    )
    tokenizer.chat_template += "{% endif %}" + TEMPLATES["chatml"]
    tokenizer.save_pretrained(tmp_path)
    part = CausalLM.from_config(
        LanguageConfig(config={"model_type": "llama", **tiny_gated_config()}, tokenizer=str(tmp_path))
    )
    document = conversation(("system", "0"), ("user", "1"), ("assistant", "8"))
    assert part.spec.conversation_problem is None
    assert sequencer_of(part).sequence(document).ids == library_ids(part, document, prompt=False)
    assert part.tokenizer.convert_tokens_to_ids("<|im_end|>") in part.spec.eos_ids
    with pytest.raises(DocumentError, match="a system turn first"):
        sequencer_of(part).sequence(conversation(("user", "1"), ("assistant", "8")))


def test_a_template_without_an_end_token_is_logged(tmp_path: Any, caplog: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    CausalLM.from_config(replace(CausalLM.tiny_config(), tokenizer=str(tmp_path)))
    assert r"puts '\n' after an answer, without an end token" in caplog.text


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
