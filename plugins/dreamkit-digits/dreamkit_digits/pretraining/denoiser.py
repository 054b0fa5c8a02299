"""The tiny Stable Diffusion: a text-conditioned UNet on latents, its text encoder and scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from dreamkit_digits import phrases
from dreamkit_digits.judge import Judge
from dreamkit_digits.pretraining import common

STEPS = 2600
BATCH = 64
RATE = 2e-3
CONTEXT_DIM = 64
CONTEXT_TOKENS = 4
"""<s>, the article, the digit's name, </s>."""
CONDITION_DROP = 0.1
CONTEXT_NOISE = 0.2
"""Standard deviation of the noise put on the context, whose own scale is 1: the frozen decoder must take
contexts that a language model made, which never lie exactly where the text encoder's did."""

SAMPLING_STEPS = 20
GUIDANCE = 2.0
SAMPLES = 500


def new_unet() -> UNet2DConditionModel:
    """Return the untrained UNet: a million parameters; attention only at 4 x 4, which is half the work."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=CONTEXT_DIM,
    )


def new_scheduler() -> DDPMScheduler:
    """Return Stable Diffusion's noise schedule.

    "trailing" starts sampling at the noisiest step, and nothing is clipped: latents are not pixels, and
    clipping them to [-1, 1] draws grey fog.
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def new_text_encoder(vocab_size: int) -> CLIPTextModel:
    """Return the untrained text encoder, whose context has unit variance in every token."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=CONTEXT_DIM,
            intermediate_size=2 * CONTEXT_DIM,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    # Left at weight 1 and bias 0 the last norm keeps every context token at unit scale.
    for parameter in encoder.get_submodule("final_layer_norm").parameters():
        parameter.requires_grad_(False)
    return encoder


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Return the text encoder's tokenizer: one token a word, padded to the context's length."""
    words = ["<s>", "</s>", "<unk>", "a", "an", *phrases.WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT_TOKENS,
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """Return the (N, 4) token ids of the prompts, padded or cut to the context's length."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train(folder: Path, steps: int = STEPS) -> None:
    """Train UNet and text encoder on the latents of `folder / "vae"`; write all parts beside it."""
    generator = common.seeded(2)
    pictures, labels = common.training_pictures()
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
    tokenizer, scheduler, unet = new_tokenizer(), new_scheduler(), new_unet()
    encoder = new_text_encoder(len(tokenizer))
    # Row 10 of the prompts is the empty one, the null condition of classifier-free guidance.
    ids = prompt_ids(tokenizer, [phrases.naming(digit) for digit in range(10)] + [""])
    learned = [p for p in [*unet.parameters(), *encoder.parameters()] if p.requires_grad]
    optimizer, schedule = common.cosine_adamw(learned, RATE, steps)
    averages: list[Any] = [common.averaged(unet), common.averaged(encoder)]
    for chosen in common.batches(len(pictures), BATCH, steps, "unet", generator):
        spread = torch.randn(posterior.mean[chosen].shape, generator=generator)
        latents = (posterior.mean[chosen] + posterior.std[chosen] * spread) * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < CONDITION_DROP
        context = encoder(ids[torch.where(dropped, 10, labels[chosen])]).last_hidden_state
        context = context + CONTEXT_NOISE * torch.randn(context.shape, generator=generator)
        guess = unet(scheduler.add_noise(latents, noise, times), times, context).sample
        loss = functional.mse_loss(guess, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        for average, module in zip(averages, (unet, encoder), strict=True):
            average.update_parameters(module)
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer.save_pretrained(folder / "tokenizer")
    average_unet, average_encoder = (average.module for average in averages)
    average_encoder.save_pretrained(folder / "text_encoder")
    average_unet.half().save_pretrained(folder / "unet")


@torch.no_grad()
def draw(folder: Path, prompts: list[str], steps: int, guidance: float, seed: int) -> np.ndarray:
    """Draw one picture a prompt with DDIM and guidance; return (N, 16, 16, 3) uint8 pixels."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(steps)
    ids = prompt_ids(tokenizer, prompts + [""] * len(prompts))
    context = encoder(ids).last_hidden_state
    latents = torch.randn((len(prompts), 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    for time in scheduler.timesteps:
        conditional, null = unet(torch.cat([latents, latents]), time, context).sample.chunk(2)
        latents = scheduler.step(null + guidance * (conditional - null), time, latents).prev_sample
    return common.to_pixels(vae.decode(latents / vae.config.scaling_factor).sample)


def measure(folder: Path) -> dict[str, float]:
    """Return how many of 500 drawings, 50 a digit, the judge reads as the digit of the prompt."""
    digits = [digit for digit in range(10) for _ in range(SAMPLES // 10)]
    drawings = draw(folder, [phrases.naming(digit) for digit in digits], SAMPLING_STEPS, GUIDANCE, seed=0)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    return {
        "drawing_judge_accuracy": Judge.train().accuracy(drawings, digits),
        "samples": len(digits),
        "sampling_steps": SAMPLING_STEPS,
        "guidance": GUIDANCE,
        "parameters": unet.num_parameters(),
        "text_encoder_parameters": encoder.num_parameters(),
    }
