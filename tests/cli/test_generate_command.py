"""`dreamkit generate` and `dreamkit import-published`: output, files and errors."""

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as PIL

import tiny
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.batch import Collator
from dreamkit.document import Document, Image, Text

REFERENCE = Path(__file__).parents[1] / "reference" / "published-sd" / "checkpoint"
TRAINING_DOCUMENTS = [
    Document((Text("say"), Text("aha"), Image(tiny.picture(0), draw=True), Text("so"))),
    Document(
        (
            Text("say", role="user"),
            Image(tiny.picture(1), role="user"),
            Text("yes", role="assistant"),
        )
    ),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a model trained until it repeats two documents."""
    model = tiny.model().float()
    model.set_trainable(["language_model", "new_tokens", "dream_queries", "visual_projector"])
    collator = Collator(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)
    batch = collator(TRAINING_DOCUMENTS)
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
def run(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return `run` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


def images(page: Path) -> list[PIL.Image]:
    """Return the images of a page."""
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
    return [PIL.open(io.BytesIO(base64.b64decode(data))) for data in sources]


def test_generate_prints_text_and_writes_images_and_a_page(run, checkpoint: Path) -> None:
    code, out, err = run("generate", checkpoint, "say", "--out", "new/folder")
    assert (code, out) == (0, "aha\nnew/folder/image-0.png\nso\n"), err
    assert err == "the model ended the document; wrote new/folder/index.html\n"
    folder = Path("new/folder")
    assert {path.name for path in folder.iterdir()} == {"image-0.png", "index.html"}
    with PIL.open(folder / "image-0.png") as drawn:
        assert drawn.size == (16, 16)
        (embedded,) = images(folder / "index.html")
        assert embedded.tobytes() == drawn.tobytes()


def test_chat_puts_the_prompt_and_its_images_into_a_user_turn(run, checkpoint: Path, tmp_path: Path) -> None:
    tiny.picture(1).save("one.png")
    code, out, err = run("generate", checkpoint, "say <image>", "--chat", "--image", "one.png")
    assert (code, out) == (0, "yes\n"), err
    (embedded,) = images(tmp_path / "dreamkit-out" / "index.html")
    assert embedded.tobytes() == tiny.picture(1).tobytes()
    text = (tmp_path / "dreamkit-out" / "index.html").read_text()
    assert re.findall(r'<section class="(\w+)"><h2>(\w+)', text) == [
        ("prompt", "user"),
        ("written", "assistant"),
    ]


def test_the_seed_determines_the_image(run, checkpoint: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert run("generate", checkpoint, "say", "--out", name, "--seed", seed)[0] == 0
    a, b, c = (Path(name, "image-0.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("options", "printed", "reason"),
    [
        (["--max-images", 0, "--max-tokens", 2], "", "the document reached the limit on tokens"),
        (["--max-tokens", 1], "", "the document reached the limit on tokens"),
        (["--stop", "zzz", "--stop", "ha"], "", "the model wrote a stop string"),
        (["--steps", 1, "--guidance", 1], "dreamkit-out/image-0.png", "the model ended the document"),
    ],
)
def test_limits_and_settings_apply(
    run, checkpoint: Path, options: list[object], printed: str, reason: str
) -> None:
    code, out, err = run("generate", checkpoint, "say", *options)
    assert code == 0, err
    assert re.findall(r"\S+\.png", out) == ([printed] if printed else [])
    assert err.startswith(reason)
    assert len(list(Path("dreamkit-out").glob("*.png"))) == bool(printed)


def test_the_text_ends_before_a_stop_string(run, checkpoint: Path) -> None:
    code, out, err = run("generate", checkpoint, "say", "--stop", "ha")
    assert (code, out) == (0, "a\n"), err
    code, out, err = run("generate", checkpoint, "say", "--overwrite", "--top-k", 1, "--temperature", 5)
    assert (code, out) == (0, "aha\ndreamkit-out/image-0.png\nso\n"), err


def test_beam_search_writes_text_alone(run, checkpoint: Path) -> None:
    code, out, err = run("generate", checkpoint, "say", "--beams", 3, "--max-tokens", 3)
    assert (code, out) == (0, "aha\n"), err
    assert {path.name for path in Path("dreamkit-out").iterdir()} == {"index.html"}


def test_the_options_of_a_drawing_apply(run, checkpoint: Path) -> None:
    files = []
    for name, options in (("a", []), ("b", ["--negative-prompt", "so"]), ("c", ["--size", 16, 32])):
        code, _, err = run("generate", checkpoint, "say", "--out", name, "--max-images", 1, *options)
        assert code == 0, err
        files.append(Path(name, "image-0.png"))
    assert files[0].read_bytes() != files[1].read_bytes()
    with PIL.open(files[2]) as drawn:
        assert drawn.size == (32, 16)


def test_settings_of_the_checkpoint_s_recipe_apply_unless_an_option_replaces_them(
    run, checkpoint: Path, tmp_path: Path
) -> None:
    model, _ = load_checkpoint(checkpoint)
    assert model.recipe is not None
    options = replace(model.recipe.generation, stop=("ha",), size=(16, 32), ignore_eos=True, max_tokens=3)
    model.recipe = replace(model.recipe, generation=options)
    save_checkpoint(model, tmp_path / "other")
    code, out, err = run("generate", "other", "say", "--out", "a")
    assert (code, out) == (0, "a\n") and err.startswith("the model wrote a stop string"), err
    code, out, err = run("generate", "other", "say", "--out", "b", "--stop", "never", "--max-tokens", 5)
    assert code == 0 and err.startswith("the document reached the limit on tokens"), err
    with PIL.open("b/image-0.png") as drawn:
        assert drawn.size == (32, 16)


def test_an_earlier_document_is_replaced_only_with_overwrite(run, checkpoint: Path) -> None:
    out = Path("dreamkit-out")
    out.mkdir()
    for name in ("image-7.png", "index.html", "notes.txt"):
        (out / name).write_text("mine")
    code, _, err = run("generate", checkpoint, "say")
    assert code == 2
    assert "dreamkit-out is not empty" in err and "--overwrite" in err
    assert {path.read_text() for path in out.iterdir()} == {"mine"}
    code, _, err = run("generate", checkpoint, "say", "--overwrite")
    assert code == 0, err
    assert {path.name for path in out.iterdir()} == {"image-0.png", "index.html", "notes.txt"}


def test_a_file_is_never_overwritten(run, checkpoint: Path) -> None:
    Path("file").write_text("mine")
    code, _, err = run("generate", checkpoint, "say", "--out", "file", "--overwrite")
    assert (code, err) == (2, "dreamkit: file is a file; pass a new folder with --out\n")
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["say <image>"],
            "expected one --image for each <image> and <draw> of PROMPT, got 0 for 1 in 'say <image>'",
        ),
        (
            ["say <image> <draw>", "--image", "good.png"],
            "got 1 for 2 in 'say <image> <draw>'; pass --image PATH 2 times",
        ),
        (["say", "--image", "good.png"], "got 1 for 0 in 'say'; write them in PROMPT, or leave out --image"),
        (["say <image>", "--image", "none.png"], "no such image: none.png"),
        (["say <image>", "--image", "bad.png"], "cannot read the image bad.png"),
        (["say <image>", "--image", "."], "expected an image in a regular file, got a folder: ."),
        (["say " * 300], "expected at most 256 tokens, got"),
        (["say", "--steps", 0], "'--steps': expected at least 1 and at most 100000, got 0"),
        (["say", "--guidance", -1], "'--guidance': expected at least 0, got -1"),
        (["say", "--max-tokens", 0], "'--max-tokens': expected at least 1 and at most 100000000, got 0"),
        (["say", "--max-images", -1], "'--max-images': expected at least 0 and at most 100000000, got -1"),
        (["say", "--guidance", "inf"], "expected a finite number, got inf"),
        (["say", "--temperature", "inf"], "expected a finite number, got inf"),
        (["say", "--temperature", "nan"], "--temperature"),
        (["say", "--seed", 2**64], "--seed"),
        (["say", "--top-k", -1], "'--top-k': expected at least 0 and at most 100000000, got -1"),
        (["say", "--top-p", 2], "'--top-p': expected more than 0 and at most 1, got 2"),
        (["say", "--min-p", -0.5], "'--min-p': expected at least 0 and at most 1, got -0.5"),
        (["say", "--repetition-penalty", 0], "'--repetition-penalty': expected at least 0.001"),
        (
            ["say", "--beams", 3, "--max-images", 1],
            "expected 0 with --beams 3, got 1; beam search draws nothing",
        ),
        (["say", "--beams", 0], "'--beams': expected at least 1 and at most 1000, got 0"),
        (["say", "--length-penalty", "nan"], "'--length-penalty': expected a finite number, got nan"),
        (
            ["say", "--beams", 2, "--temperature", 0.5],
            "temperature: expected 0 with beams 2, got 0.5; beam search does not sample, so set temperature to 0 or",
        ),
        (["say", "--stop", ""], "'--stop': expected texts of whole characters, at least one each"),
        (["say", "--size", 0, 16], "'--size': expected at least 1 and at most 65536, got 0"),
        (
            ["say", "--size", 16, 17],
            "size: expected positive multiples of 2 pixels as image size, got 16 x 17",
        ),
        (["say", "--negative-prompt", "no " * 100], "negative_prompt: expected at most 256 tokens, got 301"),
        (["say", "--out", "good.png/x"], "Not a directory"),
        (["say", "--out", "/proc/nowhere/x"], "/proc/nowhere"),
        (["say", "--out", "x" * 300], "File name too long"),
        (["say", "--image", "x" * 300], "x" * 300),
    ],
)
def test_a_user_error_has_a_message_and_writes_nothing(
    run, checkpoint: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    tiny.picture(0).save("good.png")
    Path("bad.png").write_bytes(Path("good.png").read_bytes()[:60])
    before = sorted(tmp_path.iterdir())
    code, out, err = run("generate", checkpoint, *arguments)
    # An unusable output folder may be noticed only at the first image, after some text was printed.
    assert code == 2 and (out == "" or "--out" in arguments)
    assert message in err and "train." not in err
    assert sorted(tmp_path.iterdir()) == before


def test_extreme_seeds_and_temperatures_work(run, checkpoint: Path) -> None:
    for number, options in enumerate(([], ["--temperature", "1e-300", "--seed", 2**64 - 1])):
        code, out, err = run("generate", checkpoint, "say", "--out", number, *options)
        assert (code, out) == (0, f"aha\n{number}/image-0.png\nso\n"), err
    code, _, err = run("generate", checkpoint, "say", "--temperature", "1e300", "--max-tokens", 5)
    assert code == 0, err


def test_a_failure_before_the_first_image_leaves_no_file(
    run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("dreamkit.parts.decoder.ImageDecoder.draw_steps", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run("generate", checkpoint, "say")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_checkpoint_is_a_user_error(run, tmp_path: Path) -> None:
    code, _, err = run("generate", tmp_path, "say")
    assert code == 2
    assert "not a checkpoint" in err
    assert not list(tmp_path.iterdir())


def test_the_error_for_the_folder_of_a_run_names_its_checkpoint(run, checkpoint: Path) -> None:
    folder = checkpoint.parent / "run"
    shutil.copytree(checkpoint, folder / "checkpoint")
    code, _, err = run("generate", folder, "say")
    assert code == 2 and f"did you mean {folder / 'checkpoint'}?" in err


def test_a_terminal_shows_a_bar_of_denoising_steps(
    run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, err = run("generate", checkpoint, "say", "--steps", 3)
    assert code == 0
    assert out.startswith("aha\n")
    assert "drawing" in err and "3/3" in err


def test_an_imported_published_checkpoint_generates(run) -> None:
    code, _, err = run("import-published", REFERENCE, "imported")
    assert code == 0, err
    assert err.endswith("wrote imported\n")
    code, _, err = run("generate", "imported", "a", "--max-tokens", 3, "--max-images", 0)
    assert code == 0, err


@pytest.mark.parametrize(
    ("folder", "out", "message"),
    [
        ("nowhere", "again", "config.json is missing"),
        ("notes.txt", "again", "notes.txt/config.json is missing"),
        ("x" * 300, "again", "File name too long"),
        ("published/checkpoint", "notes.txt", "notes.txt is a file, and is not a checkpoint"),
        ("published/checkpoint", "published", "published is not empty, and is not a checkpoint"),
        ("published/checkpoint", "notes.txt/x", "Not a directory"),
        ("published/checkpoint", "/proc/x", "/proc/"),
        ("published/checkpoint", "x" * 300, "File name too long"),
    ],
)
def test_an_impossible_import_is_refused_before_weights_are_read(
    run, tmp_path: Path, folder: str, out: str, message: str
) -> None:
    shutil.copytree(REFERENCE.parent, "published")
    Path("published/checkpoint/model.safetensors").write_text("no weights")
    Path("notes.txt").write_text("mine")
    code, printed, err = run("import-published", folder, out)
    assert (code, printed) == (2, "") and message in err
    assert {path.name for path in tmp_path.iterdir()} == {"published", "notes.txt"}


@pytest.mark.parametrize(
    ("part", "weight", "values"),
    [
        ("language_model", "norm.weight", "PROMPT: expected finite logits for token 1"),
        ("image_decoder", "unet.conv_out.weight", "image 1: expected finite latents in step 1 of 2"),
    ],
)
def test_values_that_overflow_are_an_error_and_no_page(
    run, checkpoint: Path, part: str, weight: str, values: str
) -> None:
    """The weights are finite, so that the checkpoint loads."""
    model, _ = load_checkpoint(checkpoint)
    with torch.no_grad():
        model.get_submodule(part).get_parameter(weight).fill_(3e38)
    save_checkpoint(model, Path("large"))
    code, _, err = run("generate", "large", "say", "--out", "new")
    assert code == 2 and re.search(
        rf"^dreamkit: .*{values}.*, got NaN or inf; the model's values overflow", err, re.M
    )
    assert not Path("new/index.html").exists()


def test_a_model_generates_in_bfloat16_on_the_cpu(run, checkpoint: Path) -> None:
    code, out, err = run("generate", checkpoint, "say", "--device", "cpu", "--dtype", "bfloat16")
    assert (code, "image-0.png" in out) == (0, True), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "tpu"], "device: expected one of auto, cuda, mps, cpu, got 'tpu' (string)"),
        (["--device", "mps"], "device: expected one of this machine, cpu, got mps"),
        (["--dtype", "float16"], "dtype: expected one of auto, float32, bfloat16, got 'float16' (string)"),
        (["--offload"], "offload: expected a device beside the CPU to move parts to, got cpu; leave it out"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(
    run, checkpoint: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    code, _, err = run("generate", checkpoint, "say", *options)
    assert code == 2 and message in err
    assert not Path("dreamkit-out").exists()
