"""Write the files of a release, with which later releases are tested. Run it once for each release.

python tests/releases/write.py OUT

OUT is `tests/releases/vX_Y`. Before the run it contains only `packages`: third-party plug-ins for this release, one for
each kind of part and one for a data set, and the recipe `shapes/five`, which uses all five. Copy the packages of the
previous release, and let them use what is new.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from PIL import Image as PIL, ImageDraw

import dreamkit.testing
from dreamkit import Registry, load_checkpoint, load_recipe, train_recipe
from releases.measure import measure
from releases.using import HERE, dreamkit as command, install_packages, read_log, replace_in_manifests

PUBLISHED = Path(__file__).parents[1] / "reference" / "published-sd" / "checkpoint"
COLOURS = ("red", "green", "blue")
STAGE = """\
# Trains a tiny model of random weights until it writes and draws.
model:
  language_model:
    name: vicuna
    config: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
             num_key_value_heads: 2, max_position_embeddings: 256}
    system_prompt: ""
  vision_encoder:
    name: clip
    config: {hidden_size: 16, intermediate_size: 24, num_hidden_layers: 3, num_attention_heads: 2,
             image_size: 16, patch_size: 8}
  visual_projector: {name: mlp, depth: 2}
  condition_projector: {name: linear, bias: false}
  image_decoder:
    name: stable-diffusion
    config:
      unet: {sample_size: 8, block_out_channels: [8, 16], layers_per_block: 1, cross_attention_dim: 12,
             down_block_types: [DownBlock2D, CrossAttnDownBlock2D], attention_head_dim: 4,
             up_block_types: [CrossAttnUpBlock2D, UpBlock2D], norm_num_groups: 4}
      vae: {block_out_channels: [8, 8], down_block_types: [DownEncoderBlock2D, DownEncoderBlock2D],
            up_block_types: [UpDecoderBlock2D, UpDecoderBlock2D], layers_per_block: 1, norm_num_groups: 4,
            sample_size: 16}
      scheduler: {beta_schedule: scaled_linear, beta_start: 0.00085, beta_end: 0.012, clip_sample: false}
  dream_queries: 3
data:
  - {name: pairs, path: data/pairs.jsonl}
  - {name: pairs, path: data/pairs.jsonl, direction: read, weight: 0.5}
  - {name: interleaved, path: data/pages.jsonl}
  - {name: conversations, path: data/talks.json}
loss: {lm: 1, denoising: 1, condition_drop: 0.1}
train:
  trainable: [language_model, visual_projector, condition_projector, image_decoder, dream_queries, new_tokens]
  steps: 80
  batch_size: 4
  learning_rate: 0.01
  warmup: 5
generation: {steps: 2, guidance: 2.0, max_tokens: 12, max_images: 2}
"""
RUN = """\
# Continues from the checkpoint, with or without the cache.
extends: stage.yaml
init: checkpoint
train:
  trainable: [visual_projector, condition_projector, language_model, dream_queries, new_tokens]
  steps: 4
  batch_size: 2
  accumulation: 2
  learning_rate: 0.001
  log_every: 1
  save_every: 2
  warmup: 0
"""
ADAPTERS = (
    "[{target: language_model, rank: 2, alpha: 4}, {target: vision_encoder, rank: 2, use_dora: true}, "
    "{target: image_decoder, rank: 2, use_rslora: true}]"
)
FEW = ("train.steps=3", "train.batch_size=4", "train.log_every=1", "train.warmup=0")


def write_data(folder: Path) -> None:
    """Write three images, and a file of each data format."""
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        picture = PIL.new("RGB", (16, 16), "white")
        ImageDraw.Draw(picture).rectangle((2 + number, 3, 9 + number, 12), fill=colour)
        picture.save(folder / f"{colour}.png")
    pairs = [{"image": f"{colour}.png", "caption": colour} for colour in COLOURS]
    pages = [{"text": "a <image> and a <image>", "images": ["red.png", "blue.png"]}]
    turns = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "green"}]
    talks = [{"image": "green.png", "conversations": turns}]
    for name, lines in (("pairs", pairs), ("pages", pages)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "talks.json").write_text(json.dumps(talks, indent=1) + "\n")


def interrupt_at(step: int) -> Any:
    """Return an `on_log` that interrupts a run at `step`, as Ctrl-C does."""

    def on_log(entry: Any) -> None:
        if entry["step"] == step:
            raise KeyboardInterrupt

    return on_log


def write(out: Path) -> None:
    """Write the files of a release, except `packages`, to the folder `out`."""
    write_data(out / "data")
    for name, text in (("stage.yaml", STAGE), ("run.yaml", RUN)):
        (out / name).write_text(text)
    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        command("train", out / "stage.yaml", "--out", scratch / "stage")
        shutil.copytree(scratch / "stage/checkpoint", out / "checkpoint")
        adapted = ("digits/stage1", f"model.adapters={ADAPTERS}", *FEW)
        command("train", *adapted, "--out", scratch / "adapted")
        shutil.copytree(scratch / "adapted/checkpoint", out / "adapters")
        command("import-published", PUBLISHED, out / "imported")

        registry = Registry.load()
        recipe = load_recipe(str(out / "run.yaml"), [], registry)
        with contextlib.suppress(KeyboardInterrupt):
            train_recipe(recipe, registry, out / "run", on_log=interrupt_at(3))
        command("train", out / "run.yaml", "--out", scratch / "straight")
        expected["run"] = read_log(scratch / "straight")
        command("cache", out / "run.yaml", "--out", out / "cache")
        command("train", out / "run.yaml", f"train.cache={out / 'cache'}", "--out", scratch / "cached")
        expected["cache"] = read_log(scratch / "cached")

        sys.path.insert(0, str(install_packages(out, scratch / "packages")))
        command("train", "shapes/five", "--out", scratch / "five")
        shutil.copytree(scratch / "five/checkpoint", out / "parts")
        command("train", "shapes/five", f"init={out / 'parts'}", "--out", scratch / "more")
        expected["five"] = read_log(scratch / "more")
        for name in ("checkpoint", "adapters", "imported", "parts"):
            expected[name] = measure(load_checkpoint(out / name)[0])
    modules = (dreamkit, dreamkit.testing, dreamkit.testing.contracts)
    expected["names"] = {module.__name__: sorted(module.__all__) for module in modules}
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    replace_in_manifests(out, str(out), HERE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]).resolve())
