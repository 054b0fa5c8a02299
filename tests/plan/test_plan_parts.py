"""Plans of every part: its step runs without data, and its parameters are those of the built part."""

from __future__ import annotations

import pytest

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.plan.plan import plan
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from product.parts import Combination, parts
from product.trial import recipe

REGISTRY = Registry.load()
PARTS = parts(REGISTRY)
USUAL = Combination("clip", "llama", "linear", "stable-diffusion (epsilon)")


# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("key", "name"), [(key, name) for key, named in PARTS.items() for name in named])
def test_every_part_is_planned(key: str, name: str) -> None:
    loaded = recipe_from_dict(recipe(USUAL._replace(**{key: name}), PARTS), REGISTRY)
    model = build(fit(loaded, REGISTRY))
    model.set_trainable(loaded.train.trainable)
    estimate = plan(loaded, REGISTRY)
    counted = {part.part: (part.parameters, part.trainable) for part in estimate.parts}
    rows = {id(row) for row in model.language_model.added_token_parameters()}
    for part_name, part in model.parts().items():
        own = [each for each in part.parameters() if id(each) not in rows]
        trained = sum(each.numel() for each in own if each.requires_grad)
        assert counted[part_name] == (sum(each.numel() for each in own), trained)
    assert estimate.memory.peak > 0 and estimate.flops > 0
