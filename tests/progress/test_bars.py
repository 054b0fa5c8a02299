"""Progress bars: their visibility and their text."""

import re
from io import StringIO

import pytest
from rich.console import Console

from dreamkit.progress.bars import Bar


def text(bar: Bar) -> str:
    """Return the present text of a bar, without the bar itself."""
    console = Console(width=120, file=StringIO(), record=True)
    console.print(bar.progress)
    return re.sub(r"[━╸╺\s]+", " ", console.export_text()).strip()


def test_a_bar_is_shown_from_its_first_move_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("scoring", "{task.fields[right]} right") as bar:
        bar.stop()
        assert capsys.readouterr() == ("", "")  # a bar that never moves prints nothing
        bar.move(0, 8, right="-")
        assert re.fullmatch(r"scoring 0/8 - right 0:00:0\d -:--:--", text(bar))
        bar.move(2)
        bar.move(right=1)
        assert re.fullmatch(r"scoring 2/8 1 right 0:00:0\d (0:00:0\d|-:--:--)", text(bar))
    out, err = capsys.readouterr()
    assert out == "" and re.match(r"scoring .*2/8 1 right", err)


def test_an_error_leaves_the_bar_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Bar("scoring") as bar:
        bar.move(3, 4)
        bar.move(1 // 0)
    assert "3/4" in capsys.readouterr().err
    assert not bar.progress.live.is_started


def test_a_transient_bar_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bar("drawing", transient=True) as bar:
        bar.move(0)
        bar.move(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bar("drawing", transient=True) as bar:
        bar.move(0)
        assert text(bar) == "drawing 0/?"
        bar.move(2, 2)
        bar.stop()
        bar.move(0)  # starts again
        assert text(bar).startswith("drawing 0/2")
        bar.move(1, 2)
    err = capsys.readouterr().err
    assert "drawing" in err and err.endswith("\x1b[1A\x1b[2K")  # the line is erased
