"""Prompts: documents or strings that a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, describe_value

Prompt = Document | str


def prompt_documents(prompts: Prompt | Sequence[Prompt]) -> list[Document]:
    """Return `prompts`, one or several, as a list of documents.

    Raises:
        DocumentError: a prompt is neither a document nor a string.
    """
    is_single = isinstance(prompts, Document | str) or not isinstance(prompts, Sequence)
    listed: list[Any] = [prompts] if is_single else list(prompts)
    for prompt in listed:
        if not isinstance(prompt, Document | str):
            raise DocumentError(f"expected a document or a string as prompt, got {describe_value(prompt)}")
    return [
        Document((Text(prompt),) if prompt else (), name=f"prompt {number}")
        if isinstance(prompt, str)
        else prompt
        for number, prompt in enumerate(listed)
    ]
