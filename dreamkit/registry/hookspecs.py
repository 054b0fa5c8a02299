"""The hooks a plug-in package implements, and the record it answers with.

A package names its hook module under the entry-point group `dreamkit.plugins`. Hooks only name classes and commands, as
`"module:Class"`, so that listing plug-ins imports neither torch nor any library behind a part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pluggy

PROJECT = "dreamkit"
ENTRY_POINT_GROUP = "dreamkit.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Component:
    """One named thing a plug-in offers.

    `name` is what a recipe or a command line writes, `target` is `"module:Class"`, `summary` one line for `dreamkit
    plugins`.
    """

    name: str
    target: str
    summary: str = ""


@hookspec
def dreamkit_vision_encoders() -> Sequence[Component]:
    """Classes of `dreamkit.VisionEncoder`."""
    return ()


@hookspec
def dreamkit_language_models() -> Sequence[Component]:
    """Classes of `dreamkit.LanguageModel`."""
    return ()


@hookspec
def dreamkit_projectors() -> Sequence[Component]:
    """Classes of `dreamkit.Projector`."""
    return ()


@hookspec
def dreamkit_image_decoders() -> Sequence[Component]:
    """Classes of `dreamkit.ImageDecoder`."""
    return ()


@hookspec
def dreamkit_datasets() -> Sequence[Component]:
    """Classes of `dreamkit.Dataset`, which yield `dreamkit.Document`s."""
    return ()


@hookspec
def dreamkit_tasks() -> Sequence[Component]:
    """Classes of `dreamkit.Task`, which measure a model and write what they found."""
    return ()


@hookspec
def dreamkit_commands() -> Sequence[Component]:
    """Commands of `dreamkit`, each a function or a `typer.Typer`, imported when it is used.

    A name is one word, or two of which the first is a group's: `data index`. `summary` is the line in `--help`.
    """
    return ()


@hookspec
def dreamkit_recipes() -> str:
    """The `"package:folder"` of the recipes a plug-in ships; they are named by their path without `.yaml`."""
    return ""
