"""A vision encoder for dreamkit. Listing it imports no torch."""

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_vision_encoders() -> Sequence[Component]:
    return (Component("patchwork", "dreamkit_patchwork.encoder:Patchwork", "patches, mixed by two matrices"),)
