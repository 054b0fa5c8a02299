"""The parts that need only torch and the data sets of plain files, registered through the same door as everyone's."""

from collections.abc import Sequence

from dreamkit.registry.hookspecs import Component, hookimpl


@hookimpl
def dreamkit_projectors() -> Sequence[Component]:
    return (
        Component("linear", "dreamkit.parts.projectors.dense:Linear", "one matrix"),
        Component("mlp", "dreamkit.parts.projectors.dense:MLP", "matrices with GELU between them"),
        Component(
            "resampler",
            "dreamkit.parts.projectors.resampler:Resampler",
            "learned latents that look at the tokens",
        ),
        Component(
            "mapper", "dreamkit.parts.projectors.mapper:Mapper", "GILL's encoder-decoder with learned queries"
        ),
        Component(
            "encoder", "dreamkit.parts.projectors.encoder:Encoder", "MetaQuery's bidirectional transformer"
        ),
    )


@hookimpl
def dreamkit_datasets() -> Sequence[Component]:
    return (
        Component("pairs", "dreamkit.data.pairs:Pairs", "images with captions, to draw or to read"),
        Component("interleaved", "dreamkit.data.interleaved:Interleaved", "documents of text and images"),
        Component("conversations", "dreamkit.data.conversations:Conversations", "LLaVA's JSON, about images"),
    )


@hookimpl
def dreamkit_recipes() -> str:
    return "dreamkit:recipes"
