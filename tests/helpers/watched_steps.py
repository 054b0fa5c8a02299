"""Training loops whose steps run within a context, such as one that records what they do."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from dreamkit.training.agreement import Agreement
from dreamkit.training.loop import TrainingLoop


class WatchSteps:
    """The steps of training loops, within the context `watch()`, except for logging and saving.

    The context is entered again after each step.
    """

    def __init__(self, watch: Any) -> None:
        self.watch, self.stack, self.steps, self.running = watch, ExitStack(), 0, False
        self.loops: list[TrainingLoop] = []

    def restart(self) -> None:
        self.stack.close()
        if self.running:
            self.stack.enter_context(self.watch())

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.stack.close()
        before, self.running = self.running, False
        try:
            yield
        finally:
            self.running = before
            self.restart()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the steps of every loop that runs in the block, and save no checkpoint at its end."""

        def unwatched(function: Any) -> Any:
            def call(*args: Any, **named: Any) -> Any:
                with self.paused():
                    return function(*args, **named)

            return call

        def read(loop: TrainingLoop, *args: Any, read: Any = TrainingLoop.read) -> Any:
            if not self.running:
                self.loops.append(loop)
                self.running = True
                self.restart()
            return read(loop, *args)

        def end_step(loop: TrainingLoop, end_step: Any = TrainingLoop.end_step) -> None:
            end_step(loop)
            self.steps += 1
            self.restart()

        def train(*args: Any, train: Any = TrainingLoop.train, **named: Any) -> None:
            train(*args, **named)
            self.running = False
            self.restart()

        methods = {"read": read, "end_step": end_step, "train": train}
        methods |= {name: unwatched(getattr(TrainingLoop, name)) for name in ("write_log", "save", "check")}
        with (
            patch("dreamkit.training.run.save_checkpoint"),
            patch.multiple(TrainingLoop, **methods),
            patch.object(Agreement, "call", unwatched(Agreement.call)),  # the hosts read batches and meet
            self.stack,  # closes it if a step fails
        ):
            yield
