"""A server of S3 in a process of its own: moto's, with a log of its requests, delays and errors.

`python bucket_server.py` serves on a free port and prints it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import boto3

from dreamkit import Url

CONTROL = "/-control"  # no bucket can have this name


class S3Request(NamedTuple):
    """A request that the server answered: method, path with its query, range of bytes and status."""

    method: str
    path: str
    range: str
    status: int


class BucketServer:
    """The server's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._numbers = count()
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @cached_property
    def client(self) -> Any:
        """A client of boto3."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="hunter2",
        )

    def new_bucket(self) -> Bucket:
        """Create a bucket, and forget the requests before."""
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        self.requests()
        return Bucket(self, name)

    def requests(self) -> list[S3Request]:
        """Return the requests since the last call, in the order of their answers."""
        return [S3Request(*each) for each in self._control({"requests": []})]

    @contextmanager
    def answers(self, **rules: Any) -> Iterator[None]:
        """Answer differently in the block.

        `delay`: seconds before each answer. `status`: of all answers to `method`, or of the first `times` of them, with
        the error `code`.
        """
        self._control({"rules": rules})
        try:
            yield
        finally:
            self._control({"rules": {}})

    def _control(self, values: dict[str, Any]) -> Any:
        with urlopen(Request(self.url + CONTROL, json.dumps(values).encode())) as response:
            return json.loads(response.read())


class Bucket(NamedTuple):
    """A bucket of the server."""

    server: BucketServer
    name: str

    def url(self, key: str) -> Url:
        return Url(f"s3://{self.name}/{key}")

    def put(self, key: str, content: bytes) -> None:
        self.server.client.put_object(Bucket=self.name, Key=key, Body=content)

    def upload(self, folder: Path, prefix: str = "") -> None:
        """Write the files of a folder, each as an object of its name after `prefix`."""
        for file in sorted(each for each in folder.iterdir() if each.is_file()):
            self.put(prefix + file.name, file.read_bytes())

    def delete(self, key: str) -> None:
        self.server.client.delete_object(Bucket=self.name, Key=key)

    def requests(self) -> list[S3Request]:
        """Return the requests to objects since the last call, in the order of their answers."""
        return self.server.requests()


def forget_filesystems() -> None:
    """Let fsspec make new file systems of S3, with the settings of the environment."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


class _Logged:
    """A WSGI application that logs, delays and replaces the answers of another one."""

    def __init__(self, app: Any) -> None:
        self.app, self.requests, self.rules = app, [], {}  # type: ignore[var-annotated]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == CONTROL:
            values = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            answer: Any = self.requests if "requests" in values else None
            if "requests" in values:
                self.requests = []
            self.rules = values.get("rules", self.rules)
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(answer).encode()]
        time.sleep(self.rules.get("delay", 0))
        rules, method = self.rules, environ["REQUEST_METHOD"]
        query = environ.get("QUERY_STRING", "")
        log = [method, path + ("?" + query if query else ""), environ.get("HTTP_RANGE", "")]

        def answer_with(status: str, headers: Any, error: Any = None) -> Any:
            self.requests.append([*log, int(status.split()[0])])
            return start_response(status, headers, error)

        if rules.get("method") == method and rules.get("times", 1) > 0:
            if "times" in rules:
                rules["times"] -= 1
            body = f"<Error><Code>{rules['code']}</Code><Message>{rules['code']}</Message></Error>".encode()
            answer_with(f"{rules['status']} ERROR", [("Content-Type", "application/xml")])
            return [body if method != "HEAD" else b""]
        return self.app(environ, answer_with)


if __name__ == "__main__":
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class _Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def log_request(self, *_: object) -> None:
            pass

    app = _Logged(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()
