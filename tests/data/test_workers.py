"""An error of a process that reads data is the same as without processes."""

import pytest
from torch.utils.data import DataLoader, Dataset

from dreamkit.data.workers import original_errors
from dreamkit.errors import CacheError, DocumentError, DreamkitError


class Failing(Dataset[int]):
    """A data set whose items raise an error that another one caused."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise DocumentError("the cause")
        except DocumentError as cause:
            raise self.error from cause


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error",
    [DocumentError("c.jsonl:1: expected x, got y"), CacheError("one\n  two\nTraceback"), ValueError("z")],
)
def test_a_user_error_keeps_its_message_in_a_worker(error: Exception, workers: int) -> None:
    with pytest.raises(type(error)) as caught, original_errors():
        list(DataLoader(Failing(error), num_workers=workers))
    if isinstance(error, DreamkitError):
        assert type(caught.value) is type(error) and str(caught.value) == str(error)
    else:
        assert "Traceback" in str(caught.value) or not workers  # an error of code keeps its place
