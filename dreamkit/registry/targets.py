"""What a component's `"module:name"` points at: its form, and the object it names, imported and checked."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any

from dreamkit.errors import PluginError, did_you_mean
from dreamkit.registry.kinds import KINDS, Registered


def malformed_target(target: str) -> str | None:
    """Return why `target` cannot be imported whatever is installed, else None."""
    if re.fullmatch(r"\w+(\.\w+)*:\w+", target):
        return None
    return f"expected a target of the form 'module:name', got {target!r}"


def import_target(registered: Registered) -> Any:
    """Import what a component names: a class of its kind, or a command's function or typer app.

    Raises:
        PluginError: it cannot be imported, or it is not what the kind asks for.
    """
    what = f"{registered.kind} '{registered.name}' of {registered.origin}"
    found = _find(registered.component.target, what)
    if wrong := _wrong_object(found, registered.kind):
        raise PluginError(f"{what}: {registered.component.target} {wrong}")
    return found


def describe_error(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _find(target: str, what: str) -> Any:
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
        if hasattr(module, name):
            return getattr(module, name)
        known = [known for known in dir(module) if not known.startswith("_")]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{what}: importing {target} failed: {describe_error(error)}") from error
    raise PluginError(f"{what}: module '{module_name}' has no '{name}'; {did_you_mean(name, known)}")


def _wrong_object(found: Any, kind: str) -> str | None:
    """Return why `found` cannot be a component of the kind, else None."""
    interface_name = KINDS[kind].interface
    if interface_name is None:
        return None if callable(found) else "is neither a function nor a typer app"
    interface = getattr(importlib.import_module("dreamkit"), interface_name)
    if not (isinstance(found, type) and issubclass(found, interface)):
        return f"is no subclass of dreamkit.{interface_name}"
    if abstract := ", ".join(sorted(getattr(found, "__abstractmethods__", ()))):
        return f"lacks {abstract}; implement what is missing"
    config = getattr(found, "Config", None)
    if kind != "task" and not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        return "has no dataclass 'Config', its recipe section"
    return None
