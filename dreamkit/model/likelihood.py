"""Log probabilities of continuations, by one pass of the language model over each prompt with its continuation.

R rows of hidden states that predict a token, V vocabulary; other shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from dreamkit.errors import DocumentError, describe_error
from dreamkit.kernels.tensors import accumulation_dtype
from dreamkit.model.document_rows import Rows
from dreamkit.model.finite import logits_error
from dreamkit.model.input_maker import InputMaker
from dreamkit.model.likelihood_pairs import Pair

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel
    from dreamkit.parts.language import LanguageModel

TOKENS: Final = 8192  # of a call of the language model, with padding; a longer pair has a call of its own
IMAGES: Final = 32  # of a call of the vision encoder
LOGITS: Final = 192 * 2**20  # bytes of logits and log probabilities that exist at the same time


@dataclass(frozen=True)
class LogLikelihood:
    """The log probability of a continuation after a prompt.

    Attributes:
        ids: ids of the continuation's tokens.
        log_probs: natural logarithm of each token's probability, among all tokens of the vocabulary.
        is_greedy: flag: each token was the most likely one.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    is_greedy: bool

    @property
    def total(self) -> float:
        """The log probability of the continuation: the sum of `log_probs`."""
        return math.fsum(self.log_probs)


def log_likelihoods(model: DreamModel, pairs: Sequence[Pair]) -> list[LogLikelihood]:
    """Return the log likelihood of each pair.

    An image object of several pairs is encoded once, and its inputs are kept until the last batch that reads it.
    Images of the next batches are encoded with those of the current one: offloaded parts change places less often.

    Raises:
        DocumentError: an image cannot be read.
        DreamkitError: logits are not finite.
    """
    maker = InputMaker(model)
    batches = [*_batches(pairs)]
    last_use = {key: at for at, batch in enumerate(batches) for key in _pictures(batch)}
    waiting = {key: picture for batch in batches for key, picture in _pictures(batch).items()}
    images: dict[int, Tensor] = {}
    results: dict[Pair, LogLikelihood] = {}
    for at, batch in enumerate(batches):
        while any(key in waiting for key in _pictures(batch)):
            new = {key: waiting.pop(key) for key in [*islice(waiting, IMAGES)]}
            images |= zip(new, _inputs(maker, new, pairs), strict=True)
        inputs = [maker.sequence_inputs(pair.inputs, _read_images(pair, images)) for pair in batch]
        results |= zip(batch, _scored(model, batch, inputs), strict=True)
        images = {key: image for key, image in images.items() if last_use[key] > at}
    return [results[pair] for pair in pairs]


def _inputs(maker: InputMaker, pictures: Mapping[int, Picture], pairs: Sequence[Pair]) -> list[Tensor]:
    """Return the inputs of images by their keys.

    Raises:
        DocumentError: an image cannot be read; the message names the first pair that reads it.
    """
    try:
        return maker.read_inputs([*pictures.values()])
    except Exception:  # Pillow raises any type of error
        for key, picture in pictures.items():
            try:
                maker.model.vision_encoder.preprocess([picture])
            except Exception as error:
                name = next(pair.name for pair in pairs if key in pair.image_keys)
                raise DocumentError(f"{name}: cannot read an image: {describe_error(error)}") from error
        raise


def _pictures(pairs: Sequence[Pair]) -> dict[int, Picture]:
    """Return the images that the pairs read, by their keys."""
    return {
        key: picture
        for pair in pairs
        for key, (_, picture) in zip(pair.image_keys, pair.inputs.reads, strict=True)
    }


def _read_images(pair: Pair, images: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the inputs of the images that a pair reads by their index in it, from those by key."""
    return {at: images[key] for key, (at, _) in zip(pair.image_keys, pair.inputs.reads, strict=True)}


def _batches(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yield the pairs of each call, the longest first; pairs that read the same images are neighbours."""
    longest: dict[tuple[int, ...], int] = {}
    for pair in pairs:
        longest[pair.image_keys] = max(len(pair.inputs), longest.get(pair.image_keys, 0))

    def place(pair: Pair) -> tuple[int, tuple[int, ...], int]:
        length = len(pair.inputs)
        return -(longest[pair.image_keys] if pair.image_keys else length), pair.image_keys, -length

    batch: list[Pair] = []
    width = 0
    for pair in sorted(pairs, key=place):
        width = max(width, len(pair.inputs))
        if batch and width * (len(batch) + 1) > TOKENS:
            yield batch
            batch, width = [], len(pair.inputs)
        batch.append(pair)
    if batch:
        yield batch


def _scored(model: DreamModel, batch: Sequence[Pair], inputs: Sequence[Tensor]) -> Iterator[LogLikelihood]:
    """Yield the log likelihood of each pair from its inputs (T, D), by one call of the language model."""
    hidden = Rows(model, range(len(batch)), has_cache=False).feed(dict(enumerate(inputs)))
    hidden_RD = torch.cat([hidden[row][-len(pair.ids) :] for row, pair in enumerate(batch)])
    ids_R = torch.tensor([token for pair in batch for token in pair.ids], device=hidden_RD.device)
    scores = iter(_scores(model.language_model, hidden_RD, ids_R).tolist())  # the only read-back
    for pair in batch:
        log_probs, flags = zip(*(next(scores) for _ in pair.ids), strict=True)
        if not all(map(math.isfinite, log_probs)):
            token = next(at for at, value in enumerate(log_probs) if not math.isfinite(value))
            raise logits_error(pair.name, token)
        yield LogLikelihood(tuple(pair.ids), log_probs, is_greedy=all(flags))


def _scores(language_model: LanguageModel, hidden_RD: Tensor, ids_R: Tensor) -> Tensor:
    """Return each token's log probability, and 1 where it is the most likely one, else 0, as (R, 2).

    Hidden states are those before the final norm. Logits exist for some rows at a time.
    """
    size = max(1, LOGITS // (3 * torch.float32.itemsize * language_model.spec.vocab_size))
    scores = []
    for rows_RD, ids in zip(hidden_RD.split(size), ids_R.split(size), strict=True):
        logits_RV = language_model.logits(language_model.final_norm(rows_RD))
        log_probs_RV = logits_RV.log_softmax(-1, dtype=accumulation_dtype(logits_RV.dtype))
        log_probs_R = log_probs_RV.gather(1, ids[:, None])[:, 0]
        scores.append(torch.stack([log_probs_R, (logits_RV.argmax(-1) == ids).to(log_probs_R)], 1))
    return torch.cat(scores)
