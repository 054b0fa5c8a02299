"""Every check has a culprit: a part broken in just that way, on which this check fails and no other."""

from __future__ import annotations

import pytest

from dreamkit.testing import contracts
from meta.culprits import CULPRITS

PAIRS = [(kind, check) for kind, culprits in CULPRITS.items() for check in culprits]


@pytest.mark.parametrize(("kind", "check"), PAIRS, ids=[f"{kind}-{check}" for kind, check in PAIRS])
def test_a_culprit_fails_its_own_check_alone(kind: str, check: str) -> None:
    report = contracts.verify(kind, contracts.miniature(CULPRITS[kind][check]), quick=True)
    assert [outcome.check for outcome in report.failures] == [check], str(report)
