"""Batches: sequences packed into rows, with the indices at which the model fills slots and reads hidden states.

B rows, T tokens of a row, N images to read, M images to draw, K query blocks (M, and one unconditional), L labels,
Q dream queries, V vision tokens of an image, d the width of vision features, c x h x w latents.
Indices count positions of all rows laid end to end, (B * T,): the model gathers and scatters without a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Sequences
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dreamkit.data.image_noise import ImageNoise
from dreamkit.data.packing import Rows, balanced_rows, row_cost
from dreamkit.data.sequence import IGNORED, Sequence, Sequencer
from dreamkit.data.skipped import Skipped
from dreamkit.data.workers import in_shared_memory
from dreamkit.parts.specs import Spans

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.document import Document


@dataclass
class Batch:
    """The inputs of one training step.

    Every branch of the model has at least one item: L, N and M are at least 1. A dummy item has weight 0.

    Attributes:
        input_ids_BT: token ids.
        position_ids_BT: positions, from 0 in each document.
        segment_ids_BT: number of the document, -1 for padding.
        label_rows_L: indices of the positions that predict a label.
        label_ids_L: the labels.
        label_weight_L: weight of each label, 0 in a dummy.
        label_document_L: number of each label's document.
        pixels_NCHW: pixels of the images to read; None if `features_NVd` replaces them.
        vision_rows_NV: indices of the slots of vision tokens.
        targets_MCHW: training targets of the images to draw; None if moments of their latents replace them.
        query_rows_KQ: indices of the slots of dream queries, the unconditional ones last.
        spans: the tokens of each document in each row.
        slots_BT: the slots by position: -1 for a token, n V + v for a vision token, N V + q for a dream query.
        dream_rows_MQ: indices of the dream states of each image to draw.
        draw_weight_M: weight of each image to draw, 0 in a dummy.
        draw_document_M: number of each image's document.
        extras: the image decoder's extras (M, ...).
        counts: labelled tokens and images to draw (2,), without dummies.
        documents: names of the documents, by number.
        places: places of the documents in the run, by number; without dummies.
        skipped: documents that cannot be used, which others replace.
        cut: number of documents whose end is left out.
        tokens: number of tokens and slots of the documents, without dummies and padding.
        images: number of images of the documents to read, and of those to draw.
        condition_drop: probability that an image to draw gets the unconditional dream states.
        unconditional_rows_Q: indices of the unconditional dream states; None without `condition_drop`.
        features_NVd: cached vision features of the images to read.
        latent_mean_Mchw: cached means of the latents of the images to draw.
        latent_std_Mchw: their standard deviations; None if they are 0.
        latents: fixed latents (M, c, h, w); None samples them.
        noise: unit-variance diffusion noise (M, c, h, w); None samples it.
        timesteps: timesteps (M,); None samples them.
        posterior_noise: unit-variance noise (M, c, h, w) of the latents around their means; None samples it.
        drop_M: flag of each image to draw: it gets the unconditional dream states; None samples it.
        encode_seeds: seed of the latents of each image to draw, for a decoder without `posterior`; None without.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segment_ids_BT: Tensor
    label_rows_L: Tensor
    label_ids_L: Tensor
    label_weight_L: Tensor
    label_document_L: Tensor
    pixels_NCHW: Tensor | None
    vision_rows_NV: Tensor
    targets_MCHW: Tensor | None
    query_rows_KQ: Tensor
    slots_BT: Tensor
    spans: Spans
    dream_rows_MQ: Tensor
    draw_weight_M: Tensor
    draw_document_M: Tensor
    extras: dict[str, Tensor]
    counts: Tensor
    documents: tuple[str, ...]
    places: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    cut: int = 0
    tokens: int = 0
    images: int = 0
    condition_drop: float = 0.0
    unconditional_rows_Q: Tensor | None = None
    features_NVd: Tensor | None = None
    latent_mean_Mchw: Tensor | None = None
    latent_std_Mchw: Tensor | None = None
    latents: Tensor | None = None
    noise: Tensor | None = None
    timesteps: Tensor | None = None
    posterior_noise: Tensor | None = None
    drop_M: Tensor | None = None
    encode_seeds: tuple[int, ...] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the same batch on another device."""
        return self.with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the same batch in page-locked memory; torch's data loader calls this."""
        return self.with_tensors(Tensor.pin_memory)

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same batch with `change(tensor)` in the place of each tensor."""
        return replace(self, **tree_map_only(Tensor, change, self.tensor_fields()))

    def tensor_fields(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Return the fields that hold tensors, and none with an item for each document, which may be many."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor | dict)}


class Moments(NamedTuple):
    """Cached posteriors of the latents of N images.

    Attributes:
        mean: means of the scaled latents (N, c, h, w).
        std: standard deviations (N, c, h, w); None if they are 0.
        extras: the decoder's extras (N, ...) of these images.
    """

    mean: Tensor
    std: Tensor | None
    extras: dict[str, Tensor]


class ImageCache(Protocol):
    """A cache of the outputs of frozen parts. Images are pairs of their document's name and the PIL image."""

    def features(self, pictures: Sequences[tuple[str, Picture]]) -> Tensor | None:
        """Return the vision features (N, V, d) of images to read; None if they are not cached."""

    def moments(self, pictures: Sequences[tuple[str, Picture]]) -> Moments | None:
        """Return the moments of images to draw; None if they are not cached."""


@dataclass(frozen=True)
class Collator:
    """A function from documents to a `Batch`.

    Attributes:
        sequencer: turns documents into sequences.
        read: `preprocess` of the vision encoder.
        draw: `preprocess` of the image decoder.
        packing: let several documents share a row; None if the language model's spec allows it.
        condition_drop: probability of training an image unconditionally, for classifier-free guidance
            (arXiv 2207.12598, section 3.2).
        cache: cached outputs of frozen parts, which replace pixels and targets.
        noise: random numbers of the images to draw, by their documents' places; None: the model samples them. It also
            samples those of sequences without a place.
        is_float64: flag: floats are float64, for a model of that dtype.
    """

    sequencer: Sequencer
    read: Callable[[Sequences[Picture]], Tensor]
    draw: Callable[[Sequences[Picture]], tuple[Tensor, dict[str, Tensor]]]
    packing: bool | None = None
    condition_drop: float = 0.0
    cache: ImageCache | None = None
    noise: ImageNoise | None = None
    is_float64: bool = False

    def __call__(self, documents: Sequences[Document]) -> Batch:
        """Return the batch of `documents`.

        Raises:
            DocumentError: a document is too long or has nothing to train on.
        """
        return self.collate([self.sequencer.sequence(document) for document in documents])

    def share(self, sequences: Sequences[Sequence]) -> Batch:
        """Return the batch of `sequences`; a process that reads data has it in shared memory.

        Raises:
            TrainingError: too little shared memory.
        """
        return self.collate(sequences).with_tensors(in_shared_memory)

    def packed(self, sequences: Sequences[Sequence]) -> tuple[list[Sequence], Rows, Sequence | None]:
        """Return the sequences of a batch, the indices of those in each row, and the unconditional one among them.

        A dummy is added if no sequence has a label, or an image to read or to draw.
        """
        sequences = list(sequences)
        no_read = not any(sequence.reads for sequence in sequences)
        no_draw = not any(sequence.draws for sequence in sequences)
        if no_read or no_draw or not any(sequence.targets for sequence in sequences):
            place = (
                sequences[0].place if sequences else 0
            )  # a batch of no document takes no common random numbers
            sequences.append(replace(self.sequencer.dummy(read=no_read, draw=no_draw), place=place))
        unconditional = self.sequencer.unconditional() if self.condition_drop else None
        if unconditional is not None:
            sequences.append(unconditional)
        return sequences, self.rows(sequences), unconditional

    def rows(self, sequences: Sequences[Sequence]) -> Rows:
        """Return the indices of the sequences in each row: of one, or packed so that they cost least."""
        spec = self.sequencer.language_model.spec
        if not (spec.packing if self.packing is None else self.packing):
            return [[index] for index in range(len(sequences))]
        lengths = [len(sequence) for sequence in sequences]
        return balanced_rows(lengths, self.sequencer.max_length, row_cost(spec))

    def collate(self, sequences: Sequences[Sequence]) -> Batch:
        """Return the batch of `sequences`, with a dummy if no sequence has a label, or an image to read or to draw."""
        places = tuple(sequence.place for sequence in sequences if sequence.place is not None)
        tokens = sum(map(len, sequences))
        image_count = sum(len(sequence.reads) + len(sequence.draws) for sequence in sequences)
        sequences, rows, unconditional = self.packed(sequences)
        width = max(sum(len(sequences[i]) for i in row) for row in rows)
        starts: dict[int, int] = {}
        spans = []
        for number, row in enumerate(rows):
            ends = [0, *accumulate(len(sequences[index]) for index in row)]
            spans.append(tuple(pairwise(ends)))
            starts |= {index: number * width + start for index, start in zip(row, ends, strict=False)}

        input_ids = torch.full((len(rows) * width,), self.sequencer.language_model.spec.pad_id)
        position_ids = torch.zeros_like(input_ids)
        segment_ids = torch.full_like(input_ids, -1)
        labelled: list[tuple[Tensor, ...]] = []  # rows, labels, weights and documents
        for index, sequence in enumerate(sequences):
            start, length = starts[index], len(sequence)
            input_ids[start : start + length] = torch.tensor(sequence.ids)
            position_ids[start : start + length] = torch.arange(length)
            segment_ids[start : start + length] = index
            labels = torch.tensor(sequence.labels[1:], dtype=torch.int64)
            (at,) = (labels != IGNORED).nonzero(as_tuple=True)
            weights, documents = (torch.full((len(at),), value) for value in (sequence.weight, index))
            labelled.append((start + at, labels[at], weights, documents))

        reads = [
            (starts[i] + at, (s.name, picture)) for i, s in enumerate(sequences) for at, picture in s.reads
        ]
        draws = [
            (starts[i] + at, (s.name, picture), s.weight, i)
            for i, s in enumerate(sequences)
            for at, picture in s.draws
        ]
        images = [
            (s.place, number) for s in sequences if s.place is not None for number in range(len(s.draws))
        ]
        label_rows, label_ids, label_weights, label_documents = map(torch.cat, zip(*labelled, strict=True))
        draw_rows, draw_images, draw_weights, draw_documents = zip(*draws, strict=True)
        slots = torch.arange(self.sequencer.dream_queries)
        dream_rows = torch.tensor(draw_rows)[:, None] + slots
        unconditional_rows = None
        query_rows = dream_rows
        if unconditional is not None:
            dream_end = starts[len(sequences) - 1] + len(unconditional) - 1
            unconditional_rows = dream_end - len(slots) + slots
            query_rows = torch.cat([dream_rows, unconditional_rows[None]])
        vision_rows = torch.tensor([at for at, _ in reads])[:, None] + torch.arange(
            self.sequencer.vision_tokens
        )
        slots_by_row = torch.full_like(input_ids, -1)
        slots_by_row[vision_rows] = torch.arange(vision_rows.numel()).view_as(vision_rows)
        slots_by_row[query_rows] = vision_rows.numel() + slots
        batch = Batch(
            input_ids_BT=input_ids.view(len(rows), width),
            position_ids_BT=position_ids.view(len(rows), width),
            segment_ids_BT=segment_ids.view(len(rows), width),
            label_rows_L=label_rows,
            label_ids_L=label_ids,
            label_weight_L=label_weights,
            label_document_L=label_documents,
            vision_rows_NV=vision_rows,
            query_rows_KQ=query_rows,
            slots_BT=slots_by_row.view(len(rows), width),
            spans=tuple(spans),
            dream_rows_MQ=dream_rows,
            draw_weight_M=torch.tensor(draw_weights),
            draw_document_M=torch.tensor(draw_documents),
            counts=torch.tensor([float(label_weights.sum()), sum(draw_weights)]),
            documents=tuple(sequence.name for sequence in sequences),
            places=places,
            skipped=tuple(document for sequence in sequences for document in sequence.skipped),
            cut=sum(sequence.is_cut for sequence in sequences),
            tokens=tokens,
            images=image_count,
            condition_drop=self.condition_drop,
            unconditional_rows_Q=unconditional_rows,
            **self._read_fields([picture for _, picture in reads]),
            **self._draw_fields(draw_images, images),
        )
        return batch.with_tensors(_as_float64) if self.is_float64 else batch

    def _read_fields(self, named: Sequences[tuple[str, Picture]]) -> dict[str, Any]:
        """Return the fields of a batch for images to read."""
        features = None if self.cache is None else self.cache.features(named)
        pixels = self.read([picture for _, picture in named]) if features is None else None
        return {"pixels_NCHW": pixels, "features_NVd": features}

    def _draw_fields(
        self, named: Sequences[tuple[str, Picture]], images: Sequences[tuple[int, int]]
    ) -> dict[str, Any]:
        """Return the fields of a batch for images to draw; `images` are those in a run, as in `ImageNoise`."""
        moments = None if self.cache is None else self.cache.moments(named)
        if moments is None:
            targets, extras = self.draw([picture for _, picture in named])
            fields: dict[str, Any] = {"targets_MCHW": targets, "extras": extras}
        else:
            mean, std, extras = moments
            fields = {
                "targets_MCHW": None,
                "extras": extras,
                "latent_mean_Mchw": mean,
                "latent_std_Mchw": std,
            }
        if self.noise is None or len(images) < len(named):
            return fields
        shape = (
            self.noise.decoder.spec.latent_shape((targets.shape[-2], targets.shape[-1]))
            if moments is None
            else moments.mean.shape[1:]
        )
        return fields | self.noise.fields(images, shape, self.condition_drop)


def _as_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
