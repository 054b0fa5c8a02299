"""The contract kit: named checks of whether a part keeps the contract of its interface.

    from dreamkit.testing import contracts

    @contracts.parametrize("projector", contracts.tiny_part(Pool))
    def test_contract(check):
        check()

It needs the extra `dreamkit-core[testing]`, which installs hypothesis and pytest.
"""

from dreamkit.testing import contracts as contracts
from dreamkit.testing.expect import ContractError as ContractError, KitError as KitError
from dreamkit.testing.outcomes import Outcome as Outcome, Report as Report

__all__ = ["ContractError", "KitError", "Outcome", "Report", "contracts"]
