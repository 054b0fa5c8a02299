"""The page of a run: state, curves, drawings, recipe, and what was skipped. This module loads no torch.

The page needs no file but the drawings, and has one script, which loads the page again while the run goes on. Texts of
files may be hostile: each is escaped, and the policy of the page allows no other script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, Final

import yaml

from dreamkit.errors import count, excerpt, printable_lines
from dreamkit.pages.chart import figure
from dreamkit.pages.frame import POLICY, html_page, script_source, shown
from dreamkit.runs.curve_charts import about, always_zero, run_charts
from dreamkit.runs.drawing_table import Drawings, prompts_of
from dreamkit.runs.durations import duration
from dreamkit.runs.record import RunRecord, started
from dreamkit.runs.run_content import RunContent, late_after, seconds_per_step
from dreamkit.runs.run_page_style import SCRIPT, STYLE
from dreamkit.runs.run_paths import LOG

REFRESH: Final = 5  # seconds between two loads of a page, or those between two lines of the log
SLOWEST: Final = 60
POLICY_OF_RUN: Final = POLICY.replace("img-src data:", "img-src 'self' file: data:")
SHOWN: Final = ("loss", "lm", "denoising", "learning_rate", "grad_norm", "steps_per_second", "data_wait")
MOST_TEXT: Final = 300  # characters of a skipped document's name or reason


@dataclass(frozen=True)
class Moment:
    """The state of a run when its page is written.

    Attributes:
        step: number of finished steps.
        time: the time.
        is_running: flag: the run goes on.
        log_every: steps between lines of the log.
    """

    step: int
    time: datetime
    is_running: bool
    log_every: int


def run_page(record: RunRecord, content: RunContent, moment: Moment) -> str:
    """Return the page of a run."""
    name = content.folder.name
    drawings = Drawings(content.folder, prompts_of(record.recipe), content.folder)
    body = [
        _head(name, record, content, moment),
        _figures(content),
        "<h2>Curves</h2>",
        _curves(content),
        *(["<h2>Drawings over time</h2>", drawings.table()] if len(drawings) else ()),
        *_skipped(content),
        *_spikes(content),
        "<h2>Recipe and versions</h2>",
        _recipe(record.recipe),
        _versions(record),
    ]
    if moment.is_running:
        body.append(f"<script>{SCRIPT}</script>")
    every = _refresh(record, content, moment)
    return html_page(
        f"{_percent(moment.step, record.steps)} {name}" if moment.is_running else name,
        "\n".join(body),
        style=STYLE,
        policy=f"{POLICY_OF_RUN}; script-src {script_source(SCRIPT)}",
        # without scripts, the position on the page is left to the browser
        head=f'<noscript><meta http-equiv="refresh" content="{every}"></noscript>\n'
        if moment.is_running
        else "",
    )


def _head(name: str, record: RunRecord, content: RunContent, moment: Moment) -> str:
    """Return name, state, progress and times."""
    state, sign = (
        ("running", "▶ training")
        if moment.is_running
        else ("ended", "■ ended early")
        if record.ended
        else ("finished", "✓ finished")
    )
    steps = f"step {moment.step:,} of {record.steps:,} ({_percent(moment.step, record.steps)})"
    facts = [steps]
    start = record.starts[-1]
    again = len(record.starts) - 1
    seconds = seconds_per_step(content.log.recent)
    if moment.is_running and seconds is not None:
        remaining = timedelta(seconds=seconds * (record.steps - moment.step))
        facts.append(f"{duration(remaining)} to go")
    resumed = f" (resumed {count(again, 'time')}, last at step {start['step']:,})" if again else ""
    if not moment.is_running:
        facts.append(f"{'ran' if again else 'took'} {duration(moment.time - started(start))}")
    facts.append(f"started {_time(started(record.starts[0]))}{resumed}")
    facts.append(f"page of {_time(moment.time)}")
    where = f"{count(record.processes, 'process')} on {count(record.machines, 'machine')}, {record.device}"
    parts = [
        f'<header><h1>{shown(name)}</h1><span class="state {state}">{sign}</span></header>',
        f'<progress value="{moment.step}" max="{record.steps}" aria-label="finished steps">{steps}</progress>',
        f'<p class="soft">{shown(" · ".join([*facts, where]))}</p>',
    ]
    if record.ended:
        parts.append(f'<p class="problem">{_lines(record.ended)}</p>')
    if moment.is_running:
        every, late = _refresh(record, content, moment), late_after(content.log.recent)
        parts.append(
            f'<p class="problem" id="late" hidden data-refresh="{every}" data-late="{late:.0f}" '
            f'data-written="{moment.time.timestamp() * 1000:.0f}">No new page for <b></b>. The run hangs, or was '
            "killed: <code>dreamkit runs</code> shows which.</p>"
        )
    return "\n".join(parts)


def _refresh(record: RunRecord, content: RunContent, moment: Moment) -> int:
    """Return the seconds between two loads of the page: those between two lines of the log, within limits."""
    return round(min(max(REFRESH, (seconds_per_step(content.log.recent) or 0) * moment.log_every), SLOWEST))


def _figures(content: RunContent) -> str:
    """Return the last figures."""
    last, held_out = content.log.last, content.held_out.last
    items = [(about(key)[0], last[key]) for key in SHOWN if key in last]
    items += [(f"{about(key)[0]}, held-out", value) for key, value in held_out.items() if key in SHOWN]
    shown_items = "".join(
        f"<div><dt>{shown(name)}</dt><dd>{figure(value)}</dd></div>" for name, value in items
    )
    return f'<dl class="figures">{shown_items}</dl>' if items else ""


def _curves(content: RunContent) -> str:
    charts = run_charts(content)
    if not charts:
        return f'<p class="soft">No line of {LOG} yet.</p>'
    notes = []
    if any(line.is_smoothed for line in content.log.lines.values()):
        notes.append("Thin: values of the log. Thick: their running mean.")
    if zero := always_zero(content):
        notes.append(f"Always 0: {', '.join(zero)}.")
    return f'<div class="charts">{"".join(charts)}</div><p class="soft notes">{shown(" ".join(notes))}</p>'


def _skipped(content: RunContent) -> list[str]:
    """Return the last skipped documents."""
    if not content.skipped:
        return []
    total = content.log.last.get("skipped")
    heading = "Skipped documents" if total is None else f"Skipped documents: {figure(total)}"
    rows = [
        None
        if entry is None
        else (
            entry.get("step"),
            f"data.{entry.get('data')}",
            ": ".join(str(entry[key]) for key in ("shard", "member") if entry.get(key) is not None),
            entry.get("reason"),
        )
        for entry in reversed(content.skipped)
    ]
    return [
        f"<h2>{heading}</h2>",
        _table(("step", "data set", "document", "reason"), rows),
        _file("skipped.jsonl"),
    ]


def _spikes(content: RunContent) -> list[str]:
    """Return the last spikes of the gradient norm."""
    if not content.spikes:
        return []
    rows = [
        None
        if entry is None
        else (
            entry.get("step"),
            _number(entry.get("norm")),
            _number(entry.get("median")),
            ", ".join(map(str, documents))
            if isinstance(documents := entry.get("documents"), list)
            else documents,
        )
        for entry in reversed(content.spikes)
    ]
    heads = ("step", "norm", "median before", "documents")
    return ["<h2>Spikes of the gradient norm</h2>", _table(heads, rows), _file("spikes.jsonl")]


def _number(value: Any) -> str:
    return figure(value) if isinstance(value, int | float) and abs(value) < 1e300 else str(value)


def _file(name: str) -> str:
    return f'<p class="soft">The last ones; all are in <a href="{name}">{name}</a>.</p>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any] | None]) -> str:
    """Return a table; a row that is None is a damaged line."""
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        f'<tr><td colspan="{len(heads)}">a damaged line</td></tr>'
        if row is None
        else f"<tr>{''.join(f'<td>{shown(excerpt(str(cell), MOST_TEXT))}</td>' for cell in row)}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="list"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _recipe(recipe: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return f'<details id="recipe"><summary>Recipe</summary><pre>{_lines(text)}</pre></details>'


def _versions(record: RunRecord) -> str:
    starts = [(f"start at step {start['step']:,}", _time(started(start))) for start in record.starts]
    rows = [
        *record.versions.items(),
        ("seed", record.seed),
        ("documents of a step", record.global_batch),
        ("processes", record.processes),
        ("machines", record.machines),
        ("device", record.device),
        *starts[-100:],
    ]
    body = "".join(
        f'<tr><th scope="row">{shown(name)}</th><td>{shown(value)}</td></tr>' for name, value in rows
    )
    return (
        '<details id="versions"><summary>Versions, processes and starts</summary>'
        f'<table class="list"><tbody>{body}</tbody></table></details>'
    )


def _lines(text: str) -> str:
    return escape(printable_lines(text))


def _percent(step: int, steps: int) -> str:
    return f"{100 * step // steps} %"


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
