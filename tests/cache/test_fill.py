"""The documents that a cache is computed from are read as in training."""

from __future__ import annotations

import threading

from torch.utils.data import DataLoader

from dreamkit.cache.block_reads import DOCUMENTS, Documents, Readable
from dreamkit.data.dataset import Dataset
from dreamkit.data.skipped import Skipped
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError


class Words(Dataset):
    """Documents of which every third one is bad; a read waits until a batch of reads do, if threads are allowed."""

    def __init__(self, is_thread_safe: bool) -> None:
        self.is_thread_safe = is_thread_safe  # type: ignore[misc]
        self.barrier = threading.Barrier(DOCUMENTS)

    def __len__(self) -> int:
        return 3 * DOCUMENTS

    def __getitem__(self, index: int) -> Document:
        if self.is_thread_safe:
            self.barrier.wait(timeout=60)
        if index % 3 == 0:
            raise DocumentError(f"/data/a.tar!{index}: cut")
        return Document((Text(f"{index}"),), name=f"{index}")


def read(*, is_thread_safe: bool) -> list[Document | Skipped]:
    documents = Documents([Readable(0, Words(is_thread_safe), "skip")])
    return [item.document for batch in DataLoader(documents, DOCUMENTS, collate_fn=list) for item in batch]


def test_the_reads_of_a_batch_overlap_and_have_the_same_results() -> None:
    items = read(is_thread_safe=True)
    assert len(items) == 3 * DOCUMENTS and sum(isinstance(item, Skipped) for item in items) == DOCUMENTS
    assert items == read(is_thread_safe=False)
