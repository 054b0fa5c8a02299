"""Settings of all tests: one thread per process, no network, and a GPU only for tests that need one."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

CACHE = tempfile.TemporaryDirectory(
    prefix="dreamkit-cache-", ignore_cleanup_errors=True
)  # until this process ends
os.environ.setdefault("DREAMKIT_CACHE_FOLDER", CACHE.name)

# Times are random when several processes share few cores.
settings.register_profile("dreamkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dreamkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "skip the tests named in FILE and add those that pass, to continue a stopped run"
    parser.addoption("--passed", type=Path, metavar="FILE", help=about)


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("--passed")) is not None:
        config.pluginmanager.register(Passed(file, is_worker=hasattr(config, "workerinput")))


class Passed:
    """A plug-in of pytest that keeps the names of passed tests in a file, and deselects them in the next run."""

    def __init__(self, file: Path, *, is_worker: bool) -> None:
        self.file = file
        self.is_worker = is_worker  # the process that started a worker writes the worker's results
        self.before = set(file.read_text().splitlines()) if file.exists() else set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.before])
        items[:] = [item for item in items if item.nodeid not in self.before]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and not self.is_worker:
            with self.file.open("a") as file:
                file.write(f"{report.nodeid}\n")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `dreamkit ARGUMENTS` and returns exit code, standard output and standard error."""
    from dreamkit.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dreamkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run
