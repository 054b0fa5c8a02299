"""Commands for authors of plug-ins."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from textwrap import indent
from typing import Annotated

import typer

from dreamkit.cli.shared import console, echo, path_argument
from dreamkit.errors import DreamkitError, count
from dreamkit.scaffold import KINDS


def test_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="an installed distribution, such as dreamkit-wave")
    ],
    component: Annotated[str | None, typer.Option(metavar="NAME", help="test only this component")] = None,
    check: Annotated[str | None, typer.Option(metavar="NAME", help="run only this check")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="use few inputs for each check")] = False,
) -> None:
    """Test an installed plug-in's contract.

    Imports everything that the plug-in registers. Builds each part at a tiny size, and each data set on the few files
    that it writes as its example. Runs the checks of its kind, which docs/plugins/checks.md lists. Leaves no file.
    Exits with code 1 if a check fails, or if --check is skipped for every component. Needs dreamkit-core[testing].

    Example: dreamkit test-plugin dreamkit-transformers --component clip --quick
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # the default is the working folder
        try:
            from dreamkit.testing.distribution import components
        except ModuleNotFoundError as error:
            if error.name != "hypothesis":
                raise
            raise DreamkitError(f"{error}; install the kit: pip install 'dreamkit-core[testing]'") from error
        from dreamkit.testing.outcomes import Outcome, summary

        tested = components(name, component=component, check=check, quick=quick)
        gc.freeze()  # hypothesis's callback loses a Ctrl-C while torch's many objects are collected
        all_outcomes: list[Outcome] = []
        for one in tested:
            echo(str(one))
            for outcome in one.outcomes():
                all_outcomes.append(outcome)
                echo(indent(str(outcome), "  "))
    echo(f"{count(len(tested), 'component')} of {tested[0].distribution}; {summary(all_outcomes)}")
    untested = all(outcome.result == "skipped" for outcome in all_outcomes if check in (None, outcome.check))
    if untested:
        echo(f"nothing tested: {check} was skipped for every component")
    if untested or any(outcome.result == "failed" for outcome in all_outcomes):
        raise typer.Exit(1)


def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="the distribution's name, such as dreamkit-wave")
    ],
    kind: Annotated[
        str | None,
        typer.Option(metavar=f"[{'|'.join(KINDS)}]", help="the kind of component in the package; required"),
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", help="Apache-2.0, MIT or BSD-3-Clause")
    ] = "Apache-2.0",
    author: Annotated[str | None, typer.Option(help="the copyright holder")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=path_argument, help="the folder to write; default: ./NAME"),
    ] = None,
) -> None:
    """Write a plug-in package to start from.

    The package has a small part or data set that works, tests, and instructions to publish it. It can be installed at
    once, and passes its contract test. The component is a file of fewer than 100 lines.

    Example: dreamkit new-plugin dreamkit-wave --kind vision-encoder
    """
    import shlex

    from rich.tree import Tree

    from dreamkit.registry.registry import Registry
    from dreamkit.scaffold import new_plugin as write

    if kind is None:
        kinds = "".join(f"\n    {kind:<16}{template.summary}" for kind, template in KINDS.items())
        raise DreamkitError(f"missing --kind: choose the component that {name} provides:{kinds}")
    folder, files = write(name, kind, out, license=license_name, author=author, registry=Registry.load())
    branches = {Path(): Tree(str(folder))}
    for path in (path for file in files for path in [*reversed(file.parents), file]):
        if path not in branches:
            branches[path] = branches[path.parent].add(path.name)
    console().print(branches[Path()])
    echo(f"\nnext:\n  cd {shlex.quote(str(folder))}\n  pip install -e '.[test]'\n  pytest")
