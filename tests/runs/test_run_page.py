"""The page of a run: complete, bounded, and harmless with any text and number in the run's files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from dreamkit.pages.frame import script_source
from dreamkit.runs.drawing_table import MOST_LINKED, MOST_STEPS
from dreamkit.runs.record import RunRecord
from dreamkit.runs.run_content import MOST_KEYS, MOST_LISTED, RunContent
from dreamkit.runs.run_page import Moment, run_page
from dreamkit.runs.run_page_style import SCRIPT

HOSTILE = '</script><script>alert(1)</script><img src="http://a/b.png" onerror=x> &amp; \x00\x1b\u202e\'"'
START = {"time": "2026-01-02T03:04:05+00:00", "step": 0}
RECORD = RunRecord(
    1,
    0,
    100,
    4,
    2,
    1,
    "CPU",
    {"python": "3.11"},
    [START],
    "",
    {"train": {"steps": 100, "log_every": 1}},  # type: ignore[list-item]
)
VOID = {"meta", "img"}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text outside of styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"unclosed tags: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(folder: Path, name: str, entries: Sequence[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def page_of(
    folder: Path, record: RunRecord = RECORD, *, step: int = 10, is_running: bool = True
) -> tuple[str, Page]:
    content = RunContent(folder)
    content.read()
    html = run_page(record, content, Moment(step, datetime(2026, 1, 2, 3, 5, tzinfo=UTC), is_running, 1))
    return html, Page(html)


def log(number: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "step": n,
            "lm": 1 / n,
            "denoising": None if n % 2 else 0.5,
            "loss": 2 / n,
            "steps_per_second": 0.5,
            **more,
        }
        for n in range(1, number + 1)
    ]


def draw(folder: Path, step: int, prompts: int = 2) -> None:
    place = folder / f"drawings/step-{step}"
    place.mkdir(parents=True)
    for number in range(prompts):
        Image.new("RGB", (28, 28)).save(place / f"{number}.png")


def test_a_run_that_begins_is_shown(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, step=0)
    assert "▶ training" in page.text and "step 0 of 100 (0 %)" in page.text
    assert "No line of log.jsonl yet." in page.text
    assert "2 processes on 1 machine, CPU" in page.text
    assert "python3.11" in page.text


def test_a_running_page_has_its_figures_and_the_time_to_go(tmp_path: Path) -> None:
    write(tmp_path, "log.jsonl", log(10, cut=0, **{"grad_norm": 2.0, "grad_norm.vision": 1.5, "memory": 7}))
    write(tmp_path, "held_out.jsonl", [{"step": 5, "lm": 0.3, "denoising": None, "loss": 0.4}])
    _, page = page_of(tmp_path)
    assert "step 10 of 100 (10 %) · 3 min to go · started 2026-01-02 03:04:05 UTC" in page.text
    labels = [each["aria-label"] for each in page.all("svg") if "aria-label" in each]
    names = [label.partition(" over steps: ")[0] for label in labels]
    assert names == ["Loss", "Text loss", "Image loss", "Gradient norm", "Steps per second", "Memory"]
    assert labels[1].endswith("training from 1 to 0.1; held-out from 0.3 to 0.3")
    assert labels[3].endswith("all from 2 to 2; vision from 1.5 to 1.5")
    assert "Always 0: cut." in page.text


def test_only_a_running_page_loads_itself_again(tmp_path: Path) -> None:
    write(tmp_path, "log.jsonl", log(10))
    html, page = page_of(tmp_path)
    assert len(page.all("script")) == 1 and f"<script>{SCRIPT}</script>" in html
    (policy,) = [
        each["content"]
        for each in page.all("meta")
        if "http-equiv" in each and "Policy" in each["http-equiv"]
    ]
    assert f"script-src {script_source(SCRIPT)}" in policy and "default-src 'none'" in policy
    assert [each for each in page.all("meta") if each.get("http-equiv") == "refresh"]
    html, page = page_of(tmp_path, step=100, is_running=False)
    assert "✓ finished" in page.text and "took 55 s" in page.text
    assert not page.all("script") and "refresh" not in html.partition("</head>")[0].replace(
        "data-refresh", ""
    )
    ended = replace(RECORD, ended="out of memory; step 9 is saved in runs/a/checkpoints/step-9")
    _, page = page_of(tmp_path, ended, step=9, is_running=False)
    assert "■ ended early" in page.text and ended.ended in page.text and not page.all("script")


def test_hostile_texts_are_shown_and_change_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "<b>'&\x1b%2e#"
    folder.mkdir()
    draw(folder, 3)
    write(folder, "log.jsonl", log(4, **{HOSTILE: 1.5}))
    write(folder, "held_out.jsonl", [{"step": 5, HOSTILE: 0.3}])
    skipped = {
        "step": 1,
        "place": 1,
        "data": HOSTILE,
        "index": 1,
        "shard": HOSTILE,
        "member": HOSTILE,
        "reason": HOSTILE,
    }
    write(folder, "skipped.jsonl", [skipped, [], 7])
    write(folder, "spikes.jsonl", [{"step": 2, "norm": HOSTILE, "median": None, "documents": [HOSTILE, 3]}])
    recipe = {"train": {"prompts": [HOSTILE], "log_every": 1}, HOSTILE: HOSTILE}
    record = RunRecord(
        **asdict(RECORD)
        | {"recipe": recipe, "ended": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    )
    html, page = page_of(folder, record)
    assert len(page.all("script")) == 1 and not page.all("link") and not page.all("iframe")
    assert {each["src"] for each in page.all("img")} == {"drawings/step-3/0.png"}
    assert {each["href"] for each in page.all("a")} == {
        "drawings/step-3/0.png",
        "skipped.jsonl",
        "spikes.jsonl",
    }
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", html)
    assert page.text.count("alert(1)") >= 10 and page.text.count("a damaged line") == 2


@given(st.dictionaries(st.text(max_size=5), st.none() | st.floats(-1e299, 1e299) | st.integers(), max_size=5))
def test_any_numbers_of_a_log_have_a_page(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write(folder, "log.jsonl", [{**values, "step": step} for step in (1, 2, 2, 1000)])
    _, page = page_of(folder)
    assert sum(value not in (None, 0) for key, value in values.items() if key != "step") >= len(
        [each for each in page.all("svg") if "aria-label" in each]
    )


def test_drawings_are_a_table_of_relative_files_with_all_steps_reachable(tmp_path: Path) -> None:
    steps = [10 * number for number in range(1, 26)]
    for step in steps:
        draw(tmp_path, step)
    (tmp_path / "drawings/step-250/1.png").unlink()
    _, page = page_of(
        tmp_path, replace(RECORD, recipe={"train": {"prompts": ["a seven", "two"], "log_every": 1}})
    )
    images = [each["src"] for each in page.all("img")]
    first = [
        int(source.split("/")[1].removeprefix("step-")) for source in images if source.endswith("/0.png")
    ]
    assert len(first) == MOST_STEPS and (first[0], first[-1]) == (10, 250)
    assert {b - a for a, b in pairwise(first)} <= {20, 30}
    assert all((tmp_path / source).is_file() for source in images) and "none" in page.text
    assert page.all("img")[0]["alt"] == "a seven, after 10 steps"
    linked = {each["href"] for each in page.all("a")}
    assert {f"drawings/step-{step}/{number}.png" for step in steps for number in (0, 1)} <= linked


def test_the_size_of_a_page_does_not_grow_with_the_run(tmp_path: Path) -> None:
    keys = {f"key-{number}": 0.123456789 for number in range(5)}
    sizes = []
    for number, skipped, drawn in ((2000, 20, MOST_LINKED), (20_000, 2000, 2 * MOST_LINKED)):
        write(tmp_path, "log.jsonl", log(number, **keys))
        write(
            tmp_path, "skipped.jsonl", [{"step": n, "data": 0, "reason": "x" * 100} for n in range(skipped)]
        )
        for step in range(drawn):
            (tmp_path / f"drawings/step-{step}").mkdir(parents=True, exist_ok=True)
        html, page = page_of(tmp_path, step=number)
        sizes.append(len(html))
        assert len(page.all("tr")) < 2 * MOST_LISTED
    assert sizes[1] < 1.5 * sizes[0] and sizes[1] < 400_000


def test_a_growing_log_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, "log.jsonl", log(5))
    content = RunContent(tmp_path)
    parsed = []
    parse = content.log._file.parse
    content.log._file.parse = lambda line: parsed.append(line) or parse(line)
    content.read()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lm": 7.5}\n{"step": 7')
        file.flush()
        content.read()
        assert (len(parsed), content.log.last["lm"]) == (6, 7.5)
        file.write(', "lm": 8.5}\n')
    content.read()
    assert (len(parsed), content.log.step, content.log.last["lm"]) == (7, 7, 8.5)


def test_a_line_with_thousands_of_keys_has_a_bounded_page(tmp_path: Path) -> None:
    write(tmp_path, "log.jsonl", log(3, **{f"k{number}": 1 for number in range(5000)}))
    _, page = page_of(tmp_path)
    assert len(page.all("figure")) <= MOST_KEYS
