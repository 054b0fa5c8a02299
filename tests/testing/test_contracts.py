"""The contract kit itself: what it runs, what it reports, and what it refuses."""

from __future__ import annotations

import re
import sys
import unittest

import einops
import pytest
import torch

from dreamkit.parts.projectors import Linear
from dreamkit.testing import ContractError, KitError, Outcome, Report, contracts
from dreamkit.testing.check import CHECKS, Check
from dreamkit.testing.subject_kinds import KINDS
from dreamkit_transformers.llama import Llama
from meta.breaking import computing
from meta.parts import Misspelled, Promising, Rootless

KIND = "projector"
sound = contracts.tiny_part(Linear)
ON_LINEAR = {"light_import": "only a test knows it", "dense_layers_agree": "it is more than a matrix"}


def broken(change):
    return contracts.tiny_part(computing(Linear, "forward", change))


def only(change, check="batch_of_one"):
    """What one check says of a Linear that computes something else."""
    (outcome,) = contracts.verify(KIND, broken(change), only=check).outcomes
    return outcome


def without(name):
    part = sound()
    delattr(part, name)
    return part


def line_of(function):
    return function.__code__.co_firstlineno


def loses_a_row(self, forward, tokens):
    return forward(tokens)[:-1]


# what there is


def test_the_public_names_are_these():
    import dreamkit.testing

    assert dreamkit.testing.__all__ == ["ContractError", "KitError", "Outcome", "Report", "contracts"]
    assert contracts.__all__ == ["checks", "parametrize", "tiny_part", "verify"]
    assert all(hasattr(dreamkit.testing, name) for name in dreamkit.testing.__all__)
    assert all(hasattr(contracts, name) for name in contracts.__all__)


@pytest.mark.parametrize("kind", KINDS)
def test_checks_have_names_and_say_what_they_protect_from(kind):
    checks = contracts.checks(kind)
    assert len({check.name for check in checks}) == len(checks) > 10
    for check in checks:
        assert kind in check.kinds
        assert check.holds.endswith(".") and check.rationale.endswith("."), check.name


def test_every_check_is_of_a_kind():
    assert {check.name for check in CHECKS} == {
        check.name for kind in KINDS for check in contracts.checks(kind)
    }


def test_an_unknown_kind_is_an_error_with_the_nearest_name():
    with pytest.raises(KitError, match="there is no kind 'projectr'; did you mean 'projector'"):
        contracts.checks("projectr")


def test_what_is_no_part_has_no_miniature():
    with pytest.raises(KitError, match=r"<class 'int'> is no part; give a subclass of VisionEncoder"):
        contracts.tiny_part(int)


# reports


def test_a_report_counts():
    report = contracts.verify(KIND, sound, quick=True)
    assert report.ok and not report.failures
    assert {outcome.check for outcome in report.outcomes} == {c.name for c in contracts.checks(KIND)}
    count = len(report.outcomes)
    assert str(report).endswith(
        f"{count} checks ran: {count} passed, 0 failed, 0 failed as expected; 0 skipped"
    )


def test_only_some_checks():
    report = contracts.verify(KIND, sound, only=["determinism", "dtype_kept"])
    assert [outcome.check for outcome in report.outcomes] == ["determinism", "dtype_kept"]
    with pytest.raises(
        KitError, match="there is no check 'determinsm' of a projector; did you mean 'determinism'"
    ):
        contracts.verify(KIND, sound, only="determinsm")
    with pytest.raises(KitError, match="there is no check 'any_neighbours' of an image decoder; "):
        contracts.verify("image_decoder", sound, only="any_neighbours")


def test_a_report_of_nothing_is_not_ok():
    assert not Report("nothing").ok
    assert not Report("skipped", [Outcome("one", "skipped", "why")]).ok
    assert not Report("expected", [Outcome("one", "expected", "why")]).ok


def test_a_failure_says_found_wanted_call_input_and_command():
    message = only(loses_a_row, "spec_agrees").message
    found = "projected.shape=(1, 16, 32), but should be (N, out_tokens, out_dim)=(2, 16, 32)"
    lines = message.splitlines()
    assert lines == [
        found,
        "  spec_agrees: What a part gives has the shape that its spec says, and is finite.",
        "  during forward(tokens of shape (2, 16, 24))",
        "  smallest failing input: case=Case(rows=2, length=2, seed=0)",
        "  repeat it with: contracts.verify('projector', build, only='spec_agrees')",
    ]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Rootless, "posterior is given, but posterior_module is None"),
        (Misspelled, "posterior_module names 'vea', which Misspelled has not; did you mean 'vae'?"),
        (Promising, "posterior_module is 'network', but posterior is not given"),
    ],
)
def test_what_makes_latents_must_be_named(part, said):
    (failure,) = contracts.verify(
        "image_decoder", contracts.tiny_part(part), only="posterior_agrees", quick=True
    ).failures
    assert re.match(rf".*meta/parts\.py:\d+: {said}.*\n  posterior_agrees: ", failure.message)


def test_the_input_is_shrunk():
    """What breaks at seeds from 100 on is reported at 100."""

    def large(self, forward, tokens):
        torch.manual_seed(100)
        is_it = any(
            torch.equal(tokens, torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)))
            for seed in range(100, 1000)
        )
        return forward(tokens) * (float("nan") if is_it else 1)

    assert "case=Case(rows=2, length=2, seed=100)" in only(large, "spec_agrees").message


def test_an_exception_of_the_part_is_its_failure():
    def breaks(self, forward, tokens):
        raise RuntimeError("out of\npaper")

    outcome = only(breaks)
    assert outcome.result == "failed"
    place, _, said = outcome.message.partition(": ")
    assert place.endswith(f"test_contracts.py:{line_of(breaks) + 1}")
    assert said.startswith("RuntimeError: out of paper\n  batch_of_one: The smallest input, one row, gives")


def test_the_place_is_the_authors_own_line():
    """Not that of a library that the part calls, nor that of an error which the part makes another of."""

    def breaks(self, forward, tokens):
        try:
            return torch.zeros(1)[{}["rows"]]
        except KeyError as error:
            raise ValueError("no rows") from error

    message = only(breaks).message
    assert f"test_contracts.py:{line_of(breaks) + 4}: ValueError: no rows\n" in message

    def breaks_torch(self, forward, tokens):
        return einops.rearrange(tokens, "a b -> b a")

    assert f"test_contracts.py:{line_of(breaks_torch) + 1}: EinopsError: " in only(breaks_torch).message


def test_what_is_computed_wrongly_is_told_at_the_class():
    class Short(Linear):
        def forward(self, tokens):
            return super().forward(tokens)[:-1]

    (outcome,) = contracts.verify(KIND, contracts.tiny_part(Short), only="spec_agrees").outcomes
    assert re.match(rf".*test_contracts\.py:{line_of(Short.forward) - 1}: projected\.shape=", outcome.message)


def test_an_error_that_is_its_own_cause_has_a_place():
    def breaks(self, forward, tokens):
        error = RuntimeError("round and round")
        raise error from error

    assert f"test_contracts.py:{line_of(breaks) + 2}: RuntimeError: round" in only(breaks).message


def test_a_long_error_is_cut():
    def breaks(self, forward, tokens):
        raise RuntimeError("too long a story " * 1000)

    first = only(breaks).message.splitlines()[0]
    assert first.endswith(" ...") and 600 < len(first) < 700 + len(__file__)


def test_one_mistake_is_told_once():
    """Errors of one line are one mistake, whatever numbers they give; another line is another mistake."""

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


def test_an_expected_failure_tells_no_mistake():
    def breaks(self, forward, tokens):
        raise RuntimeError("out of paper")

    names = ["determinism", "batch_of_one"]
    report = contracts.verify(KIND, broken(breaks), only=names, expected_failures={"determinism": "known"})
    assert "RuntimeError: out of paper\n  batch_of_one: " in report.outcomes[1].message


def test_leaving_the_program_is_a_failure():
    def leaves(self, forward, tokens):
        sys.exit(0)

    outcome = only(leaves)
    assert (
        outcome.result == "failed"
        and "the part left by SystemExit: 0, but should pass this check or fail it" in outcome.message
    )


LEAVINGS = [unittest.SkipTest("no time"), pytest.skip.Exception("no time"), pytest.xfail.Exception("no time")]


@pytest.mark.parametrize("leaving", LEAVINGS, ids=lambda leaving: type(leaving).__name__)
@pytest.mark.parametrize("where", ["forward", "dense_layers", "build"])
def test_a_required_check_that_is_skipped_is_a_failure(where, leaving):
    """Wherever the part says so: in what a check calls, in what decides whether it need be run, and when it is made."""

    def leaves(self, original, *args):
        raise leaving

    def build():
        raise leaving

    check = "dense_layers_agree" if where == "dense_layers" else "batch_of_one"
    part = build if where == "build" else contracts.tiny_part(computing(Linear, where, leaves))
    (outcome,) = contracts.verify(KIND, part, only=check).outcomes
    assert outcome.result == "failed" and "no time" in outcome.message


def test_a_failure_that_comes_and_goes_is_called_so():
    calls = []

    def sometimes(self, forward, tokens):
        calls.append(1)
        return forward(tokens) * (float("nan") if len(calls) == 3 else 1)

    message = only(sometimes, "spec_agrees").message
    assert "not again on the same input: the part is not deterministic" in message


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: 1 / 0, "build() failed: ZeroDivisionError: division by zero"),
        (lambda: sys.exit(0), "build() failed: SystemExit: 0"),
        (lambda: torch.nn.Linear(2, 2), "build() gave a Linear, but a dreamkit.Projector is wanted"),
        (lambda: without("config"), "without 'config'; set it in __init__"),
        (
            lambda: without("spec"),
            "the spec of what build() gave is a NoneType, but a ProjectorSpec is wanted",
        ),
        (lambda: (torch.manual_seed(0), sound())[1], "build() sets torch's seed; leave that to the kit"),
    ],
    ids=["raises", "leaves", "other class", "no config", "no spec", "own seed"],
)
def test_what_cannot_be_built_passes_nothing(build, said):
    report = contracts.verify(KIND, build, only=["determinism", "dtype_kept"])
    assert [outcome.result for outcome in report.outcomes] == ["failed", "failed"]
    first, second = (outcome.message for outcome in report.outcomes)
    assert said in first and second.startswith("the same error as in `determinism`, at ")


@pytest.mark.parametrize(
    ("add_tokens", "said"),
    [
        (lambda self, original, tokens: original(tokens)[:1], "gave the ids [260], but should give 2"),
        (lambda self, original, tokens: {}["no"], "preparing the part failed: KeyError: 'no'"),
    ],
    ids=["too few", "raises"],
)
def test_a_part_that_cannot_be_prepared_passes_nothing(add_tokens, said):
    part = contracts.tiny_part(computing(Llama, "add_tokens", add_tokens))
    (outcome,) = contracts.verify("language_model", part, only="causality").outcomes
    assert outcome.result == "failed" and said in outcome.message


def test_a_mistake_of_the_kit_ends_no_report(monkeypatch):
    monkeypatch.setattr(Check, "test", lambda *args, **kwargs: 1 / 0)
    (outcome,) = contracts.verify(KIND, sound, only="determinism").outcomes
    assert outcome.message == "determinism could not be tried: ZeroDivisionError: division by zero"


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    contracts.verify(KIND, sound, quick=True)
    assert torch.equal(torch.rand(3), expected)


# expected failures


def test_an_expected_failure_is_none():
    expected = {"spec_agrees": "known"}
    (outcome,) = contracts.verify(
        KIND, broken(loses_a_row), only="spec_agrees", expected_failures=expected
    ).outcomes
    assert (outcome.result, outcome.message) == ("expected", "known")


def test_an_expected_failure_that_passes_is_an_error():
    report = contracts.verify(
        KIND, sound, only="determinism", expected_failures={"determinism": "it rolls dice"}
    )
    assert not report.ok
    assert report.failures[0].message == "it passes, but was expected to fail: it rolls dice"


def test_an_expected_failure_of_a_check_that_is_not_run_is_an_error():
    class Mixed(Linear):
        def dense_layers(self):
            return None

    expected = {"dense_layers_agree": "why not"}
    report = contracts.verify(
        KIND, contracts.tiny_part(Mixed), only="dense_layers_agree", expected_failures=expected
    )
    assert "is expected to fail (why not), but is not run, because its dense_layers() gives None" in str(
        report
    )
    assert not report.ok


def test_an_unknown_expected_failure_is_an_error():
    for use in (contracts.verify, contracts.parametrize):
        with pytest.raises(KitError, match="there is no check 'determinsm' of a projector; did you mean"):
            use(KIND, sound, expected_failures={"determinsm": "a slip"})


def test_a_test_calls_its_check():
    """What `parametrize` hands to a test raises where the part is broken."""
    mark = contracts.parametrize(KIND, broken(loses_a_row)).args
    bound = {param.id: param.values[0] for param in mark[1]}
    with pytest.raises(ContractError, match=r"^projected\.shape.*\n  spec_agrees: "):
        bound["spec_agrees"]()
