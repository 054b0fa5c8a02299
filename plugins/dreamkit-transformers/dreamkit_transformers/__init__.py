"""Vision encoders and language models from transformers."""

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_vision_encoders() -> Sequence[Component]:
    return (
        Component("clip", "dreamkit_transformers.vision:Clip", "CLIP's vision tower"),
        Component("siglip", "dreamkit_transformers.vision:Siglip", "SigLIP's vision tower"),
    )


@hookimpl
def dreamkit_language_models() -> Sequence[Component]:
    return (
        Component("llama", "dreamkit_transformers.llama:Llama", "LLaMA, with LLaMA 2's chat template"),
        Component("vicuna", "dreamkit_transformers.llama:Vicuna", "LLaMA with Vicuna 1.1's chat template"),
    )
