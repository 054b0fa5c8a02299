"""A data set of notes: each is a text file beside the image of its name that it describes."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PIL

from dreamkit import Dataset, Document, DocumentError, Image, Text, decode_picture, describe_error, read_error


class NewPart(Dataset):
    """A document for each note, in the order of their names: the model reads the image and learns the text."""

    is_thread_safe = (
        True  # remove it if a read changes what another one uses, such as the position of an open file
    )

    @dataclass(frozen=True)
    class Config:
        """The data set's section of a recipe: dreamkit checks its keys and types against these fields.

        `path` is a folder of `.txt` files, each beside a `.png` file of the same name.
        """

        path: Path

    def __init__(self, config: Config) -> None:
        self.files = sorted(config.path.glob("*.txt"))
        if not self.files:
            raise DocumentError(f"{config.path}: no .txt files; correct the path of the data set")

    @classmethod
    def tiny_config(cls, folder: Path) -> Config:
        for colour in ("red", "green", "blue"):
            (folder / f"{colour}.txt").write_text(f"a {colour} square")
            PIL.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        return cls.Config(folder)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        note = self.files[index]
        image = note.with_suffix(".png")
        # dreamkit skips and records a document with a DocumentError; if a disk fails, `read_error` stops the run.
        try:
            text, data = note.read_text(encoding="utf-8"), image.read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise read_error(f"{note}: {describe_error(error)}", error) from error
        return Document((Image(decode_picture(data, str(image))), Text(text)), name=str(note))
