"""The drawings of an engine: groups that take turns, one denoising step each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from dreamkit.errors import DreamkitError
from dreamkit.model.drawing_group import Drawing, DrawingGroup
from dreamkit.model.events import DenoisingStep
from dreamkit.model.finite import REMEDY
from dreamkit.model.writer import Writer
from dreamkit.parts.decoder import ImageDecoder

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class Drawn(NamedTuple):
    """A finished drawing, with its image or the error in its place."""

    writer: Writer
    picture: Picture | Exception


class DrawingsInTurn:
    """Groups of drawings. Those of one schedule that wait at the same time form a group; then nothing joins it."""

    def __init__(self, decoder: ImageDecoder) -> None:
        self.decoder = decoder
        self._waiting: list[Drawing] = []
        self._groups: deque[DrawingGroup] = deque()

    @property
    def is_idle(self) -> bool:
        """True if no image is being drawn or waits for its turn."""
        return not self._waiting and not self._groups

    def add(self, drawings: Iterable[Drawing]) -> None:
        """Add drawings, whose groups begin with the next turn."""
        self._waiting += drawings

    def drop(self, number: int) -> None:
        """Leave out the image of a document. A group ends if none of its images is left."""
        self._waiting = [each for each in self._waiting if each.writer.number != number]
        for group in self._groups:
            group.ended.add(number)
        self._groups = deque(group for group in self._groups if group.left)

    def turn(self) -> tuple[list[DenoisingStep], list[Drawn]]:
        """Run a step of one group; return the events of the step, and finished drawings.

        If a group fails, its drawings begin again, each alone, so that a failure ends one document only.
        """
        self._form()
        if not self._groups:
            return [], []
        group = self._groups.popleft()
        try:
            events = group.turn()
        except Exception as error:  # the code of a plug-in may fail in any way
            if len(group.drawings) == 1:
                return [], [Drawn(each.writer, error) for each in group.left]
            self._groups.extend(DrawingGroup(self.decoder, [each], group.steps_done) for each in group.left)
            return [], []
        if group.pictures:
            return events, [
                Drawn(each.writer, picture if problem is None else DreamkitError(f"{problem}; {REMEDY}"))
                for each, picture, problem in zip(group.drawings, group.pictures, group.problems, strict=True)
                if group.is_left(each)
            ]
        self._groups.append(group)
        return [event for event in events if event.document not in group.ended], []

    def _form(self) -> None:
        """Make a group of the waiting drawings of each schedule."""
        by_schedule: dict[object, list[Drawing]] = {}
        for each in self._waiting:
            by_schedule.setdefault(each.schedule, []).append(each)
        self._groups.extend(DrawingGroup(self.decoder, drawings) for drawings in by_schedule.values())
        self._waiting = []
