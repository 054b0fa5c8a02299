"""The network of an image decoder: it looks at neighbouring patches of the noisy picture, and at the context.

N images, D width, P = h x w patches of an image, Q' tokens of context.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit import Condition


class Block(nn.Module):
    """A convolution that knows the time, then attention to the context; both are added to what came in."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.time, self.conv = nn.Linear(dim, dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.to_q, self.to_kv = nn.Linear(dim, dim), nn.Linear(context_dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, hidden_NDhw: Tensor, time_ND: Tensor, condition: Condition) -> Tensor:
        timed = self.norm1(hidden_NDhw) + self.time(time_ND)[:, :, None, None]
        hidden_NDhw = hidden_NDhw + self.conv(F.silu(timed))
        # every patch asks, every token of the context answers: (N, heads, P or Q', D / heads)
        patches_NPD = self.norm2(hidden_NDhw).flatten(2).transpose(1, 2)
        q = self.to_q(patches_NPD).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(condition.context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if condition.mask is None else condition.mask[:, None, None].bool()
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return hidden_NDhw + self.to_out(seen).transpose(1, 2).unflatten(2, hidden_NDhw.shape[2:])


class Network(nn.Module):
    """Noisy pixels (N, 3, H, W) -> a prediction of the same shape. H and W are multiples of `patch_size`."""

    def __init__(self, patch_size: int, dim: int, layers: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.patch_size, self.dim = patch_size, dim
        channels = 3 * patch_size**2
        self.inlet = nn.Conv2d(channels, dim, 3, padding=1)
        self.time = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, context_dim) for _ in range(layers))
        self.outlet = nn.Conv2d(dim, channels, 3, padding=1)

    def forward(self, noisy_N3HW: Tensor, time_N: Tensor, condition: Condition) -> Tensor:
        dtype = self.inlet.weight.dtype  # a training step may hand over pixels and context in another
        condition = Condition(condition.context.to(dtype), condition.mask)
        # the time as waves of growing frequency, which a matrix can tell apart
        waves = torch.arange(self.dim, device=time_N.device)
        time_ND = F.silu(self.time(torch.cos(torch.pi * time_N[:, None] * waves).to(dtype)))
        hidden_NDhw = self.inlet(F.pixel_unshuffle(noisy_N3HW.to(dtype), self.patch_size))
        for block in self.blocks:
            hidden_NDhw = block(hidden_NDhw, time_ND, condition)
        return F.pixel_shuffle(self.outlet(F.silu(hidden_NDhw)), self.patch_size)
