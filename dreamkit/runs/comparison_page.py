"""A page that compares runs: differences, figures, curves, drawings. This module loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dreamkit.pages.chart import Line, chart
from dreamkit.pages.frame import html_page, shown
from dreamkit.runs.comparison import (
    ComparedRun,
    Row,
    documents_of_a_step,
    figure_rows,
    other_rows,
    recipe_rows,
)
from dreamkit.runs.curve_charts import HELD_OUT, about, is_always_zero, ordered
from dreamkit.runs.drawing_table import MOST_PROMPTS, Drawings, prompts_of, spread
from dreamkit.runs.run_page import POLICY_OF_RUN
from dreamkit.runs.run_page_style import STYLE
from dreamkit.runs.run_paths import step_of

COLUMNS: Final = 6  # steps with drawings that are shown of a run
MOST_CHARTS: Final = 24
LOSSES: Final = ("loss", "lm", "denoising")


def comparison_page(runs: Sequence[ComparedRun], base: Path) -> str:
    """Return the page of a comparison that lies in the folder `base`, to which its links are relative."""
    title = " and ".join(run.name for run in runs)
    body = [
        f"<h1>{shown(title)}</h1>",
        "<h2>Recipes</h2>",
        _table(recipe_rows(runs), runs, "The recipes are the same."),
        "<h2>Versions and devices</h2>",
        _table(other_rows(runs), runs, "Versions, processes and devices are the same."),
        "<h2>Last figures</h2>",
        _table(figure_rows(runs), runs, ""),
        "<h2>Curves over steps</h2>",
        _charts(runs, [1.0] * len(runs), "step"),
    ]
    documents = [documents_of_a_step(run) for run in runs]
    if len({*documents}) > 1 and None not in documents:
        scales = [float(number or 0) for number in documents]
        body += ["<h2>Losses over documents</h2>", _charts(runs, scales, "document", only=LOSSES)]
    body += _drawings(runs, base)
    return html_page(title, "\n".join(body), style=STYLE, policy=POLICY_OF_RUN)


def _table(rows: Sequence[Row], runs: Sequence[ComparedRun], none: str) -> str:
    """Return a table with a column for each run; `none` is the text without a row."""
    if not rows:
        return f'<p class="soft">{none}</p>'
    head = "".join(f'<th scope="col">{shown(run.name)}</th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row">{shown(row.key)}</th>{"".join(f"<td>{shown(v)}</td>" for v in row.values)}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="list"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _charts(
    runs: Sequence[ComparedRun], scales: Sequence[float], unit: str, only: Sequence[str] | None = None
) -> str:
    """Return a chart for each key of the logs, or of `only`; `scales` turn the steps of a run into the unit."""
    keys = dict.fromkeys(key for run in runs for key in (*run.content.log.lines, *run.content.held_out.lines))
    chosen = ordered(key for key in keys if only is None or key in only)[:MOST_CHARTS]
    charts = [chart(*about(key), [*_lines(key, runs, scales)], unit=unit) for key in chosen]
    return f'<div class="charts">{"".join(charts)}</div>'


def _lines(key: str, runs: Sequence[ComparedRun], scales: Sequence[float]) -> Iterator[Line]:
    for run, scale in zip(runs, scales, strict=True):
        line = run.content.log.lines.get(key)
        if line is not None and not is_always_zero(line):
            yield Line(run.name, line.scaled(scale))
    for run, scale in zip(runs, scales, strict=True):
        if (line := run.content.held_out.lines.get(key)) is not None:
            yield Line(f"{run.name}, {HELD_OUT}", line.scaled(scale), has_markers=True)


def _drawings(runs: Sequence[ComparedRun], base: Path) -> Iterator[str]:
    """Yield a table for each prompt with a row for each run, at steps that all runs have, or else at its own."""
    drawings = [Drawings(run.content.folder, prompts_of(run.recipe), base) for run in runs]
    if not any(map(len, drawings)):
        return
    common = set.intersection(*({step_of(step) for step in each.steps} for each in drawings))
    chosen = [
        spread([step for step in each.steps if not common or step_of(step) in common], COLUMNS)
        for each in drawings
    ]
    yield "<h2>Drawings</h2>"
    prompts = dict.fromkeys(each.heading(number) for each in drawings for number in range(each.rows()))
    for prompt in [*prompts][:MOST_PROMPTS]:
        rows = []
        for run, each, steps in zip(runs, drawings, chosen, strict=True):
            number = next((n for n in range(each.rows()) if each.heading(n) == prompt), None)
            cells = "" if number is None else "".join(each.cell(step, number) for step in steps)
            rows.append(f'<tr><th scope="row">{shown(run.name)}</th>{cells or "<td>none</td>"}</tr>')
        heads = max(chosen, key=len)
        head = "".join(f'<th scope="col">step {step_of(step):,}</th>' for step in heads) if common else ""
        yield (
            f'<h3>{prompt}</h3><div class="scroll"><table class="drawings"><thead><tr><td></td>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )
