"""The language model's inputs in generation: embeddings of prompts, tokens, dream queries and images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from dreamkit.data.sequence import Sequence as TokenSequence, Sequencer
from dreamkit.parts.pictures import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel

QUERY: Final = -1  # name of the positions of dream queries


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

    def prompt_inputs(self, sequences: Sequence[TokenSequence], start: int = 0) -> list[Tensor]:
        """Return the inputs (T - start, D) of each prompt, from position `start` on.

        Images before it are not encoded.
        """
        vision = self.sequencer.vision_tokens
        reads = [[(at, each) for at, each in prompt.reads if at + vision > start] for prompt in sequences]
        images = iter(self.read_inputs([picture for images in reads for _, picture in images]))
        return [
            self.sequence_inputs(sequence, {at: next(images) for at, _ in places})[start:]
            for sequence, places in zip(sequences, reads, strict=True)
        ]

    def sequence_inputs(self, sequence: TokenSequence, images: Mapping[int, Tensor]) -> Tensor:
        """Return the inputs (T, D) of a sequence; `images` are those of images to read, by their index in it."""
        embeds = self.embed(sequence.ids)
        for at, _ in sequence.draws:
            embeds[at : at + len(self.model.dream_queries)] = self.model.dream_queries
        for at, image in images.items():
            embeds[at - 1 : at - 1 + len(image)] = image
        return embeds

    def names(self, sequence: TokenSequence) -> list[int]:
        """Return a name of each position: documents with the same names have the same inputs.

        It is the id of a token, `QUERY` of a dream query, or a number below that made from the pixels of an image.
        """
        names = [*sequence.ids]
        for at, _ in sequence.draws:
            names[at : at + self.sequencer.dream_queries] = [QUERY] * self.sequencer.dream_queries
        for at, picture in sequence.reads:
            names[at : at + self.sequencer.vision_tokens] = self._image_names(picture)
        return names

    def dream_names(self) -> list[int]:
        """Return the names of the positions of `dream_inputs`."""
        return [self.sequencer.dream_start, *[QUERY] * self.sequencer.dream_queries]

    def read_names(self, picture: Picture) -> list[int]:
        """Return the names of the positions of an image in `read_inputs`."""
        return [self.sequencer.image_start, *self._image_names(picture), self.sequencer.image_end]

    def _image_names(self, picture: Picture) -> list[int]:
        # A vision encoder may read the pixels as they are, or upright in sRGB, as those of dreamkit do.
        digest = hashlib.sha256(repr((picture.mode, picture.size)).encode())
        for pixels in (picture, to_rgb(picture)):
            digest.update(pixels.tobytes())
        return [QUERY - 1 - int.from_bytes(digest.digest())] * self.sequencer.vision_tokens
