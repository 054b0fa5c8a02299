"""Charts: complete for a reader without colours, inside their frame, and harmless with any name and value."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, strategies as st

from dreamkit.pages.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_LINES,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    chart,
    figure,
    line_style,
    short,
)
from dreamkit.pages.frame import POLICY, html_page
from dreamkit.pages.thinning import ThinnedLine

NAMES = st.text(max_size=8) | st.just("</svg><script>alert(1)</script>")
VALUES = st.floats(-1e299, 1e299) | st.floats(-10, 10) | st.integers(-(2**70), 2**70)
LINES = st.lists(
    st.tuples(
        NAMES, st.lists(st.tuples(st.integers(0, 10**15), VALUES), min_size=1, max_size=60), st.booleans()
    ),
    min_size=1,
    max_size=MOST_LINES + 2,
)


def line_of(points: list[tuple[float, float]], name: str = "", *, has_markers: bool = False) -> Line:
    line = ThinnedLine()
    for x, y in sorted(points, key=lambda point: point[0]):
        line.add(x, y)
    return Line(name, line, has_markers)


@given(LINES, NAMES)
def test_a_chart_is_well_formed_and_inside_its_frame(lines: list, title: str) -> None:
    text = chart(title, title, [line_of(points, name, has_markers=marked) for name, points, marked in lines])
    figure = ElementTree.fromstring(text)
    assert {element.tag for element in figure.iter()} <= {
        *("figure", "figcaption", "span", "ul", "li", "svg", "path", "text", "polyline", "circle"),
    }
    for polyline in figure.iter("polyline"):
        for x, y in re.findall(r"([-\d.]+),([-\d.]+)", polyline.get("points", "")):
            assert LEFT - 0.1 <= float(x) <= WIDTH - RIGHT + 0.1
            assert TOP - 0.1 <= float(y) <= HEIGHT - BOTTOM + 0.1
    assert "nan" not in text and "inf" not in text.replace(title, "")


def test_a_chart_has_its_first_and_last_values_as_text() -> None:
    text = chart("Text loss", "of a token", [line_of([(1, 5.0), (2, 3.5)]), line_of([(2, 4.0)], "held-out")])
    label = ElementTree.fromstring(text).find("svg")
    assert label is not None
    assert label.get("aria-label") == "Text loss over steps: Text loss from 5 to 3.5; held-out from 4 to 4"
    assert "held-out 4" in text


def test_lines_differ_without_colours() -> None:
    dashes = [line_style(number).split() for number in range(5)]
    assert len({dash for _, dash in dashes}) == 5
    styles = [line_style(number) for number in range(MOST_LINES)]
    assert len({*styles}) == MOST_LINES


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9])
def test_a_scale_is_logarithmic_if_values_are_far_apart(scale: float) -> None:
    for factor, is_log in ((10, False), (1000, True)):
        text = chart("a", "", [line_of([(1, scale), (2, factor * scale)])])
        assert ("logarithmic" in text) == is_log
    assert "logarithmic" not in chart("a", "", [line_of([(1, 0.0), (2, 1000 * scale)])])


def test_nothing_without_a_point() -> None:
    assert chart("a", "", []) == chart("a", "", [Line("b", ThinnedLine())]) == ""


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.0, 1500, 2e6, 3e9, 1e-05, 0.05)] == [
        *("0", "1.5k", "2M", "3G", "1e-5", "0.05"),
    ]
    assert [figure(value) for value in (5, 12345, 0.123456, 1e-7, 1e20)] == [
        *("5", "12,345", "0.1235", "1e-07", "1e+20"),
    ]


def test_a_page_escapes_its_title_and_loads_nothing() -> None:
    page = html_page("<b>\x1b", "<p>", style="")
    assert r"<title>&lt;b&gt;\x1b</title>" in page and POLICY in page
    assert POLICY.startswith("default-src 'none'") and "script" not in POLICY
