"""Import of the published code's checkpoints."""

from dreamkit.checkpoints.published.importing import import_published as import_published
