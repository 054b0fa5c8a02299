"""`dreamkit generate` and `dreamkit import-published`, from the command line to the files they write."""

import base64
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image as PIL

import tiny
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.cli import main
from dreamkit.data.batch import Collator
from dreamkit.document import Document, Image, Text

REFERENCE = Path(__file__).parents[1] / "reference" / "published-sd" / "checkpoint"
LEARNED = [
    Document((Text("say"), Text("aha"), Image(tiny.picture(0), draw=True), Text("so"))),
    Document(
        (
            Text("say", role="user"),
            Image(tiny.picture(1), role="user"),
            Text("yes", role="assistant"),
        )
    ),
]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned two documents by heart."""
    model = tiny.model().float()
    model.set_trainable(["language_model", "new_tokens", "dream_queries", "visual_projector"])
    collator = Collator(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)
    batch = collator(LEARNED)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(model, folder)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `dreamkit` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dreamkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


def pictures(page: Path) -> list[PIL.Image]:
    """The pictures inside a page."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
    return [PIL.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_writes_text_pictures_and_a_page(command: Command, checkpoint: Path) -> None:
    code, out, err = command("generate", checkpoint, "say", "--out", "new/folder")
    assert (code, out) == (0, "aha\nnew/folder/image-0.png\nso\n"), err
    assert err == "the model ended the document; wrote new/folder/index.html\n"
    folder = Path("new/folder")
    assert {path.name for path in folder.iterdir()} == {"image-0.png", "index.html"}
    with PIL.open(folder / "image-0.png") as drawn:
        assert drawn.size == (16, 16)
        (shown,) = pictures(folder / "index.html")
        assert shown.tobytes() == drawn.tobytes()


def test_reads_pictures_in_a_conversation(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    tiny.picture(1).save("one.png")
    code, out, err = command("generate", checkpoint, "say <image>", "--chat", "--image", "one.png")
    assert (code, out) == (0, "yes\n"), err
    (given,) = pictures(tmp_path / "dreamkit-out" / "index.html")
    assert given.tobytes() == tiny.picture(1).tobytes()
    text = (tmp_path / "dreamkit-out" / "index.html").read_text()
    assert re.findall(r'<section class="(\w+)"><h2>(\w+)', text) == [
        ("prompt", "user"),
        ("written", "assistant"),
    ]


def test_the_seed_decides_the_picture(command: Command, checkpoint: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert command("generate", checkpoint, "say", "--out", name, "--seed", seed)[0] == 0
    a, b, c = (Path(name, "image-0.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("options", "printed", "reason"),
    [
        (["--max-images", 0, "--max-tokens", 2], "", "the document reached the limit on tokens"),
        (["--max-tokens", 1], "", "the document reached the limit on tokens"),
        (["--steps", 1, "--guidance", 1], "dreamkit-out/image-0.png", "the model ended the document"),
    ],
)
def test_limits_and_settings_hold(
    command: Command, checkpoint: Path, options: list[object], printed: str, reason: str
) -> None:
    code, out, err = command("generate", checkpoint, "say", *options)
    assert code == 0, err
    assert re.findall(r"\S+\.png", out) == ([printed] if printed else [])
    assert err.startswith(reason)
    assert len(list(Path("dreamkit-out").glob("*.png"))) == bool(printed)


def test_a_former_document_is_replaced_only_when_asked(command: Command, checkpoint: Path) -> None:
    out = Path("dreamkit-out")
    out.mkdir()
    for name in ("image-7.png", "index.html", "notes.txt"):
        (out / name).write_text("mine")
    code, _, err = command("generate", checkpoint, "say")
    assert code == 2
    assert "dreamkit-out is not empty" in err and "--overwrite" in err
    assert {path.read_text() for path in out.iterdir()} == {"mine"}
    code, _, err = command("generate", checkpoint, "say", "--overwrite")
    assert code == 0, err
    assert {path.name for path in out.iterdir()} == {"image-0.png", "index.html", "notes.txt"}


def test_a_file_is_never_overwritten(command: Command, checkpoint: Path) -> None:
    Path("file").write_text("mine")
    code, _, err = command("generate", checkpoint, "say", "--out", "file", "--overwrite")
    assert (code, err) == (2, "dreamkit: file is a file; pass a new folder with --out\n")
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["say <image>"], "got 0 for 1 in 'say <image>'"),
        (["say", "--image", "good.png"], "got 1 for 0 in 'say'"),
        (["say <image>", "--image", "none.png"], "no such image: none.png"),
        (["say <image>", "--image", "bad.png"], "cannot read the image bad.png"),
        (["say <image>", "--image", "."], "cannot read the image ."),
        (["say " * 300], "expected at most 256 tokens, got"),
        (["say", "--steps", 0], "--steps"),
        (["say", "--guidance", -1], "--guidance"),
        (["say", "--guidance", "inf"], "expected a finite number, got inf"),
        (["say", "--temperature", "inf"], "expected a finite number, got inf"),
        (["say", "--temperature", "nan"], "--temperature"),
        (["say", "--seed", 2**64], "--seed"),
        (["say", "--out", "good.png/x"], "Not a directory"),
        (["say", "--out", "/proc/nowhere/x"], "/proc/nowhere"),
        (["say", "--out", "x" * 300], "File name too long"),
        (["say", "--image", "x" * 300], "x" * 300),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    command: Command, checkpoint: Path, tmp_path: Path, arguments: list[object], said: str
) -> None:
    tiny.picture(0).save("good.png")
    Path("bad.png").write_bytes(Path("good.png").read_bytes()[:60])
    before = sorted(tmp_path.iterdir())
    code, out, err = command("generate", checkpoint, *arguments)
    # What is wrong with the folder may show only when there is something to put into it.
    assert code == 2 and (out == "" or "--out" in arguments)
    assert said in err and "train." not in err
    assert sorted(tmp_path.iterdir()) == before


def test_the_extremes_of_seed_and_temperature(command: Command, checkpoint: Path) -> None:
    for number, options in enumerate(([], ["--temperature", "1e-300", "--seed", 2**64 - 1])):
        code, out, err = command("generate", checkpoint, "say", "--out", number, *options)
        assert (code, out) == (0, f"aha\n{number}/image-0.png\nso\n"), err
    code, _, err = command("generate", checkpoint, "say", "--temperature", "1e300", "--max-tokens", 5)
    assert code == 0, err


def test_what_fails_before_the_first_picture_leaves_nothing(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("dreamkit.parts.decoder.ImageDecoder.draw_steps", no_room)
    with pytest.raises(RuntimeError, match="out of memory"):
        command("generate", checkpoint, "say")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_checkpoint(command: Command, tmp_path: Path) -> None:
    code, _, err = command("generate", tmp_path, "say")
    assert code == 2
    assert "not a checkpoint" in err
    assert not list(tmp_path.iterdir())


def test_the_folder_around_a_checkpoint_is_told_the_checkpoint(command: Command, checkpoint: Path) -> None:
    run = checkpoint.parent / "run"
    shutil.copytree(checkpoint, run / "checkpoint")
    code, _, err = command("generate", run, "say")
    assert code == 2 and f"did you mean {run / 'checkpoint'}?" in err


def test_on_a_terminal_a_bar_counts_the_steps(
    command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, err = command("generate", checkpoint, "say", "--steps", 3)
    assert code == 0
    assert out.startswith("aha\n")
    assert "drawing" in err and "3/3" in err


def test_imports_a_published_checkpoint(command: Command) -> None:
    code, _, err = command("import-published", REFERENCE, "imported")
    assert code == 0, err
    assert err.endswith("wrote imported\n")
    code, _, err = command("generate", "imported", "a", "--max-tokens", 3, "--max-images", 0)
    assert code == 0, err


@pytest.mark.parametrize(
    ("folder", "out", "said"),
    [
        ("nowhere", "again", "config.json is missing"),
        ("notes.txt", "again", "notes.txt/config.json: Not a directory"),
        ("x" * 300, "again", "File name too long"),
        ("published/checkpoint", "notes.txt", "notes.txt is a file, and is not a checkpoint"),
        ("published/checkpoint", "published", "published is not empty, and is not a checkpoint"),
        ("published/checkpoint", "notes.txt/x", "Not a directory"),
        ("published/checkpoint", "/proc/x", "/proc/"),
        ("published/checkpoint", "x" * 300, "File name too long"),
    ],
)
def test_an_import_that_cannot_be_is_refused_before_weights_are_read(
    command: Command, tmp_path: Path, folder: str, out: str, said: str
) -> None:
    shutil.copytree(REFERENCE.parent, "published")
    Path("published/checkpoint/model.safetensors").write_text("no weights")
    Path("notes.txt").write_text("mine")
    code, printed, err = command("import-published", folder, out)
    assert (code, printed) == (2, "") and said in err
    assert {path.name for path in tmp_path.iterdir()} == {"published", "notes.txt"}
