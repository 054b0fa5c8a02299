"""The groups of `train.groups`, checked without a model."""

from __future__ import annotations

from typing import Final

from dreamkit.build.fit_record import Fit
from dreamkit.errors import did_you_mean, excerpt
from dreamkit.recipe.sections import TRAINABLE

TRAINED_WITH: Final = {"pooled_projector": "condition_projector", "new_tokens": "language_model"}


def fit_groups(fit: Fit) -> None:
    """Report groups whose part does not exist or is not trained; patterns wait for the model."""
    train, model = fit.recipe.train, fit.recipe.model
    if not train or not train.groups or train.trainable is None or model.adapters is None:
        return
    trained = {*train.trainable, *(adapter.target for adapter in model.adapters)}
    for number, group in enumerate(train.groups):
        name, key = group.match, f"train.groups.{number}.match"
        if name in TRAINABLE:
            if not {name, TRAINED_WITH.get(name, name)} & trained:
                fit.problem(
                    key, f"no tensor of {name} is trained; add it to train.trainable, or remove the group"
                )
        elif not {*name} & {*".*?["}:
            fit.problem(
                key,
                f"expected a part or a pattern of the names of tensors, got '{excerpt(name)}'; "
                f"{did_you_mean(name, TRAINABLE)}",
            )
