"""Texts of documents: everything that a tokenizer can take, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, printable
from dreamkit_transformers.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
any_text = st.text(st.characters() | st.characters(categories=["Cs"]))  # also lone surrogates


@given(text=any_text)
@example(text="a \ud800 b")
@example(text="caf\udce9")  # a byte of the command line that is not UTF-8
def test_a_text_can_be_tokenized_or_is_refused(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(
            DocumentError, match="expected valid characters, got the lone surrogate"
        ) as caught:
            Document((Text(text),))
        assert printable(str(caught.value)) == str(caught.value)
    else:
        TOKENIZER(Document((Text(text),)).text)


def test_an_interleaved_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"text 'a \\ud800': expected valid characters"):
        Document.interleave("a \ud800")


def test_a_text_that_is_not_a_string_is_refused() -> None:
    with pytest.raises(DocumentError, match="text: expected a string, got an int"):
        Text(3)  # type: ignore[arg-type]


def test_the_error_about_a_long_text_without_images_is_short() -> None:
    with pytest.raises(DocumentError, match=r"got 0 for 1 in 'a <image> b b.*\.\.\.'") as caught:
        Document.interleave("a <image>" + 1000 * " b")
    assert len(str(caught.value)) < 200
