"""What checks know of a part under test: how it is made, given inputs, and called."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dreamkit.build.fit_record import SPECS
from dreamkit.parts.part import Part
from dreamkit.testing.expect import KitError, expect_shape, named

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

NOISE = 0.1  # spread of what is added to biases and norms; matrices get one that keeps the size of what they carry
SEEDS = 20_240_000  # of making parts; no other than the kit's own
FLOATS = (torch.float64, torch.float32, torch.bfloat16)  # one part is brought to each: the last one rounds

Build: TypeAlias = Callable[[], Part]
Inputs: TypeAlias = dict[str, Tensor]


class Case(NamedTuple):
    """Inputs of `rows` rows, of `length` tokens where their number is free, with random values by `seed`."""

    rows: int
    length: int
    seed: int


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator with `seed`, and leaves it as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generator(seed: int) -> torch.Generator:
    """A fresh generator of its own."""
    return torch.Generator().manual_seed(seed)


class Subject(ABC):
    """A part of one kind, made afresh by `build` as often as a check needs one.

    `doing` is the call under way, in words, for messages. `definition` is the part's class; until a part is built, the
    class or function that `build` wraps.
    """

    kind: ClassVar[str]
    interface: ClassVar[type[Part]]
    output: ClassVar[str]  # what a call gives, in messages
    legend: ClassVar[str]  # its shape in letters

    def __init__(self, build: Build) -> None:
        self.build = build
        self.doing = ""
        self.definition: Callable[..., Any] = inspect.unwrap(build)

    def make(self, seed: int = 0) -> Any:
        """A fresh part in evaluation mode, with random weights by `seed`.

        They are shaken: fresh weights may be zeros, or so small that a mistake makes no difference.

        Raises:
            KitError: `build` fails, or builds something else.
        """
        part = self.make_as_built(seed)
        try:
            with seeded(seed):
                part = self.prepare(part)
        except Exception as error:
            raise KitError(f"preparing the part failed: {type(error).__name__}: {error}") from error
        with seeded(seed), torch.no_grad():
            for parameter in part.parameters():
                if parameter.is_floating_point() and parameter.numel():
                    spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else NOISE
                    parameter.add_(spread * torch.randn(parameter.shape))
        return part

    def prepare(self, part: Any) -> Any:
        """The part made ready to be tried; as it is, unless a kind says otherwise."""
        return part

    def make_as_built(self, seed: int = 0) -> Any:
        """The part as `build` makes it, in evaluation mode."""
        try:
            with seeded(SEEDS + seed):
                part = self.build()
                own = torch.initial_seed() != SEEDS + seed
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # those that end a program or skip a test too
            raise KitError(f"build() failed: {type(error).__name__}: {error}") from error
        if not isinstance(part, self.interface):
            raise KitError(
                f"build() gave {named(type(part))}, but a dreamkit.{self.interface.__name__} is wanted"
            )
        self.definition = type(part)
        if own:
            raise KitError(
                "build() sets torch's seed; leave that to the kit, which compares parts of other weights"
            )
        if not hasattr(part, "config"):
            raise KitError(f"build() gave {named(type(part))} without 'config'; set it in __init__")
        if not isinstance(getattr(part, "spec", None), SPECS[self.kind]):
            given = named(type(getattr(part, "spec", None)))
            raise KitError(
                f"the spec of what build() gave is {given}, but a {SPECS[self.kind].__name__} is wanted"
            )
        return part.eval()

    @cached_property
    def part(self) -> Any:
        """The part that checks look at without changing it."""
        return self.make()

    def renew(self) -> None:
        """Forgets the part: a check that failed may have left it in any state."""
        self.__dict__.pop("part", None)

    @abstractmethod
    def inputs(self, case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
        """What the part is called with, by name."""

    def extremes(self, case: Case) -> Iterator[Inputs]:
        """Inputs at the ends of what the part says it takes."""
        return iter(())

    @abstractmethod
    def compute(self, part: Any, inputs: Inputs) -> Tensor:
        """The part's main computation."""

    @abstractmethod
    def shape(self, inputs: Inputs) -> tuple[int, ...]:
        """The shape of what `compute` should give."""

    @abstractmethod
    def loss(self, part: Any, inputs: Inputs) -> Tensor:
        """A scalar that depends on all that is trained, and on the inputs."""

    learned_from: ClassVar[tuple[str, ...]]  # the inputs that gradients flow back to

    def call(self, part: Any, inputs: Inputs, *, seed: int | None = 0, own: bool = False) -> Tensor:
        """`compute` without gradients, on copies of the inputs unless `own`; `seed` None leaves randomness alone."""
        given = inputs if own else {name: tensor.clone() for name, tensor in inputs.items()}
        self.say(given)
        with torch.no_grad():
            if seed is None:
                return self.compute(part, given)
            with seeded(seed):
                return self.compute(part, given)

    def backward(self, part: Any, inputs: Inputs) -> Inputs:
        """Runs the loss backward; returns the gradients of the inputs, as far as they flow back to them."""
        given = {name: tensor.clone() for name, tensor in inputs.items()}
        for name in self.learned_from:
            if name in given:
                given[name].requires_grad_()
        self.say(given, "backward of the loss after ")
        with seeded(0):
            loss = self.loss(part, given)
            if loss.requires_grad:
                loss.backward()
        return {name: tensor.grad for name, tensor in given.items() if tensor.grad is not None}

    method: ClassVar[str] = "forward"

    def say(self, inputs: Inputs, before: str = "") -> None:
        shown = " and ".join(
            f"{name} of shape {tuple(tensor.shape)}"
            for name, tensor in inputs.items()
            if tensor.is_floating_point()
        )
        dtypes = {tensor.dtype for tensor in inputs.values() if tensor.is_floating_point()} - {torch.float32}
        dtype = "".join(f", {dtype}" for dtype in dtypes)
        device = "".join(f", on {d}" for d in {t.device for t in inputs.values()} - {torch.device("cpu")})
        self.doing = f"{before}{self.method}({shown}{dtype}{device})"

    def checked(self, part: Any, inputs: Inputs) -> Tensor:
        """`call`, the shape of whose output must be right."""
        return expect_shape(self.call(part, inputs), self.output, self.legend, self.shape(inputs))

    def spec_again(self) -> Any:
        """What `infer_spec` says of the part's config."""
        self.doing = "infer_spec(config)"
        return type(self.part).infer_spec(self.part.config)


class PictureSubject(Subject):
    """A part that reads pictures."""

    pixels: ClassVar[str]
    bounds: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures (N) -> pixels (N, 3, H, W)."""


def weighted_sum(output: Tensor) -> Tensor:
    """A scalar whose gradient differs from value to value, so that nothing cancels out."""
    weights = torch.linspace(0.5, 1.5, output.shape[-1], device=output.device, dtype=output.dtype)
    return (output * weights).square().sum() + (output * weights).sum()
