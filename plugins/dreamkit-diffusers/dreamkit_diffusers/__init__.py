"""Image decoders made of diffusers' models."""

from __future__ import annotations

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_image_decoders() -> Sequence[Component]:
    return (
        Component(
            "stable-diffusion",
            "dreamkit_diffusers.stable_diffusion:StableDiffusion",
            "Stable Diffusion 1.5 and 2.1, epsilon and v-prediction",
        ),
    )
