"""A demo that a signal ends, as a process."""

import signal
from pathlib import Path

from dreamkit_digits.demo_folder import UNFINISHED
from processes import SECONDS, command, wait_until


def test_an_interrupted_demo_can_be_started_again(tmp_path: Path) -> None:
    """A kill leaves its files, which the next demo removes; other signals leave nothing."""
    log = tmp_path / "demo/stage1/log.jsonl"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        is_kill = number == signal.SIGKILL
        with command("demo", "--out", "demo", folder=tmp_path) as process:
            wait_until(lambda: (tmp_path / "demo" / UNFINISHED).is_file(), process)
            if not is_kill:
                wait_until(lambda: log.is_file() and bool(log.read_text()), process)
            process.send_signal(number)
            assert process.wait(SECONDS) == (-number if is_kill else 128 + number)
        assert (tmp_path / "demo").exists() == is_kill
        err = (tmp_path / "stderr").read_text()
        sentence = f"dreamkit: interrupted by {number.name}; the demo was removed; start it again\n"
        assert is_kill or (err.endswith(sentence) and "resume" not in err)
