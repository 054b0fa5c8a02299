"""Standard streams that are full or closed, and a removed working folder: one sentence each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = "dreamkit: cannot write to standard output: No space left on device; free some space"
CLOSED = "dreamkit: cannot write to standard output: Bad file descriptor; redirect it to another file"


def shell(script: str, folder: Path) -> tuple[int, str, str]:
    """Run a script of bash, with `$D` for dreamkit; return exit code, standard output and standard error."""
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"D='{sys.executable} -m dreamkit'\n{script}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("$D recipes > /dev/full", 2, FULL),
        ("$D --help > /dev/full", 2, FULL),
        ("$D check digits/stage1 > /dev/full", 2, FULL),
        ("$D recipes >&-", 2, CLOSED),
        ("$D recipes | true", 1, ""),
        ("$D recipes 2>&1 | true", 1, ""),
        ("$D check digits/stage1 | true", 1, ""),
        ("$D nothing 2> /dev/full", 2, ""),
        ("$D nothing 2>&- >&- <&-", 2, ""),
        ("$D --version 2> /dev/full", 0, ""),
        (
            "mkdir x; cd x; rmdir ../x; $D check digits/stage1",
            2,
            "dreamkit: the working folder cannot be used",
        ),
    ],
)
def test_a_stream_or_working_folder_that_fails_is_one_sentence(
    tmp_path: Path, script: str, code: int, message: str
) -> None:
    result = shell(script, tmp_path)
    assert result[0] == code and result[2].count("\n") == bool(message), result
    assert result[2].startswith(message) and (message or not result[2])


def test_a_full_standard_output_in_a_file_names_the_space(tmp_path: Path) -> None:
    code, _, err = shell("ulimit -f 0; $D recipes > out", tmp_path)
    assert code == 2 and "cannot write to standard output: File too large (at most 0 bytes in a file, " in err


def test_a_new_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    command = "new-plugin dreamkit-wave --kind projector"
    code, _, err = shell(f"$D {command} --out a; $D {command} --out b >&-", tmp_path)
    assert code == 2 and err == f"{CLOSED}\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"next:" in path.read_bytes()] == []
    assert len([*(tmp_path / "a").rglob("*")]) == len([*(tmp_path / "b").rglob("*")]) > 5


LINES = """
import logging, sys, warnings
from dreamkit.cli import streams
streams.prepare()
import transformers
value = "a\x1b[2J\\nFORGED " + 100 * "QUJD"
transformers.logging.get_logger("transformers.any").warning("%s", value)
logging.getLogger("any.other").warning(value)
logging.getLogger("dreamkit_any").warning("'%s'", value)
warnings.warn(value)
"""


def test_a_line_of_a_library_is_one_short_line_without_control_characters(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LINES], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True
    )
    lines = process.stderr.splitlines()
    assert len(lines) == 4 and all("a\\x1b[2J FORGED QUJDQUJD" in line for line in lines), process.stderr
    assert not any("\x1b" in line or 21 * "QUJD" in line for line in lines)


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        (None, ["warned"]),
        ("", ["warned"]),
        ("warning", ["warned"]),
        ("INFO", ["dreamkit_any: informed", "dreamkit_any: warned"]),
        ("error", []),
    ],
)
def test_the_log_of_a_part_is_printed_from_the_named_level_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str | None, lines: list[str]
) -> None:
    if level is None:
        monkeypatch.delenv("DREAMKIT_LOG", raising=False)
    else:
        monkeypatch.setenv("DREAMKIT_LOG", level)
    script = """
import logging
from dreamkit.cli import streams
streams.prepare()
streams.show_logs()
log = logging.getLogger("dreamkit_any")
log.info("informed")
log.warning("warned")
"""
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True
    )
    assert process.stderr.splitlines() == lines


@pytest.mark.parametrize(
    ("level", "own", "lines"),
    [
        (None, "", {"warning"}),
        ("", "", {"warning"}),
        ("INFO", "", {"info", "warning"}),
        ("error", "", set()),
        ("error", "info", {"info", "warning"}),
    ],
)
def test_the_level_is_that_of_libraries_with_one_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str | None, own: str, lines: set[str]
) -> None:
    monkeypatch.delenv("DREAMKIT_LOG", raising=False)
    if level is not None:
        monkeypatch.setenv("DREAMKIT_LOG", level)
    libraries = {"transformers": "TRANSFORMERS", "diffusers": "DIFFUSERS", "huggingface_hub": "HF_HUB"}
    for variable in libraries.values():
        monkeypatch.setenv(f"{variable}_VERBOSITY", own)
    script = """
from dreamkit.cli import streams
streams.prepare()
streams.show_logs()
import diffusers.utils.logging, huggingface_hub.utils.logging, transformers.utils.logging
for library in (diffusers, huggingface_hub, transformers):
    log = library.utils.logging.get_logger(f"{library.__name__}.any")
    log.info(f"info of {library.__name__}")
    log.warning(f"warning of {library.__name__}")
"""
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True
    )
    printed = {
        library: {each for each in ("info", "warning") if f"{each} of {library}" in process.stderr}
        for library in libraries
    }
    assert printed == dict.fromkeys(libraries, lines), process.stderr


def test_an_unknown_level_is_refused(tmp_path: Path) -> None:
    code, _, err = shell("DREAMKIT_LOG=all $D recipes", tmp_path)
    assert (code, err) == (
        2,
        "dreamkit: DREAMKIT_LOG: expected one of debug, info, warning, error, got 'all'\n",
    )
