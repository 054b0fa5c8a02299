"""AdamW whose state has 8 bits for each value, by torchao. Only this module imports torchao, an optional package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

from dreamkit.build.optimizer_states import CODES, MOMENTS, SCALE
from dreamkit.distributed import local, sliced_like


class EightBitAdamW(AdamW8bit):
    """torchao's AdamW with 8-bit state (arXiv 2110.02861), in blocks that do not depend on the number of processes.

    Its state is that of `dreamkit.build.optimizer_states`: `codes` and `scale` are tensors of their own, so that resume
    points can hold them.

    Attributes:
        found_inf: tensor () that is 1 if the step must change nothing, else 0. The host reads it in each step.
    """

    found_inf: Tensor

    def __init__(self, groups: Any, *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, betas=betas, eps=eps)
        self._views: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update each parameter that has a gradient, unless the step must change nothing."""
        if self.found_inf.item():
            return
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if not self._views:
            self._views = {parameter: self._view(parameter) for parameter in parameters}
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)  # a number would be compiled in
        for parameter in parameters:
            self.state[parameter].update(self._views[parameter])
        # On a CPU, compiling takes minutes and needs a C++ compiler.
        is_on_host = parameters[0].device.type == "cpu"
        with torch.compiler.set_stance("force_eager" if is_on_host else "default"):
            super().step()
        for parameter in parameters:
            for name in self._views[parameter]:
                del self.state[parameter][name]

    def _view(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the 8-bit moments of a parameter as torchao's tensors, which share the memory of codes and scales."""
        state: dict[str, Tensor] = self.state[parameter]
        views: dict[str, Tensor] = {}
        for name, qmap in zip(MOMENTS, (get_qmap_signed(), get_qmap_unsigned()), strict=True):
            if name + CODES not in state:
                continue
            codes, scale = local(state[name + CODES]), local(state[name + SCALE])
            if codes.numel():
                values, is_signed = torch.tensor(qmap, device=codes.device), qmap[0] < 0
                own: Tensor = OptimState8bit(codes, scale.view(-1), values, is_signed, dtype=torch.float32)
            else:  # torchao divides by the number of blocks, of which a process without rows has none
                own = torch.zeros_like(codes, dtype=torch.float32)
            views[name] = sliced_like(parameter, own, parameter.shape)
        return views
