"""Equality with the published code's numbers, for models imported from its checkpoints, on a CPU.

DREAMKIT_REFERENCE_DIRS may name more folders, colon-separated, in the format of those in `tests/reference`.
"""

import copy
import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PIL
from safetensors.torch import load_file
from torch import Tensor

from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.published import import_published
from dreamkit.data.batch import Batch, Collator
from dreamkit.document import Document, Image, Text
from dreamkit.model.events import TextPiece
from dreamkit.model.losses import Losses
from dreamkit.model.model import DreamModel
from dreamkit.parts.projector import Projector
from dreamkit.registry.registry import Registry

HERE = Path(__file__).parents[1] / "reference"
FOLDERS = [
    HERE / "published-sd",
    HERE / "published-sdxl",
    *map(Path, filter(None, os.environ.get("DREAMKIT_REFERENCE_DIRS", "").split(":"))),
]
TOLERANCE, IMAGE_TOLERANCE = 1e-5, 1e-4


@dataclass
class Reference:
    """A model imported and loaded from its checkpoint, and the numbers of the published code."""

    model: DreamModel
    expected: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def batch(self) -> Batch:
        """The reference's three documents in dreamkit's sequences, with the reference's pixels, latents and noise."""
        texts = self.meta["train_texts"]
        blank = PIL.new("RGB", (16, 16))
        read, draw = Image(blank), Image(blank, draw=True)
        documents = [
            Document((Text(texts[0]), draw, Text(texts[1]))),
            Document((read, Text(texts[2]))),
            Document((Text(texts[3]), draw, Text(texts[4]), draw)),
        ]
        model = self.model
        collator = Collator(
            model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess, packing=False
        )
        return replace(
            collator(documents),
            pixels_NCHW=self.expected["train.pixel_values"],
            targets_MCHW=self.expected["train.target_images"],
            latents=self.expected["train.latents"],
            noise=self.expected["train.noise"],
            timesteps=self.expected["train.timesteps"],
            **(
                {"extras": {"time_ids": time_ids}}
                if (time_ids := self.expected.get("train.time_ids")) is not None
                else {}
            ),
        )


@cache
def load_reference(folder: Path, out: Path) -> Reference:
    registry = Registry.load()
    import_published(folder / "checkpoint", out, registry)
    model, _ = load_checkpoint(out, registry)
    expected = load_file(folder / "expected.safetensors")
    return Reference(model, expected, json.loads((folder / "meta.json").read_text()))


@cache
def training_losses(folder: Path, out: Path) -> Losses:
    """Return the losses of a training step; the gradients stay on the parameters."""
    reference = load_reference(folder, out)
    reference.model.requires_grad_(True)
    reference.model.train()
    losses = reference.model(reference.batch)
    losses.loss.backward()
    return losses


@pytest.fixture(scope="module", params=FOLDERS, ids=[folder.name for folder in FOLDERS])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return request.param, tmp_path_factory.getbasetemp() / f"imported-{request.param.name}"


@pytest.fixture
def reference(place: tuple[Path, Path]) -> Reference:
    return load_reference(*place)


@pytest.fixture
def losses(place: tuple[Path, Path]) -> Losses:
    return training_losses(*place)


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    difference = (ours.detach() - theirs).abs().max().item()
    assert difference <= tolerance, (
        f"expected a maximum absolute difference of at most {tolerance:.0e}, got {difference:.2e}"
    )


def test_text_ids(reference: Reference) -> None:
    for text, ids in zip(reference.meta["train_texts"], reference.meta["train_text_ids"], strict=True):
        assert reference.model.language_model.tokenize(text) == ids


def test_token_layout(reference: Reference) -> None:
    batch = reference.batch
    assert torch.equal(batch.input_ids_BT, reference.expected["train.input_ids"])
    assert torch.equal((batch.segment_ids_BT >= 0).long(), reference.expected["train.attention_mask"].long())


def test_labels(reference: Reference) -> None:
    batch, labels = reference.batch, reference.expected["train.labels"]
    ours = torch.full_like(labels[:, 1:], -100)
    rows, columns = batch.label_rows_L // labels.shape[1], batch.label_rows_L % labels.shape[1]
    ours[rows, columns] = batch.label_ids_L
    assert torch.equal(ours, labels[:, 1:])


@torch.no_grad()
def test_logits(reference: Reference) -> None:
    model, batch = reference.model, reference.batch
    hidden = model.language_model(*model.inputs(batch))
    logits = model.language_model.logits(model.language_model.final_norm(hidden))
    mask = reference.expected["train.attention_mask"].bool()
    close(logits[mask], reference.expected["train.logits"][mask])


def test_lm_loss(reference: Reference, losses: Losses) -> None:
    close(losses.lm, reference.expected["train.lm_loss"])


def test_denoising_loss(reference: Reference, losses: Losses) -> None:
    close(losses.denoising, reference.expected["train.vm_loss"])


def test_total_loss(reference: Reference, losses: Losses) -> None:
    close(losses.loss, reference.expected["train.loss"])


@torch.no_grad()
def test_condition(reference: Reference) -> None:
    model, batch = reference.model, reference.batch
    hidden = model.language_model(*model.inputs(batch)).flatten(0, 1)
    condition = model.condition(model.language_model.final_norm(hidden[batch.dream_rows_MQ]))
    close(condition.context, reference.expected["train.context"])
    assert (condition.pooled is not None) == ("train.pooled" in reference.expected)
    if condition.pooled is not None:
        close(condition.pooled, reference.expected["train.pooled"])


def test_gradient_of_dream_queries(reference: Reference, losses: Losses) -> None:
    grad = reference.model.dream_queries.grad
    assert grad is not None
    close(grad, reference.expected["grad.dream_queries"].squeeze(0))


def test_gradients_of_projectors(reference: Reference, losses: Losses) -> None:
    parts = {name: part for name, part in reference.model.parts().items() if isinstance(part, Projector)}
    theirs: dict[str, list[Tensor]] = {name: [] for name in parts}
    for key, gradient in sorted(reference.expected.items(), key=_layer_order):
        if key.startswith("grad.") and key.partition("projector.")[1]:
            theirs[key.split(".")[1]].append(gradient)
    assert all(theirs.values())
    for name, part in parts.items():
        for mine, expected in zip((p.grad for p in part.parameters()), theirs[name], strict=True):
            assert mine is not None
            close(mine, expected)


def _layer_order(item: tuple[str, Tensor]) -> tuple[str, bool]:
    """Sort layers by name, and a layer's weight before its bias, as modules list their parameters."""
    layer, _, kind = item[0].rpartition(".")
    return layer, kind == "bias"


def test_gradient_of_token_embeddings(reference: Reference, losses: Losses) -> None:
    embedding = dict(reference.model.language_model.named_parameters())
    (grad,) = [p.grad for name, p in embedding.items() if name.endswith("embed_tokens.weight")]
    assert grad is not None
    close(grad, reference.expected["grad.embed_tokens"])


@pytest.mark.parametrize("key", ["prompt", "negative_prompt"])
def test_dream_states(reference: Reference, key: str) -> None:
    prompts = reference.meta["prompts"] if key == "prompt" else [""] * len(reference.meta["prompts"])
    close(reference.model.dream_states(prompts), reference.expected[f"draw.{key}_embeds"])


@pytest.fixture
def drawn(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Return final latents and images (N, 3, H, W), drawn in float64 from the reference's dream states.

    Latents reach 22, where a float32 rounding is 2e-6, so in float32 the order of sums of a processor would decide.
    Another test compares the dream states: drawing amplifies a difference of them tenfold.
    """
    model, meta, expected = copy.deepcopy(reference.model).double(), reference.meta, reference.expected
    randn = torch.randn

    def float32_noise(*size: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return randn(*size, dtype=torch.float32, **kwargs).to(dtype)

    monkeypatch.setattr(torch, "randn", float32_noise)
    generator = torch.Generator().manual_seed(meta["sampler_seed"])
    with torch.no_grad():
        condition = model.condition(expected["draw.prompt_embeds"].double())
        negative = model.condition(expected["draw.negative_prompt_embeds"].double())
    steps: list[Tensor] = []
    options = {"steps": meta["steps"], "guidance": meta["guidance_scale"]}
    latents = reference.expected["draw.initial_latents"].double()
    with torch.no_grad():
        images = model.image_decoder.draw(
            condition,
            negative,
            generators=generator,
            on_step=lambda _, latents: steps.append(latents),
            latents=latents,
            **options,
        )
    return steps[-1], images


def test_sampled_latents(reference: Reference, drawn: tuple[Tensor, Tensor]) -> None:
    close(drawn[0], reference.expected["draw.final_latents"])


def test_sampled_images(reference: Reference, drawn: tuple[Tensor, Tensor]) -> None:
    close(drawn[1].permute(0, 2, 3, 1), reference.expected["draw.images"], IMAGE_TOLERANCE)


@torch.no_grad()
def test_images_of_prompts(reference: Reference) -> None:
    """Images drawn from prompts, through the language model."""
    model, meta, expected = reference.model, reference.meta, reference.expected
    images = model.image_decoder.draw(
        model.condition(model.dream_states(meta["prompts"])),
        model.condition(model.dream_states([""] * len(meta["prompts"]))),
        steps=meta["steps"],
        guidance=meta["guidance_scale"],
        generators=torch.Generator().manual_seed(meta["sampler_seed"]),
        latents=expected["draw.initial_latents"],
    )
    close(images.permute(0, 2, 3, 1), expected["draw.images"], IMAGE_TOLERANCE)


def test_caption_ids(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = reference.model, reference.expected
    prompt_ids = expected["caption.input_ids"][0].tolist()
    image_end = prompt_ids.index(model.token_ids[model.special_tokens.image_end])
    text = model.language_model.decode(prompt_ids[image_end + 1 :])
    prompt = Document((Image(PIL.new("RGB", (16, 16))), Text(text)))
    assert model.sequencer().prompt(prompt).ids == prompt_ids
    # the reference has the pixels of its image, but no image file
    monkeypatch.setattr(model.vision_encoder, "preprocess", lambda _: expected["caption.pixel_values"])
    count = expected["caption.output_ids"].shape[1] - len(prompt_ids)
    events = model.generate(prompt, max_tokens=count, max_images=0, ignore_eos=True)
    ids = [token for event in events if isinstance(event, TextPiece) for token in event.ids]
    assert ids == expected["caption.output_ids"][0, len(prompt_ids) :].tolist()
