"""The network of an image decoder: convolutions over patches, and attention to the context.

N images, D width, P = h x w patches of an image, Q' context tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit import Condition


class Block(nn.Module):
    """A convolution with a time embedding, then attention to the context; the output of each is added to its input."""

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
        # queries of the patches, keys and values of the context: (N, heads, P or Q', D / heads)
        patches_NPD = self.norm2(hidden_NDhw).flatten(2).transpose(1, 2)
        q = self.to_q(patches_NPD).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(condition.context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if condition.mask is None else condition.mask[:, None, None].bool()
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return hidden_NDhw + self.to_out(attended).transpose(1, 2).unflatten(2, hidden_NDhw.shape[2:])


class Network(nn.Module):
    """A network from noisy pixels (N, 3, H, W) to a prediction of this shape; H and W are multiples of `patch_size`."""

    def __init__(self, patch_size: int, dim: int, layers: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.patch_size, self.dim = patch_size, dim
        channels = 3 * patch_size**2
        self.inlet = nn.Conv2d(channels, dim, 3, padding=1)
        self.time = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, context_dim) for _ in range(layers))
        self.outlet = nn.Conv2d(dim, channels, 3, padding=1)

    def forward(self, noisy_N3HW: Tensor, time_N: Tensor, condition: Condition) -> Tensor:
        dtype = self.inlet.weight.dtype  # pixels and context may have another dtype in training
        condition = Condition(condition.context.to(dtype), condition.mask)
        # time embedding: waves of growing frequency
        waves = torch.arange(self.dim, device=time_N.device)
        time_ND = F.silu(self.time(torch.cos(torch.pi * time_N[:, None] * waves).to(dtype)))
        hidden_NDhw = self.inlet(F.pixel_unshuffle(noisy_N3HW.to(dtype), self.patch_size))
        for block in self.blocks:
            hidden_NDhw = block(hidden_NDhw, time_ND, condition)
        return F.pixel_shuffle(self.outlet(F.silu(hidden_NDhw)), self.patch_size)
