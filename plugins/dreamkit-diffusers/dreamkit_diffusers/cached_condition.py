"""A cache of the layers of a network that depend on its condition alone.

A cached layer is a child of a module, under a name. While the network predicts, a stand-in in the module's `__dict__`,
which Python reads before submodules, answers for the layer. So every caller uses the cache, while modules, hooks,
adapters, copies and saved files stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import nn

from dreamkit import Condition

Child = tuple[nn.Module, str]  # a module, and the name of a layer in it
State = tuple[torch.dtype, bool, torch.dtype | None]  # dtype, training mode, dtype of autocast

_outputs: ContextVar[dict[nn.Module, Any] | None] = ContextVar("outputs", default=None)  # of this thread
_stand_ins = Lock()


def cast_condition(condition: Condition, dtype: torch.dtype) -> Condition:
    """Return the condition with its context and its pooled vector in `dtype`."""
    pooled = condition.pooled
    return Condition(
        condition.context.to(dtype), condition.mask, None if pooled is None else pooled.to(dtype)
    )


def key_value_layers(attention: nn.Module | None) -> Iterator[Child]:
    """Yield the layers that compute keys and values in a cross-attention of diffusers; None has no layers."""
    if attention is not None:
        fused = getattr(attention, "fused_projections", False)
        yield from ((attention, name) for name in (("to_kv",) if fused else ("to_k", "to_v")))


def is_compiled(network: nn.Module) -> bool:
    """Return True if `torch.compile` was applied to the network or to a module in it."""
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in network.modules()
    )


class CachedCondition:
    """A condition, and by state its cast and the layers' outputs from it."""

    def __init__(self, condition: Condition, layers: Iterable[Child]) -> None:
        self.condition = condition
        self._layers = list(layers)
        self._by_state: dict[State, tuple[Condition, dict[nn.Module, Any]]] = {}

    @contextmanager
    def use(self, dtype: torch.dtype, training: bool) -> Iterator[Condition]:
        """Yield the condition in the network's `dtype`; within the context, each layer is called once at most.

        Nothing is cached while a CUDA graph is captured: it may be replayed after the cache is gone.
        """
        if _is_capturing():
            yield cast_condition(self.condition, dtype)
            return
        device = self.condition.context.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = (dtype, training, autocast)
        if state not in self._by_state:
            self._by_state[state] = cast_condition(self.condition, dtype), {}
        condition, outputs = self._by_state[state]
        token = _outputs.set(outputs)
        _install(self._layers)
        try:
            yield condition
        finally:
            _remove(self._layers)
            _outputs.reset(token)


class _StandIn:
    """A stand-in for a layer while any thread predicts. In a thread that caches nothing, it calls the layer."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self.users = 0

    def __reduce__(self) -> Any:
        return _StandIn, (self._module, self._name)  # a copy has no users

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._module._modules[self._name]
        assert layer is not None
        outputs = None if torch.compiler.is_compiling() else _outputs.get()
        if outputs is None:
            return layer(*args, **kwargs)
        if layer in outputs:
            return outputs[layer]
        output = layer(*args, **kwargs)
        if not _has_active_dropout(layer):
            outputs[layer] = output
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module._modules[self._name], name)


def _is_capturing() -> bool:
    """Return True while a CUDA graph is captured: tensors computed then have no values before a replay."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _has_active_dropout(layer: nn.Module) -> bool:
    """Return True if the layer, such as one with an adapter, has dropout: its output differs in each step."""
    return any(isinstance(inner, nn.Dropout) and inner.training for inner in layer.modules())


def _install(layers: list[Child]) -> None:
    with _stand_ins:
        for module, name in layers:
            module.__dict__.setdefault(name, _StandIn(module, name)).users += 1


def _remove(layers: list[Child]) -> None:
    with _stand_ins:
        for module, name in layers:
            stand_in = module.__dict__[name]
            stand_in.users -= 1
            if not stand_in.users:
                del module.__dict__[name]
