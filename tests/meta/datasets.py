"""Data sets that are broken in exactly one way. They are classes of a module, so that they can be pickled."""

from __future__ import annotations

import io
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image as PIL

from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError
from dreamkit.scaffold.parts.dataset import NewPart


class Notes(NewPart):
    """The data set that the broken ones differ from: texts, each beside its image."""

    is_thread_safe = False  # a broken one would fail the check of threads, too


class ShrinksAfterReading(Notes):
    reads = 0

    def __len__(self):
        return len(self.files) - bool(self.reads)

    def check_index(self, index):
        if not 0 <= index < len(self.files):
            raise IndexError(index)

    def __getitem__(self, index):
        document = super().__getitem__(index)
        self.reads += 1
        return document


class ChangesInTheThirdRead(Notes):
    def __init__(self, config):
        super().__init__(config)
        self.reads = Counter[int]()

    def __getitem__(self, index):
        self.reads[index] += 1
        document = super().__getitem__(index)
        return document + Document((Text("again"),)) if self.reads[index] > 2 else document

    def sample(self, index, choices):
        return super().__getitem__(index)


class WrapsNumbers(Notes):
    def __getitem__(self, index):
        return super().__getitem__(index % len(self))


class WrapsNumbersOfSamples(Notes):
    def sample(self, index, choices):
        return self[index % len(self)]


class CountsSamples(Notes):
    samples = 0

    def sample(self, index, choices):
        self.samples += 1
        return self[index] + Document((Text(f"{self.samples}"),))


class SamplesByTheGlobalGenerator(Notes):
    def sample(self, index, choices):
        state = random.getstate()
        document = self[index] + Document((Text(f"{random.random()}"),))
        random.setstate(state)
        return document


class SamplesAnotherDocument(Notes):
    def sample(self, index, choices):
        self.check_index(index)
        return self[choices.randrange(len(self))]


class SeedsPython(Notes):
    def __getitem__(self, index):
        random.seed(index)
        return super().__getitem__(index)


class DrawsFromNumpy(Notes):
    def sample(self, index, choices):
        np.random.random()
        return self[index]


class SeedsTorch(Notes):
    def __init__(self, config):
        super().__init__(config)
        torch.manual_seed(0)


class TrainsNothing(Notes):
    def __getitem__(self, index):
        document = super().__getitem__(index)
        segments = [
            replace(segment, train_on=False) if isinstance(segment, Text) else segment for segment in document
        ]
        return Document(tuple(segments), name=document.name)


class TrainsUsersWords(Notes):
    def __getitem__(self, index):
        document = super().__getitem__(index)
        segments = [replace(segment, role="user") for segment in document]
        return Document(tuple(segments), name=document.name)


class UnknownRole(Notes):
    def __getitem__(self, index):
        document = super().__getitem__(index)
        answer = Text("yes", role="assistant")
        segments = [replace(segment, role="human") for segment in document]
        return Document((*segments, answer), name=document.name)


class HasSurrogates(Notes):
    def __getitem__(self, index):
        document = super().__getitem__(index)
        text = Text("x")
        object.__setattr__(text, "text", "\ud800")
        return document + Document((text,))

    def fingerprint(self):
        return {"documents": f"{len(self)}"}


class ReadsImagesLater(Notes):
    def __getitem__(self, index):
        document = super().__getitem__(index)
        image, text = document
        picture = PIL.open(io.BytesIO(self.files[index].with_suffix(".png").read_bytes()))
        return Document((replace(image, picture=picture), text), name=document.name)


class HasOneName(Notes):
    def __getitem__(self, index):
        return replace(super().__getitem__(index), name="a note")


class HasNoNames(Notes):
    def __getitem__(self, index):
        return Document(super().__getitem__(index).segments)


class OrdersByTurn(Notes):
    """A data set whose documents start at another one in each instance."""

    instances: ClassVar[int] = 0

    def __init__(self, config):
        super().__init__(config)
        OrdersByTurn.instances += 1
        start = OrdersByTurn.instances % len(self.files)
        self.files = self.files[start:] + self.files[:start]

    def fingerprint(self):
        return {"documents": f"{len(self)}"}


class HasPathInFingerprint(Notes):
    def __init__(self, config):
        super().__init__(config)
        self.path = config.path

    def fingerprint(self):
        return {**super().fingerprint(), "path": str(self.path)}


class HasTimeInFingerprint(Notes):
    def fingerprint(self):
        return {"time": f"{self.files[0].stat().st_mtime_ns}"}


class CountsInFingerprint(Notes):
    def fingerprint(self):
        return {"documents": len(self)}


class WritesAnIndex(Notes):
    def __init__(self, config):
        super().__init__(config)
        (config.path / "index").write_text(f"{len(self.files)}")


class HasOneNote(Notes):
    notes = "a line"


class HasLongNotes(Notes):
    notes = ("two\nlines",)


class RaisesErrorsOfText(Notes):
    def __getitem__(self, index):
        self.check_index(index)
        self.files[index].read_text(encoding="utf-8")
        return super().__getitem__(index)


class RaisesWithoutPlace(Notes):
    def __getitem__(self, index):
        try:
            return super().__getitem__(index)
        except DocumentError as error:
            raise DocumentError("cannot read a note") from error


class HasALambda(Notes):
    def __init__(self, config):
        super().__init__(config)
        self.suffix = lambda: ".png"


class OrdersByHash(Notes):
    """A data set with a list of words in the order of their hashes, which differ in each process."""

    def __getitem__(self, index):
        words = {f"word{number}" for number in range(100)}  # two processes never have the same order
        return super().__getitem__(index) + Document((Text(" ".join(words)),))


class RefusesForks(Notes):
    """A data set with a file or connection that belongs to one process, and that only pickling opens again."""

    def __init__(self, config):
        super().__init__(config)
        self.process = os.getpid()

    def __setstate__(self, state):
        self.__dict__.update(state, process=os.getpid())

    def __getitem__(self, index):
        if os.getpid() != self.process:
            raise RuntimeError("the connection belongs to another process")
        return super().__getitem__(index)


class HasAPosition(Notes):
    """A data set with a position, as of an open file, that its reads share."""

    is_thread_safe = True

    def __getitem__(self, index):
        self.position = index
        time.sleep(0.001)
        return super().__getitem__(self.position)


class ConfigNotFrozen(Notes):
    @dataclass
    class Config:
        path: Path


class ConfigCountsItsCreations(Notes):
    @dataclass(frozen=True)
    class Config:
        path: Path
        seen: int = 0

        def __post_init__(self):
            object.__setattr__(self, "seen", self.seen + 1)


class Sampled(Notes):
    """A data set with a choice of captions and a crop, and documents that only draw."""

    def __getitem__(self, index):
        image, text = super().__getitem__(index)
        return Document((text, Image(image.picture, read=False, draw=True)), name=str(self.files[index]))

    def sample(self, index, choices):
        document = self[index]
        text, image = document
        left, top = choices.randrange(4), choices.randrange(4)
        crop = replace(image, picture=image.picture.crop((left, top, left + 8, top + 8)))
        caption = choices.choice((text, Text("a square")))
        return Document((caption, crop), name=document.name)


class Computed(Notes):
    """A data set of conversations without files or images, of which the kit reads a few."""

    @dataclass(frozen=True)
    class Config:
        size: int = 10**9

    def __init__(self, config):
        self.size = config.size

    @classmethod
    def tiny_config(cls, folder):
        return cls.Config()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.check_index(index)
        turns = Text(f"{index} + 1?", role="user"), Text(f"{index + 1}", role="assistant")
        return Document(turns, name=f"sum {index}")

    def fingerprint(self):
        return {"documents": f"{self.size}"}


DATASET = {
    "length": ShrinksAfterReading,
    "same_document": ChangesInTheThirdRead,
    "index_bounds": WrapsNumbers,
    "sample_repeats": CountsSamples,
    "sample_of_document": SamplesAnotherDocument,
    "random_state": SeedsPython,
    "trainable_documents": TrainsNothing,
    "loaded_images": ReadsImagesLater,
    "document_names": HasOneName,
    "rebuilding": OrdersByTurn,
    "fingerprint": HasPathInFingerprint,
    "data_unchanged": WritesAnIndex,
    "notes": HasOneNote,
    "damaged_files": RaisesErrorsOfText,
    "pickling": HasALambda,
    "worker_processes": RefusesForks,
    "threads": HasAPosition,
    "config_frozen": ConfigNotFrozen,
    "config_round_trip": ConfigCountsItsCreations,
}
MORE_DATASETS = [
    ("dataset", "index_bounds", WrapsNumbersOfSamples),
    ("dataset", "sample_repeats", SamplesByTheGlobalGenerator),
    ("dataset", "random_state", DrawsFromNumpy),
    ("dataset", "random_state", SeedsTorch),
    ("dataset", "trainable_documents", TrainsUsersWords),
    ("dataset", "trainable_documents", UnknownRole),
    ("dataset", "trainable_documents", HasSurrogates),
    ("dataset", "document_names", HasNoNames),
    ("dataset", "fingerprint", HasTimeInFingerprint),
    ("dataset", "fingerprint", CountsInFingerprint),
    ("dataset", "notes", HasLongNotes),
    ("dataset", "damaged_files", RaisesWithoutPlace),
    ("dataset", "pickling", OrdersByHash),
]
