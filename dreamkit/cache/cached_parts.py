"""The parts of a recipe that compute a cache, in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dreamkit.build.build import build_as_stored
from dreamkit.build.fit import fit
from dreamkit.cache.manifest import PART_OF, Table
from dreamkit.cache.model_check import table_module, uncacheable_reason
from dreamkit.cache.table_builder import TableBuilder
from dreamkit.checkpoints.load import load_weights
from dreamkit.data.shrinking import least_side
from dreamkit.errors import CacheError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry


@dataclass
class CachedParts:
    """A model whose parts compute tables.

    Attributes:
        model: the model. Only the modules of `builders` have the weights and types of a run.
        builders: the tables that can be cached.
        reasons: for each requested table, why it is not written, or None.
        least_side: least side of decoded images in pixels, or None.
    """

    model: DreamModel
    builders: dict[Table, TableBuilder]
    reasons: dict[Table, str | None]
    least_side: int | None

    @property
    def row_bytes(self) -> dict[Table, int]:
        """The size of a row in each table."""
        return {table: builder.row_bytes for table, builder in self.builders.items()}

    @property
    def left_out(self) -> dict[Table, str]:
        """The reason for each requested table that is not written."""
        return {table: reason for table, reason in self.reasons.items() if reason is not None}

    def require_table(self) -> None:
        """Check that a requested table is written.

        Raises:
            CacheError: there is a reason against each.
        """
        _require_table(self.reasons)


def prepare_parts(
    recipe: Recipe,
    registry: Registry,
    model: DreamModel | None,
    tables: Sequence[Table],
    device: torch.device,
    scratch: Path,
) -> CachedParts:
    """Return the parts that compute `tables`, on `device`. Every process must call this function.

    `model` replaces that of the recipe. If it is None, weights are mapped from the files of their sources, and only the
    modules that compute the tables are cast and loaded: other parts, such as the language model, take no memory. Parts
    without such files are mapped from one in the folder `scratch`, which exists meanwhile.

    Raises:
        CacheError: no table can be cached, or the code of a part fails.
        CheckpointError: `recipe.init` is damaged or does not fit.
        RecipeError: the parts do not fit each other.
        TrainingError: the parts do not state how large they need images, as `train.decode_margin` requires.
    """
    is_built = model is None
    if model is None:
        model = build_as_stored(fit(recipe, registry), scratch)
    model.set_trainable(recipe.train.trainable)
    model.eval()
    reasons: dict[Table, str | None] = {table: uncacheable_reason(model, table) for table in tables}
    _require_table(reasons)
    cacheable = [table for table in tables if reasons[table] is None]
    precision = recipe.train.precision
    for module in (table_module(model, table) for table in cacheable):
        if is_built:
            module.float()  # also before float64: `from_pretrained` rounds the weights to float32
        if precision == "float64":
            module.double()
    if is_built and recipe.init is not None:
        load_weights(model, recipe.init, parts={PART_OF[table] for table in cacheable})
    side = least_side(recipe.train, model.vision_encoder.spec, model.image_decoder.spec)
    builders = {table: TableBuilder(table, model, device, precision) for table in cacheable}
    return CachedParts(model, builders, reasons, side)


def _require_table(reasons: dict[Table, str | None]) -> None:
    if None not in reasons.values():
        listed = "".join(f"\n  {table}: {reason}" for table, reason in reasons.items())
        raise CacheError(f"nothing can be cached:{listed}")
