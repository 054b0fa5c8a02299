"""Packed files by their first bytes."""

from __future__ import annotations

from typing import Final

COMMANDS: Final = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}


def unpacking_command(head: bytes) -> str | None:
    """Return the command that unpacks a file with these first bytes; None for a file that is not packed."""
    return next((command for magic, command in COMMANDS.items() if head.startswith(magic)), None)
