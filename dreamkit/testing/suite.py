"""The kit as a pytest module, for an installed plug-in; `dreamkit.testing.pytest_plugin` says how to run it."""

from __future__ import annotations

from collections.abc import Callable


def test_contract(check: Callable[[], None]) -> None:
    check()
