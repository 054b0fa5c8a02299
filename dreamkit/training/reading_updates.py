"""The updates of a training, from its recipe, model and data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dreamkit.cache.model_check import open_cache
from dreamkit.checkpoints.inputs import open_inputs
from dreamkit.data.batch import Batch, ImageCache
from dreamkit.data.dataset import Dataset
from dreamkit.data.samples import run_samples
from dreamkit.data.shrinking import least_side
from dreamkit.data.updates import Updates
from dreamkit.distributed import rank, world_size
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry


def read_updates(
    recipe: Recipe,
    model: DreamModel,
    registry: Registry,
    *,
    datasets: Sequence[Dataset] | None = None,
    first: int = 0,
) -> Iterator[list[Batch]]:
    """Return an iterator over the updates of a training: the batch of each forward pass, for a loop of your own.

    The batches are those of `train_recipe`: documents and random numbers are functions of the seed and the update. They
    are on the CPU. `batch.counts` (2,) are the labels and the images to draw. `model(batch, counts=...)` divides its
    losses by the counts of the whole update. Under `torch.distributed`, each process reads its own documents.

    Args:
        recipe: the recipe, from `load_recipe`.
        model: the model, from `build_model`.
        registry: the components that the recipe names.
        datasets: one data set for each section of `recipe.data`; None builds those of the recipe.
        first: number of the first update, from 0; the others before it are not read.

    Raises:
        RecipeError: a data set cannot be read.
        CacheError: `train.cache` is damaged, does not fit, or lacks an image.
        DocumentError: a document cannot be used, and the recipe's policy is to stop; from the iterator.
    """
    language = model.language_model.spec
    opened = open_inputs(recipe, registry, datasets, with_init=False, language=language).require_datasets()
    documents = recipe.train.update_documents(world_size())
    cache = open_cache(recipe, model, registry)
    return iter(make_updates(recipe, model, opened, cache, documents).loader(first))


def make_updates(
    recipe: Recipe,
    model: DreamModel,
    datasets: Sequence[Dataset],
    cache: ImageCache | None,
    global_batch: int,
) -> Updates:
    """Return the updates of `global_batch` documents of a training, as this process trains on them."""
    collator = model.collator(recipe, cache)
    side = least_side(recipe.train, model.vision_encoder.spec, model.image_decoder.spec)
    samples = run_samples(recipe, datasets, collator.sequencer, global_batch, least_side=side)
    return Updates(samples, collator, recipe.train, global_batch, rank=rank(), processes=world_size())
