"""The `"module:name"` of a component: its form, and the object that it names, imported and checked."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any

from dreamkit.errors import PluginError, describe_error, did_you_mean, excerpt
from dreamkit.registry.kinds import KINDS, Registered


def malformed_target(target: str) -> str | None:
    """Return why `target` has an invalid form, or None."""
    if re.fullmatch(r"\w+(\.\w+)*:\w+", target):
        return None
    return f"expected a target of the form 'module:name', got {excerpt(repr(target))}"


def import_target(registered: Registered) -> Any:
    """Import the target of a component: a class of its kind, or a command's function or typer app.

    Raises:
        PluginError: the import fails, or the target is not of this kind.
    """
    name, target = (
        f"{registered.kind} '{registered.name}' of {registered.origin}",
        registered.component.target,
    )
    imported = _import(target, name)
    if reason := _invalid_reason(imported, registered.kind):
        raise PluginError(f"{name}: {target} {reason}")
    return imported


def _import(target: str, component: str) -> Any:
    """Return the object of a target; `component` names it in errors."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
        if hasattr(module, name):
            return getattr(module, name)
        known = [known for known in dir(module) if not known.startswith("_")]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{component}: importing {target} failed: {describe_error(error)}") from error
    raise PluginError(f"{component}: module '{module_name}' has no '{name}'; {did_you_mean(name, known)}")


def _invalid_reason(imported: Any, kind: str) -> str | None:
    """Return why `imported` cannot be a component of the kind, or None."""
    interface_name = KINDS[kind].interface
    if interface_name is None:
        return None if callable(imported) else "is neither a function nor a typer app"
    interface = getattr(importlib.import_module("dreamkit"), interface_name)
    if not (isinstance(imported, type) and issubclass(imported, interface)):
        return f"is not a subclass of dreamkit.{interface_name}"
    if missing := ", ".join(sorted(getattr(imported, "__abstractmethods__", ()))):
        return f"lacks {missing}; implement the missing methods"
    config = getattr(imported, "Config", None)
    if kind != "task" and not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        return "lacks a dataclass 'Config' for its recipe section"
    return None
