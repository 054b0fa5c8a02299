"""The rules of right continuations, on hand-made documents, and the prompts."""

import pytest

from dreamkit import Document, Image, Text
from dreamkit_digits import digits, measure, phrases
from dreamkit_digits.judge import Judge
from dreamkit_digits.measure import Prompt, Rule, Written
from dreamkit_digits.phrases import WORDS

PICTURES = {digit: digits.load("train").image(int(digits.load("train").of(digit)[0])) for digit in range(10)}
Piece = str | int


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.train()


def written(judge: Judge, rule: Rule, expected: tuple[int, ...], *pieces: Piece) -> Written:
    """Judge a continuation of words and of numbers, which stand for drawings of that digit."""
    prompt = Prompt((Text("go on"), Image(PICTURES[0])), expected)
    continuation = [
        Text(piece) if isinstance(piece, str) else Image(PICTURES[piece], draw=True) for piece in pieces
    ]
    return measure.judge_document(Document((*prompt.segments, *continuation)), prompt, rule, judge)


@pytest.mark.parametrize(
    ("rule", "expected", "right", "wrong"),
    [
        (
            measure.names,
            (7,),
            [("is a seven",), ("seven.",)],
            [("is a one",), (), ("is a",), ("is a seven", 7), ("is not a seven but a one",)],
        ),
        (measure.draws, (7,), [(7,), (7, "and so on"), ("seven", 7)], [(1,), (), ("seven",), (7, 7), (7, 1)]),
        (
            measure.counts,
            (2, 3, 4),
            [(2, "three", 3, "four", 4)],
            [
                (2, "three", 3, "four", 5),
                (2, "three", 3, "five", 4),
                (1, "three", 3, "four", 4),
                (2, "three", 3),
                (2, "three", 3, "four", 4, "five", 5),
                (2, "three", 3, "four", 4, "five"),
                (2, "three", "four", 4),
                ("two", 2, "three", 3, "four", 4),
                (),
            ],
        ),
        (
            measure.answers,
            (5,),
            [("a five",), ("a five", 5)],
            [("a five", 6), ("a six",), (5,), ("a five", 5, 1)],
        ),
    ],
)
def test_a_rule_accepts_right_continuations_only(
    judge: Judge,
    rule: Rule,
    expected: tuple[int, ...],
    right: list[tuple[Piece, ...]],
    wrong: list[tuple[Piece, ...]],
) -> None:
    assert [pieces for pieces in right if not written(judge, rule, expected, *pieces).right] == []
    assert [pieces for pieces in wrong if written(judge, rule, expected, *pieces).right] == []


def test_only_what_the_model_wrote_is_judged(judge: Judge) -> None:
    result = written(judge, measure.draws, (7,), "seven", 7)
    assert result.seen == (7,)
    assert result.prompt_segments == 2
    assert [type(segment) for segment in result.continuation] == [Text, Image]


def test_figures_are_shares_and_numbers_of_samples(judge: Judge) -> None:
    right, wrong = written(judge, measure.draws, (7,), 7), written(judge, measure.draws, (7,), 1)
    result = measure.Measured(0.99, 397, [right], [right, wrong], [right] * 3 + [wrong], [wrong], [right], [])
    assert result.figures() == {
        "judge_accuracy": 0.99,
        "judge_accuracy_samples": 397,
        "read_accuracy": 1.0,
        "read_accuracy_samples": 1,
        "draw_accuracy": 0.5,
        "draw_accuracy_samples": 2,
        "sum_accuracy": 0.75,
        "sum_accuracy_samples": 4,
        "count_accuracy": 1.0,
        "count_accuracy_samples": 1,
        "sum_accuracy_unseen_pairs": 0.0,
        "sum_accuracy_unseen_pairs_samples": 1,
    }
    assert set(measure.TARGETS) < set(result.figures())


def test_prompts_show_held_out_digits_and_expect_what_they_show() -> None:
    heldout = digits.load("heldout")
    labels = {heldout.pixels[index].tobytes(): int(heldout.labels[index]) for index in range(len(heldout))}
    exercises = measure.exercises(seed=3)

    def shown(prompt: Prompt) -> tuple[int, ...]:
        return tuple(labels[s.picture.tobytes()] for s in prompt.segments if isinstance(s, Image))

    reads = exercises["reads"][0]
    assert sorted(prompt.segments[0].picture.tobytes() for prompt in reads) == sorted(  # type: ignore[union-attr]
        picture.tobytes() for picture in heldout.images
    )
    assert all(shown(prompt) == prompt.expected for prompt in reads)
    for name, pairs in (("sums", set(phrases.TRAIN_PAIRS)), ("unseen_sums", phrases.HELD_OUT_PAIRS)):
        assert {shown(prompt) for prompt in exercises[name][0]} == pairs
        assert all((sum(shown(prompt)),) == prompt.expected for prompt in exercises[name][0])
        assert all(prompt.segments[-1] == Text("is") for prompt in exercises[name][0])
    assert {prompt.segments for prompt in exercises["counts"][0]} == {(Text(WORDS[n]),) for n in range(8)}
    assert {prompt.expected[0] for prompt in exercises["draws"][0]} == set(range(10))
    assert measure.total() == sum(len(prompts) for prompts, _ in exercises.values())


def test_each_exercise_has_enough_samples() -> None:
    enough = {"reads": 397, "draws": 200, "sums": 100, "counts": 50}
    exercises = measure.exercises(seed=0)
    assert {name: least for name, least in enough.items() if len(exercises[name][0]) < least} == {}
