"""A block of a causal transformer.

B rows, T tokens of this call, S tokens in the cache including these T, D width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache

EPS = 1e-5  # of every RMS norm


class Block(nn.Module):
    """Masked self-attention, then a feed-forward network; the output of each is added to its input."""

    def __init__(self, name: str, dim: int, heads: int) -> None:
        super().__init__()
        self.name, self.heads = name, heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=EPS), nn.RMSNorm(dim, eps=EPS)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, hidden_BTD: Tensor, mask_BTS: Tensor, cache: Cache) -> Tensor:
        # (B, T, 3 D) -> queries, keys and values, each (B, T, heads, D / heads)
        q, k, v = self.qkv(self.norm1(hidden_BTD)).unflatten(2, (3, self.heads, -1)).unbind(2)
        k, v = cache.extend(f"{self.name} keys", k), cache.extend(f"{self.name} values", v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTS[:, None])
        hidden_BTD = hidden_BTD + self.out(attended.transpose(1, 2).flatten(2))
        return hidden_BTD + self.down(F.gelu(self.up(self.norm2(hidden_BTD))))
