"""Every check; importing a module of this package makes those in it."""

from dreamkit.testing.checks import (
    computing as computing,
    drawn_images as drawn_images,
    hidden_states as hidden_states,
    learning as learning,
    making as making,
    objective as objective,
    preprocessing as preprocessing,
    projecting as projecting,
    tokenizing as tokenizing,
)
