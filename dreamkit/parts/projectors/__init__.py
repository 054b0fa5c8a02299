"""The projectors that need only torch; `dreamkit.registry.core` registers them.

`linear` and `mlp` take each token by itself; in the others tokens see each other. `resampler` and `mapper` read them as
a set: vision tokens and dream states bring their positions along, from the vision encoder and the language model.
"""

from dreamkit.parts.projectors.dense import MLP as MLP, Linear as Linear
from dreamkit.parts.projectors.encoder import Encoder as Encoder
from dreamkit.parts.projectors.mapper import Mapper as Mapper
from dreamkit.parts.projectors.resampler import Resampler as Resampler
