"""The data set fulfils its contract."""

from dreamkit.testing import contracts
from dreamkit_digits.documents import Digits


@contracts.parametrize("dataset", contracts.tiny_dataset(Digits))
def test_digits(check):
    check()
