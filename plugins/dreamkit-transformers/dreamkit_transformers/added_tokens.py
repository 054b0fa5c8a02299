"""Added tokens: rows beside the embedding matrix and the head of a model.

D width, K rows of added tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedTokenizerBase

from dreamkit import DreamkitError, Embedding, Head, LanguageModel
from dreamkit_transformers.heads import soft_capped
from dreamkit_transformers.norms import noise, on_cpu
from dreamkit_transformers.text_decoder import Abilities
from dreamkit_transformers.tokenizers import add_special, new_tokens

NEW_ROW_NOISE = 0.1  # spread of new rows around the mean row, in standard deviations of the existing rows


class TokenAddingModel(LanguageModel):
    """A language model whose embedding matrix and head keep their shapes; added tokens have rows beside them.

    The rows `new_embed` and `new_head` (K, D) can be trained while the model is frozen. A model that ties its head
    to its embedding has only `new_embed`. If the head has a bias, an added token has the mean bias.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    abilities: Abilities
    new_rows: Tensor  # (ids,) the row of each added token's id; -1 for other ids
    inside_ids: Tensor  # ids of the first rows: those within the model's matrices
    embed_scale: Tensor | None  # () factor of the embedding's rows; None: unknown
    is_as_stored: bool = False  # flag: weights have the types of their files, until a cast to float32
    plain_embedding: type | None = None  # class of an embedding that only looks up and scales rows

    def _prepare_added_tokens(self) -> None:
        """Set the attributes of a model without added tokens."""
        base = self.model.get_input_embeddings()
        self.tied = self.model.get_output_embeddings().weight is base.weight
        self.new_embed: nn.Parameter | None = None
        self.new_head: nn.Parameter | None = None
        self.register_buffer("new_rows", torch.full((self.spec.vocab_size,), -1), persistent=False)
        self.register_buffer("inside_ids", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("embed_scale", _scale(base), persistent=False)
        self.has_scale = type(base).forward is not nn.Embedding.forward
        self.plain_embedding = type(base) if _only_scales(base) else None

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of the special `tokens`, in order; tokens that the vocabulary lacks get trainable rows.

        Raises:
            DreamkitError: a token is new and an earlier call added tokens, or a token is new and the model's
                embedding does more than look up and scale rows.
        """
        unknown = sorted(set(tokens) - self.tokenizer.get_vocab().keys())
        if unknown and self.new_embed is not None:
            raise DreamkitError(f"cannot add {unknown} after other tokens; add all tokens in one call")
        add_special(self.tokenizer, tokens)
        if self.new_embed is None:
            self._create_rows()
        vocabulary = self.tokenizer.get_vocab()
        return [vocabulary[token] for token in tokens]

    def _create_rows(self) -> None:
        """Create rows for added tokens and for tokens beyond the model's matrices.

        A model's matrices can have more rows than its tokenizer has tokens (padding to a round number), so an added
        token's id may lie within them. They can also have fewer.

        Raises:
            DreamkitError: the model's embedding does more than look up and scale rows.
        """
        vocab_size = self.spec.vocab_size
        vocabulary = self.tokenizer.get_vocab()
        added = {vocabulary[token] for token in new_tokens(self.tokenizer)}
        count = max(vocab_size, 1 + max(vocabulary.values()))
        chosen = sorted(added | set(range(vocab_size, count)))
        if not chosen:
            return
        base = self.model.get_input_embeddings()
        if self.embed_scale is None:
            raise DreamkitError(
                f"cannot add tokens: {type(base).__name__} does more than look up and scale rows; "
                "name tokens of the vocabulary in special_tokens or choose another language model"
            )
        table = torch.full((count,), -1)
        table[chosen] = torch.arange(len(chosen))
        inside = [index for index in chosen if index < vocab_size]
        self.new_rows = table.to(self.new_rows.device)
        self.inside_ids = torch.tensor(inside, dtype=torch.long, device=self.new_rows.device)
        self.new_embed = self._rows_like(base.weight, len(chosen))
        if not self.tied:
            self.new_head = self._rows_like(self.model.get_output_embeddings().weight, len(chosen))

    def _rows_like(self, weight: Tensor, count: int) -> nn.Parameter:
        """Return `count` rows near the mean row of a matrix: a new token starts as likely as an average one."""
        with torch.no_grad():
            weight = weight.float() if self.is_as_stored else weight
            mean, spread = weight.mean(0), weight.std()
            rows = torch.randn_like(weight[:1].expand(count, -1))
            return nn.Parameter(mean + NEW_ROW_NOISE * spread * rows)

    def added_token_parameters(self) -> Sequence[nn.Parameter]:
        return [rows for rows in (self.new_embed, self.new_head) if rows is not None]

    def embed(self, ids: Tensor) -> Tensor:
        base = self.model.get_input_embeddings()
        if self.new_embed is None:
            return base(ids)
        row = self.new_rows[ids]
        known = base(ids.clamp(max=self.spec.vocab_size - 1))
        new = F.embedding(row.clamp(min=0), self.new_embed)
        if self.has_scale and self.embed_scale is not None:
            new = new * self.embed_scale.to(new.dtype)
        return torch.where(row[..., None] < 0, known, new)

    def embedding(self) -> Embedding | None:
        base: Any = self.model.get_input_embeddings()
        # an adapter adds a hook or replaces the class; sharding and quantization replace the tensor's class
        is_plain = type(base.weight) in (nn.Parameter, Tensor) and type(base) is self.plain_embedding
        if not is_plain or base._forward_hooks or base._forward_pre_hooks:
            return None
        added_rows = None if self.new_embed is None else self.new_rows
        scale = self.embed_scale if self.has_scale else None
        return Embedding(base.weight, self.new_embed, added_rows, scale, base.padding_idx)

    def head(self) -> Head:
        head = self.model.get_output_embeddings()
        weight, bias, rows = head.weight, head.bias, self._head_rows()
        if rows is not None:
            weight = self._with_new(weight, rows, dim=0)
            bias = None if bias is None else self._with_new(bias, self._new_bias(rows), dim=0)
        return Head(weight, bias, self.abilities.soft_cap, self.abilities.scale)

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        logits, rows = head(hidden), self._head_rows()
        if rows is not None:  # a separate product is cheaper than joining the matrices
            bias = None if head.bias is None else self._new_bias(rows)
            logits = self._with_new(logits, F.linear(hidden, rows, bias), dim=-1)
        if self.abilities.scale != 1:
            logits = logits * self.abilities.scale
        return soft_capped(logits, self.abilities.soft_cap)

    def _head_rows(self) -> Tensor | None:
        return self.new_embed if self.tied else self.new_head

    def _new_bias(self, rows: Tensor) -> Tensor:
        return self.model.get_output_embeddings().bias.mean().expand(len(rows))

    def _with_new(self, known: Tensor, new: Tensor, dim: int) -> Tensor:
        """Return `known` with `new`, the values of added tokens, at their ids along `dim`."""
        inside = self.inside_ids.shape[0]
        if inside:
            known = known.index_copy(dim, self.inside_ids, new.narrow(dim, 0, inside).to(known.dtype))
        return torch.cat([known, new.narrow(dim, inside, new.shape[dim] - inside)], dim=dim)


@on_cpu()
def _scale(embedding: nn.Embedding) -> Tensor | None:
    """Return the embedding of a row that holds a single 1, or None if the module rejects or widens such rows."""
    rows = 1 + (embedding.padding_idx or 0)
    # float32, whatever the stored weights are; on the meta device, the result has no value
    one = embedding.weight.new_ones(rows, 1, dtype=torch.float32)
    index = torch.zeros((), dtype=torch.long, device=one.device)
    try:
        output = functional_call(embedding, {"weight": one}, (index,))
    except Exception:  # a norm or a projection of other widths raises any exception
        return None
    return output.squeeze() if isinstance(output, Tensor) and output.numel() == 1 else None


@on_cpu()
def _only_scales(embedding: nn.Embedding) -> bool:
    """Return True if the embedding only looks up and scales rows, in its forward and its backward pass."""
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return False
    if type(embedding).forward is nn.Embedding.forward:
        return True
    device, scale = embedding.weight.device, _scale(embedding)
    if scale is None or device.type == "meta" or len([*embedding.parameters()]) != 1:
        return False
    index = torch.zeros(1, dtype=torch.long, device=device)
    for dtype in (torch.float32, torch.bfloat16):  # bfloat16 shows whether the scale is rounded first
        row = noise(1, embedding.embedding_dim).to(device, dtype)
        weight = row.expand(1 + (embedding.padding_idx or 0), -1)
        try:
            output = functional_call(embedding, {"weight": weight}, (index,))
        except Exception:  # for example, it accepts a single dtype
            return False
        if not torch.equal(output, row * scale.to(dtype)):
            return False
    return True
