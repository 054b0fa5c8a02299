"""The data set `huggingface`: rows of a folder that the library `datasets` saved, in a template's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamkit import (
    ConfigError,
    Dataset,
    Document,
    DocumentError,
    Image,
    Text,
    count,
    describe_error,
    did_you_mean,
    excerpt,
    printable,
    read_error,
)
from dreamkit_data.example_images import COLOURS, coloured_png
from dreamkit_data.stored_images import stored_picture, stored_value
from dreamkit_data.templates import Column, Template

if TYPE_CHECKING:
    import datasets

INSTALL: Final = "pip install 'dreamkit-data[huggingface]'"
SCALARS: Final = ("string", "large_string", "bool", "int", "uint", "float")  # the beginnings of types


@dataclass(frozen=True)
class HuggingFaceConfig:
    """The recipe section of `huggingface`.

    Attributes:
        path: folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of the library `datasets` wrote.
        template: the document. `{column}` stands for the text, the number, the class's name or the images of a
            column; `{{` is a brace.
        answer: template of the assistant's turn; then `template` is the user's turn, which is not trained on.
        draw: columns of images to draw. The model reads those of other columns.
        split: name of the split in a `DatasetDict`.
    """

    path: Path
    template: str
    answer: str | None = None
    draw: list[str] | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        templates = {"template": self.template, "answer": self.answer}
        problems = {
            key: problem
            for key, text in templates.items()
            if text is not None and (problem := Template(text).problem) is not None
        }
        if problems:
            raise ConfigError(problems)


class HuggingFace(Dataset):
    """A data set with one document per row. The rows stay in Arrow files, which are mapped into memory."""

    Config = HuggingFaceConfig
    is_thread_safe = True

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config = config
        self.name = printable(config.path)
        self.template = Template(config.template)
        self.answer = None if config.answer is None else Template(config.answer)
        self.drawn = frozenset(config.draw or ())
        templates = [self.template, *([self.answer] if self.answer else [])]
        columns = list(dict.fromkeys(name for each in templates for name in each.columns))
        rows = self._open()
        self.images = self._check_columns(rows, columns)
        rows = rows.select_columns(columns).with_format(None)
        self.labels = {
            name: rows.features[name] for name in columns if hasattr(rows.features[name], "int2str")
        }
        for name in self.images:
            rows = rows.cast_column(name, _stored(rows.features[name]))
        self.rows = rows

    @classmethod
    def tiny_config(cls, folder: Path) -> HuggingFaceConfig:
        import datasets

        columns = {
            "image": [{"bytes": coloured_png(colour), "path": None} for colour in COLOURS],
            "caption": [f"a {colour} square" for colour in COLOURS],
        }
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        datasets.Dataset.from_dict(columns, features).save_to_disk(folder / "squares")
        return HuggingFaceConfig(folder / "squares", "{caption} {image}", draw=["image"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        where = f"{self.name}: row {index}"
        try:
            values = self.rows[index]
        except Exception as error:  # the library raises any type of error about damaged values
            raise read_error(f"{where}: cannot read the row: {describe_error(error)}", error) from error
        if self.answer is None:
            segments = list(self._segments(self.template, values, where))
            if isinstance(segments[-1], Image) and segments[-1].draw:
                # Nothing follows the image, so reading it back would train nothing.
                segments[-1] = replace(segments[-1], read=False)
            return Document(tuple(segments), name=where)
        turns = [
            *(replace(each, role="user") for each in self._segments(self.template, values, where)),
            *(replace(each, role="assistant") for each in self._segments(self.answer, values, where)),
        ]
        return Document(tuple(turns), name=where)

    def _segments(self, template: Template, values: Mapping[str, Any], where: str) -> Iterator[Text | Image]:
        """Yield the segments of a row in a template's form.

        Raises:
            DocumentError: a column is null or has an image that cannot be read, or nothing is left.
        """
        text, is_empty = "", True
        for piece in template.pieces:
            if not isinstance(piece, Column):
                text += piece
                continue
            value = values[piece.name]
            if value is None:
                raise DocumentError(f"{where}: column '{printable(piece.name)}': expected a value, got null")
            if piece.name not in self.images:
                text += self._text(piece.name, value, where)
                continue
            for image in value if isinstance(value, list) else [value]:
                if text.strip():
                    yield Text(text.strip())
                text, is_empty = "", False
                place = f"{where}: {printable(piece.name)}"
                picture = stored_picture(stored_value(image), place, self.config.path, None)
                yield Image(picture, draw=piece.name in self.drawn)
        if text.strip():
            yield Text(text.strip())
        elif is_empty:
            raise DocumentError(f"{where}: expected a text or an image, got blank columns")

    def _text(self, column: str, value: Any, where: str) -> str:
        """Return the text of a value: of a label, the name of its class.

        Raises:
            DocumentError: a label that is the number of no class, such as -1 in test splits.
        """
        if column not in self.labels:
            return str(value)
        label = self.labels[column]
        try:
            return str(label.int2str(value))
        except ValueError as error:
            size = count(len(label.names), "class", "classes")
            raise DocumentError(
                f"{where}: column '{printable(column)}': expected the number of one of {size}, got {value}"
            ) from error

    def _open(self) -> datasets.Dataset:
        """Return the rows of the folder, or of its split.

        Raises:
            DocumentError: no folder of `datasets`, or one without the split.
        """
        try:
            import datasets
        except ImportError as error:
            raise DocumentError(f"{self.name}: the library datasets is missing; {INSTALL}") from error
        if not self.config.path.is_dir():
            raise DocumentError(f"{self.name}: no such folder; correct the path of the data set")
        try:
            loaded = datasets.load_from_disk(str(self.config.path))
        except Exception as error:  # the library raises any type of error about a damaged folder
            raise DocumentError(
                f"{self.name}: cannot read the data set: {describe_error(error)}; write it with save_to_disk"
            ) from error
        split = self.config.split
        if isinstance(loaded, datasets.Dataset):
            if split is not None:
                raise DocumentError(
                    f"{self.name}: expected a data set with splits, got one without; remove 'split'"
                )
            return loaded
        if split not in loaded:
            names = ", ".join(map(printable, loaded))
            got = "none" if split is None else f"'{printable(split)}'"
            raise DocumentError(f"{self.name}: expected 'split' to be one of {names}, got {got}")
        return loaded[split]

    def _check_columns(self, rows: datasets.Dataset, columns: list[str]) -> list[str]:
        """Return the columns of images among those of the templates.

        Raises:
            DocumentError: a column is missing, or has neither images, texts nor numbers.
        """
        images = []
        for name in columns:
            if name not in rows.features:
                raise DocumentError(
                    f"{self.name}: missing column '{printable(name)}'; {did_you_mean(name, rows.column_names[:100])}"
                )
            feature = rows.features[name]
            kind = getattr(feature, "feature", feature)
            if type(kind).__name__ == "Image":
                images.append(name)
            elif kind is not feature or not str(getattr(kind, "dtype", "")).startswith(SCALARS):
                raise DocumentError(
                    f"{self.name}: column '{printable(name)}': expected texts, numbers or images, got "
                    f"{excerpt(str(feature))}"
                )
        if wrong := next((name for name in self.config.draw or () if name not in images), None):
            raise DocumentError(
                f"{self.name}: draw: expected columns of images in the template, got '{printable(wrong)}'; "
                + did_you_mean(wrong, images)
            )
        return images


def _stored(feature: Any) -> Any:
    """Return a feature of images as they are stored, not decoded by the library."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    return datasets.List(datasets.Image(decode=False))
