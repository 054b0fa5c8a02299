"""A part under test: how checks build it, make its inputs and call it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dreamkit.build.fit_record import SPECS
from dreamkit.parts.part import Part
from dreamkit.testing.expect import KitError, expect_shape, named
from dreamkit.testing.subject import Subject

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PERTURBATION = 0.1  # standard deviation of the change of biases and norms
SEEDS = 20_240_000  # of building parts; no one else's
FLOATS = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
)  # in this order: one part takes each, and the last one rounds

Build: TypeAlias = Callable[[], Part]
Inputs: TypeAlias = dict[str, Tensor]


class Case(NamedTuple):
    """Inputs of `rows` rows, of `length` tokens if the part takes any number, with random values from `seed`."""

    rows: int
    length: int
    seed: int


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator with `seed`; restore its state at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generator(seed: int) -> torch.Generator:
    """Return a new generator with this seed."""
    return torch.Generator().manual_seed(seed)


class PartSubject(Subject):
    """A part of one kind, which `build` makes as often as a check needs a new one."""

    noun = "part"
    interface: ClassVar[type[Part]]
    output: ClassVar[str]  # the name of a call's result in messages
    legend: ClassVar[str]  # its shape in letters
    method: ClassVar[str] = "forward"  # the part's main computation
    differentiable: ClassVar[tuple[str, ...]]  # the inputs that gradients flow back to

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self.build = build

    def make(self, seed: int = 0) -> Any:
        """Return a new part in evaluation mode, with random weights from `seed`.

        The weights are perturbed. Initial weights may be zero, or so small that a mistake changes nothing.

        Raises:
            KitError: `build` fails or returns something else.
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
                    # for a matrix, the deviation that keeps the size of its output
                    deviation = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else PERTURBATION
                    parameter.add_(deviation * torch.randn(parameter.shape))
        return part

    def prepare(self, part: Any) -> Any:
        """Return the part, ready to be tried."""
        return part

    def make_as_built(self, seed: int = 0) -> Any:
        """Return the part as `build` makes it, in evaluation mode.

        Raises:
            KitError: `build` fails, returns something else, or sets torch's seed.
        """
        try:
            with seeded(SEEDS + seed):
                part = self.build()
                sets_seed = torch.initial_seed() != SEEDS + seed
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also sys.exit and the exceptions that skip a test
            raise KitError(f"build() failed: {type(error).__name__}: {error}") from error
        if not isinstance(part, self.interface):
            raise KitError(
                f"expected a dreamkit.{self.interface.__name__} from build(), got {named(type(part))}"
            )
        self.definition = type(part)
        if sets_seed:
            raise KitError(
                "build() sets torch's seed; remove that: the kit compares parts of different seeds"
            )
        if not hasattr(part, "config"):
            raise KitError(f"missing 'config' of the {type(part).__name__} from build(); set it in __init__")
        spec = getattr(part, "spec", None)
        if not isinstance(spec, SPECS[self.kind]):
            raise KitError(
                f"expected {named(SPECS[self.kind])} as the part's 'spec', got {named(type(spec))}; "
                "set it in __init__"
            )
        return part.eval()

    @property
    def config(self) -> Any:
        return self.part.config

    @abstractmethod
    def inputs(self, case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
        """Return the part's inputs by name."""

    def extremes(self, case: Case) -> Iterator[Inputs]:
        """Yield inputs at the limits of the range that the part accepts."""
        return iter(())

    @abstractmethod
    def compute(self, part: Any, inputs: Inputs) -> Tensor:
        """Return the result of the part's main computation."""

    @abstractmethod
    def shape(self, inputs: Inputs) -> tuple[int, ...]:
        """Return the expected shape of the result of `compute`."""

    @abstractmethod
    def loss(self, part: Any, inputs: Inputs) -> Tensor:
        """Return a scalar that depends on all trainable parameters and on the inputs."""

    def call(self, part: Any, inputs: Inputs, *, seed: int | None = 0, copy: bool = True) -> Tensor:
        """Return the result of `compute` without gradients, on copies of the inputs if `copy`.

        `seed` seeds torch's global generator; with None, the generator goes on.
        """
        if copy:
            inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.describe_call(inputs)
        with torch.no_grad():
            if seed is None:
                return self.compute(part, inputs)
            with seeded(seed):
                return self.compute(part, inputs)

    def backward(self, part: Any, inputs: Inputs) -> Inputs:
        """Run the loss backward; return the gradients of the inputs that it reaches."""
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        for name in inputs.keys() & set(self.differentiable):
            inputs[name].requires_grad_()
        self.describe_call(inputs, "backward of the loss after ")
        with seeded(0):
            loss = self.loss(part, inputs)
            if loss.requires_grad:
                loss.backward()
        return {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}

    def describe_call(self, inputs: Inputs, prefix: str = "") -> None:
        """Set `call_text`: the method with the shapes of its inputs, and with an unusual dtype or device."""
        shapes = " and ".join(
            f"{name} of shape {tuple(tensor.shape)}"
            for name, tensor in inputs.items()
            if tensor.is_floating_point()
        )
        dtypes = {tensor.dtype for tensor in inputs.values() if tensor.is_floating_point()} - {torch.float32}
        dtype = "".join(f", {dtype}" for dtype in dtypes)
        device = "".join(f", on {d}" for d in {t.device for t in inputs.values()} - {torch.device("cpu")})
        self.call_text = f"{prefix}{self.method}({shapes}{dtype}{device})"

    def call_with_shape(self, part: Any, inputs: Inputs) -> Tensor:
        """Return the result of `call`, after a check of its shape."""
        return expect_shape(self.call(part, inputs), self.output, self.legend, self.shape(inputs))

    def infer_spec_again(self) -> Any:
        """Return the spec that `infer_spec` returns for the part's config."""
        self.call_text = "infer_spec(config)"
        return type(self.part).infer_spec(self.part.config)


class PictureSubject(PartSubject):
    """A part with a `preprocess` method for images."""

    pixels: ClassVar[str]  # the name of its result in messages
    bounds: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        """Return the pixels (N, 3, H, W) of N images."""


def weighted_sum(output: Tensor) -> Tensor:
    """Return a scalar whose gradient differs from value to value, so that nothing cancels out."""
    weights = torch.linspace(0.5, 1.5, output.shape[-1], device=output.device, dtype=output.dtype)
    return (output * weights).square().sum() + (output * weights).sum()
