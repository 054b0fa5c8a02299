"""Vision encoders from timm."""

from __future__ import annotations

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_vision_encoders() -> Sequence[Component]:
    return (Component("timm", "dreamkit_timm.encoder:Timm", "any timm model with a grid of features"),)
