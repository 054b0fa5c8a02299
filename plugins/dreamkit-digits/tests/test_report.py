"""The report: one complete page that needs no other file and shows the measured figures."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, strategies as st
from PIL import Image as PIL

from dreamkit import Document, Image, Text
from dreamkit_digits import digits
from dreamkit_digits.curves import Stage, curve
from dreamkit_digits.measure import TARGETS, Measured, Written
from dreamkit_digits.report import Run, report

PICTURE = digits.load("train").image(0)
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements in order as (tag, attributes), and the text; fails where they are not properly nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(expected: int, seen: int | None, text: str = "", role: str | None = None) -> Written:
    prompt = (Text("go <on>", role=role), Image(PICTURE, role=role))
    own = "assistant" if role else None
    drawing = () if seen is None else (Image(PICTURE, draw=True, role=own),)
    continuation = (*((Text(text, role=own),) if text else ()), *drawing)
    seen_digits = () if seen is None else (seen,)
    return Written(
        Document((*prompt, *continuation)), len(prompt), (expected,), seen_digits, seen == expected
    )


def run(**changes: float) -> Run:
    measured = Measured(
        judge_accuracy=0.99,
        judge_samples=397,
        reads=[written(3, None, "is a three")],
        draws=[written(7, 7), written(7, 1), written(8, None)],
        sums=[written(5, 5, "five"), written(5, 6, "six")],
        unseen_sums=[written(4, 4, "nine & <four>")],
        counts=[written(2, 2)],
        chats=[written(9, 9, "a nine", role="user")],
    )
    log = [{"step": 10, "lm": 2.0, "denoising": 0.5}, {"step": 20, "lm": 0.5, "denoising": None}]
    figures = {**measured.figures(), "seed": 3, "seconds": 99.0, "peak_memory_bytes": 1.5e9, **changes}
    return Run([Stage("I", log), Stage("II & more", log)], measured, figures, Path("/somewhere/checkpoint"))


def test_the_page_is_complete_and_needs_no_other_file() -> None:
    html = report(run())
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    addresses = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href")
    ]
    assert addresses and all(value and value.startswith("data:image/png;base64,") for value in addresses)
    assert "url(" not in html and "@import" not in html
    assert "prefers-color-scheme: dark" in html


def test_every_image_is_shown_with_a_description() -> None:
    images = Page(report(run())).all("img")
    assert all(image["alt"] for image in images)
    for image in images:
        data = base64.b64decode((image["src"] or "").partition(",")[2])
        assert PIL.open(io.BytesIO(data)).tobytes() == PICTURE.tobytes()
    assert {image["alt"] for image in images} >= {"drawing of seven", "drawing of seven that looks like one"}


def test_a_wrong_drawing_is_marked_in_words() -> None:
    page = Page(report(run()))
    marked = [attributes for attributes in page.all("figure") if attributes.get("class") == "wrong"]
    assert len(marked) == page.words.count("✗") == 2  # the seven that is a one, the five that is a six
    assert "wrong: five expected" in page.words


def test_text_of_the_model_is_escaped() -> None:
    page = Page(report(run()))
    assert "nine & <four>" in page.words
    assert "go <on>" in page.words


def test_the_table_shows_reached_and_missed_targets() -> None:
    words = Page(report(run(draw_accuracy=0.95, read_accuracy=0.949))).words
    assert "95.0%" in words and "94.9%" in words and "397" in words
    assert words.count("missed") == sum(
        {**run().figures, "draw_accuracy": 0.95, "read_accuracy": 0.949}[name] < least
        for name, least in TARGETS.items()
    )


def test_the_word_of_a_sum_is_counted_apart_from_its_drawing() -> None:
    words = Page(report(run())).words
    assert "The word was right in 1 of 2." in words
    assert "The word was right in 0 of 1." in words


@given(
    st.lists(
        st.lists(st.none() | st.floats(min_value=1e-6, max_value=1e6) | st.just(0.0), max_size=8),
        max_size=4,
    )
)
def test_a_curve_stays_in_its_frame(losses: list[list[float | None]]) -> None:
    stages = [
        Stage(f"<{number}>", [{"step": 10 * (row + 1), "lm": loss} for row, loss in enumerate(stage)])
        for number, stage in enumerate(losses)
    ]
    svg = curve(stages, "lm", "Text & loss")
    shown = [loss for stage in losses for loss in stage if loss]
    if not shown:
        assert svg == ""
        return
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label")
    lines = [element.get("points", "").split() for element in root.iter("polyline")]
    points = [tuple(map(float, point.split(","))) for line in lines for point in line]
    assert len(points) == 2 * len(shown)  # as logged, and their running means
    *_, width, height = map(float, root.get("viewBox", "").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_equal_factors_of_the_loss_are_equal_distances_on_a_curve() -> None:
    log = [{"step": step, "lm": 10.0**-step} for step in range(1, 4)]
    root = ElementTree.fromstring(curve([Stage("I", log)], "lm", "loss"))
    points = next(root.iter("polyline")).get("points", "").split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] < heights[1] < heights[2]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
