"""The operator that assembles the model's inputs, here its reference, equals plain code, and so do gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from dreamkit.data.batch import Batch, Collator
from dreamkit.distributed import whole
from dreamkit.model import model as module
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import TrainSection
from dreamkit.training.sharding import shard

NEW = ["visual_projector", "condition_projector", "dream_queries", "new_tokens"]
GEMMA = {
    "name": "gemma",
    "config": {
        "model_type": "gemma2",
        "hidden_size": 24,  # its square root, the embedding's scale, is not a power of two
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    },
}


@pytest.fixture
def use_operator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that switches the model to the operator."""
    return lambda: monkeypatch.setattr(module, "usable", lambda tensor: True)


def build_model(**changes: Any) -> DreamModel:
    torch.manual_seed(0)
    return tiny.model(**changes).float()


def make_batch(model: DreamModel) -> Batch:
    draw, read = model.image_decoder.preprocess, model.vision_encoder.preprocess
    return Collator(model.sequencer(128), read, draw, condition_drop=0.5)(tiny.documents())


def step(model: DreamModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses of one step, and the gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    losses = model(batch)
    losses.loss.backward()
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return torch.stack([losses.loss.detach(), losses.lm, losses.denoising]), grads


def assert_same(actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Losses are bitwise identical, gradients close."""
    assert torch.equal(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        bound = 1e-6 * float(grad.abs().max())
        torch.testing.assert_close(
            actual[1][name], grad, rtol=1e-5, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_slots_and_rows_of_a_batch_agree() -> None:
    model = build_model()
    batch = make_batch(model)
    slots = batch.slots_BT.flatten()
    (images, vision), queries = batch.vision_rows_NV.shape, len(model.dream_queries)
    expected = torch.full_like(slots, -1)
    expected[batch.vision_rows_NV.flatten()] = torch.arange(images * vision)
    for rows in [*batch.dream_rows_MQ, batch.unconditional_rows_Q]:
        expected[rows] = images * vision + torch.arange(queries)
    assert torch.equal(slots, expected)
    filler = {model.token_ids[name] for name in ("<im_patch>", "<dream_patch>") if name in model.token_ids}
    assert set(batch.input_ids_BT.flatten()[slots >= 0].tolist()) <= filler


@pytest.mark.parametrize("trainable", [["language_model", *NEW], NEW, ["visual_projector"]], ids=len)
@pytest.mark.parametrize(
    "language_model", [tiny.RECIPE["model"]["language_model"], GEMMA], ids=["llama", "gemma"]
)
def test_losses_and_gradients_equal_those_of_plain_code(
    use_operator: Callable[[], None], language_model: dict[str, Any], trainable: list[str]
) -> None:
    model = build_model(**{"model.language_model": language_model})
    tables = model.language_model.embedding()
    assert tables is not None and (tables.scale is not None) == (language_model is GEMMA)
    model.set_trainable(trainable)
    batch = make_batch(model)
    plain = step(model, batch)
    use_operator()
    assert_same(step(model, batch), plain)


def test_the_scale_is_rounded_to_half_precision_first(use_operator: Callable[[], None]) -> None:
    model = build_model(**{"model.language_model": GEMMA}).bfloat16()
    batch = make_batch(model)
    batch.pixels_NCHW = batch.pixels_NCHW.bfloat16()
    plain = model.inputs(batch)[0]
    use_operator()
    assert torch.equal(model.inputs(batch)[0], plain)


class CountTensors(TorchDispatchMode):
    """A counter of new tensors with `rows` rows of width `dim`, in any number of leading dimensions."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.dim, self.storages = rows, dim, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (
            isinstance(output, Tensor)
            and output.numel() == self.rows * self.dim
            and output.shape[-1] == self.dim
        ):
            self.storages[output.untyped_storage().data_ptr()] = output
        return output


def test_the_operator_writes_the_rows_once(use_operator: Callable[[], None]) -> None:
    model = build_model()
    batch = make_batch(model)

    use_operator()
    with CountTensors(batch.input_ids_BT.numel(), model.language_model.spec.dim) as counter:
        model.inputs(batch)
    assert len(counter.storages) == 1


def test_a_model_without_tables_uses_its_own_embed(
    use_operator: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model()
    batch = make_batch(model)
    plain = model.inputs(batch)[0]
    use_operator()
    monkeypatch.setattr(model.language_model, "embedding", lambda: None)
    monkeypatch.setattr(module, "assemble_embeddings", lambda *_: pytest.fail("the operator has no tables"))
    assert torch.equal(model.inputs(batch)[0], plain)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_sharded_model_has_whole_tables_while_it_runs(use_operator: Callable[[], None]) -> None:
    model, sharded = build_model(), build_model()
    for one in (model, sharded):
        one.set_trainable(["language_model", *NEW])
    batch = make_batch(model)
    plain = step(model, batch)
    shard(sharded, torch.device("cpu"), TrainSection(trainable=(), steps=1, global_batch=1))
    use_operator()
    assert sharded.language_model.embedding() is None
    tables = []
    embedding = sharded.language_model.embedding
    sharded.language_model.embedding = lambda: tables.append(embedding()) or tables[-1]
    assert_same(step(sharded, batch), plain)
    assert len(tables) == 1 and tables[0] is not None
