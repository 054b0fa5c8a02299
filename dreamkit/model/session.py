"""One pass of a batch of documents through the language model.

Each position of a document passes once: prompt, text, dream queries and the image that is read back share one KV cache.
Documents of a batch advance together, each at its own position. A document without input in a call gets padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreamkit.data.sequence import Sequencer
from dreamkit.document import Document

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel


class Session:
    """One pass of a batch of documents through the language model, in calls of any length.

    A model without a KV cache gets the whole document again in each call.
    """

    def __init__(self, model: DreamModel, documents: int) -> None:
        self.model = model
        self.sequencer: Sequencer = model.sequencer()
        self.cache = model.language_model.new_cache() if model.language_model.spec.cache else None
        self.past: list[Tensor | None] = [None] * documents  # embeddings so far, for a model without a cache
        self.positions = [0] * documents
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
        pixels = self.model.vision_encoder.preprocess(pictures).to(self.device)
        vision_NVD = self.model.visual_projector(self.model.vision_encoder(pixels))
        start, end = self.embed([self.sequencer.image_start]), self.embed([self.sequencer.image_end])
        return [torch.cat([start, vision_VD, end]) for vision_VD in vision_NVD]

    def prompt_inputs(self, documents: Sequence[Document]) -> list[Tensor]:
        """Return the inputs (T, D) of each prompt."""
        sequences = [self.sequencer.prompt(document) for document in documents]
        images = iter(self.read_inputs([picture for sequence in sequences for _, picture in sequence.reads]))
        prompts = []
        for sequence in sequences:
            embeds = self.embed(sequence.ids)
            for at, _ in sequence.draws:
                embeds[at : at + len(self.model.dream_queries)] = self.model.dream_queries
            for at, _ in sequence.reads:
                image = next(images)
                embeds[at - 1 : at - 1 + len(image)] = image
            prompts.append(embeds)
        return prompts

    def feed(self, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the hidden states (t, D), before the final norm, of each document's next inputs (t, D)."""
        embeds_by_number = inputs if self.cache is not None else self._with_past(inputs)
        is_first = self.cache is None or not any(self.positions)  # no keys of an earlier call
        width = max(len(embeds) for embeds in embeds_by_number.values())
        dim = self.model.language_model.spec.dim
        embeds_BTD = self.model.dream_queries.new_zeros(len(self.positions), width, dim)
        position_ids = torch.zeros(len(self.positions), width, dtype=torch.long)
        segment_ids = torch.full_like(position_ids, -1)
        for number, embeds in embeds_by_number.items():
            start, length = 0 if self.cache is None else self.positions[number], len(embeds)
            embeds_BTD[number, :length] = embeds
            position_ids[number, :length] = torch.arange(start, start + length)
            segment_ids[number, :length] = 0
            self.positions[number] = start + length
        spans = {}
        if is_first and self.model.language_model.spec.document_attention:
            lengths = {number: len(embeds) for number, embeds in embeds_by_number.items()}
            spans["spans"] = [
                [(0, lengths[row])] if row in lengths else [] for row in range(len(self.positions))
            ]
        hidden = self.model.language_model(
            embeds_BTD, position_ids.to(self.device), segment_ids.to(self.device), cache=self.cache, **spans
        )
        return {
            number: hidden[number, : len(embeds)][-len(inputs[number]) :]
            for number, embeds in embeds_by_number.items()
        }

    def _with_past(self, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
        for number, embeds in inputs.items():
            past = self.past[number]
            self.past[number] = embeds if past is None else torch.cat([past, embeds])
        return {number: past for number in inputs if (past := self.past[number]) is not None}

    def dream_states(self, hidden_TD: Tensor) -> Tensor:
        """Return the dream states (Q, D), after the final norm, of hidden states (T, D) that end with the queries."""
        return self.model.language_model.final_norm(hidden_TD[-len(self.model.dream_queries) :])
