"""Files whose content is their name."""

from pathlib import Path


def write(folder: Path, *names: str) -> None:
    """Write each name into a file of that name; missing folders are created."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
