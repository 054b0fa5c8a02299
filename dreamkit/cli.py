"""The `dreamkit` command: parses, calls, prints. What is heavy is imported inside the command that needs it."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from dreamkit.errors import DreamkitError

app = typer.Typer(
    name="dreamkit",
    help="DreamLLM as a modular toolkit: language models that read images and draw them in one document.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings to change, such as train.steps=100")
]


def console() -> Console:
    """Standard output; wide enough that nothing is cut where it is not a terminal."""
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=200)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dreamkit {version('dreamkit')}")
        raise typer.Exit


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def plugins() -> None:
    """List the installed components, and the plug-ins that are broken.

    Exits with 1 where a plug-in is broken, after listing everything that works. The environment variable
    DREAMKIT_PLUGINS, a comma-separated list of entry-point names, limits which plug-ins are loaded.

    Example: dreamkit plugins
    """
    from dreamkit.plugins import KINDS, Registry

    registry = Registry.load()
    table = Table("kind", "name", "distribution", "summary", box=None, pad_edge=False)
    for kind in KINDS:
        for name, registered in sorted(registry.components(kind).items()):
            table.add_row(kind, name, registered.origin, registered.component.summary)
    out = console()
    out.print(table)
    for problem in registry.problems:
        out.print(f"problem: {problem}", style="red", soft_wrap=True)
    if registry.problems:
        raise typer.Exit(1)


@app.command()
def recipes() -> None:
    """List the shipped recipes.

    Example: dreamkit recipes
    """
    from dreamkit.plugins import Registry

    table = Table("recipe", "file", box=None, pad_edge=False)
    for name, path in sorted(Registry.load().recipes().items()):
        table.add_row(name, str(path))
    console().print(table)


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe without loading any weights.

    Finds every unknown key, wrong type, unknown component and pair of parts that do not fit, all in one run.
    Prints the parts and their sizes where there is nothing to find, and exits with 2 otherwise.

    Example: dreamkit check digits/stage1 train.steps=100
    """
    from dreamkit.build import fit
    from dreamkit.errors import RecipeError
    from dreamkit.plugins import Registry
    from dreamkit.recipe import draft_recipe

    registry = Registry.load()
    draft, problems = draft_recipe(recipe, overrides or (), registry)
    found = fit(draft, registry) if draft is not None else None
    problems += found.problems if found is not None else []
    if problems:
        raise RecipeError(problems)
    assert found is not None, "a recipe without problems is whole"
    table = Table("part", "component", "takes and gives", box=None, pad_edge=False)
    for row in found.summary():
        table.add_row(*row)
    console().print(table)


@app.command()
def train(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="a new folder for the checkpoint, resume points and log.jsonl")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last resume point in OUT")] = False,
) -> None:
    """Train the model of a recipe.

    Writes OUT/checkpoint at the end, OUT/checkpoints/step-N every train.save_every steps, and OUT/log.jsonl. Several
    devices are used where torchrun starts one process on each.

    Example: dreamkit train digits/stage1 train.steps=100 --out run1
    """
    from dreamkit.plugins import Registry
    from dreamkit.recipe import load_recipe
    from dreamkit.train import train as run

    registry = Registry.load()
    try:
        result = run(load_recipe(recipe, overrides or (), registry), registry, out, resume=resume)
    except KeyboardInterrupt:
        go_on = (
            "--resume goes on from the last resume point"
            if any(out.glob("checkpoints/*"))
            else "nothing was kept"
        )
        typer.echo(f"interrupted; {go_on} (train.save_every says how often one is written)", err=True)
        raise typer.Exit(130) from None
    if result.is_main:
        typer.echo(f"wrote {result.checkpoint}")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="a checkpoint's folder")],
) -> None:
    """Say what a checkpoint holds, after reading every file to see that it is whole.

    Example: dreamkit inspect run1/checkpoint
    """
    import yaml
    from rich.filesize import decimal

    from dreamkit.manifest import Manifest

    manifest = Manifest.read(folder)
    out = console()
    out.print(
        f"format {manifest.format}, written by dreamkit {manifest.dreamkit}; every file is as it was written\n"
    )
    table = Table("part", "component", "from", "tensors held", "size", "source", box=None, pad_edge=False)
    for part in dict.fromkeys([*manifest.components, *manifest.parts]):
        name = origin = source = ""
        if part in manifest.components:
            component = manifest.components[part]
            name, origin = component["name"], f"{component['distribution']} {component['version']}"
        if part in manifest.sources:
            source = manifest.sources[part]["name"]
        size = manifest.files[f"{part}.safetensors"]["size"] if part in manifest.parts else 0
        table.add_row(part, name, origin, str(manifest.parts.get(part, 0)), decimal(size), source)
    out.print(table)
    out.print(f"\ntokens: {manifest.tokens}\n\nrecipe:", markup=False)
    typer.echo(yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="a new folder for checkpoint, figures and report")] = Path(
        "dreamkit-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="seed of training and measuring")] = 0,
) -> None:
    """Train a miniature model on real handwriting in a few minutes, measure it, and write a report.

    Runs the shipped recipes digits/stage1, stage2 and stage3, one after the other. Writes OUT/checkpoint,
    OUT/metrics.json and OUT/report.html, and exits with 2 where a figure misses its target.

    Example: dreamkit demo --out demo --seed 1
    """
    from dreamkit.plugins import Registry

    figures = Registry.load().get("task", "digits-demo")().run(out, seed=seed)
    table = Table("figure", "value", box=None, pad_edge=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console().print(table)
    typer.echo(f"wrote to {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="a folder that dreamkit wrote")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="what to go on from; each <image> stands for a picture")
    ],
    image: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="a picture for the next <image> of the prompt")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder to write to")] = Path("dreamkit-out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the document in DIR")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="make the prompt a user's turn in a conversation")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**64 - 1, help="the same seed draws the same pictures")
    ] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of text at most")] = None,
    max_images: Annotated[int | None, typer.Option(min=0, help="pictures at most")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, callback=_finite, help="scale of classifier-free guidance")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="denoising steps a picture")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, callback=_finite, help="0 always takes the likeliest token")
    ] = None,
) -> None:
    """Go on with a document: text as it is written, pictures as they are drawn.

    Writes image-0.png and so on, and index.html with the whole document. What is not set here is as the checkpoint's
    recipe has it. Runs on a CUDA device where there is one.

    Example: dreamkit generate dreamkit-demo/checkpoint "two" --max-images 2 --out two
    """
    from dreamkit.data.records import open_picture
    from dreamkit.document import Document
    from dreamkit.live import write_document

    pictures = [open_picture(path, "--image") for path in image or ()]
    document = Document.interleave(prompt, pictures, name="PROMPT", role="user" if chat else None)
    limits = {"max_tokens": max_tokens, "max_images": max_images}
    drawing = {"guidance": guidance, "steps": steps, "temperature": temperature}
    settings = {name: value for name, value in (limits | drawing).items() if value is not None}
    reason = write_document(
        checkpoint, document, out, title=prompt, seed=seed, settings=settings, overwrite=overwrite
    )
    typer.echo(f"{reason}; wrote {out / 'index.html'}", err=True)


@app.command()
def import_published(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="a checkpoint that the published code saved")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="the folder to write the dreamkit checkpoint to")
    ],
) -> None:
    """Turn a checkpoint of the published DreamLLM code into a dreamkit checkpoint.

    The components that its config.json names are looked for as folders beside it, and else as hub names.

    Example: dreamkit import-published tests/reference/published-sd/checkpoint imported
    """
    from dreamkit.plugins import Registry
    from dreamkit.published import import_published as import_it

    import_it(folder, out, Registry.load())
    typer.echo(f"wrote {out}", err=True)


@app.command()
def test_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="an installed distribution, such as dreamkit-wave")
    ],
    component: Annotated[str | None, typer.Option(metavar="NAME", help="only this component of it")] = None,
    check: Annotated[str | None, typer.Option(metavar="NAME", help="only this check")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="draw few inputs for each check")] = False,
) -> None:
    """Say whether everything an installed plug-in registers keeps its contract.

    Builds a miniature of each part and tries it on the checks of its kind, which docs/plugins/checks.md lists. Writes
    no file. Exits with 1 where a check fails. Needs the extra dreamkit[testing].

    Example: dreamkit test-plugin dreamkit-transformers --component clip --quick
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # else it leaves one here
        try:
            from dreamkit.testing.distribution import components
        except ModuleNotFoundError as error:
            if error.name != "hypothesis":
                raise
            raise DreamkitError(f"{error}; install the kit: pip install 'dreamkit[testing]'") from error
        from dreamkit.testing.report import Outcome, summary

        found = components(name, component=component, check=check, quick=quick)
        all_outcomes: list[Outcome] = []
        for each in found:
            typer.echo(str(each))
            for outcome in each.outcomes():
                all_outcomes.append(outcome)
                typer.echo(f"  {outcome}")
    ends = summary(all_outcomes)
    typer.echo(f"{len(found)} component{'s' if len(found) > 1 else ''} of {found[0].distribution}; {ends}")
    tried = [outcome for outcome in all_outcomes if check in (None, outcome.check)]
    if any(outcome.result == "failed" for outcome in all_outcomes) or all(
        o.result == "skipped" for o in tried
    ):
        raise typer.Exit(1)


@app.command()
def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="the distribution's name, such as dreamkit-wave")
    ],
    kind: Annotated[
        str, typer.Option(help="vision-encoder, language-model, projector or image-decoder: what it gives")
    ],
    license_name: Annotated[
        str, typer.Option("--license", help="Apache-2.0, MIT or BSD-3-Clause")
    ] = "Apache-2.0",
    author: Annotated[str | None, typer.Option(help="who holds the copyright")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the folder to write; the default is ./NAME")
    ] = None,
) -> None:
    """Write a plug-in package to start from: a small part that works, its tests, and how to publish it.

    The package installs, and passes its contract test. Its part is a file of less than a hundred lines to change.

    Example: dreamkit new-plugin dreamkit-wave --kind vision-encoder
    """
    import shlex

    from rich.tree import Tree

    from dreamkit.plugins import Registry
    from dreamkit.scaffold import new_plugin as write

    folder, files = write(name, kind, out, license=license_name, author=author, registry=Registry.load())
    branches = {Path(): Tree(str(folder))}
    for path in (path for file in files for path in [*reversed(file.parents), file]):
        if path not in branches:
            branches[path] = branches[path.parent].add(path.name)
    console().print(branches[Path()])
    typer.echo(f"\nnext:\n  cd {shlex.quote(str(folder))}\n  pip install -e '.[test]'\n  pytest")


def main() -> None:
    """Runs the command line. What the user can mend is said in a sentence on stderr, with exit code 2."""
    try:
        app()
    except DreamkitError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:  # not about a path that the user gave
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(f"dreamkit: {sentence}", err=True)
    sys.exit(2)
