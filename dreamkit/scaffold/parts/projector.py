"""A projector that averages neighbouring tokens, so that the language model reads fewer.

It maps tokens (N, in_tokens, in_dim) of N images or documents to (N, out_tokens, out_dim).
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from dreamkit import ConfigError, Projector, ProjectorSpec, count


class NewPart(Projector):
    """The mean of each group of `every` tokens, then one matrix."""

    @dataclass(frozen=True)
    class Config:
        """The projector's section of a recipe: dreamkit checks its keys and types against these fields.

        `every` is the number of tokens that become one.
        """

        every: int = 2

        def __post_init__(self) -> None:
            # dreamkit shows the message of a ConfigError with the file and line of the key.
            if self.every < 1:
                raise ConfigError({"every": f"expected at least 1, got {self.every}"})

    def __init__(self, config: Config, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.matrix = nn.Linear(spec.in_dim, spec.out_dim)

    # The neighbours determine the widths; the projector chooses only the number of output tokens.
    @classmethod
    def infer_spec(cls, config: Config, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        if in_tokens % config.every:
            raise ConfigError(
                {"every": f"expected a divisor of {count(in_tokens, 'token')}, got {config.every}"}
            )
        out_tokens = in_tokens // config.every
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=out_tokens)

    @classmethod
    def from_config(cls, config: Config, spec: ProjectorSpec) -> Self:
        return cls(config, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix(tokens.unflatten(1, (self.spec.out_tokens, self.config.every)).mean(2))
