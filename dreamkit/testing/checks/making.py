"""Checks of registration, Config and spec."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import yaml
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dreamkit.errors import PluginError
from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.sections import WITH_SOURCE, plain
from dreamkit.recipe.tree import parse
from dreamkit.registry.installed import installed_plugins
from dreamkit.registry.kinds import Registered
from dreamkit.registry.registry import Registry
from dreamkit.testing.check import check
from dreamkit.testing.expect import ContractError, expect, expect_true, named
from dreamkit.testing.part_subject import PartSubject
from dreamkit.testing.subject import Subject
from dreamkit.testing.subject_kinds import KINDS, PARTS

IMPORT_SECONDS = 60
HEAVY = {"torch", "transformers", "diffusers", "timm"}  # each takes seconds to import


@check(*KINDS)
def light_import(subject: Subject) -> None:
    """The plug-in's hook module imports neither torch nor the library behind a part.

    `dreamkit plugins`, `--help` and the error of a misspelled command appear at once, whatever is installed.
    """
    registered = _registration(subject)
    if registered is None:
        cls = type(subject.part)
        raise ContractError(
            f"expected an installed plug-in that registers {cls.__module__}:{cls.__qualname__}, got none; "
            f"install the package, for example with `pip install -e .`{Registry.load().about_problems()}"
        )
    module = next(
        each.module
        for each in installed_plugins()[0]
        if each.name == registered.entry_point and each.dist and each.dist.name == registered.distribution
    )
    subject.call_text = f"import {module}"
    loaded = _heavy_imports(module)
    problem = f"{module} imports {', '.join(loaded)}; name classes as 'module:Class'"
    expect_true(not loaded, problem, "a hook module without heavy imports")


def _registration(subject: Subject) -> Registered | None:
    """Return the component of the part's class, or of a base class; import only classes of the same name or package."""
    registry, classes = Registry.load(), type(subject.part).__mro__
    known = {cls.__qualname__ for cls in classes} | {cls.__module__.partition(".")[0] for cls in classes}
    registered = {}
    for name, each in registry.components(subject.kind).items():
        module, _, cls = each.component.target.partition(":")
        if known & {cls, module.partition(".")[0]}:
            with suppress(PluginError):
                registered[registry.get(subject.kind, name)] = each
    return next((registered[cls] for cls in classes if cls in registered), None)


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
    expect_true(
        run.returncode == 0, f"an error: {run.stderr.strip()[-200:]}", f"`import {module}` to succeed"
    )
    return sorted(HEAVY.intersection(run.stdout.split()))


@check(*KINDS)
def config_frozen(subject: Subject) -> None:
    """`Config` is a frozen dataclass, and the `config` of a part or data set is an instance of it.

    A recipe does not change after its check, and a checkpoint records the settings that were used.
    """
    config, cls = subject.config, type(subject.part)
    kind = getattr(cls, "Config", None)
    expect_true(isinstance(config, kind or ()), named(type(config)), f"{named(cls)}.Config as config")
    expect_true(dataclasses.is_dataclass(kind), f"{kind}", "a dataclass as Config")
    expect(kind.__dataclass_params__.frozen, True, "Config.__dataclass_params__.frozen")  # type: ignore[union-attr]


@check(*KINDS)
def config_round_trip(subject: Subject) -> None:
    """A Config that is written as YAML and read back as a recipe section is equal.

    A checkpoint rebuilds the saved model from the recipe that it holds.
    """
    settings = plain(subject.config)
    try:
        text = yaml.safe_dump(settings)
    except yaml.YAMLError as error:
        raise ContractError(
            f"expected values that YAML can hold in config, got {settings!r}: {error}"
        ) from None
    subject.call_text = f"reading the section {settings}"
    tree, problems = parse(text, lambda line: f"line {line}", Path())
    reader = SchemaReader()
    again = reader.section(type(subject.part).Config, tree, "")
    problems += reader.problems
    expect_true(not problems, "; ".join(map(str, problems)), "no problem when reading config back")
    expect(plain(again), settings, "config read back")


@check(*PARTS)
def spec_without_weights(subject: PartSubject) -> None:
    """`infer_spec` returns the spec of the built part and creates no weights.

    `dreamkit check` takes a second, even for a model of 70 billion parameters.
    """
    with _no_weights():
        spec = subject.infer_spec_again()
    expect(spec, subject.part.spec, "infer_spec(config)", "as part.spec")


@contextmanager
def _no_weights() -> Iterator[None]:
    """Raise a ContractError if a parameter is created off the meta device."""

    def refuse(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None and not parameter.is_meta:
            raise ContractError(
                f"expected no weights from infer_spec, got {type(module).__name__}.{name} of shape "
                f"{tuple(parameter.shape)} on {parameter.device}; read only the config, or use torch.device('meta')"
            )

    hook = register_module_parameter_registration_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def _has_no_meta_modules(subject: PartSubject) -> str | None:
    part = subject.part
    has_none = type(part).meta_modules(part.config) is None
    return "its meta_modules() returns None: it is not supported" if has_none else None


@check(*WITH_SOURCE, unless=_has_no_meta_modules)
def meta_modules_agree(subject: PartSubject) -> None:
    """`meta_modules` has the module names and types of the built part, on the meta device.

    A recipe that adapts a missing layer is refused before weights are read.
    """
    subject.call_text = "meta_modules(config)"
    meta = type(subject.part).meta_modules(subject.part.config)
    actual = {name: type(module).__name__ for name, module in meta.named_modules() if name}
    built = subject.make_as_built()
    expected = {name: type(module).__name__ for name, module in built.named_modules() if name}
    odd = sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name))
    expect(
        {name: actual.get(name) for name in odd},
        {name: expected.get(name) for name in odd},
        "the odd modules",
    )
    for name, parameter in meta.named_parameters():
        expect_true(parameter.is_meta, f"{parameter.device}", f"{name} on the meta device")
