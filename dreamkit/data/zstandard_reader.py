"""Text of Zstandard files, in bounded memory. The package `zstandard` is a dependency of `dreamkit-data`."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Final

import zstandard
from rich.filesize import decimal

_STEP: Final = 2**10  # bytes that are unpacked at once; 4 bytes of a hostile file become 2**17
_LARGEST_WINDOW: Final = 2**27  # bytes of text that a frame may refer to: the limit of the command zstd
_HEADER: Final = 18  # bytes of a frame's header, at most


class ZstandardReader(io.RawIOBase):
    """The text of all frames of a file, one after another. Reading it leaves `file` open.

    zstandard's own stream ends without an error where a file was cut.

    Raises:
        EOFError: when reading: the file ends inside a frame.
        ValueError: when reading: a damaged frame, or one that needs too much memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame: Any = None
        self._header = self._packed = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the start of `buffer` with text; return the number of its bytes, 0 at the end."""
        while not self._text:
            if not self._unpack():
                return 0
        size = min(len(buffer), len(self._text))
        buffer[:size] = self._text[:size]
        self._text = self._text[size:]
        return size

    def _unpack(self) -> bool:
        """Unpack the next bytes, which may become no text. Return False at the end of the file."""
        packed = self._packed or self._file.read(_STEP)
        if not packed:
            if self._frame is not None:
                raise EOFError("the file ends inside a frame")
            return False
        if self._frame is None:
            self._frame, self._header = self._unpacker.decompressobj(), packed[:_HEADER]
        try:
            self._text = memoryview(self._frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise ValueError(self._window_problem() or str(error)) from error
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True

    def _window_problem(self) -> str | None:
        try:
            window = zstandard.get_frame_parameters(self._header).window_size
        except zstandard.ZstdError:
            return None
        if window <= _LARGEST_WINDOW:
            return None
        return (
            f"expected a window of at most {decimal(_LARGEST_WINDOW)}, got {decimal(window)}; pack it without --long, "
            "or unpack it with unzstd --long=31"
        )
