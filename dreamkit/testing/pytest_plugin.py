"""Lets pytest run the kit on an installed plug-in:

pytest -p dreamkit.testing.pytest_plugin --pyargs dreamkit.testing.suite --dreamkit-plugin NAME
"""

from __future__ import annotations

import pytest

from dreamkit.errors import DreamkitError

OPTION = "--dreamkit-plugin"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dreamkit", "dreamkit's contract kit")
    group.addoption(OPTION, metavar="NAME", help="the installed distribution whose parts are tested")
    group.addoption("--dreamkit-quick", action="store_true", help="draw few inputs for each check")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption(OPTION) is None:
        raise pytest.UsageError(
            f"{OPTION} NAME is missing: the distribution to test; `dreamkit plugins` lists them"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ != "dreamkit.testing.suite":
        return
    from dreamkit.testing.distribution import REGISTERED, components

    name, quick = (metafunc.config.getoption(option) for option in (OPTION, "--dreamkit-quick"))
    try:
        found = components(name, quick=quick)
    except DreamkitError as error:
        raise pytest.UsageError(str(error)) from error
    params = [pytest.param(each.registered, id=f"{each.kind}-{each.name}-{REGISTERED}") for each in found]
    params += [
        pytest.param(bound, id=f"{each.kind}-{each.name}-{bound.name}")
        for each in found
        for bound in each.bound
    ]
    metafunc.parametrize("check", params)
