"""Checks of what a document of a data set has."""

from __future__ import annotations

from typing import Final, get_args

from PIL.Image import Image as Picture

from dreamkit.document import Document, Image, Role, Text
from dreamkit.errors import excerpt, printable
from dreamkit.testing.check import check
from dreamkit.testing.checks.reading_documents import numbers, seeds
from dreamkit.testing.dataset_subject import DatasetSubject
from dreamkit.testing.expect import ContractError, expect_true, named

ROLES: Final = (None, *get_args(Role))
TRAINED: Final = (None, "assistant")  # roles whose text and images can be trained on


@check("dataset", index=numbers, seed=seeds)
def trainable_documents(subject: DatasetSubject, index: int, seed: int) -> None:
    """A document has texts that UTF-8 can encode and images, each with a known role, and something to train on.

    A document that a tokenizer or the chat template refuses is an error hours later, in training.
    """
    _expect_trainable(subject.document(subject.part, index))
    _expect_trainable(subject.sample(subject.part, index, seed))


def _expect_trainable(document: Document) -> None:
    for number, segment in enumerate(document):
        where = f"segment {number}"
        expect_true(isinstance(segment, Text | Image), named(type(segment)), f"a Text or an Image as {where}")
        expect_true(segment.role in ROLES, f"{segment.role!r}", f"a role of {where} that is one of {ROLES}")
        if isinstance(segment, Text):
            try:
                segment.text.encode()
            except UnicodeEncodeError as error:
                raise ContractError(f"expected text that UTF-8 can encode in {where}, got {error}") from None
    expect_true(
        any(_is_trained(segment) for segment in document),
        f"{len(document)} without any",
        "a segment to train on: a text with train_on, or an image with draw, of no role or 'assistant'",
    )


def _is_trained(segment: Text | Image) -> bool:
    if segment.role not in TRAINED:
        return False
    return segment.draw if isinstance(segment, Image) else bool(segment.train_on and segment.text)


@check("dataset", index=numbers, seed=seeds)
def loaded_images(subject: DatasetSubject, index: int, seed: int) -> None:
    """Images are PIL images whose pixels are read and whose files are closed.

    A damaged image is an error of its own document, and a run of days does not use up the open files of a process.
    """
    documents = subject.document(subject.part, index), subject.sample(subject.part, index, seed)
    for image in (image for document in documents for image in document.images):
        picture = image.picture
        expect_true(isinstance(picture, Picture), named(type(picture)), "a PIL image as picture")
        is_lazy = bool(getattr(picture, "tile", None)) or getattr(picture, "fp", None) is not None
        expect_true(
            not is_lazy, "an image that is read later", "a loaded image; call its `load()` and close its file"
        )


@check("dataset")
def document_names(subject: DatasetSubject) -> None:
    """The names of documents differ, and fit in one line.

    An error about a document, or the record of a skipped one, names the file, line or member to correct.
    """
    dataset, seen = subject.make(), dict[str, int]()
    for index in subject.numbers:
        name = subject.document(dataset, index).name
        shown = f"'{excerpt(name)}'"
        is_own = bool(name.strip()) and name != Document(()).name
        expect_true(is_own, shown, f"the place of document {index}, such as 'data.jsonl:7', as its name")
        expect_true(name == printable(name), shown, f"a name of document {index} without control characters")
        other = seen.setdefault(name, index)
        expect_true(other == index, f"{shown} for both", f"different names of documents {other} and {index}")
