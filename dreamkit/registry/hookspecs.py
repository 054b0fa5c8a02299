"""The hooks that a plug-in package implements, and the record that they return.

A package names its hook module in the entry-point group `dreamkit.plugins`. Hooks only name classes and commands, as
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
    """A class or command of a plug-in.

    `name` is its name in recipes or on the command line, `target` is `"module:Class"`, and `summary` is a line for
    `dreamkit plugins`.
    """

    name: str
    target: str
    summary: str = ""


@hookspec
def dreamkit_vision_encoders() -> Sequence[Component]:
    """Return components of subclasses of `dreamkit.VisionEncoder`."""
    return ()


@hookspec
def dreamkit_language_models() -> Sequence[Component]:
    """Return components of subclasses of `dreamkit.LanguageModel`."""
    return ()


@hookspec
def dreamkit_projectors() -> Sequence[Component]:
    """Return components of subclasses of `dreamkit.Projector`."""
    return ()


@hookspec
def dreamkit_image_decoders() -> Sequence[Component]:
    """Return components of subclasses of `dreamkit.ImageDecoder`."""
    return ()


@hookspec
def dreamkit_datasets() -> Sequence[Component]:
    """Return components of subclasses of `dreamkit.Dataset`, which yield `dreamkit.Document`s."""
    return ()


@hookspec
def dreamkit_tasks() -> Sequence[Component]:
    """Return components of subclasses of `dreamkit.Task`, which measure a model and write the results."""
    return ()


@hookspec
def dreamkit_commands() -> Sequence[Component]:
    """Return commands of `dreamkit`, each a function or a `typer.Typer`, which is imported when used.

    A name is one word, or two: the first is then the name of a group, as in `data index`. `summary` is the line in
    `--help`.
    """
    return ()


@hookspec
def dreamkit_recipes() -> str:
    """Return the `"package:folder"` of the shipped recipes; the name of a recipe is its path without `.yaml`."""
    return ""
