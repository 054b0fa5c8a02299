"""Check of quantized parts: nothing trains their own weights."""

from __future__ import annotations

from dreamkit.build.fit_record import Fit
from dreamkit.recipe.sections import WITH_SOURCE, ModelSection


def fit_quantized(fit: Fit, model: ModelSection) -> None:
    """Report each part in `train.trainable` whose weights are quantized."""
    trainable = (fit.recipe.train.trainable if fit.recipe.train else None) or ()
    for part in WITH_SOURCE:
        section = getattr(model, part)
        if part in trainable and section is not None and section.quantize is not None:
            place = fit.recipe.place(f"model.{part}.quantize")
            fit.problem(
                "train.trainable",
                f"'{part}' has quantized weights ({place}), which cannot be trained; remove it here and train an "
                "adapter (model.adapters), or remove quantize",
            )
