"""The model's losses and gradients: batched and alone, with and without fused operators, for any mix of documents."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from dreamkit import kernels
from dreamkit.data.batch import Batch, Collator
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DreamkitError
from dreamkit.kernels.query_projection import query_projection
from dreamkit.parts.specs import Condition
from dreamkit.recipe.sections import TRAINABLE
from dreamkit_diffusers.sdxl import SDXL as SDXLDecoder
from triton_cpu import interpreted

MODEL = tiny.model()
DOCUMENTS = tiny.documents()


def collator(packing: bool = True, max_length: int | None = None, condition_drop: float = 0.0) -> Collator:
    draw, read = MODEL.image_decoder.preprocess, MODEL.vision_encoder.preprocess
    return Collator(MODEL.sequencer(max_length), read, draw, packing=packing, condition_drop=condition_drop)


def fix_noise(batch: Batch) -> Batch:
    """Return the batch in float64, with noise and timesteps that depend on each image alone, not on the batch."""
    images = batch.targets_MCHW.double()
    with torch.no_grad():
        latents = MODEL.image_decoder.vae.encode(images).latent_dist.mean
    noise = (7 * latents).sin()
    timesteps = (images.flatten(1).abs().sum(1) * 1000).long() % 1000
    pixels = batch.pixels_NCHW.double()
    return replace(batch, pixels_NCHW=pixels, latents=latents, noise=noise, timesteps=timesteps)


def loss_and_gradients(batches: list[Batch], counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    MODEL.requires_grad_(True).train()
    MODEL.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        losses = MODEL(batch, counts=counts)
        losses.loss.backward()
        total += losses.loss.detach()
    grads = {name: p.grad.clone() for name, p in MODEL.named_parameters() if p.grad is not None}
    return total, grads


def assert_close(
    actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-9)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in actual[1].items():
        torch.testing.assert_close(
            grad, expected[1][name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=5),
    st.booleans(),
    st.integers(60, 256),
)
def test_a_batch_equals_its_documents_one_by_one(chosen: list[int], packing: bool, max_length: int) -> None:
    documents = [DOCUMENTS[index] for index in chosen]
    together = fix_noise(collator(packing, max_length)(documents))
    apart = [fix_noise(collator()([document])) for document in documents]
    counts = sum((batch.counts for batch in apart), torch.zeros(2))
    assert torch.equal(counts, together.counts)
    assert_close(loss_and_gradients([together], counts), loss_and_gradients(apart, counts))


def test_packed_documents_share_rows() -> None:
    packed, padded = collator(True)(DOCUMENTS), collator(False)(DOCUMENTS)
    assert packed.input_ids_BT.shape[0] < padded.input_ids_BT.shape[0] == len(DOCUMENTS)


class CountOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def step_on_meta(documents: list[Document], packing: bool = True) -> Counter[str]:
    """Count the operators of one step, with autoencoder, noise and condition drop, on the meta device."""
    model = tiny.model().to("meta")
    model.set_trainable(["language_model", "visual_projector", "condition_projector", "dream_queries"])
    batch = collator(packing, condition_drop=0.5)(documents)
    batch = replace(batch, pixels_NCHW=batch.pixels_NCHW.double()).to("meta")
    model.train()
    with CountOperators() as mode:
        model(batch).loss.backward()
    return mode.counts


def test_operators_do_not_depend_on_the_number_of_images() -> None:
    draw, read = Image(tiny.picture(1), draw=True, read=False), Image(tiny.picture(2))
    # One row per document: a single row would have another memory layout.
    few, many = (
        step_on_meta([Document((Text("a"), draw, read))] * images, packing=False) for images in (2, 20)
    )
    assert few == many


def test_positions_restart_in_every_document() -> None:
    batch = collator(max_length=256)(DOCUMENTS)
    for positions, segments in zip(batch.position_ids_BT, batch.segment_ids_BT, strict=True):
        for segment in segments.unique().tolist():
            count = int((segments == segment).sum())
            if segment >= 0:
                assert positions[segments == segment].tolist() == list(range(count))


def test_the_head_runs_on_labelled_rows_only() -> None:
    batch = fix_noise(collator()(DOCUMENTS))
    rows: list[int] = []
    logits = MODEL.language_model.logits

    def spy(hidden: Tensor) -> Tensor:
        rows.append(hidden.shape[0])
        return logits(hidden)

    MODEL.language_model.logits = spy  # type: ignore[method-assign]
    try:
        MODEL(batch)
    finally:
        del MODEL.language_model.logits
    labelled = sum(MODEL.sequencer().sequence(document).targets for document in DOCUMENTS)
    assert rows == [1, labelled]  # the loss measures one row to choose the size of chunks


ABSENT = {
    "text only": [DOCUMENTS[2]],
    "images to read only": [DOCUMENTS[1]],
    "images to draw only": [Document((Text("a"), Image(tiny.picture(0), read=False, draw=True)))],
    "nothing labelled": [
        Document((Image(tiny.picture(0), draw=True, train_on=False), Text("b", train_on=False)))
    ],
}


@pytest.mark.parametrize("documents", ABSENT.values(), ids=ABSENT.keys())
def test_all_trainable_parameters_get_a_gradient_from_any_batch(documents: list[Document]) -> None:
    """A dummy fills in for missing images or labels, and adds nothing to gradients."""
    model = MODEL
    model.requires_grad_(False).set_trainable(["language_model", *TRAINABLE[1:5], "dream_queries"])
    model.zero_grad()
    batch = fix_noise(collator()(documents))
    model.train()(batch).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if documents is ABSENT["text only"]:
        assert model.dream_queries.grad.abs().max() == 0
        assert all(p.grad.abs().max() == 0 for p in model.visual_projector.parameters())
        assert batch.counts.tolist() == [MODEL.sequencer().sequence(documents[0]).targets, 0]


def test_a_dropped_condition_ignores_the_prompt() -> None:

    def denoising(text: str, drop: float) -> float:
        document = Document((Text(text), Image(tiny.picture(0), draw=True, read=False)))
        batch = replace(fix_noise(collator(condition_drop=0.5)([document])), condition_drop=drop)
        with torch.no_grad():
            return MODEL.eval()(batch).denoising.item()

    assert denoising("a cat", 1.0) == pytest.approx(denoising("b", 1.0), rel=1e-12)
    assert denoising("a cat", 0.0) != denoising("b", 0.0)


def test_conditions_are_dropped_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document((Text(str(n)), Image(tiny.picture(n), draw=True, read=False))) for n in range(12)]
    batch = fix_noise(collator(condition_drop=0.5)(documents))
    conditions = []
    loss = MODEL.image_decoder.loss

    def record_condition(latents: Tensor, condition: Condition, *args: Any, **kwargs: Any) -> Tensor:
        conditions.append(condition.context)
        return loss(latents, condition, *args, **kwargs)

    monkeypatch.setattr(MODEL.image_decoder, "loss", record_condition)
    with torch.no_grad():
        for drop in (0.0, 1.0, 0.5):
            torch.manual_seed(0)
            MODEL(replace(batch, condition_drop=drop))
    kept, dropped, mixed = conditions
    assert not torch.isclose(kept, dropped).all((1, 2)).any()
    is_dropped = (mixed == dropped).all((1, 2))
    assert torch.equal(mixed, torch.where(is_dropped[:, None, None], dropped, kept))
    assert 2 <= is_dropped.sum() <= 10


KERNELS = (
    *(f"dreamkit.kernels.query_projection.{name}" for name in ("norm", "projection")),
    "dreamkit.kernels.assemble_embeddings.kernels",
)
DENSE = {"model.condition_projector": {"name": "mlp", "depth": 3}}
SDXL = {"model.image_decoder": {"name": "sdxl", "config": SDXLDecoder.tiny_config().config}}
DEEP = {"model.condition_projector": {"name": "resampler", "tokens": 4}}


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(
    ("changes", "is_fused"), [({}, True), (DENSE, True), (SDXL, True), (DEEP, False)], ids=str
)
def test_a_step_with_fused_operators_equals_one_without(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_fused: bool, triton: bool
) -> None:
    """Losses and gradients agree, with dropped conditions, for the operators' references and for their kernels."""
    model = tiny.model(**changes).float()
    model.requires_grad_(True)
    parts = model.vision_encoder.preprocess, model.image_decoder.preprocess
    batch = Collator(model.sequencer(), *parts, condition_drop=0.5)(DOCUMENTS)
    calls = Counter[str]()

    def count_calls(*args: Any, **kwargs: Any) -> Any:
        calls["query_projection"] += 1
        return query_projection(*args, **kwargs)

    def step() -> tuple[Tensor, list[Tensor | None]]:
        torch.manual_seed(0)
        model.zero_grad()
        loss = model(batch).loss
        loss.backward()
        return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    expected_loss, expected_grads = step()
    monkeypatch.setattr("dreamkit.model.conditioning.query_projection", count_calls)
    assert not calls
    monkeypatch.setattr("dreamkit.model.model.usable", lambda tensor: True)
    with interpreted(*KERNELS) if triton else nullcontext([]) as launches:
        loss, grads = step()
    names = {launch.name for launch in launches}
    assert ("copy_rows" in names, "scatter_rows" in names) == (triton, triton and is_fused)
    assert calls["query_projection"] == is_fused
    torch.testing.assert_close(loss, expected_loss)
    for (name, _), grad, expected in zip(model.named_parameters(), grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, DENSE, SDXL], ids=["linear", "mlp", "sdxl"])
def test_a_step_on_a_gpu_equals_one_without_kernels(changes: dict[str, Any], precision: torch.dtype) -> None:
    model = tiny.model(**changes).float().cuda()
    model.requires_grad_(True)
    parts = model.vision_encoder.preprocess, model.image_decoder.preprocess
    batch = Collator(model.sequencer(), *parts, condition_drop=0.5)(DOCUMENTS).to("cuda")

    def step() -> list[Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            losses = model(batch)
        losses.loss.backward()
        return [losses.lm, losses.denoising, *(p.grad for p in model.parameters() if p.grad is not None)]

    bound = 1e-3 if precision == torch.float32 else 5e-2
    actual = step()
    with kernels.disabled():
        expected = step()
    for tensor, other in zip(actual, expected, strict=True):
        assert (tensor - other).norm() <= bound * other.norm()


def test_new_tokens_are_trained_in_a_frozen_language_model() -> None:
    MODEL.set_trainable(["new_tokens"])
    MODEL.zero_grad()
    MODEL.train()(fix_noise(collator()(DOCUMENTS))).loss.backward()
    trained = {id(p) for p in MODEL.parameters() if p.requires_grad}
    assert trained == {id(p) for p in MODEL.language_model.added_token_parameters()}
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in MODEL.language_model.added_token_parameters()
    )


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    MODEL.set_trainable(["visual_projector"])
    MODEL.train()
    assert MODEL.visual_projector.training
    assert not MODEL.language_model.training


def test_an_unknown_trainable_part_is_an_error() -> None:
    with pytest.raises(DreamkitError, match="did you mean 'visual_projector'"):
        MODEL.set_trainable(["visual_projektor"])
