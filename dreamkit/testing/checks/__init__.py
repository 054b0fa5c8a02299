"""Every check; importing a module of this package makes those in it."""

from dreamkit.testing.checks import (
    computing as computing,
    drawing as drawing,
    language as language,
    learning as learning,
    making as making,
    objective as objective,
    pictures as pictures,
    projector as projector,
    words as words,
)
