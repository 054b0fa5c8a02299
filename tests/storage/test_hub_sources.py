"""Models of the hub: what is requested and downloaded, and the errors without it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HUB_FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"safe",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
    "other/model.safetensors": b"not needed",
}


SHA = "a" * 40


SCRIPT = """
import sys
from dreamkit.storage import sources
from dreamkit.errors import SourceError
sources.PROBE_SECONDS = float(sys.argv[3])
try:
    folder = sources.locate(sys.argv[1], ["config.json"], weights=sys.argv[2] == "weights")
except SourceError as error:
    print("error", error)
else:
    print(*sorted(path.name for path in folder.iterdir()))
"""


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, `known/model`. It answers `broken/*` with a server error and `slow/*` never."""

    requests: list[str]
    closing: threading.Event

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/api/models/known/model/tree"):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in HUB_FILES.items()
            ]
            self.answer(200, json.dumps(files).encode())
        elif self.path.startswith("/api/models/known/model"):
            siblings = [{"rfilename": name} for name in HUB_FILES]
            self.answer(200, json.dumps({"id": "known/model", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith("/known/model/resolve/"):
            self.answer(200, HUB_FILES[self.path.partition(SHA + "/")[2]])
        elif "broken" in self.path:
            self.answer(500, b"")
        elif "slow" in self.path:
            self.closing.wait()
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        digest = hashlib.sha1(body).hexdigest()
        fixed = {"Content-Length": str(len(body)), "ETag": f'"{digest}"', "X-Repo-Commit": SHA}
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a hub on this machine, and the paths of its requests."""
    requests: list[str] = []
    closing = threading.Event()
    handler = type("CountingHub", (Hub,), {"requests": requests, "closing": closing})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def locate_in_subprocess(
    name: str, home: Path, endpoint: str, weights: bool = True, patience: float = 30, **environment: str
) -> str:
    """Run `locate` in a new process, whose hub is at `endpoint`; return its output."""
    inherited = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    inherited.pop("HF_HUB_OFFLINE", None)
    inherited.pop("TRANSFORMERS_OFFLINE", None)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, "weights" if weights else "", str(patience)],
        env={**inherited, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_an_unknown_hub_name_is_requested_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    message = locate_in_subprocess("nobody/nothing", tmp_path, endpoint)
    assert requests == ["/api/models/nobody/nothing"]
    for words in ("nobody/nothing", str(tmp_path / "hub"), endpoint, "does not exist", "HF_HOME"):
        assert words in message


def test_an_error_of_the_hub_is_not_retried(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    assert "answered with an error" in locate_in_subprocess("broken/model", tmp_path, endpoint)
    assert requests == ["/api/models/broken/model"]


def test_a_silent_hub_times_out(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    message = locate_in_subprocess("slow/model", tmp_path, endpoint, patience=0.5)
    assert "could not be reached" in message and "no answer within 0.5 seconds" in message
    assert requests == ["/api/models/slow/model"]


def test_an_unreachable_hub_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    message = locate_in_subprocess("nobody/nothing", tmp_path, "http://127.0.0.1:9")
    for words in ("nobody/nothing", str(tmp_path / "hub"), "could not be reached", "local folder", "HF_HOME"):
        assert words in message


def test_offline_sends_no_request(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    assert "HF_HUB_OFFLINE" in locate_in_subprocess("known/model", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert requests == []


def test_only_needed_files_are_downloaded_and_then_cached(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    assert (
        locate_in_subprocess("known/model", tmp_path, endpoint, weights=False) == "config.json tokenizer.json"
    )
    assert "/api/models/known/model" in requests
    del requests[:]
    assert (
        locate_in_subprocess("known/model", tmp_path, endpoint, weights=False) == "config.json tokenizer.json"
    )
    assert requests == []
    # of the weights, only the safetensors are downloaded
    assert (
        locate_in_subprocess("known/model", tmp_path, endpoint)
        == "config.json model.safetensors tokenizer.json"
    )
    assert not any("pytorch_model" in path or "other/" in path for path in requests)
    del requests[:]
    assert "model.safetensors" in locate_in_subprocess("known/model", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert requests == []
