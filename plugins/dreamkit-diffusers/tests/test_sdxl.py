"""SDXL agrees with diffusers' own pipeline, model and training script; its autoencoder computes in float32."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit import Condition, ConfigError, SourceError
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from library_pipelines import write_folder
from tiny_decoders import condition_of, latents_of, seeded, tiny_config, tiny_decoder

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

META = SDXL.meta_modules(SDXL.tiny_config())
SCHEDULERS = ["ddpm", "ddim", "dpm-solver++", "unipc", "euler"]


@pytest.fixture
def decoder() -> Any:
    return tiny_decoder(SDXL)


@pytest.mark.parametrize("name", [*SCHEDULERS, None])
def test_draw_agrees_with_the_pipeline(decoder: SDXL, name: str | None) -> None:
    pipeline = StableDiffusionXLPipeline(
        vae=decoder.vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=decoder.unet,
        scheduler=decoder.scheduler(name),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    positive, negative, latents = condition_of(decoder), condition_of(decoder, seed=2), latents_of(2)
    common: dict[str, Any] = {
        "prompt_embeds": positive.context,
        "pooled_prompt_embeds": positive.pooled,
        "negative_prompt_embeds": negative.context,
        "negative_pooled_prompt_embeds": negative.pooled,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
    }
    with torch.no_grad():
        expected_latents, expected = (
            pipeline(**common, latents=latents, generator=seeded(9), output_type=kind).images
            for kind in ("latent", "pt")
        )
    steps: list[Tensor] = []
    images = decoder.draw(
        positive,
        negative,
        scheduler=name,
        steps=6,
        guidance=3.0,
        latents=latents,
        generators=seeded(9),
        on_step=lambda _, latents: steps.append(latents),
    )
    torch.testing.assert_close(steps[-1], expected_latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), rotated=st.booleans())
def test_time_ids_agree_with_the_training_script(width: int, height: int, rotated: bool) -> None:
    """diffusers' and the published script have the size before resizing, and the crop's corner after it."""
    transforms = pytest.importorskip("torchvision.transforms")
    picture = Image.new("RGB", (width, height))
    if rotated:
        picture.getexif()[0x0112] = 6
        width, height = height, width
    targets, extras = META.preprocess([picture])
    resized = transforms.Resize(16)(Image.new("RGB", (width, height)))
    top, left = (max(0, round((side - 16) / 2.0)) for side in (resized.height, resized.width))
    assert extras["time_ids"].tolist() == [[height, width, top, left, 16, 16]]
    assert torch.equal(targets[0], square_pixels(picture, 16))


def test_the_unet_gets_pooled_vector_and_time_ids(decoder: SDXL) -> None:
    _, extras = decoder.preprocess([Image.new("RGB", (40, 30)), Image.new("RGB", (16, 64))])
    condition, timesteps, noisy = condition_of(decoder), torch.tensor([3, 900]), latents_of(2)
    added = {"text_embeds": condition.pooled, "time_ids": extras["time_ids"]}
    expected = decoder.unet(noisy, timesteps, condition.context, added_cond_kwargs=added).sample
    assert torch.equal(decoder.denoise(noisy, timesteps, condition, extras), expected)
    other = decoder.denoise(noisy, timesteps, condition, decoder.default_extras(2, (16, 16)))
    assert not torch.allclose(other, expected)


def test_default_extras_are_of_uncropped_images(decoder: SDXL) -> None:
    extras = decoder.default_extras(2, (16, 24))
    assert torch.equal(extras["time_ids"], torch.tensor([[16.0, 24, 0, 0, 16, 24]] * 2))


def test_latents_are_clipped_only_if_the_config_says_so() -> None:
    """Many schedulers have no such setting, and DDPM's default is to clip."""
    decoder = tiny_decoder(SDXL, scheduler={"_class_name": "EulerDiscreteScheduler"})
    assert not decoder.schedule.config.clip_sample
    assert not decoder.scheduler("ddpm").config.clip_sample
    assert not decoder.scheduler("ddim").config.clip_sample
    assert tiny_decoder(SDXL, scheduler={"clip_sample": True}).scheduler("ddim").config.clip_sample


def test_missing_pooled_vectors_and_extras_are_named(decoder: SDXL) -> None:
    condition, extras = condition_of(decoder), decoder.default_extras(2, (16, 16))
    with pytest.raises(ValueError, match=r"expected a condition with a pooled vector \(N, 10\), got none"):
        decoder.loss(latents_of(2), Condition(condition.context), extras)
    with pytest.raises(ValueError, match=r"expected extras with 'time_ids' \(N, 6\), got \[\]"):
        decoder.loss(latents_of(2), condition, {})


class Dtypes(TorchDispatchMode):
    """A record of the dtypes of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(name in str(function) for name in ("convolution", "mm.", "linear", "bmm")):
            self.dtypes.add(result.dtype)
        return result


@pytest.mark.parametrize("upcast", [True, False])
def test_the_autoencoder_computes_in_float32_under_autocast(upcast: bool) -> None:
    decoder = tiny_decoder(SDXL, vae={"force_upcast": upcast})
    assert decoder.spec.float32_modules == (("vae",) if upcast else ())
    targets = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    plain = decoder.encode(targets, seeded(2))
    images = decoder.decode(plain)
    with torch.autocast("cpu", torch.bfloat16):
        with Dtypes() as autoencoder:
            latents, decoded = decoder.encode(targets, seeded(2)), decoder.decode(plain)
        with Dtypes() as network:
            decoder.loss(plain, condition_of(decoder), decoder.default_extras(2, (16, 16)))
    assert autoencoder.dtypes == {torch.float32 if upcast else torch.bfloat16}
    assert torch.bfloat16 in network.dtypes
    assert torch.equal(latents, plain) == torch.equal(decoded, images) == upcast


def test_half_precision_leaves_autoencoder_and_time_ids_in_float32(decoder: SDXL) -> None:
    decoder.bfloat16()
    assert decoder.vae.dtype == torch.float32 and decoder.unet.dtype == torch.bfloat16
    condition, timesteps = condition_of(decoder), torch.tensor([9, 9])
    half = Condition(condition.context.bfloat16(), pooled=condition.pooled.bfloat16())
    # these sizes are one number in bfloat16
    first, second = (
        decoder.denoise(
            latents_of(2).bfloat16(),
            timesteps,
            half,
            {"time_ids": torch.tensor([[height, width, 0, 0, height, width]] * 2)},
        )
        for height, width in ((1023.0, 1025.0), (1024.0, 1024.0))
    )
    assert not torch.equal(first, second)
    assert decoder.draw(half, steps=2, guidance=1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("cls", "unet", "key", "message"),
    [
        (
            StableDiffusion,
            SDXL.tiny_config().config["unet"],
            "addition_embed_type",
            r"expected null for 'stable-diffusion', got 'text_time' \(string\); use the image decoder 'sdxl'",
        ),
        (
            SDXL,
            {"addition_embed_type": None},
            "addition_embed_type",
            r"expected 'text_time' \(string\) for 'sdxl', got null; use the image decoder 'stable-diffusion'",
        ),
        (SDXL, {"addition_embed_type": "image"}, "addition_embed_type", "got 'image' .*name another one"),
        (SDXL, {"addition_embed_type": ["image"]}, "addition_embed_type", "got .*name another one"),
        (SDXL, {"class_embed_type": "timestep"}, "class_embed_type", "got 'timestep' .*name another one"),
        (
            SDXL,
            {"addition_time_embed_dim": 6},
            "projection_class_embeddings_input_dim",
            "more than 36, got 34",
        ),
        (SDXL, {"addition_time_embed_dim": None}, "addition_time_embed_dim", "expected an integer, got null"),
    ],
)
def test_a_unet_of_another_kind_is_refused(cls: Any, unet: Any, key: str, message: str) -> None:
    config = tiny_config(cls, unet=unet)
    for method in (cls.infer_spec, cls.from_config, cls.meta_modules):
        with pytest.raises(ConfigError) as caught:
            method(config)
        actual = caught.value.problems[f"config.unet.{key}"]
        assert re.search(message, actual), actual


@pytest.mark.parametrize(
    ("unet", "files"),
    [
        # five time ids of 4 numbers and a pooled vector as wide as the context, as in the published refiner
        ({"projection_class_embeddings_input_dim": 32}, {}),
        (
            {"projection_class_embeddings_input_dim": 44},
            {},
        ),  # as a base model's, the pooled vector would be wider
        ({}, {"model_index.json": {"requires_aesthetics_score": True}}),
        ({}, {"text_encoder_2/config.json": {"projection_dim": 14}}),
    ],
)
def test_a_refiner_is_refused(unet: dict[str, Any], files: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(SDXL, tmp_path / "model", unet=unet)
    write_files(folder, files)
    with pytest.raises(
        SourceError, match=r"projection_class.*: expected 6 .* SDXL refiner, .*name a base model"
    ):
        SDXL.infer_spec(SDXL.Config(pretrained=str(folder)))


@pytest.mark.parametrize(
    "files",
    [
        {"model_index.json": {"requires_aesthetics_score": False}},
        {"text_encoder_2/config.json": {"projection_dim": 20}},
    ],
)
def test_the_files_of_pipeline_and_text_encoder_decide(files: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(SDXL, tmp_path / "model", unet={"projection_class_embeddings_input_dim": 44})
    write_files(folder, files)
    assert SDXL.infer_spec(SDXL.Config(pretrained=str(folder))).pooled_dim == 20


def write_files(folder: Path, files: dict[str, Any]) -> None:
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
