"""The measurement of drawings against denoising steps."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from dreamkit import Registry, load_recipe
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit_digits import digits
from dreamkit_digits.judge import Judge
from dreamkit_digits.step_chart import chart
from dreamkit_digits.steps import Point, draw, frechet, measure, table

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_each_scheduler_draws_every_label_in_each_number_of_steps() -> None:
    registry = Registry.load()
    recipe = load_recipe("digits/stage1", (), registry)
    model = build(fit(recipe, registry)).eval()
    model.recipe = recipe
    drawn = list(draw(model, [7, 7, 1], (1, 2)))
    assert [(name, steps) for name, steps, _ in drawn] == [
        (name, steps) for name in model.image_decoder.spec.schedulers or () for steps in (1, 2)
    ]
    assert {(pixels.shape, pixels.dtype.name) for *_, pixels in drawn} == {((3, 16, 16, 3), "uint8")}


def test_the_distance_of_normal_distributions_is_the_known_one() -> None:
    one = np.random.default_rng(0).normal(size=(4000, 3))
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    # the means differ by 2 in each of 3 dimensions; each deviation is 3 instead of 1
    assert frechet(one, 3 * (one - one.mean(0)) + one.mean(0) + 2) == pytest.approx(3 * (4 + 4), rel=0.1)


def test_real_digits_are_nearer_than_noise() -> None:
    heldout, judge = digits.load("heldout"), Judge.train()
    real = measure(heldout.pixels, list(heldout.labels), judge)
    noise = np.random.default_rng(0).integers(0, 256, heldout.pixels.shape, dtype=np.uint8)
    random = measure(noise, list(heldout.labels), judge)
    assert real.accuracy > 0.98 and random.accuracy < 0.3
    assert 0 < real.error < real.distance < random.distance / 5


@pytest.mark.parametrize("accuracy", [1.0, 0.42])
def test_chart_and_table_have_every_point(accuracy: float) -> None:
    line = {5: Point(accuracy, 44.3, 5.3), 50: Point(1.0, 28.85, 5.0)}
    points = {"ddim": line, "dpm-solver++": line}
    lines = table(points).splitlines()
    assert lines[0] == "| steps | `ddim` | `dpm-solver++` |"
    assert lines[2].count(f"{100 * accuracy:.1f} %, 44.3 ± 5.3") == 2
    drawing = ElementTree.fromstring(chart(points))
    polylines = drawing.findall("{*}polyline")
    assert [len(each.attrib["points"].split()) for each in polylines] == [2] * 4
    assert {"ddim", "dpm-solver++"} < {each.text for each in drawing.findall("{*}text")}
