"""A projector that averages neighbouring tokens: fewer of them for the language model to read.

N images or documents; tokens (N, in_tokens, in_dim) go in, (N, out_tokens, out_dim) come out.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from dreamkit import ConfigError, Projector, ProjectorSpec


class NewPart(Projector):
    """The mean of every few tokens, then one matrix."""

    # Its section of a recipe: the fields are the keys, their annotations are checked.
    @dataclass(frozen=True)
    class Config:
        """`every`: how many tokens become one."""

        every: int = 2

        def __post_init__(self) -> None:
            # A ConfigError names the key, so that the user is shown the line of the recipe.
            if self.every < 1:
                raise ConfigError({"every": f"{self.every} found, but at least 1 token makes one"})

    def __init__(self, config: Config, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.matrix = nn.Linear(spec.in_dim, spec.out_dim)

    # The widths are those of the neighbours; what the projector decides is how many tokens come out.
    @classmethod
    def infer_spec(cls, config: Config, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        if in_tokens % config.every:
            raise ConfigError({"every": f"{config.every} found, which does not divide {in_tokens} tokens"})
        out_tokens = in_tokens // config.every
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=out_tokens)

    @classmethod
    def from_config(cls, config: Config, spec: ProjectorSpec) -> Self:
        return cls(config, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix(tokens.unflatten(1, (self.spec.out_tokens, self.config.every)).mean(2))
