"""All checks. Importing a module of this package registers its checks, in this order."""

from dreamkit.testing.checks import (
    computing as computing,
    drawn_images as drawn_images,
    embedding_and_head as embedding_and_head,
    hidden_states as hidden_states,
    learning as learning,
    making as making,
    objective as objective,
    preprocessing as preprocessing,
    projecting as projecting,
    tokenizing as tokenizing,
)
