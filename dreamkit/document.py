"""A document: text and images in order, who says what, and what is to be learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from dreamkit.earlier_names import with_earlier_arguments, with_earlier_fields
from dreamkit.errors import DocumentError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Role: TypeAlias = Literal["system", "user", "assistant"]

READ_SLOT, DRAW_SLOT = "<image>", "<draw>"


@with_earlier_fields(learn="train_on")
@dataclass(frozen=True)
class Text:
    """A run of text. `train_on`: the language model is trained to write it."""

    text: str
    train_on: bool = True
    role: Role | None = None


@with_earlier_fields(learn="train_on")
@dataclass(frozen=True)
class Image:
    """A picture in its place.

    `draw`: the model learns to draw it there (and, as `train_on` says, to decide to). `read`: it is shown to the model.
    A picture drawn and read is drawn first and then read back, as in the published layout.
    """

    picture: Picture
    read: bool = True
    draw: bool = False
    train_on: bool = True
    role: Role | None = None

    def __post_init__(self) -> None:
        if not (self.read or self.draw):
            raise DocumentError(
                "an image has read=False and draw=False, so no model would see it; set one of them"
            )


Segment: TypeAlias = Text | Image


@dataclass(frozen=True)
class Document:
    """Segments in order. `name` says which document this is when something is wrong with it.

    Segments either all have a role (a conversation, put through the language model's chat template) or none has.
    """

    segments: tuple[Segment, ...]
    name: str = field(default="document", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        with_role = [segment.role is not None for segment in self.segments]
        if any(with_role) and not all(with_role):
            bare = with_role.index(False)
            raise DocumentError(
                f"{self.name}: segment {bare} has no role, but {sum(with_role)} of {len(with_role)} segments have one; "
                "give every segment a role, or none"
            )

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def is_conversation(self) -> bool:
        return bool(self.segments) and self.segments[0].role is not None

    @property
    def text(self) -> str:
        """The text alone, pieces joined by a space."""
        return " ".join(segment.text for segment in self.segments if isinstance(segment, Text))

    @property
    def images(self) -> tuple[Image, ...]:
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
        """Makes a document of `text` in which `<image>` stands for a picture to read and `<draw>` for one to draw.

        Raises:
            DocumentError: the number of slots in `text` is not the number of `images`.
        """
        pieces = re.split(f"({READ_SLOT}|{DRAW_SLOT})", text)
        slots = [piece for piece in pieces if piece in (READ_SLOT, DRAW_SLOT)]
        if len(slots) != len(images):
            raise DocumentError(
                f"{name}: {len(images)} images for {len(slots)} slots ({READ_SLOT} or {DRAW_SLOT}) in {text!r}; "
                "give one image for each slot"
            )
        pictures = iter(images)
        segments: list[Segment] = []
        for piece in pieces:
            if piece in (READ_SLOT, DRAW_SLOT):
                segments.append(Image(next(pictures), draw=piece == DRAW_SLOT, train_on=train_on, role=role))
            elif piece.strip():
                segments.append(Text(piece.strip(), train_on=train_on, role=role))
        return cls(tuple(segments), name=name)

    def __add__(self, other: Document) -> Document:
        return Document(self.segments + other.segments, name=self.name)
