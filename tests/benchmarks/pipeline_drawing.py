"""One drawing beside diffusers' `StableDiffusionPipeline`, in turn: `python tests/benchmarks/pipeline_drawing.py`.

Both draw and decode an image with guidance 7.5 by the same weights from the same noise and conditions. dreamkit draws
with `ImageDecoder.draw`. The pipeline gets its text embeddings ready-made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import compared, take_turns, timed
from benchmarks.written_models import RECIPES, measured_model
from dreamkit import Condition

OURS, LIBRARY = "ours", "StableDiffusionPipeline"
GUIDANCE: Final = 7.5


def candidates(name: str, steps: int) -> dict[str, Callable[[], Tensor]]:
    """Return functions that draw the same image (1, 3, H, W) with the decoder of a model, by candidate."""
    decoder: Any = measured_model(name).image_decoder
    generator = torch.Generator().manual_seed(0)
    width, side = decoder.spec.context_dim, decoder.spec.image_size
    contexts = torch.randn(2, 1, 16, width, generator=generator)
    latents = torch.randn(1, *decoder.spec.latent_shape((side, side)), generator=generator)
    scheduler = diffusers.DDIMScheduler.from_config(decoder.scheduler("ddim").config)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=decoder.vae,
        unet=decoder.unet,
        scheduler=scheduler,
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> Tensor:
        positive, negative = (Condition(context) for context in contexts)
        return decoder.draw(
            positive, negative, scheduler="ddim", steps=steps, guidance=GUIDANCE, latents=latents
        )

    def theirs() -> Tensor:
        return pipeline(
            prompt_embeds=contexts[0],
            negative_prompt_embeds=contexts[1],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=latents,
            output_type="pt",
        ).images

    return {OURS: ours, LIBRARY: theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=RECIPES, help="measure one model's decoder")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| decoder of | candidate | time, s | CPU time, s | above the pipeline: time | CPU time |")
    print("|---|---|---|---|---|---|")
    for name in [arguments.only] if arguments.only else RECIPES:
        calls = candidates(name, arguments.steps)
        images = [call() for call in calls.values()]  # and a warm-up
        torch.testing.assert_close(*images, rtol=0, atol=2 / 255)
        rounds = take_turns({each: partial(timed, call) for each, call in calls.items()}, arguments.rounds)
        for each in calls:
            print(f"| {' | '.join([name, each, *compared(rounds, each, LIBRARY)])} |", flush=True)


if __name__ == "__main__":
    main()
