"""Documents: text and images in order, with the roles of a conversation and the segments to train on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from dreamkit.earlier_names import with_earlier_arguments, with_earlier_fields
from dreamkit.errors import DocumentError, article, excerpt, surrogate_problem

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Role: TypeAlias = Literal["system", "user", "assistant"]

READ_SLOT, DRAW_SLOT = "<image>", "<draw>"


@with_earlier_fields(learn="train_on")
@dataclass(frozen=True)
class Text:
    """A text segment of a document.

    Attributes:
        text: the text, without special tokens: their names are plain text here.
        train_on: train the language model to write this text.
        role: speaker of the text, in a conversation; None in other documents.
        ids: ids of the tokens that a model wrote as this text; None for a text of other origin. A model that decodes
            them to the same text reads these tokens, and otherwise tokenizes the text. Equality ignores them.

    Raises:
        DocumentError: the text is not a string, or has a lone surrogate.
    """

    text: str
    train_on: bool = True
    role: Role | None = None
    ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            kind = type(self.text).__name__
            raise DocumentError(f"text: expected a string, got {article(kind)} {kind}")
        if problem := surrogate_problem(self.text):
            raise DocumentError(f"text '{excerpt(self.text)}': {problem}")


@with_earlier_fields(learn="train_on")
@dataclass(frozen=True)
class Image:
    """An image segment of a document.

    An image with `draw` and `read` is drawn first and then read back, as in the published layout (arXiv 2309.11499).

    Attributes:
        picture: the PIL image, of any size and mode.
        read: the model reads the image.
        draw: train the model to draw the image. In a prompt: the model drew the image, which has the same tokens.
        train_on: if `draw`, train the language model to write the dream token, which starts an image.
        role: speaker whose turn has the image, in a conversation; None in other documents.

    Raises:
        DocumentError: both `read` and `draw` are false.
    """

    picture: Picture
    read: bool = True
    draw: bool = False
    train_on: bool = True
    role: Role | None = None

    def __post_init__(self) -> None:
        if not (self.read or self.draw):
            raise DocumentError(
                "an image has read=False and draw=False, so the model would not see it; set one to True"
            )


Segment: TypeAlias = Text | Image


@dataclass(frozen=True)
class Document:
    """Text and images in order.

    In a conversation, every segment has a role, and the language model's chat template is put around the turns.
    Otherwise no segment has one.

    Attributes:
        segments: the `Text` and `Image` segments.
        name: name of the document in errors, such as "data.jsonl:7". Equality ignores it.

    Raises:
        DocumentError: only some segments have a role.
    """

    segments: tuple[Segment, ...]
    name: str = field(default="document", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        with_role = [segment.role is not None for segment in self.segments]
        if any(with_role) and not all(with_role):
            index = with_role.index(False)
            raise DocumentError(
                f"{self.name}: expected a role in all segments or in none, got one in {sum(with_role)} of "
                f"{len(with_role)}; segment {index} has none"
            )

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def is_conversation(self) -> bool:
        """Flag: the segments have roles."""
        return bool(self.segments) and self.segments[0].role is not None

    @property
    def text(self) -> str:
        """Text of all text segments, joined by spaces."""
        return " ".join(segment.text for segment in self.segments if isinstance(segment, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """Image segments, in order."""
        return tuple(segment for segment in self.segments if isinstance(segment, Image))

    @classmethod
    @with_earlier_arguments(learn="train_on")
    def interleave(
        cls,
        text: str,
        images: Sequence[Picture] = (),
        *,
        name: str = "document",
        train_on: bool = True,
        role: Role | None = None,
    ) -> Document:
        """Build a document from `text`, in which `<image>` stands for an image to read and `<draw>` for one to draw.

        `images` are PIL images, one for each of these placeholders, in order. Segments of blank text are left out.
        `train_on` and `role` apply to all segments.

        Raises:
            DocumentError: the number of `images` is not that of the placeholders.
        """
        parts = re.split(f"({READ_SLOT}|{DRAW_SLOT})", text)
        slots = [part for part in parts if part in (READ_SLOT, DRAW_SLOT)]
        if len(slots) != len(images):
            raise DocumentError(
                f"{name}: expected one image for each {READ_SLOT} and {DRAW_SLOT}, got {len(images)} for {len(slots)} "
                f"in '{excerpt(text)}'"
            )
        pictures = iter(images)
        segments: list[Segment] = []
        for part in parts:
            if part in (READ_SLOT, DRAW_SLOT):
                segments.append(Image(next(pictures), draw=part == DRAW_SLOT, train_on=train_on, role=role))
            elif part.strip():
                segments.append(Text(part.strip(), train_on=train_on, role=role))
        return cls(tuple(segments), name=name)

    def __add__(self, other: Document) -> Document:
        """Return a document of the segments of both, with the name of the first."""
        return Document(self.segments + other.segments, name=self.name)
