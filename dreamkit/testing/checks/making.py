"""Checks of how a part is registered, described and made."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

import yaml
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dreamkit.errors import PluginError
from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.sections import WITH_SOURCE, plain
from dreamkit.recipe.tree import parse
from dreamkit.registry.hookspecs import ENTRY_POINT_GROUP
from dreamkit.registry.kinds import Registered
from dreamkit.registry.registry import Registry
from dreamkit.testing.check import check
from dreamkit.testing.expect import ContractError, expect, expect_true, named
from dreamkit.testing.subject import Subject
from dreamkit.testing.subject_kinds import KINDS

IMPORT_SECONDS = 60
HEAVY = {"torch", "transformers", "diffusers", "timm"}  # libraries that take seconds to import


@check(*KINDS)
def light_import(subject: Subject) -> None:
    """Importing the plug-in's hook module imports no torch and no library behind a part.

    `dreamkit plugins`, `--help` and every mistyped command answer at once, whatever is installed.
    """
    registered = _registration(subject)
    if registered is None:
        cls = type(subject.part)
        raise ContractError(
            f"no installed plug-in registers {cls.__module__}:{cls.__qualname__}, but the hook for its kind should; "
            f"install the package, such as with `pip install -e .`{Registry.load().about_problems()}"
        )
    module = next(
        each.module
        for each in entry_points(group=ENTRY_POINT_GROUP, name=registered.entry_point)
        if each.dist and each.dist.name == registered.distribution
    )
    subject.doing = f"import {module}"
    loaded = _heavy_imports(module)
    expect_true(
        not loaded, f"{module} imports {', '.join(loaded)}", "free of them; name classes as 'module:Class'"
    )


def _registration(subject: Subject) -> Registered | None:
    """The component of the part's class, or of one it is made of; only what shares a name or a package is imported."""
    registry, classes = Registry.load(), type(subject.part).__mro__
    known = {cls.__qualname__ for cls in classes} | {cls.__module__.partition(".")[0] for cls in classes}
    found = {}
    for name, each in registry.components(subject.kind).items():
        module, _, cls = each.component.target.partition(":")
        if known & {cls, module.partition(".")[0]}:
            with suppress(PluginError):
                found[registry.get(subject.kind, name)] = each
    return next((found[cls] for cls in classes if cls in found), None)


@lru_cache
def _heavy_imports(module: str) -> list[str]:
    code = f"import sys, {module}; print(*({HEAVY!r} & sys.modules.keys()))"
    run = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=IMPORT_SECONDS,
        check=False,
    )
    expect_true(run.returncode == 0, f"import {module} fails: {run.stderr.strip()[-200:]}", "importable")
    return sorted(HEAVY.intersection(run.stdout.split()))


@check(*KINDS)
def config_frozen(subject: Subject) -> None:
    """`Config` is a frozen dataclass, and the part keeps the one it was made from as `config`.

    A recipe that was checked stays what it was, and what a checkpoint records is what ran.
    """
    config, cls = subject.part.config, type(subject.part)
    kind = getattr(cls, "Config", None)
    expect_true(
        isinstance(config, kind or ()),
        f"config is {named(type(config))}",
        f"{named(cls)}.Config",
    )
    expect_true(dataclasses.is_dataclass(kind), f"Config={kind}", "a dataclass")
    expect(kind.__dataclass_params__.frozen, True, "Config.__dataclass_params__.frozen")  # type: ignore[union-attr]


@check(*KINDS)
def config_round_trip(subject: Subject) -> None:
    """A Config written as YAML and read back as a recipe's section is the same, and makes the same spec.

    A checkpoint rebuilds the model that was saved, from the recipe it holds.
    """
    written = plain(subject.part.config)
    try:
        text = yaml.safe_dump(written)
    except yaml.YAMLError as error:
        raise ContractError(f"config={written!r}, but should be made of what YAML holds: {error}") from None
    subject.doing = f"reading the section {written}"
    tree, problems = parse(text, lambda line: f"line {line}", Path())
    reader = SchemaReader()
    again = reader.section(type(subject.part).Config, tree, "")
    problems += reader.problems
    expect_true(not problems, f"reading it back says {'; '.join(map(str, problems))}", "without a problem")
    expect(plain(again), written, "config read back", "config")


@check(*KINDS)
def spec_without_weights(subject: Subject) -> None:
    """`infer_spec` tells the made part's spec without making weights.

    `dreamkit check` answers in a second, for a model of 70 billion parameters too.
    """
    with _no_weights():
        told = subject.spec_again()
    expect(told, subject.part.spec, "infer_spec(config)", "part.spec")


@contextmanager
def _no_weights() -> Iterator[None]:
    def refuse(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None and not parameter.is_meta:
            raise ContractError(
                f"infer_spec made {type(module).__name__}.{name} of shape {tuple(parameter.shape)} on "
                f"{parameter.device}, but should make no weights; read the config alone, or use torch.device('meta')"
            )

    hook = register_module_parameter_registration_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def _tells_no_outline(subject: Subject) -> str | None:
    part = subject.part
    return (
        "its meta_modules() is None: it does not tell"
        if type(part).meta_modules(part.config) is None
        else None
    )


@check(*WITH_SOURCE, unless=_tells_no_outline)
def meta_modules_agree(subject: Subject) -> None:
    """`meta_modules` has the module names and types of the made part, without memory for weights.

    A recipe that adapts a layer the model lacks is refused before its weights are read.
    """
    subject.doing = "meta_modules(config)"
    outline = type(subject.part).meta_modules(subject.part.config)
    found = {name: type(module).__name__ for name, module in outline.named_modules() if name}
    wanted = {name: type(module).__name__ for name, module in subject.make_as_built().named_modules() if name}
    odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    expect({name: found.get(name) for name in odd}, {name: wanted.get(name) for name in odd}, "modules")
    for name, parameter in outline.named_parameters():
        expect_true(parameter.is_meta, f"{name} is on {parameter.device}", "on the meta device")
