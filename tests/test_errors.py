"""Values in error messages: short, on one line, and without control characters."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit.cli.shared import console, echo, print_lines
from dreamkit.errors import (
    DreamkitError,
    SourceError,
    count,
    describe_error,
    describe_value,
    excerpt,
    library_errors,
    library_text,
    printable,
    printable_lines,
)
from dreamkit.recipe.places import config_problems
from dreamkit.recipe.tree import Node
from dreamkit.storage.paths import shown_path, written_path

texts = st.text(st.characters(), max_size=200)
CLEAR = "\x1b[2J\x1b[H\x07\r\x9b2J\u202e"


@given(texts)
def test_a_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(character) not in ("Cc", "Cs", "Cf") for character in shown)
    assert shown.encode() is not None and printable(shown) == shown
    assert printable_lines(f"{text}\n{text}") == "\n".join(
        map(printable, [*text.split("\n"), *text.split("\n")])
    )


@given(texts)
def test_an_excerpt_has_at_most_80_characters_on_one_line(text: str) -> None:
    shown = excerpt(text)
    assert len(shown) <= 80 and "\n" not in shown
    if len(text) <= 80 and text.isprintable():
        assert shown == text


@given(
    st.text(max_size=300)
    | st.integers()
    | st.integers(10**90, 10**99)
    | st.floats()
    | st.none()
    | st.booleans()
)
def test_a_described_value_is_short(value: str | float | bool | None) -> None:
    assert len(describe_value(Node.from_plain(value, "", Path()).value)) <= 80 + len("'' (string)")


def test_a_path_is_never_shortened() -> None:
    name = 300 * "x"
    with pytest.raises(DreamkitError, match=name):
        written_path(name)
    assert shown_path(4000 * "x") == 4000 * "x"


def test_a_wrong_value_is_shown_shortened(run: Callable[..., tuple[int, str, str]]) -> None:
    for key in (
        "train.steps",
        "init",
        "train.cache",
        "train.trainable",
        "model.dream_queries",
        "train.schedule",
    ):
        code, out, err = run("check", "digits/stage1", f"{key}={65_000 * 'QUJD'}")
        assert code == 2 and len(out + err) < 1000, key
    code, out, err = run("check", "digits/stage1", 65_000 * "QUJD")
    assert code == 2 and len(out + err) < 1000


def test_control_characters_never_reach_the_terminal(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"bad{CLEAR}.yaml"
    path.write_text('extends: digits/stage1\n"ke\\e[2Jy": 1\ntrain: {schedule: "\\e[2J"}\n')
    code, out, err = run("check", path)
    assert code == 2 and "\\x1b[2J" in err
    console().print(f"a {CLEAR}")
    print_lines(("name",), [(f"b {CLEAR}",)])
    text = "".join([out, err, *capsys.readouterr()])
    assert not any(character in text for character in CLEAR if not character.isprintable())


@given(texts)
def test_a_library_error_is_described_in_one_short_line(text: str) -> None:
    shown = describe_error(KeyError(text * 10))
    assert shown.startswith("KeyError: ") and len(shown) <= len("KeyError: ") + 300 and "\n" not in shown
    assert printable(shown) == shown


def test_a_value_inside_a_library_error_is_shortened_and_a_path_is_not() -> None:
    path = f"/{200 * 'x'}"
    shown = describe_error(ValueError(f"bad '{100 * 'QUJD'}' in '{path}'"))
    assert 21 * "QUJD" not in shown and path in shown
    assert describe_error(OSError(f"no file {200 * 'x'}")).endswith(200 * "x")
    assert describe_error(DreamkitError("as\nit is")) == "as\nit is"


@pytest.mark.parametrize(
    "text",
    [
        "expected the ids of apply_chat_template, got others from token 3, 'abc' instead of 'def', for the prompt of "
        "user ('one'); name another tokenizer",
        "size mismatch: copying a param with shape torch.Size([4096, 4096]) from checkpoint, the shape in current "
        "model is torch.Size([4096, 32000]).",
        "[rank 0] the model has layers that the files lack, all of which are initialized anew, so train these [or not]",
        "it doesn't fit the model, since the file has other layers than its config, too many, so it isn't loaded",
        "the users' values lie outside of the range of those that the models' configs allow, which are at most 'x'",
        "an unclosed [ before a sentence of more than eighty characters, which is no value but the reason of the error",
    ],
)
def test_the_sentences_of_a_library_stay_whole(text: str) -> None:
    assert library_text(text) == text
    assert describe_error(ValueError(text)) == f"ValueError: {text}"


short_values = st.text("ab1", max_size=70) | st.lists(st.integers(-99, 99), max_size=9) | st.booleans()


@given(st.lists(short_values, max_size=9))
def test_short_values_in_a_text_of_a_library_stay_whole(values: list[str | list[int] | bool]) -> None:
    text = " ".join(["got", *(f"{value!r}, where one of another kind is" for value in values), "expected"])
    assert library_text(text) == text


@pytest.mark.parametrize(
    "value",
    [
        repr(200 * "a b "),
        repr(f"it's {200 * 'a b '}"),
        repr(200 * b"a b "),
        repr([*range(1000)]),
        repr([[n, [n]] for n in range(1000)]),
        repr({str(n): {"a": [n]} for n in range(1000)}),
        1000 * "QUJD",
    ],
)
def test_a_long_value_is_shortened_alone(value: str) -> None:
    text = f"doesn't fit: got {value} instead of 'one' of the models' values"
    assert library_text(text) == f"doesn't fit: got {excerpt(value)} instead of 'one' of the models' values"


@settings(max_examples=20)
@given(st.text(st.sampled_from("a '\"[]{}\\"), max_size=300).map(lambda text: 300 * text))
def test_any_text_of_a_library_is_read_in_linear_time(text: str) -> None:
    start = time.process_time()
    assert len(library_text(text)) <= 1000
    assert time.process_time() - start < 2


def test_a_library_error_becomes_an_error_about_the_file() -> None:
    with (
        pytest.raises(SourceError, match=r"^config\.json: invalid for GPT: TypeError: a b$") as caught,
        library_errors("config.json: invalid for GPT", "tokenizer"),
    ):
        raise TypeError("a\nb")
    assert caught.value.problems.keys() == {"tokenizer"}
    with pytest.raises(DreamkitError, match=r"^as it is$"), library_errors("config.json"):
        raise DreamkitError("as it is")


def test_an_error_of_the_library_behind_a_part_names_the_source() -> None:
    for error in (ValueError("of a library"), AttributeError("of a library")):
        (problem,) = config_problems(error, "model.vision_encoder", {}, "./folder")
        expected = f"the files of './folder' do not make this part: {type(error).__name__}: of a library"
        assert problem.message.startswith(expected)
        (problem,) = config_problems(error, "model.vision_encoder", {})
        assert problem.message.endswith("of a library")


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2, "batch", "2 batches"),
        (2, "dream query", "2 dream queries"),
        (2, "array", "2 arrays"),
        (3, "process", "3 processes"),
        (2048, "token", "2048 tokens"),
        ("12,345", "document", "12,345 documents"),
        ("1", "document", "1 document"),
    ],
)
def test_count_writes_a_number_with_its_noun(number: int | str, noun: str, expected: str) -> None:
    assert count(number, noun) == expected


def test_count_takes_the_plural_of_several_words() -> None:
    assert [count(n, "image to read", "images to read") for n in (1, 2)] == [
        "1 image to read",
        "2 images to read",
    ]


@pytest.mark.parametrize("err", [False, True])
def test_a_printed_line_has_control_characters_as_escapes(
    capsys: pytest.CaptureFixture[str], err: bool
) -> None:
    echo("wrote \x1b[2Jx", err=err)
    assert capsys.readouterr()[err] == "wrote \\x1b[2Jx\n"
