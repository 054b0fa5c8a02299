"""The tables of an embedding are told where all it does is known, and nowhere else."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from dreamkit import DreamkitError
from dreamkit_transformers.families import Gemma
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.new_rows import _only_scales
from dreamkit_transformers.probe import make as make_model
from small_language import TOKENS, make

PADDING = 3


class Rescaled(nn.Embedding):
    """Its factor is a number, which no half rounds before it multiplies."""

    factor = 1.3

    def forward(self, ids):
        return super().forward(ids) * self.factor


class Rounded(Rescaled):
    def forward(self, ids):
        return nn.Embedding.forward(self, ids) * torch.tensor(self.factor).to(self.weight.dtype)


class Normed(nn.Embedding):
    def forward(self, ids):
        return nn.functional.normalize(super().forward(ids), dim=-1)


class Two(nn.Embedding):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.other = nn.Embedding(2, self.embedding_dim)

    def forward(self, ids):
        return torch.where((ids < 9)[..., None], super().forward(ids), self.other(ids.clamp(max=1)))


class Wide(nn.Embedding):
    """With a norm of its own, which takes rows of one width alone."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.LayerNorm(self.embedding_dim)

    def forward(self, ids):
        return self.norm(super().forward(ids))


class Projected(nn.Embedding):
    """Wider than its matrix, whatever that is."""

    def forward(self, ids):
        return super().forward(ids).repeat_interleave(2, -1)


class Picky(Rescaled):
    def forward(self, ids):
        assert self.weight.shape[1] == 1 or self.weight.dtype != torch.bfloat16
        return super().forward(ids)


@pytest.mark.parametrize(
    ("embedding", "told"),
    [
        (nn.Embedding(9, 4), True),
        (nn.Embedding(9, 4, padding_idx=PADDING), True),
        (Rounded(9, 4, padding_idx=PADDING), True),
        (Rescaled(9, 4), False),
        (Normed(9, 4), False),
        (Two(9, 4), False),
        (Wide(9, 4), False),
        (Projected(9, 4), False),
        (Picky(9, 4), False),
        (nn.Embedding(9, 4, max_norm=1.0), False),
        (nn.Embedding(9, 4, scale_grad_by_freq=True), False),
        (nn.Embedding(9, 4, sparse=True), False),
    ],
    ids=lambda value: repr(value),
)
def test_what_an_embedding_does(embedding, told):
    assert _only_scales(embedding) == told
    with torch.device("meta"):  # as under any other default device
        assert _only_scales(embedding) == told


@pytest.mark.parametrize("odd", [Wide(260, 32), Projected(260, 16)], ids=lambda value: type(value).__name__)
def test_an_embedding_that_cannot_be_tried_has_no_tables(odd):
    """The part can be made of it and computes; what new rows would have to be is unknown."""
    config = make().config
    found = Llama._described(config)
    model = make_model(found.model_class, found.library_config)
    model.set_input_embeddings(odd)
    part = Llama(config, found, model)
    ids = torch.tensor([[1, 5, 9]])
    assert part.embedding() is None
    assert torch.equal(part.embed(ids), odd(ids)) and part.embed(ids).shape == (1, 3, 32)
    with pytest.raises(
        DreamkitError, match=f"beside {type(odd).__name__}, which does more than look up rows"
    ):
        part.add_tokens(TOKENS)


@pytest.mark.parametrize("family", [Llama, Gemma])
def test_tables(family):
    part = make(family, hidden_size=24, pad_token_id=PADDING)
    base = part.model.get_input_embeddings()
    before = part.embedding()
    assert before.weight is base.weight and before.added is None and before.padding_id == PADDING
    assert (before.scale is None) == (family is Llama)
    part.add_tokens(TOKENS)
    tables = part.embedding()
    assert tables.added is part.new_embed and tables.added_rows.tolist()[-2:] == [0, 1]
    if family is Gemma:
        assert tables.scale == base.embed_scale and tables.scale != 1


def lora(part):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embed_tokens"]), part.model)


def hooked(part):
    part.model.get_input_embeddings().register_forward_hook(lambda module, ids, rows: 2 * rows)


def replaced(part):
    part.model.set_input_embeddings(Normed(260, 32))


class Packed(torch.Tensor):
    """Rows that are not what they look like."""


def quantized(part):
    base = part.model.get_input_embeddings()
    base.weight = nn.Parameter(base.weight.detach().as_subclass(Packed))


@pytest.mark.parametrize("change", [lora, hooked, replaced, quantized])
def test_an_embedding_that_does_more_tells_nothing(change):
    part = make()
    part.add_tokens(TOKENS)
    assert part.embedding() is not None
    change(part)
    assert part.embedding() is None
