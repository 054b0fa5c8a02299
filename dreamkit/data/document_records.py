"""Documents as JSON records that keep every flag: `{"content": parts}`, or `{"messages": turns}` of a conversation.

A turn is `{"role": "user", "content": parts}`. `parts` is a text, or a list of

    {"type": "text", "text": "..."}
    {"type": "image", "image": "a path or data URL"}
    {"type": "image_url", "image_url": {"url": "a path or data URL"}}

A turn or part with `"train_on": false` is not trained on. An image may have `draw` and `read`, the flags of `Image`.
Beside `messages` there may be a text `system`, which is a turn before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from dreamkit.data.data_urls import picture_source
from dreamkit.data.record_keys import RecordKeys
from dreamkit.data.records import ImagePaths, text_problem
from dreamkit.data.turn_roles import MESSAGE_ROLES, role_problem
from dreamkit.document import Document, Image, Role, Segment, Text
from dreamkit.errors import describe_value, near_hint, printable, surrogate_problem

CONTENT_OF: Final = {"text": "text", "image": "image", "image_url": "image_url"}  # key of the content by type


def document_record(document: Document) -> dict[str, Any]:
    """Return a document as a record. Its images are absolute paths of files, or data URLs of PNG files."""
    if not document.is_conversation:
        return {"id": document.name, "content": [_part(segment) for segment in document]}
    turns = groupby(document, key=lambda segment: segment.role)
    messages = [{"role": role, "content": _content(list(segments))} for role, segments in turns]
    return {"id": document.name, "messages": messages}


def _content(segments: list[Segment]) -> str | list[dict[str, Any]]:
    """Return the content of a turn: a text alone is a string."""
    match segments:
        case [Text(text=text, train_on=True)] if text.strip():
            return text
    return [_part(segment) for segment in segments]


def _part(segment: Segment) -> dict[str, Any]:
    untrained = {} if segment.train_on else {"train_on": False}
    if isinstance(segment, Text):
        return {"type": "text", "text": segment.text, **untrained}
    flags = {"draw": segment.draw, "read": segment.read}
    return {"type": "image", "image": picture_source(segment.picture), **flags, **untrained}


class DocumentRecords:
    """A reader of records with `content` or `messages`.

    Args:
        images: the images that the records name.
        draw: train the model to draw images without `draw`: those of the assistant's turns and of `content`.
    """

    def __init__(self, images: ImagePaths, *, draw: bool) -> None:
        self.images = images
        self.draw = draw
        self.page_keys = RecordKeys(("content",))
        self.talk_keys = RecordKeys(("content", "messages", "system"))
        self.turn_keys = RecordKeys(("role", "content", "train_on"), within="messages")
        self.part_keys = RecordKeys(
            ("type", *CONTENT_OF.values(), "draw", "read", "train_on"), within="content"
        )

    @staticmethod
    def has_form(record: Mapping[str, Any]) -> bool:
        """Return True if a record has `content` or `messages`, and no `text` of its own."""
        return record.get("text") is None and any(
            record.get(key) is not None for key in ("content", "messages")
        )

    def notes(self) -> list[str]:
        """Return lines about keys and placeholders that are not read."""
        keys = (self.page_keys, self.talk_keys, self.turn_keys, self.part_keys)
        return [note for each in keys for note in each.notes()]

    def problem(self, record: Mapping[str, Any]) -> str | None:
        """Return what is wrong with a record, or None."""
        messages = record.get("messages")
        if messages is None:
            return self.page_keys.problem(record) or self._content_problem(record["content"], None)
        if problem := self.talk_keys.problem(record):
            return problem
        if record.get("content") is not None:
            return "expected 'content' or 'messages', got both; remove one"
        if not isinstance(messages, list) or not messages:
            return f"messages: expected a list of turns, got {describe_value(messages)}"
        before = None
        if (system := record.get("system")) not in (None, ""):
            if problem := text_problem(record, "system"):
                return problem
            self.part_keys.count_placeholders(system)
            before = "system"
        for number, turn in enumerate(messages):
            if problem := self._turn_problem(turn, before):
                return f"messages.{number}: {problem}"
            before = MESSAGE_ROLES[turn["role"]]
        if not any(turn["role"] == "assistant" for turn in messages):
            return "no turn to train on: expected at least one turn of the assistant"
        return None

    def document(self, record: Mapping[str, Any], where: str) -> Document:
        """Return the document of a record that has no problem.

        Raises:
            DocumentError: an image cannot be read.
        """
        return Document(
            tuple(segment for turn in _turns(record) for segment in self._segments(turn, where)), where
        )

    def _draws(self, role: Role | None) -> bool:
        """Return the default of `draw` in a turn of this role; None is the role of no turn."""
        return self.draw and role in (None, "assistant")

    def _segments(self, turn: Mapping[str, Any], where: str) -> Iterator[Segment]:
        """Yield the segments of a turn."""
        role = None if turn["role"] is None else MESSAGE_ROLES[turn["role"]]
        for part in _parts_of(turn["content"]):
            train_on = _flag(part, "train_on", _flag(turn, "train_on", True))
            if part["type"] == "text":
                yield Text(part["text"], train_on, role)
                continue
            read, draw = _flag(part, "read", True), _flag(part, "draw", self._draws(role))
            yield Image(self.images.open(_source(part), where), read, draw, train_on, role)

    def _turn_problem(self, turn: Any, before: str | None) -> str | None:
        """Return what is wrong with a turn after one of the role `before`, or None."""
        if not isinstance(turn, dict):
            return f'expected {{"role": ..., "content": ...}}, got {describe_value(turn)}'
        if problem := role_problem(turn, "role", MESSAGE_ROLES):
            return problem
        role = MESSAGE_ROLES[turn["role"]]
        if role == before:
            name = turn["role"]
            return f"role: expected another role after a turn of '{role}', got '{name}'; join the two turns in one"
        if problem := self.turn_keys.problem(turn) or _flag_problem(turn, "train_on"):
            return problem
        return self._content_problem(turn.get("content"), role)

    def _content_problem(self, content: Any, role: Role | None) -> str | None:
        is_empty = not (content.strip() if isinstance(content, str) else content)
        if not isinstance(content, str | list) or is_empty:
            return f"content: expected a text or a list of parts, got {describe_value(content)}"
        for number, part in enumerate(_parts_of(content)):
            if problem := self._part_problem(part, role):
                return f"content: {problem}" if isinstance(content, str) else f"content.{number}: {problem}"
        return None

    def _part_problem(self, part: Any, role: Role | None) -> str | None:
        if not isinstance(part, dict):
            return f'expected {{"type": ..., ...}}, got {describe_value(part)}'
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in CONTENT_OF:
            message = f"type: expected one of {', '.join(CONTENT_OF)}, got {describe_value(kind)}"
            return message + near_hint(kind, CONTENT_OF) if isinstance(kind, str) else message
        others = set(CONTENT_OF.values()) - {CONTENT_OF[kind]}
        if extra := next((key for key in others if part.get(key) is not None), None):
            return f"expected {CONTENT_OF[kind]} in a part of the type '{kind}', also got {printable(extra)}; remove it"
        if problem := self.part_keys.problem(part) or _flag_problem(part, "train_on"):
            return problem
        if kind == "text":
            return self._text_problem(part.get("text"))
        if problem := _flag_problem(part, "draw") or _flag_problem(part, "read"):
            return problem
        if not _flag(part, "read", True) and not _flag(part, "draw", self._draws(role)):
            return "an image has read=false and draw=false, so the model would not see it; set one to true"
        source = _source(part)
        if not isinstance(source, str) or not source:
            return f"{kind}: expected a path or a data URL, got {describe_value(source)}"
        if source.lower().startswith(("http://", "https://")):
            return f"{kind}: expected a path or a data URL, got a URL of the network; download the image"
        problem = self.images.problem(source)
        return None if problem is None else f"{kind}: {problem}"

    def _text_problem(self, text: Any) -> str | None:
        if not isinstance(text, str):
            return f"text: expected a string, got {describe_value(text)}"
        if problem := surrogate_problem(text):
            return f"text: {problem}"
        self.part_keys.count_placeholders(text)
        return None


def _turns(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the turns of a record that has no problem; content without turns is one of no role."""
    turns = record.get("messages")
    if turns is None:
        return [{"role": None, "content": record["content"]}]
    return [{"role": "system", "content": record["system"]}, *turns] if record.get("system") else turns


def _parts_of(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _source(part: Mapping[str, Any]) -> Any:
    """Return the path or data URL of a part with an image."""
    source = part.get(CONTENT_OF[part["type"]])
    return source.get("url") if isinstance(source, dict) else source


def _flag(section: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a flag of a turn or part; null counts as absent."""
    value: bool | None = section.get(key)
    return default if value is None else value


def _flag_problem(section: Mapping[str, Any], key: str) -> str | None:
    value = section.get(key)
    if value is None or isinstance(value, bool):
        return None
    return f"{key}: expected true or false, got {describe_value(value)}"
