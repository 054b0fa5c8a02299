"""Subclasses of working parts that are broken in exactly one way."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor, nn


def with_method(base: type, method: str, change: Callable[..., Any]) -> type:
    """Return a subclass of `base` whose `method` is `change(self, original, *arguments)`."""
    original = getattr(base, method)

    def changed(self, *args, **kwargs):
        return change(self, lambda *a, **k: original(self, *a, **k), *args, **kwargs)

    return type(f"Broken{base.__name__}", (base,), {method: changed})


def with_part_change(base: type, change: Callable[[Any], None]) -> type:
    """Return a subclass of `base` whose `from_config` applies `change` to the new part."""

    def from_config(cls, *args):
        part = super(broken, cls).from_config(*args)
        change(part)
        return part

    broken = type(f"Broken{base.__name__}", (base,), {"from_config": classmethod(from_config)})
    return broken


def with_spec(base: type, **changes: Any) -> type:
    """Return a subclass of `base` whose spec has `changes`, both from `infer_spec` and in the built part."""

    def infer_spec(cls, *args, **kwargs):
        return dataclasses.replace(super(broken, cls).infer_spec(*args, **kwargs), **changes)

    def change(part):
        part.spec = dataclasses.replace(part.spec, **changes)

    broken = type(
        f"Broken{base.__name__}", (with_part_change(base, change),), {"infer_spec": classmethod(infer_spec)}
    )
    return broken


def with_class_method(base: type, method: str, change: Callable[..., Any]) -> type:
    """Return a subclass of `base` whose class method `method` is `change(cls, original, *arguments)`."""

    def changed(cls, *args, **kwargs):
        return change(cls, getattr(super(broken, cls), method), *args, **kwargs)

    broken = type(f"Broken{base.__name__}", (base,), {method: classmethod(changed)})
    return broken


def with_config(base: type, change: Callable[[type], type]) -> type:
    """Return a subclass of `base` whose Config is `change` of the original one."""
    config = change(base.Config)

    def tiny_config(cls):
        original = super(broken, cls).tiny_config()
        return config(**{f.name: getattr(original, f.name) for f in dataclasses.fields(original)})

    broken = type(
        f"Broken{base.__name__}", (base,), {"Config": config, "tiny_config": classmethod(tiny_config)}
    )
    return broken


# mistakes in any kind of part; `forward` is its main computation, whose first argument is a tensor of rows


def not_frozen(config: type) -> type:
    hints = typing.get_type_hints(config)
    fields = []
    for field in dataclasses.fields(config):
        default = dataclasses.field(default=field.default)
        fields.append((field.name, hints[field.name], default))
    methods = {  # copied, because a dataclass that is not frozen cannot inherit from a frozen one
        name: value
        for base in reversed(config.__mro__[:-1])
        for name, value in vars(base).items()
        if not name.startswith("__") and name not in hints
    }
    return dataclasses.make_dataclass("Config", fields, kw_only=True, namespace=methods)


def counts_its_creations(config: type) -> type:
    """Return a Config that counts how often it was created, so that reading it back changes it."""

    def post_init(self):
        object.__setattr__(self, "seen", self.seen + 1)

    fields = [("seen", int, dataclasses.field(default=0))]
    namespace = {"__post_init__": post_init}
    return dataclasses.make_dataclass(
        "Config", fields, bases=(config,), namespace=namespace, frozen=True, kw_only=True
    )


def drops_the_batch_dimension(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output.squeeze(0) if len(output) == 1 else output


def mixes_rows(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output + 0.1 * (output.mean(0, keepdim=True) - output)


def adds_random_noise(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output + 1e-6 * torch.randn_like(output)


def changes_its_input(self, forward, rows, *rest):
    output = forward(rows, *rest)
    if not torch.is_grad_enabled():
        rows.add_(1e-3)
    return output


def upcasts(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output.float() if output.dtype == torch.bfloat16 else output


def computes_on_the_cpu(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output + torch.zeros(output.shape[-1], dtype=output.dtype)


def unfreezes(self, forward, rows, *rest):
    next(iter(self.trainable_parameters())).requires_grad_(True)
    return forward(rows, *rest)


def detaches_the_first_row(self, forward, rows, *rest):
    return forward(torch.cat([rows[:1].detach(), rows[1:]]), *rest)


def omits_a_buffer(base: type, method: str) -> type:
    """Return a part that adds a buffer that is not in its state dict."""

    def change(part):
        part.register_buffer("shift", torch.randn(()), persistent=False)

    def add(self, forward, *args, **kwargs):
        return forward(*args, **kwargs) + 0.1 * getattr(self, "shift", 0)

    return with_method(with_part_change(base, change), method, add)


def has_an_unused_parameter(part: nn.Module) -> None:
    part.idle = nn.Parameter(torch.zeros(3))
    known = part.trainable_parameters

    def trainable_parameters():
        yield from known()
        if not any(p is part.idle for p in known()):
            yield part.idle

    part.trainable_parameters = trainable_parameters


def changes_when_recomputing(base: type, method: str) -> type:
    """Return a part that computes another result with gradient checkpointing."""

    def shifted(self, forward, *args, **kwargs):
        output = forward(*args, **kwargs)
        return output + 0.5 if getattr(self, "recomputes", False) else output

    def enable(self, original):
        self.recomputes = True

    return with_method(with_method(base, method, shifted), "enable_gradient_checkpointing", enable)


def creates_weights(cls, original, *args, **kwargs):
    nn.Linear(2, 2)
    return original(*args, **kwargs)


def adds_a_meta_module(cls, original, config):
    modules = original(config)
    modules.more = nn.Identity()
    return modules


def changes_the_library(self, original, *args):
    return original(*args) + 0.1


def plain_pixels(picture: Picture) -> Picture:
    """Return the image without its EXIF orientation, in 8 bits."""
    rgb = picture.convert("RGB")
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def preprocessing(change: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return a change of `preprocess` for both kinds of image readers; `change(original, pictures)` returns pixels."""

    def changed(self, original, pictures):
        extras: list[Any] = []

        def pixels_of(pictures):
            result = original(pictures)
            if isinstance(result, tuple):
                extras.append(result[1])
                return result[0]
            return result

        pixels = change(pixels_of, pictures)
        return (pixels, extras[-1]) if extras else pixels

    return changed


def refuses_banners(pixels_of, pictures):
    for picture in pictures:
        if max(picture.size) > 45 * min(picture.size):
            raise ValueError(f"an image of {picture.width} x {picture.height} pixels")
    return pixels_of(pictures)


def ignores_orientation(pixels_of, pictures):
    return pixels_of([plain_pixels(picture) for picture in pictures])


def mirrors(pixels_of, pictures):
    return pixels_of(pictures).flip(-1)


def normalizes_the_batch(pixels_of, pictures):
    pixels = pixels_of(pictures)
    return 0.5 * (pixels - pixels.mean(0, keepdim=True))


def shrinks_the_image(pixels_of, pictures):
    for picture in pictures:
        picture.thumbnail((24, 24), Image.Resampling.NEAREST)
    return pixels_of(pictures)
