"""The contract kit itself: its checks, its reports and its errors."""

from __future__ import annotations

import gc
import re
import sys
import tempfile
import unittest
from pathlib import Path

import einops
import pytest
import torch

from dreamkit.data.dataset import Dataset
from dreamkit.parts.projectors import Linear
from dreamkit.testing import ContractError, KitError, Outcome, Report, contracts
from dreamkit.testing.check import CHECKS, Check
from dreamkit.testing.subject_kinds import KINDS
from dreamkit_transformers.llama import Llama
from meta.breaking import with_method
from meta.datasets import CountsSamples, Notes
from meta.parts import Misspelled, NoPosteriorMethod, NoPosteriorModule

KIND = "projector"
sound = contracts.tiny_part(Linear)


def broken(change):
    return contracts.tiny_part(with_method(Linear, "forward", change))


def outcome_of(change, check="batch_of_one"):
    """Return the outcome of one check of a Linear whose forward is `change`."""
    (outcome,) = contracts.verify(KIND, broken(change), only=check).outcomes
    return outcome


def part_without(name):
    part = sound()
    delattr(part, name)
    return part


def line_of(function):
    return function.__code__.co_firstlineno


def loses_a_row(self, forward, tokens):
    return forward(tokens)[:-1]


# names


def test_the_kit_exports_its_public_names():
    import dreamkit.testing

    assert dreamkit.testing.__all__ == ["ContractError", "KitError", "Outcome", "Report", "contracts"]
    assert contracts.__all__ == ["checks", "parametrize", "tiny_dataset", "tiny_part", "verify"]
    assert all(hasattr(dreamkit.testing, name) for name in dreamkit.testing.__all__)
    assert all(hasattr(contracts, name) for name in contracts.__all__)


@pytest.mark.parametrize("kind", KINDS)
def test_each_check_has_a_name_a_property_and_a_rationale(kind):
    checks = contracts.checks(kind)
    assert len({check.name for check in checks}) == len(checks) > 10
    for check in checks:
        assert kind in check.kinds
        assert check.holds.endswith(".") and check.rationale.endswith("."), check.name


def test_every_check_belongs_to_a_kind():
    assert {check.name for check in CHECKS} == {
        check.name for kind in KINDS for check in contracts.checks(kind)
    }


def test_an_unknown_kind_is_an_error_with_the_nearest_name():
    with pytest.raises(KitError, match="unknown kind 'projectr'; did you mean 'projector'"):
        contracts.checks("projectr")


def test_tiny_part_refuses_a_class_that_is_not_a_part():
    with pytest.raises(KitError, match=r"expected a subclass of VisionEncoder, .*, got <class 'int'>"):
        contracts.tiny_part(int)


def test_tiny_dataset_refuses_a_class_without_an_example():
    class Bare(Dataset):
        __init__ = __len__ = __getitem__ = None

    with pytest.raises(KitError, match=r"Bare has no example; write one in .*, or pass a function"):
        contracts.tiny_dataset(Bare)
    with pytest.raises(KitError, match="expected a subclass of Dataset, got <class 'int'>"):
        contracts.tiny_dataset(int)
    with pytest.raises(KitError, match=r"expected contracts.tiny_dataset\(...\) for a data set"):
        contracts.verify("dataset", Notes)


def fails(folder):
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda folder: None, "expected a Config from the function that writes the example, got None"),
        (fails, "writing the example failed: OSError: disk full"),
        (
            lambda folder: Notes.Config(folder),
            "building the data set failed: DocumentError: .*: no .txt files",
        ),
    ],
    ids=["no config", "raises", "no files"],
)
def test_a_data_set_that_cannot_be_built_fails_every_check(write, problem):
    only = ["length", "notes"]
    report = contracts.verify("dataset", contracts.tiny_dataset(Notes, write), only=only)
    first, second = (outcome.message for outcome in report.failures)
    assert re.match(rf".*\.py:\d+: {problem}", first)
    assert second.startswith("the same error as in `length`, at ")


def test_a_failure_of_a_data_set_names_both_documents_and_the_call():
    (outcome,) = contracts.verify(
        "dataset", contracts.tiny_dataset(CountsSamples), only="sample_repeats"
    ).outcomes
    first, *others = outcome.message.splitlines()
    call = "dataset.sample(0, random.Random(0))"
    expected = rf"expected segment 2 of {re.escape(call)} as of an equal call: '\d+', got '\d+'"
    assert re.search(f"datasets.py:\\d+: {expected}$", first)
    assert f"  during {call}" in others and "  smallest failing input: index=0, seed=0" in others


def test_the_files_of_an_example_are_removed():
    before = set(Path(tempfile.gettempdir()).glob("dreamkit-kit-*"))
    report = contracts.verify(
        "dataset", contracts.tiny_dataset(Notes), only=["length", "damaged_files"], quick=True
    )
    assert report.ok
    gc.collect()
    assert set(Path(tempfile.gettempdir()).glob("dreamkit-kit-*")) <= before


# reports


def test_a_report_ends_with_the_counts():
    report = contracts.verify(KIND, sound, quick=True)
    assert report.ok and not report.failures
    assert {outcome.check for outcome in report.outcomes} == {c.name for c in contracts.checks(KIND)}
    count = len(report.outcomes)
    assert str(report).endswith(f"{count} checks ran: {count} passed, 0 failed; 0 skipped")


def test_verify_runs_only_the_named_checks():
    report = contracts.verify(KIND, sound, only=["determinism", "dtype_kept"])
    assert [outcome.check for outcome in report.outcomes] == ["determinism", "dtype_kept"]
    with pytest.raises(
        KitError, match="unknown check 'determinsm' of a projector; did you mean 'determinism'"
    ):
        contracts.verify(KIND, sound, only="determinsm")
    with pytest.raises(KitError, match="unknown check 'any_neighbours' of an image decoder; "):
        contracts.verify("image_decoder", sound, only="any_neighbours")


def test_a_report_in_which_nothing_passed_is_not_ok():
    assert not Report("nothing").ok
    assert not Report("skipped", [Outcome("one", "skipped", "why")]).ok
    assert not Report("expected", [Outcome("one", "expected", "why")]).ok


def test_a_failure_names_expected_and_actual_value_call_input_and_command():
    message = outcome_of(loses_a_row, "spec_agrees").message
    assert message.splitlines() == [
        "expected projected.shape (N, out_tokens, out_dim)=(2, 16, 32), got (1, 16, 32)",
        "  spec_agrees: A part's output is finite and has the shape in its spec.",
        "  during forward(tokens of shape (2, 16, 24))",
        "  smallest failing input: case=Case(rows=2, length=2, seed=0)",
        "  repeat it with: contracts.verify('projector', build, only='spec_agrees')",
    ]


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (NoPosteriorModule, "expected a posterior_module beside posterior, got None"),
        (
            Misspelled,
            "expected the name of a submodule of Misspelled in posterior_module, got 'vea'; did you mean 'vae'",
        ),
        (NoPosteriorMethod, "missing posterior, but posterior_module is 'network'"),
    ],
)
def test_posterior_and_posterior_module_need_each_other(part, problem):
    (failure,) = contracts.verify(
        "image_decoder", contracts.tiny_part(part), only="posterior_agrees", quick=True
    ).failures
    assert re.match(rf".*meta/parts\.py:\d+: {problem}.*\n  posterior_agrees: ", failure.message)


def test_the_failing_input_is_shrunk():
    def fails_from_seed_100_on(self, forward, tokens):
        torch.manual_seed(100)
        is_failing = any(
            torch.equal(tokens, torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)))
            for seed in range(100, 1000)
        )
        return forward(tokens) * (float("nan") if is_failing else 1)

    assert (
        "case=Case(rows=2, length=2, seed=100)" in outcome_of(fails_from_seed_100_on, "spec_agrees").message
    )


def test_an_exception_of_the_part_is_a_failure():
    def breaks(self, forward, tokens):
        raise RuntimeError("out of\npaper")

    outcome = outcome_of(breaks)
    assert outcome.result == "failed"
    place, _, problem = outcome.message.partition(": ")
    assert place.endswith(f"test_contracts.py:{line_of(breaks) + 1}")
    assert problem.startswith("RuntimeError: out of paper\n  batch_of_one: A batch of one row gives")


def test_the_place_is_the_line_of_the_author():
    """It is not the line of a library, nor of an error that the part turns into another."""

    def breaks(self, forward, tokens):
        try:
            return torch.zeros(1)[{}["rows"]]
        except KeyError as error:
            raise ValueError("no rows") from error

    message = outcome_of(breaks).message
    assert f"test_contracts.py:{line_of(breaks) + 4}: ValueError: no rows\n" in message

    def breaks_torch(self, forward, tokens):
        return einops.rearrange(tokens, "a b -> b a")

    assert f"test_contracts.py:{line_of(breaks_torch) + 1}: EinopsError: " in outcome_of(breaks_torch).message


def test_the_place_of_a_wrong_result_is_the_class():
    class Short(Linear):
        def forward(self, tokens):
            return super().forward(tokens)[:-1]

    (outcome,) = contracts.verify(KIND, contracts.tiny_part(Short), only="spec_agrees").outcomes
    assert re.match(
        rf".*test_contracts\.py:{line_of(Short.forward) - 1}: expected projected\.shape ", outcome.message
    )


def test_an_error_that_is_its_own_cause_has_a_place():
    def breaks(self, forward, tokens):
        error = RuntimeError("round and round")
        raise error from error

    assert f"test_contracts.py:{line_of(breaks) + 2}: RuntimeError: round" in outcome_of(breaks).message


def test_a_long_error_is_shortened():
    def breaks(self, forward, tokens):
        raise RuntimeError("too long a story " * 1000)

    first = outcome_of(breaks).message.splitlines()[0]
    assert first.endswith(" ...") and 600 < len(first) < 700 + len(__file__)


def test_a_mistake_is_reported_once():
    """Errors at one line that differ only in numbers are one mistake."""

    def breaks(self, forward, tokens):
        if tokens.dtype == torch.float64:
            raise RuntimeError("no float64")
        raise RuntimeError(f"cannot take {len(tokens)} rows of {tokens.shape[-1]}")

    names = ["determinism", "batch_of_one", "any_neighbours", "dtype_kept"]
    outcomes = contracts.verify(KIND, broken(breaks), only=names).outcomes
    places = [f"test_contracts.py:{line_of(breaks) + line}" for line in (2, 3)]
    assert f"{places[1]}: RuntimeError: cannot take 2 rows of 24\n  determinism: " in outcomes[0].message
    for outcome in outcomes[1:3]:
        assert re.fullmatch(rf"the same error as in `determinism`, at .*{places[1]}", outcome.message)
    assert f"{places[0]}: RuntimeError: no float64\n  dtype_kept: " in outcomes[3].message


def test_an_expected_failure_does_not_count_as_a_report_of_its_mistake():
    def breaks(self, forward, tokens):
        raise RuntimeError("out of paper")

    names = ["determinism", "batch_of_one"]
    report = contracts.verify(KIND, broken(breaks), only=names, expected_failures={"determinism": "known"})
    assert "RuntimeError: out of paper\n  batch_of_one: " in report.outcomes[1].message


def test_a_part_that_exits_fails():
    def exits(self, forward, tokens):
        sys.exit(0)

    outcome = outcome_of(exits)
    assert outcome.result == "failed"
    assert "expected the part to pass or fail this check, got SystemExit: 0" in outcome.message


SKIPS = [unittest.SkipTest("no time"), pytest.skip.Exception("no time"), pytest.xfail.Exception("no time")]


@pytest.mark.parametrize("skip", SKIPS, ids=lambda skip: type(skip).__name__)
@pytest.mark.parametrize("where", ["forward", "dense_layers", "build"])
def test_a_part_that_skips_its_check_fails(where, skip):
    """It may raise in a computation, in the decision to skip the check, and while it is built."""

    def skips(self, original, *args):
        raise skip

    def build():
        raise skip

    check = "dense_layers_agree" if where == "dense_layers" else "batch_of_one"
    part = build if where == "build" else contracts.tiny_part(with_method(Linear, where, skips))
    (outcome,) = contracts.verify(KIND, part, only=check).outcomes
    assert outcome.result == "failed" and "no time" in outcome.message


def test_a_failure_that_does_not_repeat_is_reported_as_such():
    calls = []

    def sometimes(self, forward, tokens):
        calls.append(1)
        return forward(tokens) * (float("nan") if len(calls) == 3 else 1)

    message = outcome_of(sometimes, "spec_agrees").message
    assert "not again on the same input: the part is not deterministic" in message


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda: 1 / 0, "build() failed: ZeroDivisionError: division by zero"),
        (lambda: sys.exit(0), "build() failed: SystemExit: 0"),
        (lambda: torch.nn.Linear(2, 2), "expected a dreamkit.Projector from build(), got a Linear"),
        (lambda: part_without("config"), "missing 'config' of the Linear from build(); set it in __init__"),
        (
            lambda: part_without("spec"),
            "expected a ProjectorSpec as the part's 'spec', got a NoneType; set it in __init__",
        ),
        (lambda: (torch.manual_seed(0), sound())[1], "build() sets torch's seed; remove that"),
    ],
    ids=["raises", "exits", "other class", "no config", "no spec", "own seed"],
)
def test_a_part_that_cannot_be_built_fails_every_check(build, problem):
    report = contracts.verify(KIND, build, only=["determinism", "dtype_kept"])
    assert [outcome.result for outcome in report.outcomes] == ["failed", "failed"]
    first, second = (outcome.message for outcome in report.outcomes)
    assert problem in first and second.startswith("the same error as in `determinism`, at ")


@pytest.mark.parametrize(
    ("add_tokens", "problem"),
    [
        (
            lambda self, original, tokens: original(tokens)[:1],
            "expected 2 ids from add_tokens(['<kit_one>', '<kit_two>']), got [260]",
        ),
        (lambda self, original, tokens: {}["no"], "preparing the part failed: KeyError: 'no'"),
    ],
    ids=["too few", "raises"],
)
def test_a_part_that_cannot_be_prepared_fails(add_tokens, problem):
    part = contracts.tiny_part(with_method(Llama, "add_tokens", add_tokens))
    (outcome,) = contracts.verify("language_model", part, only="causality").outcomes
    assert outcome.result == "failed" and problem in outcome.message


def test_an_error_of_the_kit_does_not_end_the_report(monkeypatch):
    monkeypatch.setattr(Check, "test", lambda *args, **kwargs: 1 / 0)
    (outcome,) = contracts.verify(KIND, sound, only="determinism").outcomes
    assert outcome.message == "determinism could not run: ZeroDivisionError: division by zero"


def test_the_global_random_state_does_not_change():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    contracts.verify(KIND, sound, quick=True)
    assert torch.equal(torch.rand(3), expected)


# expected failures


def test_an_expected_failure_is_reported_as_expected():
    expected = {"spec_agrees": "known"}
    report = contracts.verify(KIND, broken(loses_a_row), only="spec_agrees", expected_failures=expected)
    (outcome,) = report.outcomes
    assert (outcome.result, outcome.message) == ("expected", "known")
    assert str(report).endswith("1 check ran: 0 passed, 0 failed, 1 failed as expected; 0 skipped")


def test_an_expected_failure_that_passes_is_an_error():
    report = contracts.verify(
        KIND, sound, only="determinism", expected_failures={"determinism": "it rolls dice"}
    )
    assert not report.ok
    assert report.failures[0].message == "expected a failure (it rolls dice), but the check passes"


def test_an_expected_failure_of_a_skipped_check_is_an_error():
    class Mixed(Linear):
        def dense_layers(self):
            return None

    expected = {"dense_layers_agree": "why not"}
    report = contracts.verify(
        KIND, contracts.tiny_part(Mixed), only="dense_layers_agree", expected_failures=expected
    )
    message = (
        "expected a failure of dense_layers_agree (why not), but the check does not run: its dense_layers()"
    )
    assert message in str(report) and not report.ok


def test_an_unknown_expected_failure_is_an_error():
    for use in (contracts.verify, contracts.parametrize):
        with pytest.raises(KitError, match="unknown check 'determinsm' of a projector; did you mean"):
            use(KIND, sound, expected_failures={"determinsm": "a slip"})


def test_a_check_of_parametrize_raises_for_a_broken_part():
    mark = contracts.parametrize(KIND, broken(loses_a_row)).args
    bound = {param.id: param.values[0] for param in mark[1]}
    with pytest.raises(ContractError, match=r"^expected projected\.shape.*\n  spec_agrees: "):
        bound["spec_agrees"]()


def test_a_check_is_found_by_its_earlier_name():
    from dreamkit_diffusers.stable_diffusion import StableDiffusion

    build = contracts.tiny_part(StableDiffusion)
    with pytest.warns(DeprecationWarning, match="'sample_seed' is now called 'draw_seed'"):
        (outcome,) = contracts.verify("image_decoder", build, only="sample_seed", quick=True).outcomes
    assert (outcome.check, outcome.result) == ("draw_seed", "passed")
