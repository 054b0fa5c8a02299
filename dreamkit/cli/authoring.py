"""Commands for authors of plug-ins."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from textwrap import indent
from typing import Annotated

import typer

from dreamkit.cli.shared import console
from dreamkit.errors import DreamkitError
from dreamkit.scaffold import KINDS


def test_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="an installed distribution, such as dreamkit-wave")
    ],
    component: Annotated[str | None, typer.Option(metavar="NAME", help="only this component of it")] = None,
    check: Annotated[str | None, typer.Option(metavar="NAME", help="only this check")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="try few inputs for each check")] = False,
) -> None:
    """Test an installed plug-in's contract.

    Imports everything it registers. Builds a miniature of each part and tries it on the checks of its kind, which
    docs/plugins/checks.md lists. Writes no file. Exits with 1 where a check fails, or the one --check is skipped
    everywhere. Needs dreamkit-core[testing].

    Example: dreamkit test-plugin dreamkit-transformers --component clip --quick
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # else it leaves one here
            try:
                from dreamkit.testing.distribution import components
            except ModuleNotFoundError as error:
                if error.name != "hypothesis":
                    raise
                raise DreamkitError(
                    f"{error}; install the kit: pip install 'dreamkit-core[testing]'"
                ) from error
            from dreamkit.testing.outcomes import Outcome, summary

            found = components(name, component=component, check=check, quick=quick)
            gc.freeze()  # while torch's many objects are collected, hypothesis's callback would lose a Ctrl-C
            all_outcomes: list[Outcome] = []
            for each in found:
                typer.echo(str(each))
                for outcome in each.outcomes():
                    all_outcomes.append(outcome)
                    typer.echo(indent(str(outcome), "  "))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    ends = summary(all_outcomes)
    typer.echo(f"{len(found)} component{'s' if len(found) > 1 else ''} of {found[0].distribution}; {ends}")
    untried = all(outcome.result == "skipped" for outcome in all_outcomes if check in (None, outcome.check))
    if untried:
        typer.echo(f"{check} was asked for and tried on nothing, which is no success")
    if untried or any(outcome.result == "failed" for outcome in all_outcomes):
        raise typer.Exit(1)


def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="the distribution's name, such as dreamkit-wave")
    ],
    kind: Annotated[
        str | None,
        typer.Option(metavar=f"[{'|'.join(KINDS)}]", help="what the package gives; required"),
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", help="Apache-2.0, MIT or BSD-3-Clause")
    ] = "Apache-2.0",
    author: Annotated[str | None, typer.Option(help="who holds the copyright")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the folder to write; the default is ./NAME")
    ] = None,
) -> None:
    """Write a plug-in package to start from.

    The package holds a small part that works, its tests, and how to publish it. It installs, and passes its contract
    test. Its part is a file of less than a hundred lines to change.

    Example: dreamkit new-plugin dreamkit-wave --kind vision-encoder
    """
    import shlex

    from rich.tree import Tree

    from dreamkit.registry.registry import Registry
    from dreamkit.scaffold import new_plugin as write

    if kind is None:
        kinds = "".join(f"\n    {kind:<16}{given.summary}" for kind, given in KINDS.items())
        raise DreamkitError(f"nothing says what {name} gives; add --kind with one of these:{kinds}")
    folder, files = write(name, kind, out, license=license_name, author=author, registry=Registry.load())
    branches = {Path(): Tree(str(folder))}
    for path in (path for file in files for path in [*reversed(file.parents), file]):
        if path not in branches:
            branches[path] = branches[path.parent].add(path.name)
    console().print(branches[Path()])
    typer.echo(f"\nnext:\n  cd {shlex.quote(str(folder))}\n  pip install -e '.[test]'\n  pytest")
