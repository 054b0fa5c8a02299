"""The core's own parts, data sets, commands and recipes, registered as those of any plug-in."""

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
            "learned latents with attention to the tokens",
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
        Component(
            "conversations",
            "dreamkit.data.conversations:Conversations",
            "LLaVA's and ShareGPT's conversations, OpenAI's messages",
        ),
    )


@hookimpl
def dreamkit_commands() -> Sequence[Component]:
    """Return the commands in the order of `dreamkit --help`; a summary is the first sentence of the command's help."""
    return (
        Component("demo", "dreamkit.cli.running:demo", "Train and measure a tiny model."),
        Component("plugins", "dreamkit.cli.looking:plugins", "List components and broken plug-ins."),
        Component("recipes", "dreamkit.cli.looking:recipes", "List the shipped recipes."),
        Component("check", "dreamkit.cli.looking:check", "Check a recipe without loading any weights."),
        Component(
            "plan",
            "dreamkit.cli.looking:plan",
            "Print shapes, parameters, memory and FLOPs, or propose settings that fit.",
        ),
        Component("data check", "dreamkit.cli.data_commands:check", "Check the data of a recipe."),
        Component(
            "data preview",
            "dreamkit.cli.data_commands:preview",
            "Show documents of a recipe's data as its model sees them.",
        ),
        Component("train", "dreamkit.cli.running:train", "Train the model of a recipe."),
        Component(
            "runs list", "dreamkit.cli.run_commands:list_runs", "List runs with their state and last figures."
        ),
        Component(
            "runs diff",
            "dreamkit.cli.run_commands:diff",
            "Compare runs: recipes, versions, figures and curves.",
        ),
        Component("cache", "dreamkit.cli.running:cache", "Compute latents and features once."),
        Component("inspect", "dreamkit.cli.looking:inspect", "Verify and show a checkpoint or cache."),
        Component("generate", "dreamkit.cli.running:generate", "Continue a document with text and images."),
        Component(
            "import-published",
            "dreamkit.cli.converting:import_published",
            "Convert a published DreamLLM checkpoint.",
        ),
        Component(
            "merge-adapters",
            "dreamkit.cli.converting:merge_adapters",
            "Merge adapters into a checkpoint's weights.",
        ),
        Component(
            "new-plugin", "dreamkit.cli.authoring:new_plugin", "Write a plug-in package to start from."
        ),
        Component(
            "test-plugin", "dreamkit.cli.authoring:test_plugin", "Test an installed plug-in's contract."
        ),
    )


@hookimpl
def dreamkit_recipes() -> str:
    return "dreamkit:recipes"
