"""The sections that need nothing but kernels, and the command line they share with those that need models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from dreamkit.errors import DreamkitError
from dreamkit.kernels.bench import assemble_embeddings, label_loss, query_projection
from dreamkit.kernels.bench.results_page import show_verdicts
from dreamkit.kernels.bench.runner import Section, benchmark_device, run

MINUTES = 8.3  # less than nine, for imports and for a last case that takes longer than thought
KERNELS: Final = (
    Section("query_projection", 14, query_projection.section, query_projection.targets),
    Section("assemble_embeddings", 2, assemble_embeddings.section),
    Section("label_loss", 3, label_loss.section, label_loss.targets),
)


def main(program: str, about: str, sections: Sequence[Section]) -> int:
    """Runs what the command line asks for: 0, 1 where a candidate failed, 2 where nothing could be measured."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for the results")
    parser.add_argument("--device", default="cuda", help="where to measure (cuda)")
    parser.add_argument("--small", action="store_true", help="a trial in miniature, whose times mean nothing")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"to end in ({MINUTES})")
    arguments = parser.parse_args()
    try:
        results = run(
            sections,
            benchmark_device(arguments.device, arguments.small),
            small=arguments.small,
            seconds=60 * arguments.minutes,
            out=arguments.out,
        )
    except DreamkitError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    show_verdicts(results, Console(highlight=False, markup=False))
    print(f"wrote {arguments.out}/results.json and {arguments.out}/benchmarks.md")
    return 1 if results.failed else 0
