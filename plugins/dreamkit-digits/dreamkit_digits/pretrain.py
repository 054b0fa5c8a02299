"""Build the tiny pretrained parts from scratch: `python -m dreamkit_digits.pretrain OUT`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers

from dreamkit_digits import digits
from dreamkit_digits.judge import Judge
from dreamkit_digits.pretraining import autoencoder, denoiser, language, vision

DESCRIPTION = """\
Train the tiny parts of dreamkit-digits from random weights, with fixed seeds, on one CPU core:
a Stable Diffusion (vae/, unet/, text_encoder/, scheduler/), a SigLIP vision tower and a LLaMA.
It downloads nothing. The 397 held-out digits are only for measuring."""
EXAMPLE = """\
example:
  python -m dreamkit_digits.pretrain /tmp/parts          about a quarter of an hour
  python -m dreamkit_digits.pretrain /tmp/parts -s 0.01  tries every step quickly; the parts are of no use

Writes OUT/stable-diffusion, OUT/siglip and OUT/llama in the Hugging Face format, and OUT/quality.json with the
measured quality, size and training time of each. Replaces files that are there."""

STAGES = (
    ("vae", "stable-diffusion/vae", autoencoder),
    ("stable-diffusion", "stable-diffusion", denoiser),
    ("siglip", "siglip", vision),
    ("llama", "llama", language),
)
"""Name, folder and module of each part, in the order of building: the UNet needs the VAE."""


def pretrain(out: Path, scale: float = 1.0) -> dict[str, dict[str, float]]:
    """Build every part in `out` and return the measured quality of each.

    scale: multiplies the training steps of each part; 1 builds the shipped parts.
    """
    heldout = digits.load("heldout")
    quality = {"judge": {"heldout_accuracy": Judge.train().accuracy(heldout.pixels, heldout.labels)}}
    _show("judge", quality["judge"])
    for name, place, module in STAGES:
        folder = out / place
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        module.train(folder, max(1, round(module.STEPS * scale)))
        seconds = time.monotonic() - start
        quality[name] = module.measure(folder) | {"training_seconds": round(seconds)}
        _show(name, quality[name])
    quality["size"] = {place: _bytes(out / place) for _, place, _ in STAGES if "/" not in place}
    quality["size"]["total"] = sum(quality["size"].values())
    _show("size", quality["size"])
    (out / "quality.json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    return quality


def _show(name: str, values: dict[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{key} {value:.7g}" for key, value in values.items()), flush=True)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamkit_digits.pretrain",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write, made if missing")
    parser.add_argument(
        "-s", "--scale", type=float, default=1.0, help="multiply every number of training steps (default: 1)"
    )
    arguments = parser.parse_args()
    # With more threads, sums have another order, and the parts would differ in their last digits.
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    pretrain(arguments.out, arguments.scale)


if __name__ == "__main__":
    main()
