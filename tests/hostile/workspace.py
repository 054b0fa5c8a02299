"""A folder with a small file of every kind that a command reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import timm
import torch
import yaml
from transformers import LlamaForCausalLM

import tiny
from dreamkit.runs.record import RunRecord, new_start
from dreamkit_timm.encoder import Timm
from meta.installing import hook, install
from releases.using import RELEASES, copy_release
from tar_files import digit_metadata, write_img2dataset

PUBLISHED = Path(__file__).parents[1] / "reference"
PLUGIN = "hostile_plugin"
TURN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def write_workspace(root: Path) -> Path:
    """Write all files to the new folder `root`; what needs a command to write it is not there yet."""
    root.mkdir()
    copy_release(RELEASES[0], root / "release")
    shutil.copytree(PUBLISHED / "published-sd", root / "published")
    _write_parts(root / "parts")
    _write_data(root / "data", root / "release/data")
    _write_recipes(root)
    (root / "tars").mkdir()
    write_img2dataset(root / "tars", [[digit_metadata(number) for number in range(3)]])
    site = root / "site"
    site.mkdir()
    target = "dreamkit.parts.projectors.dense:Linear"
    recipes = "\n@hookimpl\ndef dreamkit_recipes():\n    return '" + f"{PLUGIN}:recipes'\n"
    install(site, PLUGIN, hook("projector", "hostile", target) + recipes)
    (site / PLUGIN / "recipes").mkdir()
    shutil.copy(root / "release/stage.yaml", site / PLUGIN / "recipes/shipped.yaml")
    _write_run(root / "runs/first")
    (root / "document").mkdir()
    (root / "document/index.html").write_text("<p>an earlier document</p>")
    shutil.copy(root / "data/red.png", root / "document/image-0.png")
    return root


def _write_run(folder: Path) -> None:
    """Write the files of a run that its page and its summary read."""
    drawings = folder / "drawings/step-2"
    drawings.mkdir(parents=True)
    tiny.picture(0).save(drawings / "0.png")
    recipe = {"model": {}, "train": {"steps": 4, "prompts": ["a red square"]}}
    RunRecord(1, 0, 4, 2, 1, 1, "CPU", {"python": "3.11"}, [new_start(0)], "stopped", recipe).write(folder)
    skipped = {
        "step": 1,
        "place": 3,
        "data": 0,
        "index": 1,
        "shard": "a.tar",
        "member": "b",
        "reason": "no image",
    }
    spike = {"step": 2, "norm": 90.5, "median": 3.5, "documents": ["a.tar!b"]}
    for name, entries in {
        "log.jsonl": [{"step": step, "lm": 2.5, "denoising": None, "loss": 2.5} for step in (1, 2)],
        "held_out.jsonl": [{"step": 2, "lm": 2.75, "denoising": 0.5, "loss": 3.25}],
        "skipped.jsonl": [skipped],
        "spikes.jsonl": [spike],
    }.items():
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _write_parts(folder: Path) -> None:
    """Write the tiny parts; the language model as shards with an index and a chat template."""
    torch.manual_seed(0)
    tiny.write_sources(folder)
    language = folder / "language_model"
    model = LlamaForCausalLM.from_pretrained(language)
    (language / "model.safetensors").unlink()
    model.save_pretrained(language, max_shard_size="40KB")
    (language / "chat_template.jinja").write_text(TURN)
    arguments = dict(Timm.tiny_config().config or {})
    model = timm.create_model(arguments.pop("architecture"), **arguments)
    timm.models.save_for_hf(model, str(folder / "timm"), model_args=arguments, safe_serialization=True)


def _write_data(folder: Path, release: Path) -> None:
    shutil.copytree(release, folder)
    images = folder / "images"
    images.mkdir()
    for colour in ("red", "green"):
        shutil.copy(release / f"{colour}.png", images / f"{colour}.png")
        (images / f"{colour}.txt").write_text(f"a {colour} square\n")


def _write_recipes(root: Path) -> None:
    model = tiny.recipe()["model"]
    for part in ("language_model", "vision_encoder", "image_decoder"):
        model[part] = {"name": model[part]["name"], "pretrained": f"./parts/{part}"}
    base = {
        "model": model,
        "data": [
            {"name": "pairs", "path": "data/images"},
            {"name": "pairs", "path": "data/pairs.jsonl", "direction": "read", "weight": 0.5},
            {"name": "interleaved", "path": "data/pages.jsonl"},
            {"name": "conversations", "path": "data/talks.json"},
        ],
        "loss": {"lm": 1, "denoising": 1, "condition_drop": 0.1},
        "generation": {"steps": 1, "guidance": 2.0, "max_tokens": 4, "max_images": 1},
    }
    train = {
        "trainable": ["visual_projector", "condition_projector", "dream_queries", "new_tokens"],
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 0.001,
        "log_every": 1,
        "warmup": 0,
    }
    (root / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    recipe = {"extends": "base.yaml", "model": {"dream_queries": 2}, "train": train}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
