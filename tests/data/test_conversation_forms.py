"""The same conversation in the forms of LLaVA, of ShareGPT's files and of OpenAI's messages."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.examples import write_images
from dreamkit.data.fingerprint import document_hash
from dreamkit.document import Document, Image
from dreamkit.errors import DocumentError

WORDS = st.text("abc <>", min_size=1, max_size=8).filter(str.strip)
# Each turn is a list of texts and numbers of images, where no two texts are neighbours.
TURNS = st.lists(
    st.tuples(WORDS, st.lists(st.tuples(st.integers(0, 2), WORDS), max_size=2)), min_size=1, max_size=3
).map(lambda turns: turns + turns)


def read(folder: Path, record: dict[str, Any]) -> Document:
    path = folder / "talk.jsonl"
    path.write_text(json.dumps(record) + "\n")
    return Conversations(ConversationsConfig(path))[0]


def forms(turns: Any, images: list[str]) -> dict[str, dict[str, Any]]:
    """Return a record of each form; the first turn is the user's."""
    names = [("user", "human"), ("assistant", "gpt")]
    slotted, parts, paths = [], [], []
    for first, rest in turns:
        text, content = first.strip(), [{"type": "text", "text": first.strip()}]
        for number, words in rest:
            text += f"<image>{words.strip()}"
            content += [
                {"type": "image_url", "image_url": {"url": images[number]}},
                {"type": "text", "text": words.strip()},
            ]
            paths.append(images[number])
        slotted.append(text)
        parts.append(content)
    roles = [names[number % 2] for number in range(len(slotted))]
    llava = [{"from": old, "value": text} for (_, old), text in zip(roles, slotted, strict=True)]
    strings = [{"role": role, "content": text} for (role, _), text in zip(roles, slotted, strict=True)]
    lists = [{"role": role, "content": content} for (role, _), content in zip(roles, parts, strict=True)]
    return {
        "llava": {"image": paths, "conversations": llava},
        "sharegpt": {"images": paths, "conversations": llava},
        "messages": {"images": paths, "messages": strings},
        "openai": {"messages": lists},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("talks")


@pytest.fixture(scope="module")
def images(folder: Path) -> list[str]:
    return write_images(folder)


NULLS = dict.fromkeys(("system", "conversations", "messages", "image", "images"))


@given(TURNS, st.none() | st.just("") | WORDS.map(str.strip), st.sampled_from([{}, NULLS]))
def test_all_forms_give_the_same_document(
    folder: Path, images: list[str], turns: Any, system: str | None, nulls: dict[str, None]
) -> None:
    documents = {
        name: read(folder, nulls | record | {"system": system})
        for name, record in forms(turns, images).items()
    }
    for document in documents.values():
        assert [segment.text for segment in document if segment.role == "system"] == [system] * bool(system)
    assert len({document_hash(document) for document in documents.values()}) == 1
    for segment in documents["openai"]:
        if isinstance(segment, Image):
            assert segment.read and segment.draw == (segment.role == "assistant")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ["red.png"], "images": ["red.png"]}, "expected one of image and images, got both"),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "expected one of conversations and messages, got both",
        ),
        (
            {"messages": [{"role": "asistant", "content": "a"}]},
            "role: expected one of .*; did you mean 'assistant'",
        ),
        ({"messages": [{"from": "human", "value": "a"}]}, "role: expected one of human, .*, got null"),
        ({"messages": "hello"}, "messages: expected a list of turns, got 'hello'"),
        ({"messages": [{"role": "assistant", "content": 3}]}, "content: expected a non-blank string, got 3"),
        (
            {
                "conversations": [{"from": "gpt", "value": "a"}],
                "messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            },
            "expected one of conversations and messages, got both",
        ),
        ({"conversations": [], "messages": None}, "conversations: expected a list of turns, got a list of"),
        ({"messages": None}, "missing 'conversations' or 'messages'"),
        ({"images": ["red.png"]}, "expected one image for each <image> in the turns, got 1 for 0"),
    ],
)
def test_the_error_of_a_record_names_its_line(folder: Path, change: dict[str, Any], message: str) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    with pytest.raises(DocumentError, match=rf"talk\.jsonl:1: .*{message}"):
        read(folder, {"messages": turns} | change)


def test_notes_name_keys_and_placeholders_of_messages(folder: Path) -> None:
    path = folder / "notes.jsonl"
    turns = [
        {"role": "user", "content": "<video> hi", "name": "x"},
        {"role": "assistant", "content": "ho", "tool": 1},
    ]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    notes = " ".join(Conversations(ConversationsConfig(path)).notes)
    assert "unknown keys of 'messages': 'name' in 1 record, 'tool' in 1 record" in notes
    assert "'<video>' in 1 text" in notes


@pytest.mark.parametrize("content", ["be brief", [{"type": "text", "text": "be brief"}]])
def test_the_developer_is_the_system(folder: Path, content: Any) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    documents = [
        read(folder, {"messages": [{"role": role, "content": content}, *turns]})
        for role in ("developer", "system")
    ]
    assert [segment.role for segment in documents[0]] == ["system", "user", "assistant"]
    assert document_hash(documents[0]) == document_hash(documents[1])
    for record in (
        {"system": "s", "messages": [{"role": "developer", "content": content}, *turns]},
        {"messages": [{"role": role, "content": content} for role in ("system", "developer")] + turns},
    ):
        with pytest.raises(DocumentError, match=r"after a turn (of|from) 'system', got 'developer'; join"):
            read(folder, record)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "function", "name": "f", "content": "3"},
        {"role": "observation", "content": "3"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "I call f.", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
    ],
)
def test_calls_of_functions_are_an_error_at_the_start(
    folder: Path, turn: dict[str, Any], is_list: bool
) -> None:
    ask: Any = [{"type": "text", "text": "hi"}] if is_list else "hi"
    turns = [{"role": "user", "content": ask}, turn, {"role": "assistant", "content": "ho"}]
    with pytest.raises(DocumentError) as error:
        read(folder, {"messages": turns})
    message = str(error.value)
    assert "talk.jsonl:1: " in message and ("turn 1: " in message or "messages.1: " in message)
    assert message.endswith("not supported; remove the conversation, or these turns of it")


def test_no_calls_are_no_error(folder: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "tool_calls": []}]
    assert len(read(folder, {"messages": turns}).segments) == 2


def test_functions_of_sharegpt_are_refused(folder: Path) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "function_call", "value": "{}"}]
    with pytest.raises(DocumentError, match=r"turn 1: from: expected one of human, .*calls of functions"):
        read(folder, {"conversations": turns})
