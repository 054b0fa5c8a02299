"""A block of a causal transformer, and the cache that lets it go on where it stopped.

B rows, T tokens of this call, S tokens seen: those of the cache, then these T. D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # of every RMS norm


class Cache:
    """What earlier calls left, by name: keys and values of each block, position and segment of each token.

    Empty slots (segment -1) stay in it: nobody sees them, since no text is of their segment.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def extend(self, name: str, new: Tensor) -> Tensor:
        """All that is kept under `name`, (B, S, ...): what was there, and `new`, (B, T, ...), behind it."""
        self.kept[name] = torch.cat([self.kept[name], new], 1) if name in self.kept else new
        return self.kept[name]


class Block(nn.Module):
    """Attention to the tokens that a mask allows, then a unit for each token; both are added to what came in."""

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
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTS[:, None])
        hidden_BTD = hidden_BTD + self.out(seen.transpose(1, 2).flatten(2))
        return hidden_BTD + self.down(F.gelu(self.up(self.norm2(hidden_BTD))))
