"""A data set of notes: each is a text file beside the image of its name that it describes."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PIL

from dreamkit import Dataset, Document, DocumentError, Image, Text, describe_error


class NewPart(Dataset):
    """A document for each note, in the order of their names: the model reads the image and learns the text."""

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
        file = self.files[index]
        try:
            text = file.read_text(encoding="utf-8")
            with PIL.open(file.with_suffix(".png")) as picture:
                picture.load()
        except (
            Exception
        ) as error:  # a damaged file may raise any error; dreamkit skips and records the document
            raise DocumentError(f"{file}: {describe_error(error)}") from error
        return Document((Image(picture), Text(text)), name=str(file))
