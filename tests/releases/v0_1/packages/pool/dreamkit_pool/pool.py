from dataclasses import dataclass

from torch import nn

from dreamkit import ConfigError, Projector, ProjectorSpec


class Pool(Projector):
    @dataclass(frozen=True)
    class Config:  # its section of a recipe
        every: int = 4

    def __init__(self, config, spec):
        super().__init__()
        self.config, self.spec = config, spec
        self.matrix = nn.Linear(spec.in_dim, spec.out_dim)

    @classmethod
    def spec_from(cls, config, *, in_dim, in_tokens, out_dim):
        if config.every < 1 or in_tokens % config.every:
            raise ConfigError({"every": f"{config.every} does not divide {in_tokens} tokens"})
        out_tokens = in_tokens // config.every
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=out_tokens)

    @classmethod
    def from_config(cls, config, spec):
        return cls(config, spec)

    def forward(self, tokens):  # (N, in_tokens, in_dim) -> (N, out_tokens, out_dim)
        return self.matrix(tokens.unflatten(1, (-1, self.config.every)).mean(2))
