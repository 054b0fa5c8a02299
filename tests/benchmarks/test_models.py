"""The training step and the drawing that are measured: sizes, documents, equal work of all candidates."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import drawing, paper_stage, race
from benchmarks.training_step import Step, cases, paper_step, without_fused_paths
from counts.race import MaskElements
from dreamkit import kernels
from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.registry.registry import Registry

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")


def test_the_real_stage_has_the_sizes_of_the_shipped_one() -> None:
    registry = Registry.load()
    recipe = paper_stage.recipe(8, small=False, registry=registry)
    model = build_on_meta(fit(recipe, registry))
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # LLaMA-7B's
    language = sum(parameter.numel() for parameter in model.language_model.model.parameters())
    assert language == 8 * layer + 2 * 32000 * 4096
    assert sum(p.numel() for p in model.image_decoder.unet.parameters()) == 859_520_964  # as published
    assert model.vision_encoder.spec.num_tokens == 256 and recipe.model.dream_queries == 64
    assert recipe.train.precision == "bfloat16" and recipe.train.gradient_checkpointing


def test_documents_are_always_the_same_and_fit_into_a_row() -> None:
    documents = paper_stage.documents(100, range(9), small=False)
    assert documents == paper_stage.documents(100, range(9), small=False)
    pictures = [[s for s in document if hasattr(s, "picture")] for document in documents]
    counts = [len(each) for each in pictures]
    assert set(counts[::2]) == {1, 2, 3, 4} and set(counts[1::2]) == {1}
    assert {(s.draw, s.read) for each in pictures[1::4] for s in each} == {(True, False)}
    assert {(s.draw, s.read) for each in pictures[3::4] for s in each} == {(False, True)}
    for document in documents:
        words = sum(len(s.text.split()) for s in document if hasattr(s, "text"))
        images = sum(258 * s.read + 66 * s.draw for s in document if hasattr(s, "picture"))
        assert words + images + 2 <= 2048


@pytest.fixture(scope="module")
def step() -> Step:
    return paper_step(2, CPU, small=True)


def test_both_batches_hold_the_same_documents(step: Step) -> None:
    assert step.packed.input_ids_BT.numel() < step.padded.input_ids_BT.numel()
    tokens = [int((batch.segment_ids_BT >= 0).sum()) for batch in (step.packed, step.padded)]
    assert tokens[0] == tokens[1]
    assert step.packed.counts.tolist() == step.padded.counts.tolist()


def test_steps_start_from_the_same_weights_and_compute_the_same_loss(step: Step) -> None:
    before = [parameter.clone() for parameter in step.trained]
    case = next(cases(CPU, small=True))
    losses = torch.stack([run(step) for name, run in case.candidates.items() if name != "torch.compile"])
    assert losses.isfinite().all()
    torch.testing.assert_close(losses, losses[0].expand(3), rtol=5e-3, atol=0)
    assert all(torch.equal(one, other) for one, other in zip(before, step.trained, strict=True))


def test_the_eager_step_has_no_kernel_and_all_logits_at_once(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, int]] = []
    logits = step.model.language_model.logits

    def recorded_logits(hidden: Tensor) -> Tensor:
        calls.append((kernels.enabled(), len(hidden)))
        return logits(hidden)

    monkeypatch.setattr(step.model.language_model, "logits", recorded_logits)
    without_fused_paths()(step.run)(step.model, step.packed)
    assert calls == [(False, len(step.packed.label_rows_L))]
    calls.clear()
    step.run(step.model, step.packed)
    assert {enabled for enabled, _ in calls} == {True}
    assert len(calls) > 1  # the first row, which sets the size of the chunks, then the chunks


def test_both_steps_of_the_race_compute_the_same_loss() -> None:
    (case,) = race.cases(CPU, small=True)
    (step,) = case.make_inputs()
    masks = []
    for run in case.candidates.values():
        with MaskElements() as counter:
            masks.append((float(run(step)), counter.count))
    (padded, padded_masks), (ours, our_masks) = masks
    assert ours == pytest.approx(padded, rel=1e-6)
    assert padded_masks == step.padded.input_ids_BT.shape[1] * step.padded.input_ids_BT.numel()
    assert our_masks == 0


def test_the_models_of_the_race_have_the_sizes_of_its_first_run() -> None:
    model = build_on_meta(fit(race.recipe(race.SHAPES[0]), Registry.load()))
    layer = 4 * 512**2 + 3 * 512 * 1376 + 2 * 512
    tables = 2 * (32_008 + 5) * 512  # and rows of the tokens around images
    assert sum(p.numel() for p in model.language_model.parameters()) == 8 * layer + 512 + tables
    assert 18e6 < sum(p.numel() for p in model.image_decoder.unet.parameters()) < 19e6
    assert model.language_model.head().weight.shape == (32_008, 512)
    assert model.vision_encoder.spec.num_tokens == 64


def test_the_eager_drawing_computes_keys_and_values_in_each_step() -> None:
    decoder, _, *conditions = drawing.inputs(2, CPU, small=True)
    (layer, *_) = [module for name, module in decoder.named_modules() if name.endswith("attn2.to_k")]
    calls: list[Any] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    cached = drawing.draw(decoder, *conditions, steps=5)
    assert len(calls) == 1
    in_each_step = drawing.draw(decoder, *conditions, steps=5, cached=False)
    assert (
        len(calls) == 1 + 6
    )  # Stable Diffusion 1.5's own scheduler, PNDM, calls the network twice in one step
    assert torch.equal(cached, in_each_step)


def test_bare_calls_are_those_of_the_drawing_and_return_its_images() -> None:
    bare, ours = drawing.recorded_inputs(2, CPU, small=True, steps=4)
    assert torch.equal(bare(), ours())
    with FlopCounterMode(display=False) as of_bare:
        bare()
    with FlopCounterMode(display=False) as of_ours:
        ours()
    # keys and values of the context are computed in each step, and once
    assert 0.9 * of_bare.get_total_flops() < of_ours.get_total_flops() < of_bare.get_total_flops()
