"""The data set `mmc4`: documents of text and images in MMC4's form, in tars or in JSON Lines beside images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dreamkit import ConfigError, Dataset, Document, DocumentError, Url, printable
from dreamkit_data.example_images import COLOURS, coloured_png, write_small_tar
from dreamkit_data.left_out import empty_error, left_out_lines, named_lines
from dreamkit_data.mmc4_lines import SUFFIXES, LineDocuments, image_folder
from dreamkit_data.mmc4_records import Place, Selection, mmc4_document
from dreamkit_data.mmc4_tars import TarDocuments
from dreamkit_data.patterns import matching_files


@dataclass(frozen=True)
class MMC4Config:
    """The recipe section of `mmc4`.

    Attributes:
        path: tars with images, or JSON Lines (`.jsonl`, or with `.zip`, `.gz` or `.zst`): a file, a folder, a pattern
            such as `/data/{00000..01000}.tar`, or a list of these.
        draw: train the model to draw the images, which it then reads back. Otherwise it reads them.
        min_similarity: least `matched_sim` of an image; others are left out.
        max_images: most images in a document; those with the greatest `matched_sim` stay.
        place: images stand `before` the text of their `matched_text_index`, or `after` it, as in DreamLLM's code.
        images: folder of the images of JSON Lines; None is `NAME_images` or `images` beside `NAME.jsonl`.
        index: folder of the index; None is the user's cache folder.
    """

    path: Path | Url | list[Path | Url]
    draw: bool = True
    min_similarity: float | None = None
    max_images: int | None = None
    place: Place = "before"
    images: Path | Url | None = None
    index: Path | None = None

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise ConfigError({"max_images": f"expected at least 1, got {self.max_images}"})


class MMC4(Dataset):
    """A data set with one document for each record that has images. Images that were not downloaded are left out."""

    Config = MMC4Config
    is_thread_safe = True

    def __init__(self, config: MMC4Config) -> None:
        self.config = config
        selection = Selection(config.min_similarity, config.max_images)
        files = matching_files(config.path, (".tar", *SUFFIXES))
        tars = [file for file in files if file.name.endswith(".tar")]
        self.documents: TarDocuments | LineDocuments
        if not tars:
            self.documents = LineDocuments(files, selection, config.images, config.index)
        elif len(tars) < len(files):
            other = next(file for file in files if not file.name.endswith(".tar"))
            raise DocumentError(
                f"{printable(other)}: expected tars alone or JSON Lines alone, got both; name them in two data sets"
            )
        elif config.images is not None:
            raise DocumentError(
                f"{printable(tars[0])}: 'images' is set, but tars have their images; remove 'images'"
            )
        else:
            self.documents = TarDocuments(tars, selection, config.index)
        self.facts = self.documents.facts
        lines = left_out_lines(self.facts)
        if not len(self):
            missing = any(noun == "image" for each in self.facts for noun, *_ in each["left_out"])
            if missing and isinstance(self.documents, LineDocuments):
                folder = image_folder(files[0], config.images)
                lines.append(f"expected images in {printable(folder)}; correct 'images' of the data set")
            raise empty_error(config.path, "documents with images", lines)
        self.notes = named_lines(config.path, lines)

    @classmethod
    def tiny_config(cls, folder: Path) -> MMC4Config:
        members: list[tuple[str, bytes]] = []
        for number, colour in enumerate(COLOURS):
            infos = [
                {"image_name": f"{each}.png", "matched_text_index": index, "matched_sim": 0.3}
                for index, each in enumerate((colour, "red"))
            ]
            texts = [f"Here is {colour}.", "And here is red.", "There is more."]
            record = json.dumps({"text_list": texts, "image_info": infos}).encode()
            images = dict.fromkeys((colour, "red"))
            members += [
                (f"{number}.json", record),
                *((f"{number}.{each}.png", coloured_png(each)) for each in images),
            ]
        write_small_tar(folder / "00000.tar", members)
        return MMC4Config(folder)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        where, record, pictures = self.documents[index]
        return mmc4_document(record, pictures, draw=self.config.draw, place=self.config.place, name=where)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "names and documents of files": self.documents.names_hash()}
