"""Image decoders from diffusers' models."""

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
        Component("sdxl", "dreamkit_diffusers.sdxl:SDXL", "Stable Diffusion XL, with a pooled vector"),
        Component("sd3", "dreamkit_diffusers.sd3:SD3", "Stable Diffusion 3 and 3.5, flow matching"),
        Component("sana", "dreamkit_diffusers.sana:Sana", "Sana 1 and 1.5, flow matching"),
    )
