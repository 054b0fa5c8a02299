"""Sequences become a batch: packed rows, and an index plan that says where everything goes.

B rows, T tokens of a row, N images to read, M images to draw, K query blocks (M, and one unconditional), L labels.
Indices are into the rows laid end to end, (B * T,), so that the model gathers and scatters without a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Sequences
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from dreamkit.data.sequence import IGNORED, Sequence, Sequencer

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.document import Document


@dataclass
class Batch:
    """What one training step takes. Every branch of the model has at least one item, if need be of weight 0.

    Images to read are pixels, or their features, computed before; images to draw are targets, or the mean and standard
    deviation of their latents (None: there is but the mean). `latents`, `noise` and `timesteps` fix what the decoder
    would otherwise draw for the M images.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segment_ids_BT: Tensor  # -1 is padding
    label_rows_L: Tensor  # the rows that predict
    label_ids_L: Tensor  # what they predict
    label_weight_L: Tensor
    label_document_L: Tensor
    pixels_NCHW: Tensor | None
    vision_rows_NV: Tensor
    targets_MCHW: Tensor | None
    query_rows_KQ: Tensor
    slots_BT: Tensor  # both again, by rows: -1 for a token, n V + v for a vision token, N V + q for a query
    dream_rows_MQ: Tensor
    draw_weight_M: Tensor
    draw_document_M: Tensor
    extras: dict[str, Tensor]
    counts: Tensor  # (2,) labelled tokens and images drawn, dummies left out
    documents: tuple[str, ...]
    condition_drop: float = 0.0
    unconditional_rows_Q: Tensor | None = None
    features_NVd: Tensor | None = None
    latent_mean_Mchw: Tensor | None = None
    latent_std_Mchw: Tensor | None = None
    latents: Tensor | None = None
    noise: Tensor | None = None
    timesteps: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory (torch's data loader asks for it)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A batch of the changed tensors."""

        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: changed(item) for name, item in value.items()}
            return change(value) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})


class Moments(NamedTuple):
    """Mean and standard deviation of the latents of images (N, c, h, w), and the extras of these images."""

    mean: Tensor
    std: Tensor | None
    extras: dict[str, Tensor]


class Computed(Protocol):
    """What was computed of pictures before. Each comes with the name of the document it is in."""

    def features(self, pictures: Sequences[tuple[str, Picture]]) -> Tensor | None:
        """Vision features (N, V, dim) of pictures to read; None: they are to be computed."""

    def moments(self, pictures: Sequences[tuple[str, Picture]]) -> Moments | None:
        """Of pictures to draw; None: they are to be encoded."""


@dataclass(frozen=True)
class Collator:
    """Documents -> `Batch`.

    `read` and `draw` are the `preprocess` methods of the vision encoder and the image decoder. `packing` lets several
    documents share a row (None: where the language model's spec says that it keeps them apart). `condition_drop` is the
    probability with which an image is drawn from no prompt (classifier-free guidance, arXiv 2207.12598). What is in
    `computed` is taken from there.
    """

    sequencer: Sequencer
    read: Callable[[Sequences[Picture]], Tensor]
    draw: Callable[[Sequences[Picture]], tuple[Tensor, dict[str, Tensor]]]
    packing: bool | None = None
    condition_drop: float = 0.0
    computed: Computed | None = None

    def __call__(self, documents: Sequences[Document]) -> Batch:
        return self.collate([self.sequencer.sequence(document) for document in documents])

    def collate(self, sequences: Sequences[Sequence]) -> Batch:
        """The batch of `sequences`, completed by a dummy where a branch of the model would be without work."""
        sequences = list(sequences)
        no_read = not any(sequence.reads for sequence in sequences)
        no_draw = not any(sequence.draws for sequence in sequences)
        if no_read or no_draw or not any(sequence.targets for sequence in sequences):
            sequences.append(self.sequencer.dummy(read=no_read, draw=no_draw))
        unconditional = self.sequencer.unconditional() if self.condition_drop else None
        if unconditional is not None:
            sequences.append(unconditional)
        packing = self.sequencer.language_model.spec.packing if self.packing is None else self.packing
        rows = _pack([len(s) for s in sequences], self.sequencer.max_length if packing else 0)
        width = max(sum(len(sequences[i]) for i in row) for row in rows)
        starts = {}
        for number, row in enumerate(rows):
            start = number * width
            for index in row:
                starts[index] = start
                start += len(sequences[index])

        input_ids = torch.full((len(rows) * width,), self.sequencer.language_model.spec.pad_id)
        position_ids = torch.zeros_like(input_ids)
        segment_ids = torch.full_like(input_ids, -1)
        labels: list[tuple[int, int, float, int]] = []
        for index, sequence in enumerate(sequences):
            start, length = starts[index], len(sequence)
            input_ids[start : start + length] = torch.tensor(sequence.ids)
            position_ids[start : start + length] = torch.arange(length)
            segment_ids[start : start + length] = index
            labels += [
                (start + at, label, sequence.weight, index)
                for at, label in enumerate(sequence.labels[1:])
                if label != IGNORED
            ]

        reads = [
            (starts[i] + at, (s.name, picture)) for i, s in enumerate(sequences) for at, picture in s.reads
        ]
        draws = [
            (starts[i] + at, (s.name, picture), s.weight, i)
            for i, s in enumerate(sequences)
            for at, picture in s.draws
        ]
        label_rows, label_ids, label_weights, label_documents = zip(*labels, strict=True)
        draw_rows, drawn, draw_weights, draw_documents = zip(*draws, strict=True)
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
        filled = torch.full_like(input_ids, -1)
        filled[vision_rows] = torch.arange(vision_rows.numel()).view_as(vision_rows)
        filled[query_rows] = vision_rows.numel() + slots
        return Batch(
            input_ids_BT=input_ids.view(len(rows), width),
            position_ids_BT=position_ids.view(len(rows), width),
            segment_ids_BT=segment_ids.view(len(rows), width),
            label_rows_L=torch.tensor(label_rows),
            label_ids_L=torch.tensor(label_ids),
            label_weight_L=torch.tensor(label_weights),
            label_document_L=torch.tensor(label_documents),
            vision_rows_NV=vision_rows,
            query_rows_KQ=query_rows,
            slots_BT=filled.view(len(rows), width),
            dream_rows_MQ=dream_rows,
            draw_weight_M=torch.tensor(draw_weights),
            draw_document_M=torch.tensor(draw_documents),
            counts=torch.tensor([sum(label_weights), sum(draw_weights)]),
            documents=tuple(sequence.name for sequence in sequences),
            condition_drop=self.condition_drop,
            unconditional_rows_Q=unconditional_rows,
            **self._to_read([picture for _, picture in reads]),
            **self._to_draw(drawn),
        )

    def _to_read(self, named: Sequences[tuple[str, Picture]]) -> dict[str, Any]:
        """The fields of a batch for these pictures to read."""
        features = None if self.computed is None else self.computed.features(named)
        pixels = self.read([picture for _, picture in named]) if features is None else None
        return {"pixels_NCHW": pixels, "features_NVd": features}

    def _to_draw(self, named: Sequences[tuple[str, Picture]]) -> dict[str, Any]:
        """The fields of a batch for these pictures to draw."""
        found = None if self.computed is None else self.computed.moments(named)
        if found is None:
            targets, extras = self.draw([picture for _, picture in named])
            return {"targets_MCHW": targets, "extras": extras}
        moments = {"latent_mean_Mchw": found.mean, "latent_std_Mchw": found.std}
        return {"targets_MCHW": None, "extras": found.extras, **moments}


def _pack(lengths: Sequences[int], row_length: int) -> list[list[int]]:
    """Puts each length into the first row with room for it, or into a row of its own."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index, length in enumerate(lengths):
        row = next((i for i, room in enumerate(free) if room >= length), None)
        if row is None:
            rows.append([index])
            free.append(row_length - length)
        else:
            rows[row].append(index)
            free[row] -= length
    return rows
