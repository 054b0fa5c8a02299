"""Checks of data sets in other processes: forked workers, and new processes that unpickle them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset as TorchDataset

from dreamkit.data.dataset import Dataset
from dreamkit.errors import describe_error
from dreamkit.testing.check import check
from dreamkit.testing.dataset_subject import DatasetSubject, expect_same_document
from dreamkit.testing.expect import ContractError, expect_true

WORKERS = 2
SECONDS = 300  # for a new process, also on a busy machine
READ = """
import pickle, sys
sys.path[:], pickled, numbers = pickle.load(sys.stdin.buffer)
dataset = pickle.loads(pickled)
documents = [dataset[number] for number in numbers]
with open(sys.argv[1], "wb") as file:
    pickle.dump(documents, file)
"""


@check("dataset")
def pickling(subject: DatasetSubject) -> None:
    """A data set can be pickled, and has the same documents in a new process.

    Data is read by worker processes, which start anew on macOS and Windows, and with Python 3.14 everywhere.
    """
    dataset = subject.make()
    subject.call_text = "pickle.dumps(dataset)"
    pickled = pickle.dumps(dataset)
    expected = [subject.document(dataset, index) for index in subject.numbers]
    subject.call_text = "reading the pickled data set in a new process"
    with tempfile.TemporaryDirectory(dir=subject.room) as folder:
        result = Path(folder) / "documents"
        process = subprocess.run(
            [sys.executable, "-B", "-c", READ, str(result)],
            input=pickle.dumps((sys.path, pickled, subject.numbers)),
            # another order of sets and hashes of strings than here, the same in each run
            env={**os.environ, "PYTHONHASHSEED": "1"},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        error = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        expect_true(process.returncode == 0, f"an error: {error}", "documents in a new process")
        documents = pickle.loads(result.read_bytes())
    for index, document, first in zip(subject.numbers, documents, expected, strict=True):
        expect_same_document(document, first, f"dataset[{index}] in a new process", "here")


@check("dataset")
def worker_processes(subject: DatasetSubject) -> None:
    """Two workers of a DataLoader read the same documents as the main process, which has read some before.

    `train.workers` changes how fast data is read, and nothing else.
    """
    dataset = subject.make()
    expected = [subject.document(dataset, index) for index in subject.numbers]
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    loader = DataLoader(
        Documents(dataset, subject.numbers),
        batch_size=None,
        num_workers=WORKERS,
        multiprocessing_context=method,
    )
    subject.call_text = f"reading with a DataLoader of {WORKERS} workers"
    for index, data, first in zip(subject.numbers, loader, expected, strict=True):
        document = pickle.loads(data)
        if isinstance(document, str):
            raise ContractError(f"expected document {index} in a worker, got {document}")
        expect_same_document(document, first, f"dataset[{index}] in a worker", "in the main process")


@dataclass(frozen=True)
class Documents(TorchDataset[bytes]):
    """Documents as pickles; an error is its description. torch would lose one that cannot be pickled, and wait."""

    dataset: Dataset
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> bytes:
        try:
            return pickle.dumps(self.dataset[self.numbers[position]])
        except Exception as error:
            return pickle.dumps(describe_error(error))
