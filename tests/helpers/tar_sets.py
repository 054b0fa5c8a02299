"""Small tars of the data set `tars`: shards of digits, and samples of any members."""

import json
from pathlib import Path
from typing import Any

from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits import digits
from tar_files import digit_metadata, encoded


def open_tars(path: Path | list[Path], **settings: Any) -> Tars:
    """Return the data set at a path, with settings of its section."""
    return Tars(TarsConfig(path, **settings))


def sample(key: str, **members: Any) -> list[tuple[str, bytes]]:
    """Return members by their suffixes; a dict is JSON, and True a digit."""
    made = []
    for suffix, content in members.items():
        if content is True:
            content = encoded(digits.load("train").image(0))
        elif isinstance(content, dict):
            content = json.dumps(content).encode()
        elif isinstance(content, str):
            content = content.encode()
        made.append((f"{key}.{suffix}", content))
    return made


SHARDS = [[digit_metadata(10 * shard + n) for n in range(10)] for shard in range(3)]
