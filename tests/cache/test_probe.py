"""What tells a part from another: the weights that it computes with, and what it makes of a fixed picture."""

import math
from typing import Any

import pytest
import torch

import caches
from caches import REGISTRY
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.cache.identity import ROUNDING, TOLERANCE, Sample, differing, distance
from dreamkit.cache.maker import compute, maker, preprocess_of, preprocessed
from dreamkit.cache.probe import VALUES, Weights, exact_float32, probe_picture, samples
from product.parts import parts

CPU = torch.device("cpu")
PARTS = [
    *(
        ("vision_encoder", name)
        for name in ("clip", "siglip", "siglip2", "dinov2", "timm (ViT)", "timm (ConvNet)")
    ),
    *(("image_decoder", name) for name in ("stable-diffusion (v)", "sdxl", "sd3", "sana")),
]


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_no_other_weights_decide_on_what_is_computed(kind: str, name: str) -> None:
    """And some of these do."""
    table = "features" if kind == "vision_encoder" else "latents"
    recipe = caches.recipe(**{f"model.{kind}": parts(REGISTRY)[kind][name]})
    model = build(fit(recipe, REGISTRY)).eval()
    part = model.parts()[kind]
    pixels, _ = preprocessed(preprocess_of(model, table), [probe_picture()])
    with Weights(part) as weights:
        before = compute(model, table, pixels)
    used = {id(tensor) for tensor in weights._used.values()}
    others = [parameter for parameter in part.parameters() if id(parameter) not in used]
    assert used and (others or kind == "vision_encoder")
    for parameter in others:
        torch.nn.init.constant_(parameter, math.nan)
    after = compute(model, table, pixels)
    assert all(torch.equal(after[key], before[key]) for key in before)
    was = maker(model, recipe, table, CPU)
    assert [*differing(kind, was, maker(model, recipe, table, CPU))] == []
    with torch.no_grad():
        parameter = next(p for p in part.parameters() if id(p) in used)
        parameter.flatten()[0] = torch.nextafter(parameter.flatten()[0], torch.tensor(9.0))
    (line,) = differing(kind, was, maker(model, recipe, table, CPU))
    assert line.startswith(f"{kind}: weights: ")


def sample(*values: float, **changes: Any) -> Sample:
    return {"dtype": "float32", "shape": [len(values)], "values": [*values], **changes}  # type: ignore[typeddict-item]


def test_values_are_from_all_over_a_tensor() -> None:
    """From many rows and columns, of whatever sizes; whole, and as JSON has them."""
    for rows, columns in ((576, 1024), (16, 64), (3, 224 * 224), (257, 768)):
        places = torch.arange(rows * columns).double().view(rows, columns)
        values = torch.tensor(samples({"": places})[""]["values"]).long()
        assert len(values.unique()) == VALUES
        assert len((values // columns).unique()) >= min(rows, VALUES) * 0.5
        assert len((values % columns).unique()) >= min(columns, VALUES) * 0.5
    few = samples({"a": torch.tensor([[1, 2], [3, 4]]), "none": torch.zeros(0, 3)})
    assert (
        few["a"]["dtype"] == "int64"
        and few["a"]["shape"] == [2, 2]
        and sorted(few["a"]["values"]) == [1, 2, 3, 4]
    )
    assert few["none"]["values"] == []


def test_distance_is_a_fraction_of_the_norm() -> None:
    assert distance(sample(3, 4), sample(3, 4)) == distance(sample(0, 0), sample(0, 0)) == 0
    assert distance(sample(3, 4), sample(3, 4.5)) == pytest.approx(0.5 / math.hypot(3, 4.5))
    assert distance(sample(0), sample(1e-30)) == 1
    assert distance(sample(1, 2), sample(1)) == math.inf
    assert not distance(sample(math.nan), sample(math.nan)) <= TOLERANCE
    assert not distance(sample(math.inf), sample(math.inf)) <= TOLERANCE
    assert torch.finfo(torch.float32).eps * 100 < ROUNDING < TOLERANCE < torch.finfo(torch.bfloat16).eps


def test_precision_is_left_as_it_was() -> None:
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled
    try:
        torch.set_float32_matmul_precision("high")
        with exact_float32():
            assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == ("highest", False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.deterministic,
        cudnn.enabled,
    ) == before
