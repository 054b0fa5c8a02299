"""Linear layers with frozen weights in 4 or 8 bits, which compute with the weights in floating point again.

Only the weights are quantized, each matrix alone and independently of any data, so an output depends on its own row of
the input, and gradients are those of a linear layer with the restored weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit.parts.precision import keep_float32

BLOCK: Final = 64  # weights of one scale in nf4, as in QLoRA
# Weights to quantize at once: on a CPU, bitsandbytes needs some twenty bytes for each meanwhile.
_CHUNK: Final = 2**20
_LARGEST: Final = 127  # of a symmetric int8


class QuantizedLinear(nn.Linear):
    """A linear layer whose weights (out, in) are frozen and packed.

    `nf4`: 4 bits a weight, with the largest magnitude of each block of 64 in float32 (QLoRA, arXiv 2305.14314, without
    its second quantization, that of the magnitudes).
    `int8`: 8 bits a weight, with the largest magnitude of each row in float32 (LLM.int8(), arXiv 2208.07339, section 2,
    of the weights alone).

    Restored weights that are packed again give the same bits.

    The packed weights are buffers outside the state dict: every device holds them whole, and no optimizer, cast or
    checkpoint sees them. A checkpoint that must hold them has restored ones.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kind: str) -> None:
        """Pack `weight` (out, in), of any floating-point type."""
        nn.Module.__init__(self)  # that of a linear layer would create float32 weights
        self.out_features, self.in_features = weight.shape
        self.kind = kind
        self.register_parameter("bias", bias)
        with _in_float32():
            packed, scales = _pack(weight.detach(), kind)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.dtype = scales.dtype  # type that the layer was cast to

    @classmethod
    def of(cls, layer: nn.Linear, kind: str) -> Self:
        """Return the layer with packed weights; the bias is shared."""
        return cls(layer.weight, layer.bias, kind)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the weights."""
        return self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # libraries read it, and some only its type
        """The restored weights (out, in) in the type that the layer was cast to, computed at each access."""
        return self.restored(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` to the tensors; the magnitudes stay in float32 or more."""
        self.dtype = fn(self.scales.new_empty(0, dtype=self.dtype)).dtype
        return super()._apply(keep_float32([self.scales], fn), recurse)

    @torch.no_grad()
    def restored(self, dtype: torch.dtype) -> Tensor:
        """Return the weights (out, in) in floating point."""
        with _in_float32():
            return self._restored(dtype)

    def _restored(self, dtype: torch.dtype) -> Tensor:
        if self.kind == "int8":
            return self.packed.float().div_(_LARGEST).mul_(self.scales.float()).to(dtype)
        # On a CPU, bitsandbytes 0.50.2 takes wrong scales unless a row's length is a multiple of a block's. So each row
        # is a block, or all weights are in one row.
        number = 2 * self.packed.numel()
        shape = (number // BLOCK, BLOCK) if number % BLOCK == 0 else (number,)
        library = _bitsandbytes()
        state = library.QuantState(
            absmax=self.scales.float(),
            shape=torch.Size(shape),
            dtype=torch.float32 if dtype == torch.float64 else dtype,
            blocksize=BLOCK,
            quant_type=self.kind,
        )
        weights: Tensor = library.dequantize_4bit(self.packed, state).to(dtype)
        return weights.flatten()[: self.out_features * self.in_features].view(self.shape)

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Replace the weights by `weight` (out, in), of any floating-point type and device."""
        with _in_float32():
            packed, scales = _pack(weight, self.kind)
        self.packed.copy_(packed)
        self.scales.copy_(scales)

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        output: Tensor = _Product.apply(input.to(dtype), self, dtype)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """The output of a layer. The backward pass restores its weights again, so that none are kept until then."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantizedLinear, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype = layer, dtype
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return F.linear(input, layer.restored(dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.restored(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Yield the quantized layers of a module by their names."""
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear):
            yield name, layer


def _in_float32() -> AbstractContextManager[None]:
    """Return a block in which float32 means float32, also in a run in float64: scales have no other type."""
    block: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return block


def _pack(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return packed weights and their largest magnitudes.

    Their shapes are (out, in) and (out, 1) for int8, (bytes, 1) and (blocks,) for nf4.
    """
    if kind == "int8":
        weight = weight.float()
        scales = weight.abs().amax(1, keepdim=True)
        return (weight / scales.where(scales > 0, 1)).mul_(_LARGEST).round_().to(torch.int8), scales
    chunks = [
        _bitsandbytes().quantize_4bit(chunk.float(), blocksize=BLOCK, quant_type=kind)
        for chunk in weight.reshape(-1).split(_CHUNK)
    ]
    return torch.cat([packed for packed, _ in chunks]), torch.cat([state.absmax for _, state in chunks])


def _bitsandbytes() -> Any:
    """Return the functions of bitsandbytes, which takes seconds to import."""
    import bitsandbytes.functional

    return bitsandbytes.functional


def _is_about_weights(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")


# peft imports bitsandbytes too, which then logs on every CPU that it lacks a kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_about_weights)
