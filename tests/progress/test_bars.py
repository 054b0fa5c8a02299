"""Progress bars: their visibility and their text."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len
from rich.console import Console

from dreamkit.progress.bars import Bar


def text(bar: Bar, width: int = 200) -> str:
    """Return the present text of a bar on a console of this width."""
    console = Console(width=width, file=StringIO(), record=True)
    console.print(bar.progress)
    return console.export_text().strip()


def words(bar: Bar) -> str:
    """Return the present text of a bar, without the bar itself."""
    return re.sub(r"[━╸╺\s]+", " ", text(bar)).strip()


def test_a_bar_is_shown_from_its_first_move_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("scoring", "{task.fields[right]} right") as bar:
        bar.stop()
        assert capsys.readouterr() == ("", "")  # a bar that never moves prints nothing
        bar.move(0, 8, right="-")
        assert re.fullmatch(r"scoring 0/8 - right 0:00:0\d -:--:-- left", words(bar))
        bar.move(2)
        bar.move(right=1)
        assert re.fullmatch(r"scoring 2/8 1 right 0:00:0\d (0:00:0\d|-:--:--) left", words(bar))
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
        assert words(bar) == "drawing 0/?"
        bar.move(2, 2)
        bar.stop()
        bar.move(0)  # starts again
        assert words(bar).startswith("drawing 0/2")
        bar.move(1, 2)
    err = capsys.readouterr().err
    assert "drawing" in err and err.endswith("\x1b[1A\x1b[2K")  # the line is erased


FACTS = {"losses": "text 2.3456", "speed": "12.35 ktok/s", "memory": "31.25 GiB"}


def line(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a terminal of this width shows of a bar with three facts."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    bar = Bar("training", *(f"{{task.fields[{name}]}}" for name in FACTS))
    bar.move(20, 1000, **FACTS)
    bar.stop()
    return text(bar, width)


@given(width=st.integers(8, 140))
def test_a_line_fits_and_leaves_out_the_least_important_facts(width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shown = line(width, patch)
    order = [
        "training",
        "20/1000",
        FACTS["losses"],
        "left",
        FACTS["speed"],
        FACTS["memory"],
        "0:00:00 -",
        "━",
    ]
    present = [fact in shown for fact in order]
    assert cell_len(shown) <= width and "\n" not in shown
    assert present == sorted(present, reverse=True) and present[0]


def test_the_bar_has_the_room_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(line(90, monkeypatch)) in (89, 90)
    assert len(re.findall("[━╸]", line(200, monkeypatch))) == 40


def test_a_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 30.0, 61.0, 500.0])
    monkeypatch.setattr("dreamkit.progress.bars.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Bar("training", "{task.fields[losses]}") as bar:
        for step in range(1, 5):
            bar.move(step, 4, losses=f"text {step}.0")
            bar.report()
    lines = [" ".join(each.replace("━", "").split()) for each in capsys.readouterr().err.splitlines()]
    assert [each.split(" 0:")[0] for each in lines] == [f"training {n}/4 text {n}.0" for n in (1, 3, 4)]


def test_a_terminal_gets_no_such_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bar("training") as bar:
        bar.move(1, 4)
        capsys.readouterr()
        bar.report()
        assert "\n" not in capsys.readouterr().err
