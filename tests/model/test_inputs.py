"""The model's inputs by the operator, whose reference runs here, are those by plain code, and so is what is learned."""

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
from dreamkit.distributed import shard, whole
from dreamkit.model import model as module
from dreamkit.model.model import DreamModel

NEW = ["visual_projector", "condition_projector", "dream_queries", "new_tokens"]
GEMMA = {
    "name": "gemma",
    "config": {
        "model_type": "gemma2",
        "hidden_size": 24,  # whose root is no power of two
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    },
}


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """When called, has the model's inputs assembled by the operator from then on."""
    return lambda: monkeypatch.setattr(module, "usable", lambda tensor: True)


def made(**changes: Any) -> DreamModel:
    torch.manual_seed(0)
    return tiny.model(**changes).float()


def batch_of(model: DreamModel) -> Batch:
    draw, read = model.image_decoder.preprocess, model.vision_encoder.preprocess
    return Collator(model.sequencer(128), read, draw, condition_drop=0.5)(tiny.documents())


def learned(model: DreamModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one step, and the gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    losses = model(batch)
    losses.loss.backward()
    grads = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return torch.stack([losses.loss.detach(), losses.lm, losses.denoising]), grads


def same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        bound = 1e-6 * float(grad.abs().max())
        torch.testing.assert_close(
            ours[1][name], grad, rtol=1e-5, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_plan_says_the_same_by_slots_and_by_rows() -> None:
    model = made()
    batch = batch_of(model)
    slots = batch.slots_BT.flatten()
    (images, vision), queries = batch.vision_rows_NV.shape, len(model.dream_queries)
    wanted = torch.full_like(slots, -1)
    wanted[batch.vision_rows_NV.flatten()] = torch.arange(images * vision)
    for rows in [*batch.dream_rows_MQ, batch.unconditional_rows_Q]:
        wanted[rows] = images * vision + torch.arange(queries)
    assert torch.equal(slots, wanted)
    filler = {model.token_ids[name] for name in ("<im_patch>", "<dream_patch>") if name in model.token_ids}
    assert set(batch.input_ids_BT.flatten()[slots >= 0].tolist()) <= filler


@pytest.mark.parametrize("trainable", [["language_model", *NEW], NEW, ["visual_projector"]], ids=len)
@pytest.mark.parametrize(
    "language_model", [tiny.RECIPE["model"]["language_model"], GEMMA], ids=["llama", "gemma"]
)
def test_losses_to_the_bit_and_gradients(
    operator: Callable[[], None], language_model: dict[str, Any], trainable: list[str]
) -> None:
    model = made(**{"model.language_model": language_model})
    tables = model.language_model.embedding()
    assert tables is not None and (tables.scale is not None) == (language_model is GEMMA)
    model.set_trainable(trainable)
    batch = batch_of(model)
    plainly = learned(model, batch)
    operator()
    same(learned(model, batch), plainly)


def test_in_halves(operator: Callable[[], None]) -> None:
    """A scale is rounded to the dtype of the rows before it multiplies them."""
    model = made(**{"model.language_model": GEMMA}).bfloat16()
    batch = batch_of(model)
    batch.pixels_NCHW = batch.pixels_NCHW.bfloat16()
    plainly = model.inputs(batch)[0]
    operator()
    assert torch.equal(model.inputs(batch)[0], plainly)


class Made(TorchDispatchMode):
    """Counts the tensors of a shape that are made, of any number of leading dimensions."""

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


def test_all_rows_are_written_once(operator: Callable[[], None]) -> None:
    model = made()
    batch = batch_of(model)

    def written() -> int:
        with Made(batch.input_ids_BT.numel(), model.language_model.spec.dim) as found:
            model.inputs(batch)
        return len(found.storages)

    # the vocabulary's rows, the added ones, one of both, with vision tokens, with queries
    assert written() == 5
    operator()
    assert written() == 1


def test_a_model_that_tells_no_tables_embeds_by_itself(
    operator: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made()
    batch = batch_of(model)
    plainly = model.inputs(batch)[0]
    operator()
    monkeypatch.setattr(model.language_model, "embedding", lambda: None)
    monkeypatch.setattr(module, "assemble_embeddings", lambda *_: pytest.fail("there are no tables"))
    assert torch.equal(model.inputs(batch)[0], plainly)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_tables_of_a_sharded_model(operator: Callable[[], None]) -> None:
    """They are whole while the model runs, and no tables before."""
    model, sharded = made(), made()
    for each in (model, sharded):
        each.set_trainable(["language_model", *NEW])
    batch = batch_of(model)
    plainly = learned(model, batch)
    shard(sharded, torch.device("cpu"))
    operator()
    assert sharded.language_model.embedding() is None
    seen = []
    embedding = sharded.language_model.embedding
    sharded.language_model.embedding = lambda: seen.append(embedding()) or seen[-1]
    same(learned(sharded, batch), plainly)
    assert len(seen) == 1 and seen[0] is not None
