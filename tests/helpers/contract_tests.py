"""The test that data sets fulfil their contract, for the contract tests of several distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dreamkit.testing import contracts


def contract_test(examples: Mapping[str, Any]) -> Callable[[Any], None]:
    """Return a test of each example, such as those of `contracts.tiny_dataset`; assign it to `test_contract`."""

    @pytest.mark.parametrize("example", examples.values(), ids=examples)
    def test_contract(example: Any) -> None:
        report = contracts.verify("dataset", example)
        assert report.ok, str(report)

    return test_contract
