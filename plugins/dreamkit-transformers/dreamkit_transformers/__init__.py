"""Vision encoders and language models from transformers."""

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_vision_encoders() -> Sequence[Component]:
    return (
        Component("clip", "dreamkit_transformers.clip:Clip", "CLIP's vision tower"),
        Component("siglip", "dreamkit_transformers.siglip:Siglip", "SigLIP's vision tower"),
        Component(
            "siglip2", "dreamkit_transformers.siglip:Siglip2", "SigLIP 2's, NaFlex or fixed resolution"
        ),
        Component("dinov2", "dreamkit_transformers.dinov2:Dinov2", "DINOv2, with or without registers"),
    )


@hookimpl
def dreamkit_language_models() -> Sequence[Component]:
    return (
        Component("causal-lm", "dreamkit_transformers.causal_lm:CausalLM", "any decoder of transformers"),
        Component("gemma", "dreamkit_transformers.families:Gemma", "text models of Gemma 1, 2 and 3"),
        Component("llama", "dreamkit_transformers.llama:Llama", "LLaMA 1, 2 and 3"),
        Component("mistral", "dreamkit_transformers.families:Mistral", "Mistral 7B with its sliding window"),
        Component("phi", "dreamkit_transformers.families:Phi", "Phi 1.5 to 4"),
        Component("qwen", "dreamkit_transformers.families:Qwen", "Qwen 2, 2.5 and 3"),
        Component("vicuna", "dreamkit_transformers.llama:Vicuna", "LLaMA with Vicuna 1.1's chat template"),
    )
