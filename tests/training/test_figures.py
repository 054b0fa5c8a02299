"""Measured figures of a line of the log: gradient norms of the parts, counts of tokens and images, memory."""

import math
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

import layouts
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.document import Image
from dreamkit.model.model import DreamModel
from dreamkit.training.figures import MAXRSS_UNIT, Figures, trained_parts
from dreamkit.training.optimizer import clip_gradients
from runs import REGISTRY, run

CPU = torch.device("cpu")
MODEL = tiny.model().float()
PARTS = [name for name in DreamModel.TRAINABLE if name != "pooled_projector"]
DOCUMENTS = tiny.documents()


@settings(deadline=None, max_examples=25)
@given(
    names=st.sets(st.sampled_from(PARTS), min_size=1),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
    seed=st.integers(0, 99),
)
def test_the_norms_of_the_parts_together_are_that_of_the_gradient(
    names: set[str], scale: float, seed: int
) -> None:
    MODEL.set_trainable(names)
    figures = Figures(MODEL, CPU)
    figures.begin(0)
    trained = [parameter for parameter in MODEL.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    trained[-1].grad = None if seed % 2 else trained[-1].grad  # a tensor that the step has not used
    exact = {
        f"grad_norm.{name}": math.hypot(
            *(number for each in part if each.grad is not None for number in each.grad.flatten().tolist())
        )
        for name, part in figures.parts.items()
    }
    figures.add_gradients()
    norm = clip_gradients(trained, 1e-3 * scale).item()  # scales the gradients
    read = figures.read(1)
    norms = {name: value for name, value in read.items() if name.startswith("grad_norm.")}
    assert norms == pytest.approx(exact, rel=1e-5, abs=0) and {*figures.parts} >= names
    assert math.hypot(*norms.values()) == pytest.approx(norm, rel=1e-5, abs=0)


def test_each_trained_tensor_belongs_to_one_part() -> None:
    model = build(fit(layouts.recipe(adapters=layouts.ADAPTERS, trainable=["new_tokens"]), REGISTRY))
    model.set_trainable(["new_tokens"])
    parts = trained_parts(model)
    assert [*parts] == [
        "language_model",
        "vision_encoder",
        "image_decoder",
        "new_tokens",
    ]  # three are adapted
    assert all(
        any(each is row for row in parts["new_tokens"])
        for each in model.language_model.added_token_parameters()
    )
    model.set_trainable(DreamModel.TRAINABLE)
    every = [id(parameter) for part in trained_parts(model).values() for parameter in part]
    assert sorted(every) == sorted(id(each) for each in model.parameters() if each.requires_grad)


def test_a_line_has_the_norms_of_its_own_step(tmp_path: Path) -> None:
    every = run(tmp_path / "every", layouts.recipe(steps=4, log_every=1, max_grad_norm=0.1)).log
    some = run(tmp_path / "some", layouts.recipe(steps=4, log_every=3, max_grad_norm=0.1)).log
    norms = [f"grad_norm.{part}" for part in ("language_model", *layouts.TRAINABLE[1:])]
    assert [name for name in some[0] if name.startswith("grad_norm.")] == norms
    for line in some:
        step = every[int(line["step"] or 0) - 1]
        assert [line[name] for name in norms] == [step[name] for name in norms]
        assert math.hypot(*(line[name] or 0 for name in norms)) == pytest.approx(line["grad_norm"], rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    numbers=st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    packing=st.booleans(),
)
def test_tokens_and_images_are_those_of_the_documents_however_they_are_divided(
    numbers: list[int], cut: int, packing: bool
) -> None:
    """Without padding, dummies and the sequence of `condition_drop`."""
    collator = MODEL.collator(layouts.recipe(condition_drop=0.5, packing=packing))
    sequences = [collator.sequencer.sequence(DOCUMENTS[number]) for number in numbers]
    images = [each for number in numbers for each in DOCUMENTS[number].segments if isinstance(each, Image)]
    figures = Figures(MODEL, CPU)
    figures.begin(0)
    figures.add([collator.collate(part) for part in (sequences[:cut], sequences[cut:])])
    read = figures.read(2)
    steps = read["steps_per_second"] / 2
    assert read["tokens_per_second"] / steps == pytest.approx(sum(len(each.ids) for each in sequences))
    assert read["images_per_second"] / steps == pytest.approx(sum(each.draw + each.read for each in images))
    assert figures.read(3)["tokens_per_second"] == 0  # counted once


def test_the_memory_is_the_peak_of_the_process(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    peaks = [entry["memory"] for entry in run(tmp_path, layouts.recipe(log_every=1)).log]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    assert [before, *peaks, after] == sorted([before, *peaks, after])


@pytest.mark.gpu
def test_the_memory_of_a_device_is_the_peak_since_the_line_before() -> None:
    figures, device = Figures(MODEL, torch.device("cuda")), torch.device("cuda")
    figures.begin(0)
    torch.empty(2**28, dtype=torch.uint8, device=device)
    assert figures.read(1)["memory"] >= 2**28 > figures.read(2)["memory"]
