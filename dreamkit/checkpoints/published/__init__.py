"""Importing checkpoints of the published code."""

from dreamkit.checkpoints.published.importing import import_published as import_published
