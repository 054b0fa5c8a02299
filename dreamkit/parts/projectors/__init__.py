"""The projectors that need only torch; `dreamkit.registry.core` registers them.

`linear` and `mlp` map each token on its own; in the others, tokens attend to each other. `resampler` and `mapper`
ignore the order of tokens: vision tokens and dream states already hold their positions.
"""

from dreamkit.parts.projectors.dense import MLP as MLP, Linear as Linear
from dreamkit.parts.projectors.encoder import Encoder as Encoder
from dreamkit.parts.projectors.mapper import Mapper as Mapper
from dreamkit.parts.projectors.resampler import Resampler as Resampler
