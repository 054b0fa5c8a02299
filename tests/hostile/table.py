"""The files that each command reads, in a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostile.workspace import PLUGIN

OUT: Final = "{out}"  # a new folder for each run


@dataclass(frozen=True)
class Row:
    """A command, and globs of the files in the workspace that it reads.

    `examples` is its share of 1,000. `codes` are the exit codes that it may have. `verified` is a folder whose manifest
    has hashes of its files. `writes` is a folder in the workspace that the command writes.
    """

    about: str
    command: str
    arguments: tuple[str, ...]
    files: tuple[str, ...]
    examples: int
    codes: tuple[int, ...] = (0, 2)
    verified: str | None = None
    writes: str | None = None

    def __str__(self) -> str:
        return f"{self.command}-{self.about}".replace(" ", "-")

    def paths(self, root: Path) -> list[Path]:
        """Return the files in a workspace; those of several patterns several times."""
        found = {pattern: [p for p in sorted(root.glob(pattern)) if p.is_file()] for pattern in self.files}
        assert all(found.values()), f"no file in the workspace for a pattern of {self}: {found}"
        return [path for paths in found.values() for path in paths]


RECIPES: Final = ("recipe.yaml", "base.yaml")
DATA: Final = ("data/*.jsonl", "data/*.json", "data/images/*", "data/red.png")
CONFIGS: Final = (
    "parts/language_model/*.json",
    "parts/vision_encoder/*.json",
    "parts/image_decoder/*/*.json",
)
LANGUAGE: Final = ("parts/language_model/*", "parts/language_model/*.index.json")
WEIGHTS: Final = ("parts/*/*.safetensors", "parts/image_decoder/*/*.safetensors")
PUBLISHED: Final = ("published/checkpoint/*", "published/checkpoint/*.json", "published/components/**/*.json")
SITE: Final = (f"site/{PLUGIN}-1.0.dist-info/*", f"site/{PLUGIN}/recipes/*")

CHECKPOINT: Final = "release/checkpoint"
ADAPTERS: Final = "release/adapters"
RUN: Final = "release/run"
POINT: Final = f"{RUN}/checkpoints/step-2"

TIMM: Final = "model.vision_encoder={name: timm, pretrained: ./parts/timm}"
INIT: Final = ("release/run.yaml", "train.steps=1")
RESUME: Final = ("release/run.yaml", "--resume")
REPLACE: Final = ("recipe.yaml", "--overwrite")
FEW: Final = ("--max-tokens", "3", "--max-images", "1", "--steps", "1")
WITH_IMAGE: Final = (CHECKPOINT, "<image>", "--image", "data/red.png")
AGAIN: Final = (CHECKPOINT, "a", "--overwrite")
TESTED: Final = (PLUGIN.replace("_", "-"), "--quick", "--check", "determinism")
DEVICES: Final = ("--devices", "2", "--memory", "1GiB")
HEALTH: Final = (0, 1, 2)  # with 1, these commands report a broken plug-in or a check that fails


def checkpoint(folder: str) -> tuple[str, ...]:
    """Return the globs of a checkpoint: half of the examples are of its JSON."""
    return (f"{folder}/dreamkit.json", f"{folder}/**/*.json", f"{folder}/**/*")


RESUMED: Final = (f"{RUN}/log.jsonl", f"{POINT}/trainer/*", *checkpoint(POINT))
RUN_FILES: Final = (
    "runs/first/*.json*",
    "runs/first/drawings/*/*",
    "runs/first/checkpoints/*/trainer/*",
    f"{RUN}/log.jsonl",
)
ROWS: Final = (
    Row("recipes", "check", ("recipe.yaml",), RECIPES, 150),
    Row("parts", "check", ("recipe.yaml",), (*CONFIGS, *LANGUAGE), 160),
    Row("timm", "check", ("recipe.yaml", TIMM), ("parts/timm/config.json",), 40),
    Row("cache", "check", ("recipe.yaml", "train.cache=cache"), ("cache/cache.json",), 30),
    Row("recipes and parts", "plan", ("recipe.yaml", "--json"), (*RECIPES, *CONFIGS), 15),
    Row("proposal", "plan", ("recipe.yaml", *DEVICES, "--write", f"{OUT}.yaml"), RECIPES, 5),
    Row("data", "data check", ("recipe.yaml",), DATA, 40),
    Row("data", "data preview", ("recipe.yaml", "--out", OUT), DATA, 40),
    Row("recipes", "train", ("recipe.yaml", "--out", OUT), RECIPES, 15),
    Row("data", "train", ("recipe.yaml", "--out", OUT), DATA, 30),
    Row("parts", "train", ("recipe.yaml", "--out", OUT), (*CONFIGS, *LANGUAGE, *WEIGHTS), 30),
    Row("timm", "train", ("recipe.yaml", TIMM, "--out", OUT), ("parts/timm/*",), 10),
    Row(
        "cache",
        "train",
        ("recipe.yaml", "train.cache=cache", "--out", OUT),
        ("cache/*",),
        15,
        verified="cache",
    ),
    Row("checkpoint", "train", (*INIT, "--out", OUT), checkpoint(CHECKPOINT), 10, verified=CHECKPOINT),
    Row("resume", "train", (*RESUME, "--out", RUN), RESUMED, 25, verified=POINT, writes=RUN),
    Row("inputs", "cache", ("recipe.yaml", "--out", OUT), (*RECIPES, *DATA, *CONFIGS, *WEIGHTS), 20),
    Row("earlier", "cache", (*REPLACE, "--out", "cache"), ("cache/*",), 5, verified="cache", writes="cache"),
    Row("runs", "runs list", (".",), (*RUN_FILES, f"{POINT}/dreamkit.json"), 20),
    Row("runs", "runs diff", ("runs/first", RUN, "--out", OUT), (*RUN_FILES, f"{POINT}/dreamkit.json"), 20),
    Row("tars", "data index", ("tars", "--index", OUT), ("tars/*.tar",), 10),
    Row("checkpoint", "inspect", (ADAPTERS,), checkpoint(ADAPTERS), 100, verified=ADAPTERS),
    Row("cache", "inspect", ("cache",), ("cache/*",), 70, verified="cache"),
    Row(
        "checkpoint",
        "generate",
        (CHECKPOINT, "a", *FEW, "--out", OUT),
        checkpoint(CHECKPOINT),
        40,
        verified=CHECKPOINT,
    ),
    Row("image", "generate", (*WITH_IMAGE, *FEW, "--out", OUT), ("data/red.png",), 5),
    Row("earlier", "generate", (*AGAIN, *FEW, "--out", "document"), ("document/*",), 5, writes="document"),
    Row("checkpoint", "import-published", ("published/checkpoint", OUT), PUBLISHED, 25),
    Row("checkpoint", "merge-adapters", (ADAPTERS, OUT), checkpoint(ADAPTERS), 25, verified=ADAPTERS),
    Row("plug-in", "plugins", (), SITE, 20, codes=HEALTH),
    Row("plug-in", "recipes", (), SITE, 10),
    Row("plug-in", "test-plugin", TESTED, SITE, 5, codes=HEALTH),
    Row("plug-in", "new-plugin", ("dreamkit-new", "--kind", "projector", "--out", OUT), SITE, 5),
)
READ_NO_FILE: Final = {"demo": "its recipes and data are in its own package"}
