"""Trackers of runs, such as TensorBoard and W&B, by accelerate's classes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Self

from dreamkit.errors import RecipeProblem, describe_error
from dreamkit.recipe.flat import flat
from dreamkit.recipe.sections import Recipe
from dreamkit.storage.writing import write_text, writing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FOLDER: Final = "trackers"  # in the folder of a run; each tracker has a folder of its name there
PROJECT: Final = "dreamkit"
RUN_ID: Final = "run-id.txt"  # of W&B
_MODULES: Final = {"tensorboard": ["tensorboard", "tensorboardX"]}  # other trackers have the names of theirs
_SECRET: Final = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)  # in names of environment variables


class Trackers:
    """The trackers of a run, which get its figures. Only the main process starts them; others have none.

    A tracker never ends a run: its first error is printed, and training goes on.

    Args:
        recipe: the recipe of the run, whose `train.trackers` are the names of its trackers.
        out: folder of the run.
        report: function that prints a line.
    """

    def __init__(self, recipe: Recipe, out: Path, report: Callable[[str], None]) -> None:
        self.recipe, self.out, self.report = recipe, out, report
        self._running: dict[str, Any] = {}
        self._failed: set[str] = set()

    def begin(self, step: int) -> None:
        """Start the trackers after `step` finished steps, for a new run or to continue one."""
        for name in dict.fromkeys(self.recipe.train.trackers):
            with self._reporting(name):
                is_new = not (self.out / FOLDER / name).exists()
                tracker = _make(name, self.out, None if is_new else step)
                tracker.start()
                self._running[name] = tracker
                if is_new:  # a setting that is None has no type for them
                    settings = {key: value for key, value in flat(self.recipe.to_dict()) if value is not None}
                    tracker.store_init_configuration(settings)

    def add(self, step: int, values: Mapping[str, float | None], group: str = "train") -> None:
        """Pass numbers of a step to all trackers, as `group/NAME`; a number that is None is left out."""
        named = {f"{group}/{name}": value for name, value in values.items() if value is not None}
        for name, tracker in self._running.items():
            with self._reporting(name):
                tracker.log(named, step=step)

    def add_images(
        self, step: int, images: Callable[[], Mapping[str, Picture]], group: str = "drawings"
    ) -> None:
        """Pass images of a step to the trackers that take some, as `group/NAME`; `images` reads them."""
        for name, tracker in self._running.items():
            with self._reporting(name):
                for image_name, image in images().items():
                    _add_image(tracker, step, f"{group}/{image_name}", image)

    def finish(self) -> None:
        """Finish the trackers, which may have to wait for a network."""
        for name, tracker in self._running.items():
            with self._reporting(name):
                tracker.finish()
        self._running = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """Report the first error of a tracker; ignore later ones."""
        try:
            yield
        except Exception as error:
            if name not in self._failed:
                self.report(f"tracker {name}: {_without_secrets(describe_error(error))}; training goes on")
            self._failed.add(name)


def missing_trackers(recipe: Recipe) -> list[RecipeProblem]:
    """Return a problem for each tracker of a recipe whose package is not installed."""
    key = "train.trackers"
    return [
        RecipeProblem(
            recipe.place(key),
            key,
            f"expected installed trackers, got '{name}', whose package is missing; add it with "
            f"pip install {name.replace('_', '-')}, or remove it",
        )
        for name in dict.fromkeys(recipe.train.trackers)
        if not any(_is_installed(module) for module in _MODULES.get(name, [name]))
    ]


def _is_installed(module: str) -> bool:
    """Return True if a module can be imported; a mere folder of its name, as W&B makes one, is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _make(name: str, out: Path, step: int | None) -> Any:
    """Return a new tracker, which continues after `step` if this is a number.

    Each but TensorBoard's and W&B's has the arguments of accelerate's `init_trackers`.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder = out / FOLDER
    cls: Any = LOGGER_TYPE_TO_CLASS[name]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            # events of repeated steps are hidden
            return cls(name, folder, purge_step=None if step is None else step + 1)
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            run = {"name": out.resolve().name, "id": _run_id(folder / name), "resume": "allow"}
            # without the console, whose live line has a new state every tenth of a second
            return cls(project, dir=str(folder), settings={"console": "off"}, **run)
    return cls(PROJECT, folder) if cls.requires_logging_directory else cls(PROJECT)


def _run_id(folder: Path) -> str:
    """Return the id of the run, which a file in the tracker's folder has; make a new one for a new run."""
    file = folder / RUN_ID
    if not file.is_file():
        folder.mkdir(exist_ok=True)
        write_text(file, token_hex(4))
    return file.read_text()


def _add_image(tracker: Any, step: int, key: str, image: Picture) -> None:
    """Pass an image to a tracker, if it takes some; each of accelerate's wants another form."""
    if tracker.name == "tensorboard":
        import numpy as np

        tracker.log_images({key: np.asarray(image.convert("RGB"))[None]}, step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        several = tracker.name in ("wandb", "swanlab")
        tracker.log_images({key: [image] if several else image}, step)


def _without_secrets(text: str) -> str:
    """Return a text with the names of secret environment variables in the place of their values."""
    for name, value in os.environ.items():
        if len(value) > 3 and _SECRET.search(name):
            text = text.replace(value, f"${name}")
    return text
