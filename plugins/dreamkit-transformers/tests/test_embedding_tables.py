"""`embedding()` returns tables only of embeddings that look up and scale rows."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from dreamkit import DreamkitError
from dreamkit_transformers.added_tokens import _only_scales
from dreamkit_transformers.configs import random_model
from dreamkit_transformers.families import Gemma
from dreamkit_transformers.llama import Llama
from small_language import TOKENS, make

PADDING = 3


class Rescaled(nn.Embedding):
    """An embedding whose factor is a Python number, which is not rounded to half precision."""

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
    """An embedding followed by a norm, which accepts rows of one width."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.LayerNorm(self.embedding_dim)

    def forward(self, ids):
        return self.norm(super().forward(ids))


class Projected(nn.Embedding):
    """An embedding wider than its matrix."""

    def forward(self, ids):
        return super().forward(ids).repeat_interleave(2, -1)


class Picky(Rescaled):
    def forward(self, ids):
        assert self.weight.shape[1] == 1 or self.weight.dtype != torch.bfloat16
        return super().forward(ids)


@pytest.mark.parametrize(
    ("embedding", "expected"),
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
def test_only_plain_and_scaled_embeddings_have_tables(embedding, expected):
    assert _only_scales(embedding) == expected
    with torch.device("meta"):  # the default device does not matter
        assert _only_scales(embedding) == expected


@pytest.mark.parametrize("odd", [Wide(260, 32), Projected(260, 16)], ids=lambda value: type(value).__name__)
def test_an_embedding_of_unknown_scale_computes_but_accepts_no_added_tokens(odd):
    config = make().config
    description = Llama._describe(config)
    model = random_model(description.model_class, description.library_config)
    model.set_input_embeddings(odd)
    part = Llama(config, description, model)
    ids = torch.tensor([[1, 5, 9]])
    assert part.embedding() is None
    assert torch.equal(part.embed(ids), odd(ids)) and part.embed(ids).shape == (1, 3, 32)
    with pytest.raises(DreamkitError, match=f"{type(odd).__name__} does more than look up and scale rows"):
        part.add_tokens(TOKENS)


@pytest.mark.parametrize("family", [Llama, Gemma])
def test_tables_hold_the_matrix_the_added_rows_and_the_scale(family):
    part = make(family, hidden_size=24, pad_token_id=PADDING)
    base = part.model.get_input_embeddings()
    initial = part.embedding()
    assert initial.weight is base.weight and initial.added is None and initial.padding_id == PADDING
    assert (initial.scale is None) == (family is Llama)
    part.add_tokens(TOKENS)
    tables = part.embedding()
    assert tables.added is part.new_embed and tables.added_rows.tolist()[-2:] == [0, 1]
    if family is Gemma:
        assert tables.scale == base.embed_scale and tables.scale != 1


def add_lora(part):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embed_tokens"]), part.model)


def add_hook(part):
    part.model.get_input_embeddings().register_forward_hook(lambda module, ids, rows: 2 * rows)


def replace_module(part):
    part.model.set_input_embeddings(Normed(260, 32))


class Packed(torch.Tensor):
    """A tensor class like those of quantized weights."""


def quantize(part):
    base = part.model.get_input_embeddings()
    base.weight = nn.Parameter(base.weight.detach().as_subclass(Packed))


@pytest.mark.parametrize("change", [add_lora, add_hook, replace_module, quantize])
def test_a_changed_embedding_has_no_tables(change):
    part = make()
    part.add_tokens(TOKENS)
    assert part.embedding() is not None
    change(part)
    assert part.embedding() is None
