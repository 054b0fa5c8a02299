"""Images that are drawn together by one scheduler: schedulers hold the number of the step, and earlier predictions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreamkit.model.drawing import to_picture
from dreamkit.model.events import DenoisingStep
from dreamkit.model.finite import drawn_problems, finite_rows
from dreamkit.model.writer import Writer
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.sampling import DrawStep
from dreamkit.parts.specs import Condition

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Drawing:
    """The next image of a document, to draw from its condition and away from the negative one (of one image each)."""

    writer: Writer
    condition: Condition
    negative: Condition | None

    @property
    def schedule(self) -> Hashable:
        """The settings that drawings of a group share."""
        options = self.writer.options
        return options.scheduler, options.steps, options.guidance, options.size


class DrawingGroup:
    """Drawings of one schedule, which began together.

    Attributes:
        drawings: the images, in the order of the latents' rows.
        ended: numbers of documents that have ended since then, of the group or not.
        problems: of each image, once `pictures` is set: why its values are not finite, or None.
        pictures: the images as PIL images, once they are drawn.
        steps_done: number of steps that had their events.
    """

    def __init__(self, decoder: ImageDecoder, drawings: Sequence[Drawing], steps_done: int = 0) -> None:
        """Begin drawings, of which an earlier group has done `steps_done` steps: these have no events again."""
        self.steps_done = steps_done
        self.decoder, self.drawings = decoder, drawings
        self.ended: set[int] = set()
        self.pictures: list[Picture] = []
        self.problems: list[str | None] = []
        self._steps = self._begin()
        self._finite: list[Tensor] = []  # rows of the latents of each step
        self._held: list[DenoisingStep] = []  # events that wait for their previews
        self._latents: Tensor | None = None

    @property
    def left(self) -> list[Drawing]:
        """The drawings of documents that have not ended."""
        return [each for each in self.drawings if self.is_left(each)]

    def is_left(self, drawing: Drawing) -> bool:
        """Return True if the document of a drawing has not ended."""
        return drawing.writer.number not in self.ended

    def _begin(self) -> Iterator[DrawStep]:
        options = self.drawings[0].writer.options
        negatives = [each.negative for each in self.drawings if each.negative is not None]
        return self.decoder.draw_steps(
            reduce(Condition.cat, [each.condition for each in self.drawings]),
            reduce(Condition.cat, negatives) if negatives else None,
            scheduler=options.scheduler,
            steps=options.steps,
            guidance=options.guidance,
            size=options.size,
            generators=[each.writer.noise() for each in self.drawings],
        )

    def turn(self) -> list[DenoisingStep]:
        """Run one denoising step, or decode its previews, or after the last one the images.

        Return the events of a step when its previews are decoded.
        """
        if self._held:
            return self._with_previews()
        step = next(self._steps, None)
        if step is None:
            self._decode()
            return []
        self._latents = step.latents
        self._finite.append(finite_rows(step.latents))
        if step.step < self.steps_done:
            return []
        self._held = [
            DenoisingStep(
                each.writer.number,
                each.writer.images,
                step.step,
                step.steps,
                self._preview(step.latents, row),
            )
            for row, each in enumerate(self.drawings)
        ]
        return [] if self._previewed() else self._with_previews()

    def _previewed(self) -> list[int]:
        """Return the rows of the images whose preview is to be decoded after this step; none after the last one."""
        step = self._held[0]
        done = step.step + 1
        every = [each.writer.options.preview_every if self.is_left(each) else 0 for each in self.drawings]
        return [row for row, n in enumerate(every) if n and done < step.steps and done % n == 0]

    def _with_previews(self) -> list[DenoisingStep]:
        """Return the events that wait, with the previews that their settings ask for."""
        for row, picture in self._decoded_previews().items():
            self._held[row] = replace(self._held[row], picture=picture, preview=partial(_itself, picture))
        self.steps_done = self._held[0].step + 1
        events, self._held = self._held, []
        return events

    def _decoded_previews(self) -> dict[int, Picture]:
        """Return previews by their rows: decoded together or, if that fails, each alone, without those that fail."""
        rows, latents = self._previewed(), self._latents
        assert latents is not None, "events follow a step"
        pictures: dict[int, Picture] = {}
        for batches in ([rows], [[row] for row in rows]):
            for batch in batches if len(pictures) < len(rows) else ():
                with suppress(Exception):  # an image that cannot be decoded ends its document at the end
                    images = self.decoder.decode(latents[batch])
                    pictures |= {row: to_picture(image) for row, image in zip(batch, images, strict=True)}
        return pictures

    def _preview(self, latents: Tensor, row: int) -> Callable[[], Picture]:
        return partial(_decoded, self.decoder, latents[row : row + 1])

    def _decode(self) -> None:
        assert self._latents is not None, "a schedule has at least one step"
        images = self.decoder.decode(self._latents)
        names = [f"{each.writer.prompt.name}: image {each.writer.images + 1}" for each in self.drawings]
        self.problems = drawn_problems(names, self._finite, finite_rows(images))
        self.pictures = [to_picture(image) for image in images]


def _itself(picture: Picture) -> Picture:
    return picture


@torch.no_grad()  # whoever reads the events may call it with gradients on
def _decoded(decoder: ImageDecoder, latents_1CHW: Tensor) -> Picture:
    return to_picture(decoder.decode(latents_1CHW)[0])
