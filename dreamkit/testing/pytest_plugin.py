"""A pytest plug-in that runs the contract kit on an installed distribution:

pytest -p dreamkit.testing.pytest_plugin --pyargs dreamkit.testing.suite --dreamkit-plugin NAME
"""

from __future__ import annotations

import pytest

from dreamkit.errors import DreamkitError
from dreamkit.testing.distribution import REGISTERED, Component, components

OPTION, QUICK = "--dreamkit-plugin", "--dreamkit-quick"
COMPONENTS = pytest.StashKey[list[Component]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dreamkit", "dreamkit's contract kit")
    group.addoption(OPTION, metavar="NAME", help="the installed distribution to test")
    group.addoption(QUICK, action="store_true", help="try few inputs for each check")


def pytest_sessionstart(session: pytest.Session) -> None:
    name, quick = (session.config.getoption(option) for option in (OPTION, QUICK))
    if name is None:
        raise pytest.UsageError(
            f"missing {OPTION} NAME: name the distribution to test; `dreamkit plugins` lists them"
        )
    try:
        session.config.stash[COMPONENTS] = components(name, quick=quick)
    except DreamkitError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ != "dreamkit.testing.suite":
        return
    params = []
    for each in metafunc.config.stash[COMPONENTS]:
        params.append(pytest.param(each.registered, id=f"{each.kind}-{each.name}-{REGISTERED}"))
        params += [pytest.param(bound, id=f"{each.kind}-{each.name}-{bound.name}") for bound in each.bound]
    metafunc.parametrize("check", params)
