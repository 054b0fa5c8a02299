"""SDXL against diffusers' own pipeline and model; what it is told of a picture; its float32 autoencoder."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit import Condition, ConfigError
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OUTLINE = SDXL.meta_modules(SDXL.tiny_config())
SCHEDULERS = ["ddpm", "ddim", "dpm-solver++", "unipc", "euler"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def section(cls: Any = SDXL, **changes: dict[str, Any]) -> Any:
    small = cls.tiny_config()
    return replace(
        small, config={name: {**part, **changes.get(name, {})} for name, part in small.config.items()}
    )


@pytest.fixture
def decoder() -> SDXL:
    torch.manual_seed(0)
    return SDXL.from_config(SDXL.tiny_config())


def condition(images: int = 2, seed: int = 1) -> Condition:
    random = seeded(seed)
    context = torch.randn(images, 5, 12, generator=random)
    return Condition(context, pooled=torch.randn(images, 10, generator=random))


def latents_of(images: int, seed: int = 3) -> Tensor:
    return torch.randn(images, 4, 8, 8, generator=seeded(seed))


@pytest.mark.parametrize("name", [*SCHEDULERS, None])
def test_sample_is_the_diffusers_pipeline(decoder: SDXL, name: str | None) -> None:
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
    positive, negative, latents = condition(), condition(seed=2), latents_of(2)
    common: dict[str, Any] = {
        "prompt_embeds": positive.context,
        "pooled_prompt_embeds": positive.pooled,
        "negative_prompt_embeds": negative.context,
        "negative_pooled_prompt_embeds": negative.pooled,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
    }
    with torch.no_grad():
        wanted, expected = (
            pipeline(**common, latents=latents, generator=seeded(9), output_type=kind).images
            for kind in ("latent", "pt")
        )
    steps: list[Tensor] = []
    drawn = decoder.draw(
        positive,
        negative,
        scheduler=name,
        steps=6,
        guidance=3.0,
        latents=latents,
        generators=seeded(9),
        on_step=lambda _, latents: steps.append(latents),
    )
    torch.testing.assert_close(steps[-1], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), turned=st.booleans())
def test_what_is_told_of_a_picture_is_what_the_training_script_tells(
    width: int, height: int, turned: bool
) -> None:
    """As diffusers' and the published script: size before resizing, corner of the centre crop after it."""
    transforms = pytest.importorskip("torchvision.transforms")
    picture = Image.new("RGB", (width, height))
    if turned:
        picture.getexif()[0x0112] = 6
        width, height = height, width
    targets, extras = OUTLINE.preprocess([picture])
    resized = transforms.Resize(16)(Image.new("RGB", (width, height)))
    top, left = (max(0, round((side - 16) / 2.0)) for side in (resized.height, resized.width))
    assert extras["time_ids"].tolist() == [[height, width, top, left, 16, 16]]
    assert torch.equal(targets[0], square_pixels(picture, 16))


def test_the_unet_is_given_it(decoder: SDXL) -> None:
    pictures = [Image.new("RGB", (40, 30)), Image.new("RGB", (16, 64))]
    _, extras = decoder.preprocess(pictures)
    asked, timesteps = condition(), torch.tensor([3, 900])
    noisy = latents_of(2)
    said = {"text_embeds": asked.pooled, "time_ids": extras["time_ids"]}
    expected = decoder.unet(noisy, timesteps, asked.context, added_cond_kwargs=said).sample
    found = decoder.denoise(noisy, timesteps, asked, extras)
    assert torch.equal(found, expected)
    assert not torch.allclose(
        found, decoder.denoise(noisy, timesteps, asked, decoder.default_extras(2, (16, 16)))
    )
    assert torch.equal(
        decoder.default_extras(2, (16, 24))["time_ids"], torch.tensor([[16.0, 24, 0, 0, 16, 24]] * 2)
    )


def test_what_a_condition_and_extras_lack_is_told(decoder: SDXL) -> None:
    asked, extras = condition(), decoder.default_extras(2, (16, 16))
    with pytest.raises(ValueError, match=r"no pooled vector, but this decoder wants one of width 10"):
        decoder.loss(latents_of(2), Condition(asked.context), extras)
    with pytest.raises(ValueError, match=r"\[\] found, but 'time_ids' \(N, 6\)"):
        decoder.loss(latents_of(2), asked, {})


class Dtypes(TorchDispatchMode):
    """The dtypes that convolutions and matrix products compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if any(name in str(function) for name in ("convolution", "mm.", "linear", "bmm")):
            self.found.add(made.dtype)
        return made


@pytest.mark.parametrize("upcast", [True, False])
def test_the_autoencoder_computes_in_float32_under_autocast(upcast: bool) -> None:
    torch.manual_seed(0)
    decoder = SDXL.from_config(section(vae={"force_upcast": upcast}))
    assert decoder.spec.float32_modules == (("vae",) if upcast else ())
    targets = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    plain = decoder.encode(targets, seeded(2))
    images = decoder.decode(plain)
    with torch.autocast("cpu", torch.bfloat16):
        with Dtypes() as dtypes:
            latents, drawn = decoder.encode(targets, seeded(2)), decoder.decode(plain)
        with Dtypes() as others:
            decoder.loss(plain, condition(), decoder.default_extras(2, (16, 16)))
    assert dtypes.found == {torch.float32 if upcast else torch.bfloat16}
    assert torch.bfloat16 in others.found
    assert torch.equal(latents, plain) == torch.equal(drawn, images) == upcast


def test_a_decoder_in_half_precision_keeps_the_autoencoder(decoder: SDXL) -> None:
    decoder.bfloat16()
    assert decoder.vae.dtype == torch.float32 and decoder.unet.dtype == torch.bfloat16
    asked = condition()
    half = Condition(asked.context.bfloat16(), pooled=asked.pooled.bfloat16())
    extras = {"time_ids": torch.tensor([[1023.0, 1025, 0, 0, 1023, 1025]] * 2)}
    # sizes are told in float32: 1023 and 1025 are one number in bfloat16
    other = {"time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2)}
    outputs = [
        decoder.denoise(latents_of(2).bfloat16(), torch.tensor([9, 9]), half, e) for e in (extras, other)
    ]
    assert not torch.equal(*outputs)
    assert decoder.draw(half, steps=2, guidance=1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("cls", "changes", "key", "message"),
    [
        (StableDiffusion, SDXL, "addition_embed_type", "'text_time' found.*use the image decoder 'sdxl'"),
        (
            SDXL,
            StableDiffusion,
            "addition_embed_type",
            "None found.*use the image decoder 'stable-diffusion'",
        ),
        (SDXL, {"addition_embed_type": "image"}, "addition_embed_type", "'image' found, but 'sdxl'"),
        (SDXL, {"class_embed_type": "timestep"}, "class_embed_type", "'timestep' found.*name another"),
        (SDXL, {"addition_time_embed_dim": 6}, "projection_class_embeddings_input_dim", "34 found.*than 36"),
        (SDXL, {"addition_time_embed_dim": None}, "addition_time_embed_dim", "None found"),
    ],
)
def test_a_unet_of_another_kind_is_refused(cls: Any, changes: Any, key: str, message: str) -> None:
    config = (
        section(cls, unet=changes)
        if isinstance(changes, dict)
        else cls.Config(config=section(changes).config)
    )
    for method in (cls.infer_spec, cls.from_config, cls.meta_modules):
        with pytest.raises(ConfigError) as caught:
            method(config)
        said = caught.value.problems[f"config.unet.{key}"]
        assert re.search(message, said), said
