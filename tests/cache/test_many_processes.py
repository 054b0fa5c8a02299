"""`dreamkit cache` by several processes has the bytes of one, whatever happens to them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cache_processes
from failing_writes import content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    script = [sys.executable, cache_processes.__file__, str(folder)]
    process = subprocess.run(script, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    assert process.returncode == 0, process.stdout[-8000:]
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def errors(result: dict[str, Any]) -> list[str]:
    return [line for line in result["output"].splitlines() if "dreamkit: " in line]


@pytest.mark.parametrize("name", ["two", "three"])
def test_several_processes_write_the_bytes_of_one(folder: Path, results: dict[str, Any], name: str) -> None:
    assert results[name]["codes"] == [0] * len(results[name]["codes"]), results[name]["output"]
    files = content(folder / name)
    assert files == content(folder / "one")
    assert len([file for file in files if file.startswith("latents-")]) > 5
    assert [json.loads(line)["index"] for line in (files["skipped.jsonl"] or b"").splitlines()] == [
        *cache_processes.BAD
    ]


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_one_process_prints_and_shows_the_progress_of_all(results: dict[str, Any], name: str) -> None:
    output = results[name]["output"]
    for text in (f"wrote {name};", "skipped 2 documents", "latents (images: 17)", "take 2.1 kB per image"):
        assert output.count(text) == 1, output
    assert "40/40" in output and "17/17" in output


def test_a_killed_process_ends_the_others_and_the_rest_is_resumed(
    folder: Path, results: dict[str, Any]
) -> None:
    killed = results["killed"]
    assert killed["codes"] == [1, -signal.SIGKILL]
    (line,) = errors(killed)
    assert line.startswith(
        "dreamkit: the process of rank 1 "
    )  # the parent may have reaped it, and knows the signal
    assert line.endswith(f"the finished part is in {folder}/.killed.unfinished; continue with --resume")
    assert results["killed, resumed"]["codes"] == [0] * 3
    assert content(folder / "killed") == content(folder / "one")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_one_process_ends_all_with_its_exit_code(
    folder: Path, results: dict[str, Any], name: str
) -> None:
    assert results[name]["codes"] == [128 + signal.Signals[name]] * 2
    (line,) = errors(results[name])
    assert f"interrupted by {name}; the finished part is in {folder}/.{name}.unfinished" in line
    assert (folder / f".{name}.unfinished").is_dir() == (name != "SIGTERM")
    if name == "SIGTERM":
        assert results["SIGTERM, resumed"]["codes"] == [0]
        assert content(folder / name) == content(folder / "one")


def test_an_error_of_one_process_is_printed_once(folder: Path, results: dict[str, Any]) -> None:
    assert results["failed"]["codes"] == [2] * 3
    (line,) = errors(results["failed"])
    assert "dreamkit: rank 1: cannot write here: No space left on device; the finished part is in " in line
    assert content(folder / "failed") == content(folder / "one")
    assert results["stopped"]["codes"] == [2] * 2
    (line,) = errors(results["stopped"])
    assert "no such image" in line and "gone.png" in line
    assert not (folder / "stopped").exists()
