"""The pytest module that tests an installed plug-in; `dreamkit.testing.pytest_plugin` shows the command."""

from __future__ import annotations

from collections.abc import Callable


def test_contract(check: Callable[[], None]) -> None:
    check()
