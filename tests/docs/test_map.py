"""Check docs/README.md: it links to every page, and its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from every_command import COMMANDS, split_command

DOCS = Path(__file__).parents[2] / "docs"
MAP = (DOCS / "README.md").read_text()


def test_every_page_is_linked() -> None:
    pages = {*DOCS.glob("**/*.md"), *DOCS.glob("**/*.ipynb")} - {DOCS / "README.md"}
    assert pages <= {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)", MAP)}


@pytest.mark.parametrize("line", re.findall(r"`(dreamkit .*?)` \|$", MAP, re.MULTILINE))
def test_a_command_parses(line: str) -> None:
    name, arguments = split_command(shlex.split(line)[1:])
    assert not COMMANDS[name].make_context(name, arguments).args
