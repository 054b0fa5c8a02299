"""Documents a minute of `model.generate`: `python tests/benchmarks/generation.py`.

1, 4 and 16 documents of different lengths are written greedily: all in one call, and one call for each. With
`--before CHECKOUT`, another checkout of dreamkit takes turns, in a process of its own with the same weights and
prompts. Lengths are a function of positions alone, so that all do the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import Round, Seconds, medians, now, since, spread, take_turns
from benchmarks.written_models import Course, measured_model, on_course, prompts

TOGETHER, ALONE, BEFORE = "together", "one at a time", "before, together"
COURSES: Final = {
    ("digits", "text"): Course(30, 120, None, 160),
    ("digits", "mixed"): Course(30, 120, 130, 200),
    ("llama", "text"): Course(20, 80, None, 88),
    ("llama", "mixed"): Course(25, 60, 66, 110),
}
STEPS: Final = {"digits": 20, "llama": 4}
SMALL_COURSES: Final = {"text": Course(20, 30, None, 34), "mixed": Course(22, 30, 32, 64)}
DOCUMENTS: Final = (1, 4, 16)


@dataclass(frozen=True)
class Case:
    """Documents of one model and course."""

    model: str
    kind: str
    documents: int
    small: bool

    @property
    def course(self) -> Course:
        return SMALL_COURSES[self.kind] if self.small else COURSES[self.model, self.kind]


class Generation:
    """The generation of this process: models are built once."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, bool], Any] = {}

    def run(self, case: Case, is_together: bool) -> tuple[Seconds, dict[str, int]]:
        """Write the documents in one call, or in one call each; return the seconds, and how much was written."""
        key = case.model, case.small
        if key not in self.models:
            self.models = {key: measured_model(*key)}
            self.run(replace(case, documents=1), is_together)  # the first calls are slower
        model = self.models[key]
        documents = prompts(model, case.course, case.documents)
        settings = {
            "max_tokens": case.course.end,
            "max_images": int(case.course.draw is not None),
            "steps": 2 if case.small else STEPS[case.model],
            "guidance": 7.5,
        }
        counts = {"documents": 0, "images": 0, "tokens": 0}
        with on_course(model, case.course):
            begin = now()
            for batch in [documents] if is_together else [[document] for document in documents]:
                for event in model.generate(batch, **settings):
                    name = type(event).__name__
                    counts["documents"] += name == "DocumentDone"
                    counts["images"] += name == "ImageDone"
                    counts["tokens"] += len(event.ids) if name == "TextPiece" else 0
            return since(begin), counts


def serve(threads: int) -> None:
    """Run the cases that lines of the standard input name; print the result of each in a line."""
    torch.set_num_threads(threads)
    generation = Generation()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(generation.run(Case(**request["case"]), request["is_together"])), flush=True)


@contextmanager
def served(checkout: Path, threads: int) -> Iterator[Callable[[Case, bool], tuple[Seconds, dict[str, int]]]]:
    """Start a process with the dreamkit of `checkout`; yield a function as `Generation.run`, which runs in it."""
    roots = [checkout, *sorted((checkout / "plugins").iterdir())]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, __file__, "--serve", "--threads", str(threads)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(case: Case, is_together: bool) -> tuple[Seconds, dict[str, int]]:
            requests: IO[str] | None = process.stdin
            results: IO[str] | None = process.stdout
            assert requests is not None and results is not None, "both are pipes"
            requests.write(json.dumps({"case": asdict(case), "is_together": is_together}) + "\n")
            requests.flush()
            if not (line := results.readline()):
                raise RuntimeError(f"the process of {checkout} ended; its error is above")
            seconds, counts = json.loads(line)
            return Seconds(*seconds), counts

        try:
            yield run
        finally:
            assert process.stdin is not None, "it is a pipe"
            process.stdin.close()


def same_work(
    runs: Mapping[str, Callable[[], tuple[Seconds, dict[str, int]]]],
) -> dict[str, Callable[[], Seconds]]:
    """Return candidates for `take_turns`, which raise an error if one writes more or less than the others."""
    expected: list[dict[str, int]] = []

    def seconds(name: str) -> Seconds:
        result, counts = runs[name]()
        expected.append(counts)
        if counts != expected[0]:
            raise ValueError(f"{name}: expected {expected[0]}, got {counts}")
        return result

    return {name: partial(seconds, name) for name in runs}


def rows(case: Case, rounds: Sequence[Round]) -> Iterator[list[str]]:
    """Yield the cells of each candidate; its speed is compared with one document at a time, or the loop before."""
    base = ALONE if case.documents > 1 else BEFORE
    for name in rounds[0]:
        wall, cpu = (60 * case.documents / seconds for seconds in medians(rounds, name))
        shares = [each[base].cpu / each[name].cpu for each in rounds if base in each]
        ratio = spread(shares, "{:.2f}") if shares and name != base else ""
        yield [case.model, case.kind, str(case.documents), name, f"{wall:.4g}", f"{cpu:.4g}", ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, which takes turns")
    parser.add_argument(
        "--only", choices=[f"{model}-{kind}" for model, kind in COURSES], help="run these alone"
    )
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS, help="numbers of documents")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--small", action="store_true", help="short texts and a small LLaMA: times mean nothing"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.threads)
        return
    print(
        "| model | documents | number | candidate | a minute | a minute of CPU time | CPU time of one at a time "
        "(of the loop before, for one document) / this |"
    )
    print("|---|---|---|---|---|---|---|")
    torch.set_num_threads(arguments.threads)
    here = Generation().run
    with ExitStack() as stack:
        before = arguments.before and stack.enter_context(
            served(arguments.before.resolve(), arguments.threads)
        )
        for model, kind in COURSES:
            if arguments.only not in (None, f"{model}-{kind}"):
                continue
            for documents in arguments.documents:
                case = Case(model, kind, documents, arguments.small)
                runs = {TOGETHER: partial(here, case, True)}
                if documents > 1:
                    runs[ALONE] = partial(here, case, False)
                if before:
                    runs[BEFORE] = partial(before, case, True)
                for cells in rows(case, take_turns(same_work(runs), arguments.rounds)):
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
