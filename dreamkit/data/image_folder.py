"""Folders of images, each beside the `.txt` file of its caption."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image as PIL

from dreamkit.data.unchanged import FileStatus, file_status
from dreamkit.errors import DocumentError, printable
from dreamkit.storage.paths import irregular_kind


class ImageFolder:
    """The images with captions in a folder and its subfolders, in the order of their paths.

    Hidden files and folders are skipped. A linked folder is read once, even if several links lead to it.

    Attributes:
        images: paths of the images.
        statuses: of each image and its caption: size and time of the image, size and time of the caption.
        notes: lines about files and linked folders that are not read.

    Raises:
        DocumentError: no images, an image without a caption, a caption without an image, a loop of links, a broken
            link, a folder that cannot be read, or an image or caption that is not a regular file.
    """

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        suffixes = PIL.registered_extensions()
        files = sorted(self._files(folder))
        self.images = [path for path in files if path.suffix.lower() in suffixes]
        captions = {path for path in files if path.suffix == ".txt"}
        self.statuses = array("q")
        for path in [*self.images, *captions]:
            _refuse_irregular(path)
        for path in self.images:
            caption = path.with_suffix(".txt")
            if caption not in captions:
                raise DocumentError(
                    f"{printable(path)}: missing caption {printable(path.stem)}.txt in the same folder: write it or "
                    "remove the image"
                )
            self.statuses.extend([*file_status(path), *file_status(caption)])
        others = [path for path in files if path.suffix.lower() not in suffixes and path not in captions]
        without_image = sorted(captions - {path.with_suffix(".txt") for path in self.images})
        if without_image:
            raise DocumentError(_missing_image(without_image[0], others))
        if not self.images:
            raise DocumentError(f"{printable(folder)}: no images; correct the path of the data set")
        if others:
            kinds = Counter(path.suffix or path.name for path in others).most_common(10)
            counts = ", ".join(f"{printable(suffix)} ({n:,})" for suffix, n in kinds)
            self.notes.append(
                f"{printable(folder)}: not read: files that are no known images or captions: {counts}"
            )

    def status(self, index: int) -> tuple[FileStatus, FileStatus]:
        """Return the statuses that image `index` and its caption had when the folder was listed."""
        image_size, image_time, caption_size, caption_time = self.statuses[4 * index : 4 * index + 4]
        return FileStatus(image_size, image_time), FileStatus(caption_size, caption_time)

    def _files(self, folder: Path) -> Iterator[Path]:
        """Yield every entry but folders and hidden names; follow links to folders after all other folders."""
        seen: dict[tuple[int, int], Path] = {}
        pending: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, ())]
        links: list[tuple[Path, tuple[tuple[int, int], ...]]] = []
        while pending or links:
            current, above = pending.pop() if pending else links.pop(0)
            try:
                status = current.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    raise DocumentError(
                        f"{printable(current)}: this link leads back to {printable(seen[identity])}, which has it; "
                        "remove the link"
                    )
                if identity in seen:
                    self.notes.append(
                        f"{printable(current)}: not read again: it links to {printable(seen[identity])}"
                    )
                    continue
                seen[identity] = current
                with os.scandir(current) as entries:
                    visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
            except OSError as error:
                raise DocumentError(
                    f"{printable(current)}: cannot read the folder: {error.strerror}"
                ) from error
            for entry in visible:
                if not os.path.isdir(entry):  # unlike DirEntry's own, without an error for a link to itself
                    if not os.path.exists(entry):
                        raise DocumentError(
                            f"{printable(entry.path)}: a link to nothing; correct or remove the link"
                        )
                    yield Path(entry.path)
                elif entry.is_symlink():
                    links.append((Path(entry.path), (*above, identity)))
                else:
                    pending.append((Path(entry.path), (*above, identity)))


def _refuse_irregular(path: Path) -> None:
    try:
        kind = irregular_kind(path)
    except OSError as error:
        raise DocumentError(f"{printable(path)}: cannot read the file: {error.strerror}") from error
    if kind is not None:
        raise DocumentError(f"{printable(path)}: expected a regular file, got {kind}")


def _missing_image(caption: Path, others: list[Path]) -> str:
    """Return the error of a caption without an image; it names a file of another format that may be the image."""
    beside = [path for path in others if path.with_suffix("") == caption.with_suffix("")]
    if beside:
        return (
            f"{printable(beside[0])}: expected an image of a format that Pillow reads, got '{beside[0].suffix}'; "
            "convert it to PNG or JPEG"
        )
    return (
        f"{printable(caption)}: missing image of this name in the same folder: add it or remove the caption"
    )
