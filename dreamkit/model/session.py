"""One pass of a batch of documents through the language model.

Each position of a document passes once: prompt, text, dream queries and the image that is read back share one KV cache.
Documents of a batch advance together, each at its own position.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
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
        self.rows = [*range(documents)]  # number of the document in each row of the cache
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
        """Return the hidden states (t, D), before the final norm, of each document's next inputs (t, D).

        A document without inputs has ended: its row of the KV cache goes, or gets padding.
        """
        language_model, is_first = self.model.language_model, self.cache is None or not any(self.positions)
        if self.cache is None:
            self.rows, embeds_by_number = [*inputs], self._with_past(inputs)
        else:
            self._drop_finished(inputs)
            embeds_by_number = inputs
        width = max(len(embeds) for embeds in embeds_by_number.values())
        embeds_BTD = self.model.dream_queries.new_zeros(len(self.rows), width, language_model.spec.dim)
        position_ids = torch.zeros(len(self.rows), width, dtype=torch.long)
        segment_ids = torch.full_like(position_ids, -1)
        spans: list[list[tuple[int, int]]] = [[] for _ in self.rows]
        for row, number in enumerate(self.rows):
            if (embeds := embeds_by_number.get(number)) is None:
                continue
            start, length = 0 if self.cache is None else self.positions[number], len(embeds)
            embeds_BTD[row, :length] = embeds
            position_ids[row, :length] = torch.arange(start, start + length)
            segment_ids[row, :length] = 0
            spans[row] = [(0, length)]
            self.positions[number] = start + length
        places = position_ids.to(self.device), segment_ids.to(self.device)
        # spans are of documents without keys of an earlier call
        named = {"spans": spans} if is_first and language_model.spec.document_attention else {}
        hidden = language_model(embeds_BTD, *places, cache=self.cache, **named)
        return {
            number: hidden[row, : len(embeds_by_number[number])][-len(inputs[number]) :]
            for row, number in enumerate(self.rows)
            if number in inputs
        }

    def _drop_finished(self, inputs: Container[int]) -> None:
        """Drop the rows of documents without inputs from the KV cache, if the language model can."""
        left = [row for row, number in enumerate(self.rows) if number in inputs]
        if len(left) == len(self.rows):
            return
        is_empty = not any(self.positions)
        if is_empty or self.model.language_model.select_rows(self.cache, left):
            self.rows = [self.rows[row] for row in left]

    def _with_past(self, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
        for number, embeds in inputs.items():
            past = self.past[number]
            self.past[number] = embeds if past is None else torch.cat([past, embeds])
        return {number: past for number in inputs if (past := self.past[number]) is not None}

    def dream_states(self, hidden_TD: Tensor) -> Tensor:
        """Return the dream states (Q, D), after the final norm, of hidden states (T, D) that end with the queries."""
        return self.model.language_model.final_norm(hidden_TD[-len(self.model.dream_queries) :])
