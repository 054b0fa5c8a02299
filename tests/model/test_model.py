"""The model: packed equals alone, one operator count for any number of images, and every branch always at work."""

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
from dreamkit.recipe.sections import TRAINABLE
from dreamkit_diffusers.sdxl import SDXL as SDXLDecoder
from triton_cpu import interpreted

MODEL = tiny.model()
DOCUMENTS = tiny.documents()


def collator(packing: bool = True, max_length: int | None = None, condition_drop: float = 0.0) -> Collator:
    draw, read = MODEL.image_decoder.preprocess, MODEL.vision_encoder.preprocess
    return Collator(MODEL.sequencer(max_length), read, draw, packing=packing, condition_drop=condition_drop)


def fixed(batch: Batch) -> Batch:
    """The batch in float64, with noise and timesteps that depend on each image alone, and not on the batch."""
    images = batch.targets_MCHW.double()
    with torch.no_grad():
        latents = MODEL.image_decoder.vae.encode(images).latent_dist.mean
    noise = (7 * latents).sin()
    timesteps = (images.flatten(1).abs().sum(1) * 1000).long() % 1000
    pixels = batch.pixels_NCHW.double()
    return replace(batch, pixels_NCHW=pixels, latents=latents, noise=noise, timesteps=timesteps)


def gradients(batches: list[Batch], counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    MODEL.requires_grad_(True).train()
    MODEL.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        losses = MODEL(batch, counts=counts)
        losses.loss.backward()
        total += losses.loss.detach()
    grads = {name: p.grad.clone() for name, p in MODEL.named_parameters() if p.grad is not None}
    return total, grads


def same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-9)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in ours[1].items():
        torch.testing.assert_close(
            grad, theirs[1][name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=5),
    st.booleans(),
    st.integers(60, 256),
)
def test_batched_equals_alone(chosen: list[int], packing: bool, max_length: int) -> None:
    """Losses and gradients of a batch, padded or packed, are those of its documents one at a time."""
    documents = [DOCUMENTS[index] for index in chosen]
    together = fixed(collator(packing, max_length)(documents))
    apart = [fixed(collator()([document])) for document in documents]
    counts = sum((batch.counts for batch in apart), torch.zeros(2))
    assert torch.equal(counts, together.counts)
    same(gradients([together], counts), gradients(apart, counts))


def test_packing_puts_several_documents_into_a_row() -> None:
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
    """The operators of one step, autoencoder, noise and condition drop included, on the meta device.

    A meta tensor has no values, so whatever would read one on the host (`item`, `tolist`, `cpu`, a loop over a mask)
    raises.
    """
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
    # A row each, since a single row would be laid out in memory like no other number of them.
    few, many = (
        step_on_meta([Document((Text("a"), draw, read))] * images, packing=False) for images in (2, 20)
    )
    assert few == many


def test_a_step_copies_nothing_to_the_host() -> None:
    assert step_on_meta(DOCUMENTS)
    batch = collator()(DOCUMENTS).to("meta")
    for read in (batch.counts.tolist, batch.counts.cpu, batch.counts.numpy, batch.counts.sum().item):
        with pytest.raises((RuntimeError, NotImplementedError, TypeError)):  # the meta device does tell
            read()


def test_positions_restart_in_every_document() -> None:
    batch = collator(max_length=256)(DOCUMENTS)
    for positions, segments in zip(batch.position_ids_BT, batch.segment_ids_BT, strict=True):
        for segment in segments.unique().tolist():
            count = int((segments == segment).sum())
            if segment >= 0:
                assert positions[segments == segment].tolist() == list(range(count))


def test_head_runs_on_labelled_rows_only() -> None:
    batch = fixed(collator()(DOCUMENTS))
    seen: list[int] = []
    logits = MODEL.language_model.logits

    def spy(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[0])
        return logits(hidden)

    MODEL.language_model.logits = spy  # type: ignore[method-assign]
    try:
        MODEL(batch)
    finally:
        del MODEL.language_model.logits
    labelled = sum(MODEL.sequencer().sequence(document).targets for document in DOCUMENTS)
    assert seen == [1, labelled]  # one row tells how many fit into a chunk


ABSENT = {
    "text only": [DOCUMENTS[2]],
    "images to read only": [DOCUMENTS[1]],
    "images to draw only": [Document((Text("a"), Image(tiny.picture(0), read=False, draw=True)))],
    "nothing labelled": [
        Document((Image(tiny.picture(0), draw=True, train_on=False), Text("b", train_on=False)))
    ],
}


@pytest.mark.parametrize("documents", ABSENT.values(), ids=ABSENT.keys())
def test_every_branch_takes_part_in_every_step(documents: list[Document]) -> None:
    """Whatever the batch lacks, all trainable parameters get a gradient, which the dummy leaves unchanged."""
    model = MODEL
    model.requires_grad_(False).set_trainable(["language_model", *TRAINABLE[1:5], "dream_queries"])
    model.zero_grad()
    batch = fixed(collator()(documents))
    model.train()(batch).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # The last norm of a truncated encoder and the like would be listed here; the parts leave such modules out.
    assert not missing
    if documents is ABSENT["text only"]:
        assert model.dream_queries.grad.abs().max() == 0
        assert all(p.grad.abs().max() == 0 for p in model.visual_projector.parameters())
        assert batch.counts.tolist() == [MODEL.sequencer().sequence(documents[0]).targets, 0]


def test_condition_drop_draws_from_the_unconditional_prompt() -> None:
    """At probability 1 the text before an image no longer changes its loss; at 0 it does."""

    def denoising(text: str, drop: float) -> float:
        document = Document((Text(text), Image(tiny.picture(0), draw=True, read=False)))
        batch = replace(fixed(collator(condition_drop=0.5)([document])), condition_drop=drop)
        with torch.no_grad():
            return MODEL.eval()(batch).denoising.item()

    assert denoising("a cat", 1.0) == pytest.approx(denoising("b", 1.0), rel=1e-12)
    assert denoising("a cat", 0.0) != denoising("b", 0.0)


KERNELS = (
    *(f"dreamkit.kernels.query_projection.{name}" for name in ("row_blocks", "norm", "projection")),
    "dreamkit.kernels.assemble_embeddings.kernels",
)
DENSE = {"model.condition_projector": {"name": "mlp", "depth": 3}}
SDXL = {"model.image_decoder": {"name": "sdxl", "config": SDXLDecoder.tiny_config().config}}
DEEP = {"model.condition_projector": {"name": "resampler", "tokens": 4}}


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize(
    ("changes", "is_fused"), [({}, True), (DENSE, True), (SDXL, True), (DEEP, False)], ids=str
)
def test_the_operator_gives_what_the_parts_give(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_fused: bool, triton: bool
) -> None:
    """Losses and gradients of a step, with dropped conditions, are those of norm and projectors one after another.

    So they are by the operators' references, and by their kernels.
    """
    model = tiny.model(**changes).float()
    model.requires_grad_(True)
    parts = model.vision_encoder.preprocess, model.image_decoder.preprocess
    batch = Collator(model.sequencer(), *parts, condition_drop=0.5)(DOCUMENTS)
    calls = Counter[str]()

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls["query_projection"] += 1
        return query_projection(*args, **kwargs)

    def step() -> tuple[Tensor, list[Tensor | None]]:
        torch.manual_seed(0)
        model.zero_grad()
        loss = model(batch).loss
        loss.backward()
        return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    wanted, wanted_grads = step()
    monkeypatch.setattr("dreamkit.model.conditioning.query_projection", counted)
    assert not calls
    monkeypatch.setattr("dreamkit.model.model.usable", lambda tensor: True)
    with interpreted(*KERNELS) if triton else nullcontext([]) as launches:
        loss, grads = step()
    names = {launch.name for launch in launches}
    assert ("copy_rows" in names, "scatter_rows" in names) == (triton, triton and is_fused)
    assert calls["query_projection"] == is_fused
    torch.testing.assert_close(loss, wanted)
    for (name, _), grad, expected in zip(model.named_parameters(), grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, DENSE, SDXL], ids=["linear", "mlp", "sdxl"])
def test_a_step_on_a_gpu_is_the_same_without_kernels(changes: dict[str, Any], precision: torch.dtype) -> None:
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
    found = step()
    with kernels.disabled():
        wanted = step()
    for own, other in zip(found, wanted, strict=True):
        assert (own - other).norm() <= bound * other.norm()


def test_new_tokens_learn_under_a_frozen_language_model() -> None:
    MODEL.set_trainable(["new_tokens"])
    MODEL.zero_grad()
    MODEL.train()(fixed(collator()(DOCUMENTS))).loss.backward()
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


def test_unknown_trainable_name() -> None:
    with pytest.raises(DreamkitError, match="did you mean 'visual_projector'"):
        MODEL.set_trainable(["visual_projektor"])
