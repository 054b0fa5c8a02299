"""Images of the prompts of a recipe, drawn while its model trains."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL.PngImagePlugin import PngInfo

from dreamkit.distributed import is_main, rank, world_size
from dreamkit.errors import DreamkitError, RecipeError, RecipeProblem
from dreamkit.model.drawing import check_room, check_schedule, negative_document
from dreamkit.model.model import DreamModel
from dreamkit.model.prompts import prompt_documents
from dreamkit.recipe.sections import Recipe
from dreamkit.runs.run_paths import DRAWINGS, STEP, step_folders, step_of
from dreamkit.storage.folders import remove_folder
from dreamkit.storage.writing import write_bytes, write_text, writing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.training.agreement import Agreement

AT_ONCE: Final = 4  # images of a forward pass; a training step has more activations


def check_drawings(model: DreamModel, recipe: Recipe) -> None:
    """Check that a model can draw the prompts of a recipe with its settings.

    Raises:
        RecipeError: a prompt or the negative prompt is too long, or the decoder does not have the scheduler or its
            number of steps.
    """
    problems = []

    def attempt(key: str, check: Callable[..., None], *arguments: object) -> None:
        try:
            check(*arguments)
        except DreamkitError as error:
            problems.append(RecipeProblem(recipe.place(key), key, str(error)))

    sequencer = model.sequencer()
    for number, prompt in enumerate(prompt_documents(recipe.train.prompts)):
        attempt(f"train.prompts.{number}", check_room, sequencer, prompt)
    if recipe.train.prompts:
        negative = negative_document(recipe.generation)
        attempt("generation.negative_prompt", check_room, sequencer, negative)
        attempt("generation.steps", check_schedule, model.image_decoder, recipe.generation)
    if problems:
        raise RecipeError(problems)


def forward_passes(prompts: int, process: int, processes: int) -> list[list[int]]:
    """Return the prompts of each forward pass of a process; all processes have as many passes.

    The processes take the prompts in turn. One without a prompt in the last pass draws the first one again.
    """
    own = range(process, prompts, processes)
    most = -(-prompts // processes)
    return [list(own[start : start + AT_ONCE]) or [0] for start in range(0, most, AT_ONCE)]


class Drawings:
    """An image of each prompt after some steps, in `OUT/drawings/step-N/I.png`; a text says why one is missing.

    Prompt I has the seed I, and the settings are those of `recipe.generation`. The processes divide the prompts.

    Args:
        model: the model.
        recipe: the recipe of the run.
        out: folder of the run.
        agreement: the meeting of the processes.
        computing: context of forward passes, which sets their precision.
        report: function that prints a line, in the main process.
    """

    def __init__(
        self,
        model: DreamModel,
        recipe: Recipe,
        out: Path,
        agreement: Agreement,
        computing: Callable[[], AbstractContextManager[object]],
        report: Callable[[str], None],
    ) -> None:
        self.model, self.agreement, self.computing, self.report = model, agreement, computing, report
        self.prompts, self.options = recipe.train.prompts, recipe.generation
        self.documents = prompt_documents(self.prompts)  # their names have the numbers in the recipe
        self.folder = out / DRAWINGS
        self.has_failed = False

    def begin(self, step: int) -> None:
        """Remove the drawings of steps after `step`, the last finished one; the main process calls this.

        Raises:
            OutputError: they cannot be removed.
        """
        with writing(self.folder):
            for folder in step_folders(self.folder):
                if step_of(folder) > step:
                    remove_folder(folder)

    def has(self, step: int) -> bool:
        """Return True if every prompt was drawn after `step`, or has the reason why not."""
        folder = self.folder / f"{STEP}{step}"
        return all(
            any((folder / f"{number}.{suffix}").is_file() for suffix in ("png", "txt"))
            for number in range(len(self.prompts))
        )

    def images(self, step: int) -> dict[str, Picture]:
        """Return the images that were drawn after `step`, by the numbers of their prompts."""
        from PIL import Image

        images = {}
        for number in range(len(self.prompts)):
            file = self.folder / f"{STEP}{step}" / f"{number}.png"
            if file.is_file():
                with Image.open(file) as image:
                    images[str(number)] = image.copy()
        return images

    def draw(self, step: int) -> None:
        """Draw an image of each prompt, after `step`. Every process must call this method.

        Raises:
            Interrupted: a signal came, in any process.
            OutputError, TrainingError: the main process, or another one, cannot write the images.
        """
        own: list[tuple[int, bytes | str]] = []
        for numbers in forward_passes(len(self.prompts), rank(), world_size()):
            with self.computing():
                drawn = self.model.draw([self.documents[number] for number in numbers], numbers, self.options)
            own += [
                (number, str(image) if isinstance(image, DreamkitError) else self._png(image, number))
                for number, image in zip(numbers, drawn, strict=True)
                if number % world_size() == rank()
            ]
        every = self.agreement.call(lambda: None, remarks=lambda _: own).remarks
        self.agreement.call(lambda: self._write(step, every) if is_main() else None)

    def _png(self, image: Picture, number: int) -> bytes:
        """Return the file of an image, with its prompt in the standard field of a description."""
        info = PngInfo()
        info.add_itxt("Description", self.prompts[number])
        file = io.BytesIO()
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()

    def _write(self, step: int, drawn: Sequence[tuple[int, bytes | str]]) -> None:
        folder = self.folder / f"{STEP}{step}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for number, content in drawn:
            if isinstance(content, bytes):
                write_bytes(folder / f"{number}.png", content)
                continue
            write_text(folder / f"{number}.txt", f"{content}\n")
            if not self.has_failed:
                self.report(f"step {step}: cannot draw {content}; training goes on")
            self.has_failed = True
