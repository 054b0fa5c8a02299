"""The language model's inputs in generation: embeddings of prompts, tokens, dream queries and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreamkit.data.sequence import Sequence as TokenSequence, Sequencer
from dreamkit.document import Document

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel


class InputMaker:
    """A maker of inputs (t, D) for a model."""

    def __init__(self, model: DreamModel) -> None:
        self.model = model
        self.sequencer: Sequencer = model.sequencer()
        self.device = model.dream_queries.device

    def embed(self, ids: list[int]) -> Tensor:
        """Return the input embeddings (T, D) of `ids`."""
        return self.model.language_model.embed(torch.tensor(ids, dtype=torch.long, device=self.device))

    def dream_inputs(self) -> Tensor:
        """Return the inputs (1 + Q, D) that draw an image: the dream token and the dream queries."""
        return torch.cat([self.embed([self.sequencer.dream_start]), self.model.dream_queries])

    def read_inputs(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Return the inputs (V + 2, D) of each image: its vision tokens between start and end token."""
        if not pictures:
            return []
        pixels = self.model.vision_encoder.preprocess(pictures).to(self.model.dream_queries)
        vision_NVD = self.model.visual_projector(self.model.vision_encoder(pixels))
        start, end = self.embed([self.sequencer.image_start]), self.embed([self.sequencer.image_end])
        return [torch.cat([start, vision_VD, end]) for vision_VD in vision_NVD]

    def prompt_inputs(self, documents: Sequence[Document]) -> list[Tensor]:
        """Return the inputs (T, D) of each prompt."""
        sequences = [self.sequencer.prompt(document) for document in documents]
        images = iter(self.read_inputs([picture for sequence in sequences for _, picture in sequence.reads]))
        return [
            self.sequence_inputs(sequence, [next(images) for _ in sequence.reads]) for sequence in sequences
        ]

    def sequence_inputs(self, sequence: TokenSequence, images: Sequence[Tensor]) -> Tensor:
        """Return the inputs (T, D) of a sequence; `images` are those of the images that it reads."""
        embeds = self.embed(sequence.ids)
        for at, _ in sequence.draws:
            embeds[at : at + len(self.model.dream_queries)] = self.model.dream_queries
        for (at, _), image in zip(sequence.reads, images, strict=True):
            embeds[at - 1 : at - 1 + len(image)] = image
        return embeds
