"""What is measured and judged of the query projection and of the label loss."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest

from bench_sections import CPU, MACHINE
from dreamkit.kernels.bench import label_loss, query_projection
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure
from dreamkit.kernels.bench.gradients import COMPILED, TUNED
from dreamkit.kernels.bench.harness import GRAPHS, MEMORY, Bench, Case
from dreamkit.kernels.bench.measurements import FLOOR, Record, Records, Verdict


def sized(ours: float, images: Sequence[int] = query_projection.IMAGES, tuned: float = 5.0) -> Records:
    """Times at the sizes that are measured, in proportion to the images; ours as long as it says, per image."""
    times = {"eager": 20.0, COMPILED: 6.0, TUNED: tuned, "ours": ours, "one launch": 1.5, FLOOR: 1.0}
    return Records(
        Record(table, f"N {count}, C {width}", name, figure=Figure(1e-6 * count * time))
        for count, width in product(images, query_projection.WIDTHS)
        for table in (query_projection.FORWARD, query_projection.FORWARD + GRAPHS)
        for name, time in times.items()
    )


def test_targets_of_the_query_projection() -> None:
    """They are for what users get, and not for a path that would have been faster."""
    assert [verdict.met for verdict in query_projection.targets(sized(1.5))] == [True] * 7
    verdicts = list(query_projection.targets(sized(9.0)))
    assert [verdict.met for verdict in verdicts] == [False, True, False, True, False, False, False]
    assert verdicts[5].found == "36.00 microseconds (N 4, C 768), 500% too much"
    assert verdicts[6].found.startswith("11.11 %") and verdicts[6].found.endswith(", 83% short")


def test_the_better_of_two_compiled_ones_is_the_one_to_beat() -> None:
    verdict = list(query_projection.targets(sized(1.5, tuned=1.0)))[4]
    assert verdict.met is False and verdict.found.endswith(f", {TUNED}), 33% short")


def test_targets_of_what_failed_are_missed() -> None:
    found = Records(
        replace(r, figure=None, problem="x", failed=True) if r.candidate == "ours" else r for r in sized(1.5)
    )
    verdicts = list(query_projection.targets(found))
    assert {verdict.met for verdict in verdicts} == {False}
    assert verdicts[0].found == "failed (N 1, C 768)"


def memory(frozen: float, trained: float) -> list[Verdict]:
    """Verdicts on bytes in the forward pass alone."""
    pairs = ((label_loss.FROZEN, frozen), (label_loss.LEARNED, trained))
    return list(
        label_loss.targets(
            Records(
                Record(table + label_loss.ALONE + MEMORY, "148000 rows", "ours", "B", Figure(size))
                for table, size in pairs
            )
        )
    )


def test_targets_of_the_label_loss() -> None:
    """Beside its logits are gradients of 148000 x 4096 and, trained, 32000 x 4096, in float32 and bfloat16."""
    rows, matrix = 1_212_416_000, 786_432_000
    frozen, trained = memory(rows + 0.4e9, rows + matrix + 0.3e9)
    assert (frozen.met, trained.met) == (True, True)
    assert frozen.found == "0.40 GB besides 1.21 GB of the gradient of the rows (148000 rows)"
    assert trained.found == "0.30 GB besides 2.00 GB of the gradients of rows and matrix (148000 rows)"
    assert [verdict.met for verdict in memory(rows + 0.6e9, rows + matrix + 0.4e9)] == [False, True]
    assert [verdict.met for verdict in memory(rows + 0.4e9, rows + matrix + 0.6e9)] == [True, False]
    assert [verdict.met for verdict in label_loss.targets(Records())] == [None, None]


def test_targets_that_were_not_reached_are_open() -> None:
    verdicts = list(query_projection.targets(sized(1.5, images=(1,))))
    assert {verdict.met for verdict in verdicts} == {None}
    assert [verdict.found for verdict in verdicts if "N >=" in verdict.target] == ["not measured"] * 3


def test_tuning_is_left_out_where_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first case, here."""
    asked: list[Case] = []

    def measured(bench: Bench, case: Case) -> Iterator[Record]:
        asked.append(case)
        bench.longest[case.table] = query_projection.LONG
        yield from ()

    monkeypatch.setattr(query_projection, "measured", measured)
    list(query_projection.section(Bench(Clock(CPU, 0.0), MACHINE, small=True)))
    assert [TUNED in each.candidates for each in asked] == [True, False, False, False]
    assert all(COMPILED in each.candidates for each in asked)
