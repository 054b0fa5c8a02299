"""The plan of rows: each image once, where it is first, in blocks whose files follow from the data alone."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, strategies as st

from dreamkit.cache import new_images
from dreamkit.cache.listing import DOCUMENTS_PER_BLOCK, MOST_BLOCKS, ImageList, documents_per_block
from dreamkit.cache.manifest import Table
from dreamkit.cache.new_images import NewImages
from dreamkit.data.skipped import Skipped

TABLES: tuple[Table, ...] = get_args(Table)
BLANK = bytes(16)


def key(number: int) -> bytes:
    """Return a key; some share a half with others, and number 0 is the blank image."""
    return bytes([number % 5] * 8 + [number // 5] * 8)


# the images of each document, for each table
documents = st.lists(st.tuples(*[st.lists(st.integers(0, 24), max_size=4)] * 2), max_size=30)


def plan(data: list[tuple[list[int], list[int]]], block: int, rows: int) -> NewImages:
    lists = []
    for start in range(0, len(data), block):
        images: dict[Table, dict[bytes, int]] = {table: {} for table in TABLES}
        for document in range(start, min(start + block, len(data))):
            for table, numbers in zip(TABLES, data[document], strict=True):
                for number in numbers:
                    images[table].setdefault(key(number), document)
        lists.append(ImageList(images))
    return NewImages.of(lists, dict.fromkeys(TABLES, BLANK), dict.fromkeys(TABLES, rows))


@given(data=documents, block=st.integers(1, 9), rows=st.integers(1, 9))
def test_each_image_has_one_row_at_its_first_document(
    data: list[tuple[list[int], list[int]]], block: int, rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_images, "PICTURES", 2)
        patch.setattr(new_images, "LEAST_ROWS", 4)
        images = plan(data, block, rows)
    most = min(4, rows) - (min(4, rows) % 2 if rows > 2 else 0)
    for index, table in enumerate(TABLES):
        first: dict[int, int] = {}
        for document, numbers in enumerate(data):
            for number in numbers[index]:
                first.setdefault(number, document)
        first.pop(0, None)
        expected = {
            document: {key(each) for each in first if first[each] == document} for document in first.values()
        }
        found = images.tables[table]
        assert {
            each: set(found.keys_of(each)) for each in range(len(data)) if found.keys_of(each)
        } == expected
        assert len(found.keys) == len(first)
        blocks = [each for each in images.blocks if table in each.tables]
        assert sum(each.tables[table].rows for each in blocks) == len(first)
        assert [each.tables[table].has_blank for each in blocks] == [False] * (len(blocks) - 1) + [
            True
        ] * bool(blocks)
        assert all(each.tables[table].rows <= most or len(each.documents) == 1 for each in blocks)
        files = [file for each in blocks for file in images.files(each, table)]
        assert files == [*range(len(files))] and len(files) >= (len(first) + bool(first)) / rows
    owners = [document for each in images.blocks for document in each.documents.tolist()]
    assert owners == sorted(set(owners)) and images.rows == sum(each.rows for each in images.blocks)


@given(data=documents, rows=st.integers(1, 9), blocks=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_the_plan_does_not_depend_on_the_blocks_of_the_lists(
    data: list[tuple[list[int], list[int]]], rows: int, blocks: tuple[int, int]
) -> None:
    one, other = (plan(data, block, rows) for block in blocks)
    assert [(each.documents.tolist(), each.tables) for each in one.blocks] == [
        (each.documents.tolist(), each.tables) for each in other.blocks
    ]


def test_a_list_is_the_same_after_it_was_stored() -> None:
    skipped = [Skipped(3, 0, 3, None, None, "cut \udcff")]
    images: dict[Table, dict[bytes, int]] = {"features": {key(7): 1, key(2): 4}, "latents": {}}
    stored = json.loads(json.dumps(ImageList(images, skipped).content()))
    found = ImageList.from_content(stored)
    assert found == ImageList(images, skipped) and [*found.images["features"]] == [key(7), key(2)]


@pytest.mark.parametrize("documents", [1, DOCUMENTS_PER_BLOCK, 10**6, 10**9])
def test_large_data_has_larger_blocks(documents: int) -> None:
    size = documents_per_block(documents)
    assert size >= DOCUMENTS_PER_BLOCK and -(-documents // size) <= MOST_BLOCKS
