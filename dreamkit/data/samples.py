"""The training sequences of a run, by their place in it: what the processes that read data compute."""

from __future__ import annotations

from dataclasses import replace

from torch.utils.data import Dataset as TorchDataset

from dreamkit.data.mixture import Mixture
from dreamkit.data.seeds import choices
from dreamkit.data.sequence import Sequence, Sequencer
from dreamkit.document import Document


class Samples(TorchDataset[Sequence]):
    """The sequence of the document at each place of a mixture."""

    def __init__(self, mixture: Mixture, sequencer: Sequencer) -> None:
        self.mixture = mixture
        self.sequencer = sequencer

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, place: int) -> Sequence:
        """Return the sequence at `place`.

        Raises:
            DocumentError: the document cannot be read, is too long or has nothing to train on.
        """
        return replace(self.sequencer.sequence(self.document(place)), place=place)

    def document(self, place: int) -> Document:
        """Return the document at `place`, with the random choices of its data set for this place.

        Raises:
            DocumentError: the document cannot be read.
        """
        number, index = self.mixture.place(place)
        return self.mixture.datasets[number].sample(index, choices(self.mixture.seed, place))
