"""The projectors that need only torch; `dreamkit.core_plugin` registers them.

`linear` and `mlp` take each token by itself; in the others tokens see each other. `resampler` and `mapper` read them as
a set: vision tokens and dream states bring their positions along, from the vision encoder and the language model.
"""

from dreamkit.projectors.dense import MLP as MLP, Linear as Linear
from dreamkit.projectors.encoder import Encoder as Encoder
from dreamkit.projectors.mapper import Mapper as Mapper
from dreamkit.projectors.resampler import Resampler as Resampler
