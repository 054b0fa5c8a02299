"""A cache folder for each test, and indexes that this process computes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from bucket_server import Bucket, BucketServer, forget_filesystems

# Times are random when several processes share few cores.
settings.register_profile("dreamkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dreamkit")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache folder of this test. Its files are few: other processes would take longer to start."""
    monkeypatch.setattr("dreamkit.data.index_store.usable_processes", lambda: 1)
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DREAMKIT_CACHE_FOLDER", str(folder))
    return folder


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[BucketServer]:
    """Yield a server of S3. It starts with the first test that needs it."""
    server = BucketServer()
    yield server
    server.stop()


@pytest.fixture
def bucket(bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Yield an empty bucket, whose server and credentials are those of the environment."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_filesystems()
    yield bucket_server.new_bucket()
    forget_filesystems()
