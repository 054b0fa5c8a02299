"""What all decoders here have in common: a network on the latents of an autoencoder."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn

from dreamkit import Condition, DecoderSpec, ImageDecoder, PartConfig, SourceError
from dreamkit_diffusers import components
from dreamkit_diffusers.components import Components, Described, Layout
from dreamkit_diffusers.constant import Constants, Place, cast, is_compiled
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.schedulers import is_count

Extras = Mapping[str, Tensor]


class LatentDecoder(ImageDecoder):
    """Network, autoencoder and schedule of a folder in diffusers' layout; its text encoders are not used.

    The autoencoder is never trained: its latents are what the network's loss is measured in.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """`image_size`: side in pixels of targets and drawings; None: the network's own.

        `config`: {unet or transformer: {...}, vae: {...}, scheduler: {...}}, the values of diffusers' config files.
        """

        image_size: int | None = None

    layout: ClassVar[Layout]
    posterior_module = "vae"
    vae: Any

    def __init__(self, config: Any, spec: DecoderSpec, parts: Components) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.add_module(self.layout.network, parts.network)
        self.vae = parts.vae.requires_grad_(False)
        self.schedule_config = parts.schedule_config
        self._constants = Constants()

    @property
    def network(self) -> Any:
        return self.get_submodule(self.layout.network)

    @classmethod
    def infer_spec(cls, config: Any) -> DecoderSpec:
        return cls._spec(config, components.described(cls.layout, config, weights=config.is_local))

    @classmethod
    def meta_modules(cls, config: Any) -> Self:
        found = components.described(cls.layout, config)
        return cls(config, cls._spec(config, found), components.random(found, "meta"))

    @classmethod
    def from_config(cls, config: Any) -> Self:
        found = components.described(cls.layout, config)
        return cls(config, cls._spec(config, found), components.random(found))

    @classmethod
    def from_pretrained(cls, config: Any) -> Self:
        if config.pretrained is None:
            raise SourceError("there are no weights to load without it; name a folder or a hub model")
        found = components.described(cls.layout, config, weights=True)
        return cls(config, cls._spec(config, found), components.pretrained(found))

    @classmethod
    def _spec(cls, config: Any, found: Described) -> DecoderSpec:
        """The spec, once all is checked that the configs of the parts must have in common.

        Raises:
            ConfigError: all that is wrong with the section.
        """
        name = cls.layout.network
        network, vae = found.values[name], found.values["vae"]
        cls.check(config, found)
        _check_latents(found, name)
        factor = cls._factor(vae)
        multiple = factor * cls._patch(network)
        image_size = _image_size(config, found, name, factor, multiple)
        found.raise_any()
        return DecoderSpec(
            image_size=image_size,
            latent_channels=vae["latent_channels"],
            latent_factor=factor,
            size_multiple=multiple,
            schedulers=tuple(cls.layout.schedulers.table),
            objective=cls.layout.schedulers.objective,
            **cls.condition_spec(network, vae),
        )

    @classmethod
    @abstractmethod
    def check(cls, config: Any, found: Described) -> None:
        """Tells `found` what is wrong with the configs besides what is wrong with each by itself."""

    @classmethod
    @abstractmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        """What the spec says of the condition, and of precision."""

    @staticmethod
    def _factor(vae: Mapping[str, Any]) -> int:
        """The side in pixels of one latent."""
        blocks = vae.get("block_out_channels", vae.get("encoder_block_out_channels"))
        return 2 ** (len(blocks) - 1) if isinstance(blocks, list | tuple) and blocks else 1

    @staticmethod
    def _patch(network: Mapping[str, Any]) -> int:
        """The side in latents of one token of the network."""
        patch = network.get("patch_size", 1)
        return patch if is_count(patch) else 1

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """The network's: no gradient reaches the autoencoder."""
        return self.network.parameters()

    def enable_gradient_checkpointing(self) -> None:
        self.network.enable_gradient_checkpointing()

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.stack([square_pixels(picture, self.spec.image_size) for picture in pictures]), {}

    @torch.no_grad()
    def posterior(self, targets_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        with self._vae_precision():
            encoded = self.vae.encode(targets_NCHW.to(self.vae.dtype))
        scale = self.vae.config.scaling_factor
        if "latent_dist" not in encoded:
            return (encoded.latent - self._shift) * scale, None
        return (encoded.latent_dist.mean - self._shift) * scale, encoded.latent_dist.std * scale

    def decode(self, latents: Tensor) -> Tensor:
        with self._vae_precision():
            latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self._shift
            images = self.vae.decode(latents).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def _vae_precision(self) -> AbstractContextManager[Any]:
        """No autocast around an autoencoder that is kept in float32, so that it also computes in it."""
        kind = self.vae.device.type
        if "vae" not in self.spec.float32_modules or not torch.amp.is_autocast_available(kind):
            return nullcontext()
        return torch.autocast(kind, enabled=False)

    def denoise(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        width, dtype = self.spec.pooled_dim, self.network.dtype
        if width is not None and condition.pooled is None:
            raise ValueError(
                f"the condition has no pooled vector, but this decoder wants one of width {width}; give pooled (N, "
                f"{width})"
            )
        noisy = noisy.to(dtype)
        constant = None if torch.compiler.is_compiling() else self._constants.find(condition)
        if constant is None or torch.is_grad_enabled():  # gradients belong to one step
            return self.predict(noisy, timesteps_N, cast(condition, dtype), extras)
        with constant.kept(dtype, self.network.training) as kept:
            return self.predict(noisy, timesteps_N, kept, extras)

    def cache_condition(self, condition: Condition) -> AbstractContextManager[None]:
        """Within it, and without gradients, the `constant_layers` are called once with what comes of `condition`."""
        # a compiled network would be compiled anew for what stands in for its layers
        return self._constants.holding(condition, [] if is_compiled(self.network) else self.constant_layers())

    def constant_layers(self) -> Iterable[Place]:
        """The layers that see the condition alone: each the module it is in, and its name there."""
        return ()

    def library_forward(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras
    ) -> Tensor:
        return self.predict(noisy, timesteps_N, condition, extras)

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        """What the network says, called as diffusers' pipeline calls it."""

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh diffusers scheduler; None: of the class that the decoder's own config names."""
        schedulers = self.layout.schedulers
        if name is None:
            return schedulers.own(self.schedule_config)
        return schedulers.named(name, self.schedule_config)


def _image_size(config: Any, found: Described, name: str, factor: int, multiple: int) -> int:
    sample_size = found.values[name]["sample_size"]
    wanted = f"a positive multiple of {multiple} pixels is wanted"
    if multiple != factor:
        wanted += f" (the autoencoder's {factor}, times a patch size of {multiple // factor})"
    if config.image_size is not None:
        if config.image_size < 1 or config.image_size % multiple:
            found.problems["image_size"] = f"{config.image_size} found, but {wanted}"
        return int(config.image_size)
    if not is_count(sample_size):
        message = f"{sample_size!r} found, which is no number; set image_size"
        found.problem(f"{name}.sample_size", message)
        return 0
    if sample_size * factor % multiple:
        message = (
            f"{sample_size} found, which makes {sample_size * factor} pixels, but {wanted}; set image_size"
        )
        found.problem(f"{name}.sample_size", message)
    return int(sample_size * factor)


def _check_latents(found: Described, name: str) -> None:
    """The latents of the autoencoder must be what the network takes and gives."""
    network, vae = found.values[name], found.values["vae"]
    told = "UNet" if name == "unet" else name
    # told of the one that was set
    is_vaes = "latent_channels" in found.given["vae"] and "in_channels" not in found.given[name]
    for end in ("in_channels", "out_channels"):
        # diffusers' transformers give as many channels as they take unless told otherwise
        channels = network["in_channels"] if network[end] is None else network[end]
        if channels != vae["latent_channels"]:
            found.problem(
                "vae.latent_channels" if is_vaes else f"{name}.{end}",
                f"the {told}'s {end} is {network[end]}, but the autoencoder's latents have "
                f"{vae['latent_channels']} channels; use a {told} made for these latents",
            )
    scale, shift = vae["scaling_factor"], vae.get("shift_factor")
    if not _is_finite(scale) or scale <= 0:
        found.problem("vae.scaling_factor", f"{scale!r} found, but a positive number is wanted")
    if shift is not None and not _is_finite(shift):
        found.problem("vae.shift_factor", f"{shift!r} found, but a number or null is wanted")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
