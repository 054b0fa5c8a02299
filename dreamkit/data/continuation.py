"""The tokens of a text after a prompt, which may begin inside the prompt's last word."""

from __future__ import annotations

from dataclasses import replace

from dreamkit.data.sequence import Sequence, Sequencer
from dreamkit.document import Document, Text


def with_continuation(sequencer: Sequencer, prompt: Document, text: str) -> tuple[Sequence, list[int]]:
    """Return the sequence of a prompt, and the ids of `text` after it.

    Whitespace at the end of the prompt's last text goes to `text`, and both are tokenized together: the ids are those
    after as many as the prompt then has, and may be none. A conversation's last text goes on if it is the assistant's.
    Elsewhere `text` begins a text or an answer, with the ids of training. These have what the template puts before an
    answer. If the prompt would have other ids in training, `text` is tokenized by itself.

    Raises:
        DocumentError: the prompt is longer than `max_length`; the chat template refuses or cuts the prompt's last turn.
    """
    tokenize = sequencer.language_model.tokenize
    if written := "".join(each.text for each in sequencer.continued_texts(prompt)):
        # the prompt keeps the tokens that the model wrote
        before, whole = tokenize(written), tokenize(written + text)
        return sequencer.prompt(prompt), _rest(before, whole) or tokenize(text)
    stripped, continued = _continued(prompt, text)
    opened = sequencer.open_sequence(stripped)
    before, whole = [*opened.ids], sequencer.open_sequence(continued).ids
    sequence = sequencer.as_prompt(stripped, opened)
    if len(continued) > len(prompt):
        return sequence, _rest(before, whole) or tokenize(text)
    return sequence, whole[len(before) :]


def _continued(prompt: Document, text: str) -> tuple[Document, Document]:
    """Return a prompt without the whitespace that goes to its continuation `text`, and the document of both.

    The document has one text more than the prompt if the prompt ends with no text that can go on.
    """
    *earlier, last = prompt.segments or (None,)
    if not isinstance(last, Text) or last.role not in (None, "assistant"):
        new = Text(text, role="assistant" if prompt.is_conversation else None)
        return prompt, replace(prompt, segments=(*prompt.segments, new))
    stripped, continued = (
        replace(prompt, segments=(*earlier, replace(last, text=each, ids=None)))
        for each in (last.text.rstrip(), last.text + text)
    )
    return stripped, continued


def _rest(before: list[int], whole: list[int]) -> list[int]:
    """Return the ids after those of `before`, or none if `whole` does not begin with them."""
    return whole[len(before) :] if whole[: len(before)] == before else []
