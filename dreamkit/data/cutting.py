"""Documents longer than a row, cut between two segments or turns."""

from __future__ import annotations

from dataclasses import replace

from dreamkit.data.sequence import Sequence, Sequencer
from dreamkit.document import Document
from dreamkit.errors import DocumentError, count


def cut_sequence(sequencer: Sequencer, document: Document, whole: Sequence | None = None) -> Sequence:
    """Return the training sequence of a document, cut at its end if it is longer than `sequencer.max_length`.

    The cut is after the last segment that fits, or the last turn of the assistant with the template's end of a turn. If
    nothing to train on is before it, the first text that does not fit is cut between two tokens. No cut is inside an
    image or its dream queries. A cut document goes on, so no end token follows, except that of a whole turn. `whole` is
    the sequence of the whole document, if it is known.

    Raises:
        DocumentError: there is nothing to train on, or not within `max_length`.
    """
    if whole is None:
        whole = sequencer.whole_sequence(document)
    limit = sequencer.max_length
    if len(whole) <= limit:
        return whole
    if document.is_conversation:
        shortened = _whole_turns(sequencer, document)
    else:
        shortened = _beginning(sequencer, whole, max((end for end in whole.ends if end <= limit), default=0))
    if shortened is None or not shortened.is_trained:
        shortened = _beginning(sequencer, whole, limit)
    if not shortened.is_trained:
        raise DocumentError(
            f"{document.name}: nothing to train on in the first {count(limit, 'token')} of {len(whole)}; shorten what "
            "comes before or raise train.max_length"
        )
    return replace(shortened, is_cut=True)


def _whole_turns(sequencer: Sequencer, document: Document) -> Sequence | None:
    """Return the longest sequence of whole turns that fits and ends with one of the assistant; None if none does."""
    roles = [*(segment.role for segment in document.segments), None]
    ends = [end for end in range(1, len(roles)) if roles[end - 1] == "assistant" != roles[end]]
    best = None
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        turns = Document(document.segments[: ends[middle]], name=document.name)
        sequence = sequencer.tokens(turns)
        if len(sequence) <= sequencer.max_length:
            best, low = sequence, middle + 1
        else:
            high = middle
    return best


def _beginning(sequencer: Sequencer, sequence: Sequence, end: int) -> Sequence:
    """Return the tokens of a sequence before index `end`, or before the image that these tokens would divide."""
    spans = [
        (at - 1, at + width + 1)
        for images, width in (
            (sequence.reads, sequencer.vision_tokens),
            (sequence.draws, sequencer.dream_queries),
        )
        for at, _ in images
    ]
    end = next((start for start, stop in spans if start < end < stop), end)

    return replace(
        sequence,
        ids=sequence.ids[:end],
        labels=sequence.labels[:end],
        reads=[image for image in sequence.reads if image[0] < end],
        draws=[image for image in sequence.draws if image[0] < end],
        ends=[each for each in sequence.ends if each <= end],
    )
