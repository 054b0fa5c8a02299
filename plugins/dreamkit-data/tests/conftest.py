"""A cache folder for each test, and indexes that this process computes."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
