"""Coloured shapes for dreamkit: a data set, a recipe and a task."""

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_datasets():
    return [Component("shapes", "dreamkit_shapes.documents:Shapes", "documents about coloured shapes")]


@hookimpl
def dreamkit_tasks():
    return [
        Component("shapes-demo", "dreamkit_shapes.task:Demo", "learns shapes for a few steps, and writes one")
    ]


@hookimpl
def dreamkit_recipes():
    return "dreamkit_shapes:recipes"
