"""Commands that train or run a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dreamkit.cli.shared import Overrides, RecipeName, check_setting, console, echo, path_argument
from dreamkit.errors import count


def train(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            parser=path_argument,
            help="a new folder for the checkpoint, resume points and log.jsonl",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="a recipe file, or the name of a shipped recipe; with --resume, the default is that of the run",
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the latest resume point in OUT")
    ] = False,
    changed_data: Annotated[
        bool, typer.Option("--changed-data", help="with --resume: accept data that changed since then")
    ] = False,
) -> None:
    """Train the model of a recipe.

    Writes OUT/log.jsonl, OUT/checkpoints/step-N every train.save_every steps, and OUT/checkpoint at the end. A run that
    an error, SIGINT, SIGTERM or SIGUSR1 ends before writes a resume point, too. With --resume and more train.steps, a
    finished run is trained for longer. To use several devices, start one process on each with torchrun.

    Example: dreamkit train digits/stage1 train.steps=100 --out run1

    Example: dreamkit train --out run1 --resume
    """
    from dreamkit.distributed import join, leave, watched
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry
    from dreamkit.training.resume_points import continue_hint
    from dreamkit.training.resumed_recipe import resumed_recipe
    from dreamkit.training.run import train_recipe as run

    settings = list(overrides or ())
    if recipe is None and not resume:
        raise typer.BadParameter("missing a recipe; name one, such as digits/stage1", param_hint="'RECIPE'")
    join()
    with watched(lambda: continue_hint(out)):  # a recipe may be missing on one machine only
        registry = Registry.load()
        if recipe is not None and not (resume and "=" in recipe):
            loaded = load_recipe(recipe, settings, registry)
        else:  # a setting may be in the place of the recipe
            loaded = resumed_recipe(out, [*([] if recipe is None else [recipe]), *settings], registry)
        result = run(loaded, registry, out, resume=resume, changed_data=changed_data)
    leave()
    if result.is_main:
        echo(f"{'model of the finished run:' if result.was_finished else 'wrote'} {result.checkpoint}")


def cache(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=path_argument,
            help="the folder to write; default: the recipe's train.cache",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="[features|latents]", help="write only this table; may be repeated"),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="replace the cache in FOLDER, throw away unfinished work on it"),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the unfinished work of a command that ended early")
    ] = False,
) -> None:
    """Compute latents and features once.

    Writes what the frozen parts of a recipe compute from the images in its data: vision features of images to read, if
    the vision encoder is not trained, and mean and standard deviation of the latents of images to draw. Training with
    train.cache=FOLDER reads them. An image is found by its content, so data can be mixed in another way or left out
    without a new cache. Runs on a CUDA device if there is one; to use several, start one process on each with torchrun.
    An error or a signal keeps the finished part, which --resume continues with any number of processes.

    Example: dreamkit cache digits/stage1 --out digits-cache

    Example: dreamkit cache digits/stage1 --out digits-cache --resume
    """
    from rich.filesize import decimal

    from dreamkit.cache.caching import CachingProgress, Estimate
    from dreamkit.cache.manifest import TABLES
    from dreamkit.cache.write import make_cache
    from dreamkit.data.skipped import SKIPPED
    from dreamkit.distributed import is_main, leave
    from dreamkit.errors import DreamkitError
    from dreamkit.progress.bars import Bar
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry

    registry = Registry.load()
    loaded = load_recipe(recipe, overrides or (), registry)
    folder = loaded.train.cache if out is None else out
    if folder is None:
        raise DreamkitError("no output folder: pass --out FOLDER or set train.cache")

    def show_estimate(estimate: Estimate) -> None:
        rows = ", ".join(f"{table} take {decimal(size)}" for table, size in estimate.row_bytes.items())
        documents = count(f"{estimate.documents:,}", "document")
        echo(
            f"{rows} per image; {documents}: at most {decimal(estimate.most_bytes)} with one "
            f"image per table in each document; {decimal(estimate.free_bytes)} free",
            err=True,
        )

    with Bar("listing documents") as listing, Bar("computing rows") as computing:

        def show_progress(progress: CachingProgress) -> None:
            if progress.stage == "computed":
                listing.stop()
            bar = listing if progress.stage == "listed" else computing
            bar.move(progress.done, progress.total)

        report = make_cache(
            loaded,
            registry,
            folder,
            only=only or TABLES,
            overwrite=overwrite,
            resume=resume,
            on_start=show_estimate,
            on_progress=show_progress,
        )
    if is_main():
        if report.was_finished:
            echo("nothing was computed: the cache is complete", err=True)
        if report.skipped.documents:
            number = count(f"{report.skipped.documents:,}", "document")
            listed = Path(folder) / SKIPPED
            echo(
                f"skipped {number}, as training does, listed in {listed}; {report.skipped.most_common()}",
                err=True,
            )
        for left_out, reason in report.left_out.items():
            echo(f"no {left_out}: {reason}", err=True)
        for table, record in report.manifest.tables.items():
            echo(f"{table} (images: {record['images']:,}), {decimal(report.manifest.table_bytes(table))}")
        verb = "replaced" if report.replaced else "found" if report.was_finished else "wrote"
        echo(f"{verb} {folder}; train with train.cache={folder}")
    leave()


def demo(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", parser=path_argument, help="a new folder for the checkpoint, figures and report"
        ),
    ] = Path("dreamkit-demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="seed of training and measurement")] = 0,
) -> None:
    """Train and measure a tiny model.

    Trains the shipped recipes digits/stage1, stage2 and stage3 in turn, on real handwriting. Takes a few minutes.
    Writes OUT/checkpoint, OUT/metrics.json and OUT/report.html. Exits with code 2 if a figure misses its target.

    Example: dreamkit demo --out demo --seed 1
    """
    from dreamkit.registry.registry import Registry
    from dreamkit.storage.locks import exclusive

    with exclusive(out):
        figures = Registry.load().get("task", "digits-demo")().run(out, seed=seed)
    table = Table("figure", "value", box=None, pad_edge=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console().print(table)
    echo(f"wrote to {out}: {', '.join(sorted(file.name for file in out.glob('[!.]*')))}")


def generate(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", parser=path_argument, help="the folder of a checkpoint"),
    ],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="the text to continue; each <image> stands for an image")
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", parser=path_argument, help="the image for the next <image> of the prompt"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", parser=path_argument, help="the folder to write")
    ] = Path("dreamkit-out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the document in DIR")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="make the prompt a user's turn in a conversation")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="the same seed draws the same images")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(callback=check_setting, help="maximum number of text tokens")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(callback=check_setting, help="maximum number of images")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(callback=check_setting, help="classifier-free guidance scale")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(callback=check_setting, help="denoising steps per image")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", callback=check_setting, help="the text to guide away from")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", callback=check_setting, help="size of images in pixels"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(callback=check_setting, help="0 always takes the most likely token")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(callback=check_setting, help="sample from this many tokens; 0 is all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(callback=check_setting, help="sample from tokens of this total probability"),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            callback=check_setting, help="sample from tokens this many times as likely as the most likely"
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(callback=check_setting, help="above 1: repeat fewer tokens")
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(
            callback=check_setting, help="above 1: beam search with this many texts, without images"
        ),
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(callback=check_setting, help="of beam search; the higher, the longer the text"),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", callback=check_setting, help="end before this text; may be repeated"),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="[auto|cuda|mps|cpu]", help="auto: the first of cuda, mps and cpu that is there"
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="[auto|float32|bfloat16]",
            help="auto: bfloat16 on a GPU that computes in it, else the recipe's",
        ),
    ] = "auto",
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="keep the parts in the host's memory, and move each to the device while it is used",
        ),
    ] = False,
) -> None:
    """Continue a document with text and images.

    Prints text as it is written, and the file name of each image. Writes the images image-0.png and so on, and
    index.html with the whole document. Omitted settings default to the checkpoint's recipe. If the model does not fit
    into the device's memory, try --dtype bfloat16, then --offload.

    Example: dreamkit generate dreamkit-demo/checkpoint "two" --max-images 2 --out two

    Example: dreamkit generate dreamkit-demo/checkpoint "two" --device cpu --dtype bfloat16
    """
    from dreamkit.cli.live import write_document
    from dreamkit.data.image_files import open_picture
    from dreamkit.document import DRAW_SLOT, READ_SLOT, Document
    from dreamkit.errors import DocumentError, excerpt
    from dreamkit.model.placing import placement

    to = placement(device, dtype, offload)
    pictures = [open_picture(path, "--image") for path in image or ()]
    slots = sum(map(prompt.count, (READ_SLOT, DRAW_SLOT)))
    if slots != len(pictures):
        fix = (
            f"pass --image PATH {count(slots, 'time')}"
            if slots
            else "write them in PROMPT, or leave out --image"
        )
        raise DocumentError(
            f"expected one --image for each {READ_SLOT} and {DRAW_SLOT} of PROMPT, got {len(pictures)} for {slots} in "
            f"'{excerpt(prompt)}'; {fix}"
        )
    document = Document.interleave(prompt, pictures, name="PROMPT", role="user" if chat else None)
    limits = {"max_tokens": max_tokens, "max_images": max_images, "stop": stop}
    drawing = {"guidance": guidance, "negative_prompt": negative_prompt, "steps": steps, "size": size}
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    choosing = {"repetition_penalty": repetition_penalty, "beams": beams, "length_penalty": length_penalty}
    every = limits | drawing | sampling | choosing
    settings = {name: value for name, value in every.items() if value is not None}
    if beams is not None and beams > 1 and max_images:
        raise typer.BadParameter(
            f"expected 0 with --beams {beams}, got {max_images}; beam search draws nothing, so leave one of them out",
            param_hint="--max-images",
        )
    reason = write_document(
        checkpoint, document, out, title=prompt, seed=seed, settings=settings, to=to, overwrite=overwrite
    )
    echo(f"{reason}; wrote {out / 'index.html'}", err=True)
