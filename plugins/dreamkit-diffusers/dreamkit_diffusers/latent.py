"""The base of all image decoders of this plug-in: a network on the latents of an autoencoder."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
from PIL import Image as PIL
from PIL.Image import Image as Picture
from torch import Tensor, nn

from dreamkit import Condition, DecoderSpec, ImageDecoder, PartConfig, SourceError, count, library_errors
from dreamkit_diffusers.cached_condition import CachedCondition, Child, cast_condition, is_compiled
from dreamkit_diffusers.configs import Configs, Layout, read_configs
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.values import count_error, is_count, number_error, numbers_error

Extras = Mapping[str, Tensor]
_RUNNING: Final[set[tuple[type, str]]] = set()  # decoders and configs whose models run
MAX_SIDE: Final = 8192  # in pixels; published decoders draw up to 4096


class LatentDecoder(ImageDecoder):
    """Network, autoencoder and schedule of a folder in diffusers' layout, without its text encoders.

    The autoencoder is never trained: the network's loss is measured in its latents.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """Settings of a decoder.

        `image_size`: side in pixels of targets and drawn images; None: the network's own.
        `config`: {unet or transformer: {...}, vae: {...}, scheduler: {...}}, the values of diffusers' config files.
        """

        image_size: int | None = None

    layout: ClassVar[Layout]
    posterior_module = "vae"
    shard_units = ("Encoder", "Decoder")  # of the autoencoder
    # small layers whose error reaches every block: the embeddings of time, sizes and the pooled vector
    unquantized = ("time_embedding", "add_embedding", "time_text_embed", "time_embed")
    vae: Any

    def __init__(self, config: Any, spec: DecoderSpec, configs: Configs, models: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        for name, model in models.items():
            self.add_module(name, model)
        self.vae.requires_grad_(False)
        self.schedule_config = configs.raw["scheduler"]
        self._cached_conditions: list[CachedCondition] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached_conditions": []}  # copies and pickles are without caches

    @property
    def network(self) -> Any:
        return self.get_submodule(self.layout.network)

    @classmethod
    def infer_spec(cls, config: Any) -> DecoderSpec:
        return cls._spec(config, read_configs(cls.layout, config, weights=config.is_local))

    @classmethod
    def meta_modules(cls, config: Any) -> Self:
        configs = read_configs(cls.layout, config)
        spec = cls._spec(config, configs)
        with torch.device("meta"):
            models = configs.build_models()
        return cls(config, spec, configs, models)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        configs = read_configs(cls.layout, config)
        return cls(config, cls._spec(config, configs), configs, configs.build_models())

    @classmethod
    def from_pretrained(cls, config: Any) -> Self:
        part = cls._load(config)
        assert part is not None, "weights of any type can be read in float32"
        return part

    @classmethod
    def from_stored(cls, config: Any) -> Self | None:
        return cls._load(config, as_stored=True)

    @classmethod
    def _load(cls, config: Any, *, as_stored: bool = False) -> Self | None:
        if config.pretrained is None:
            raise SourceError("missing 'pretrained': name a folder or a hub model with weights")
        configs = read_configs(cls.layout, config, weights=True)
        spec = cls._spec(config, configs)
        key = cls, json.dumps([configs.raw, spec.image_size], sort_keys=True)
        if key not in _RUNNING:  # on small models, this takes longer than loading
            with library_errors(f"'{config.pretrained}': its models do not run"):
                cls.meta_modules(config).run_once()
            _RUNNING.add(key)
        models = configs.load_models(as_stored=as_stored)
        return None if models is None else cls(config, spec, configs, models)

    def run_once(self) -> None:
        """Encode, predict and decode one image on the meta device.

        Raises:
            Exception: values of the configs, which diffusers does not check, do not fit each other.
        """
        side = self.spec.image_size
        extras = self.preprocess([PIL.new("RGB", (side, side))])[1]
        with torch.device("meta"), torch.no_grad():
            latents = self.posterior(torch.zeros(1, 3, side, side))[0]
            context = torch.zeros(1, self.spec.context_tokens or 2, self.spec.context_dim)
            pooled = None if self.spec.pooled_dim is None else torch.zeros(1, self.spec.pooled_dim)
            timesteps = torch.zeros(1, dtype=torch.long)
            on_meta = {name: extra.to("meta") for name, extra in extras.items()}
            predicted = self.denoise(latents, timesteps, Condition(context, None, pooled), on_meta)
            image = self.decode(latents)
        if predicted.shape != latents.shape or image.shape != (1, 3, side, side):
            shapes = f"a prediction {tuple(predicted.shape)} and an image {tuple(image.shape)}"
            raise ValueError(f"latents {tuple(latents.shape)} give {shapes}, expected {(1, 3, side, side)}")

    @classmethod
    def _spec(cls, config: Any, configs: Configs) -> DecoderSpec:
        """Return the spec after checking that the configs fit each other.

        Raises:
            ConfigError: all problems of the section.
        """
        network, vae = configs.values[cls.layout.network], configs.values["vae"]
        cls.check(config, configs)
        _check_latents(configs)
        factor = cls._factor(vae)
        multiple = factor * cls._patch(network)
        image_size = _image_size(config.image_size, cls.sample_size(configs), configs, factor, multiple)
        configs.raise_problems()
        fields = {"resized_side": image_size} | cls.condition_spec(network, vae)
        return DecoderSpec(
            image_size=image_size,
            latent_channels=vae["latent_channels"],
            latent_factor=factor,
            size_multiple=multiple,
            schedulers=tuple(cls.layout.schedulers.table),
            objective=cls.layout.schedulers.objective,
            **fields,
        )

    @classmethod
    def check(cls, config: Any, configs: Configs) -> None:
        """Add to `configs` the problems of this decoder's settings, and of configs that do not fit each other."""

    @classmethod
    def sample_size(cls, configs: Configs) -> Any:
        """Return the network's own size in latents, as its config has it."""
        return configs.values[cls.layout.network]["sample_size"]

    @classmethod
    @abstractmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        """Return the spec's fields about the condition and precision, and others that differ from those of most."""

    @staticmethod
    def _factor(vae: Mapping[str, Any]) -> int:
        """Return the side of one latent in pixels."""
        blocks = vae.get("block_out_channels", vae.get("encoder_block_out_channels"))
        return 2 ** (len(blocks) - 1) if isinstance(blocks, list | tuple) and blocks else 1

    @staticmethod
    def _patch(network: Mapping[str, Any]) -> int:
        """Return the side of one token of the network in latents."""
        patch = network.get("patch_size", 1)
        return patch if is_count(patch) else 1

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """Return the network's parameters: no gradient reaches the autoencoder."""
        return self.network.parameters()

    def enable_gradient_checkpointing(self) -> None:
        self.network.enable_gradient_checkpointing()

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.stack([square_pixels(picture, self.spec.image_size) for picture in pictures]), {}

    @torch.no_grad()
    def posterior(self, targets_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        with self._vae_precision():
            encoded = self.vae.encode(targets_NCHW.to(self.vae.dtype))
        if "latent_dist" not in encoded:
            shift, scale = self._normalization(encoded.latent)
            return (encoded.latent - shift) * scale, None
        posterior = encoded.latent_dist
        shift, scale = self._normalization(posterior.mean)
        return (posterior.mean - shift) * scale, posterior.std * scale

    def decode(self, latents: Tensor) -> Tensor:
        with self._vae_precision():
            latents = latents.to(self.vae.dtype)
            shift, scale = self._normalization(latents)
            latents = latents / scale + shift
            images = self.vae.decode(latents).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _normalization(self, like: Tensor) -> tuple[Any, Any]:
        """Return shift and scale between the autoencoder's latents x and the network's: (x - shift) * scale.

        Both are numbers, or have a value for each channel. The formulas are those of diffusers' pipelines.
        """
        config = self.vae.config
        if config.get("latents_mean") is None:
            return config.get("shift_factor") or 0.0, config.scaling_factor
        mean, std = (
            torch.tensor(config[key], device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )
        return mean, config.scaling_factor / std

    def _vae_precision(self) -> AbstractContextManager[Any]:
        """Disable autocast around an autoencoder that must compute in float32."""
        device = self.vae.device.type
        if "vae" not in self.spec.float32_modules or not torch.amp.is_autocast_available(device):
            return nullcontext()
        return torch.autocast(device, enabled=False)

    def denoise(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        width = self.spec.pooled_dim
        # the library's `dtype` looks through all modules for hooks, in each step
        dtype = next(each.dtype for each in self.network.parameters() if each.is_floating_point())
        if width is not None and condition.pooled is None:
            raise ValueError(f"expected a condition with a pooled vector (N, {width}), got none")
        noisy = noisy.to(dtype)
        entries = () if torch.compiler.is_compiling() else tuple(self._cached_conditions)
        cached = next((entry for entry in entries if entry.condition is condition), None)
        if cached is None or torch.is_grad_enabled():  # gradients belong to one step
            return self.predict(noisy, timesteps_N, cast_condition(condition, dtype), extras)
        with cached.use(dtype, self.network.training) as cast:
            return self.predict(noisy, timesteps_N, cast, extras)

    @contextmanager
    def cache_condition(self, condition: Condition) -> Iterator[None]:
        """Call the `condition_layers` once within the context, without gradients, and reuse their outputs."""
        # stand-ins for its layers would recompile a compiled network
        layers = [] if is_compiled(self.network) else self.condition_layers()
        entry = CachedCondition(condition, layers)
        self._cached_conditions.append(entry)
        try:
            yield
        finally:
            self._cached_conditions.remove(entry)

    def condition_layers(self) -> Iterable[Child]:
        """Return the layers whose input is the condition alone."""
        return ()

    def library_forward(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras
    ) -> Tensor:
        return self.predict(noisy, timesteps_N, condition, extras)

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        """Return the network's output, called as in diffusers' pipeline."""

    def scheduler(self, name: str | None = None) -> Any:
        """Create a diffusers scheduler by name; None: of the class that the decoder's config names."""
        return self.layout.schedulers.create(name, self.schedule_config)


def _image_size(
    image_size: int | None, sample_size: Any, configs: Configs, factor: int, multiple: int
) -> int:
    network = configs.layout.network
    expected = f"expected a positive multiple of {count(multiple, 'pixel')}"
    if multiple != factor:
        expected += f" (the autoencoder's {factor} times a patch size of {multiple // factor})"
    if image_size is not None:
        if image_size < 1 or image_size % multiple:
            configs.problems["image_size"] = f"{expected}, got {image_size}"
        elif image_size > MAX_SIDE:
            configs.problems["image_size"] = f"expected at most {MAX_SIDE} pixels, got {image_size}"
        return int(image_size)
    error = count_error(sample_size, MAX_SIDE // factor)
    if error is None and sample_size * factor % multiple:
        error = f"{expected}, got {sample_size}, which is {count(sample_size * factor, 'pixel')}"
    if error is not None:
        configs.add_problem(f"{network}.sample_size", f"{error}; set image_size")
        return 0
    return int(sample_size * factor)


def _check_latents(configs: Configs) -> None:
    """Check that the autoencoder's latents fit the network, and their scale and shift."""
    name = configs.layout.network
    network, vae = configs.values[name], configs.values["vae"]
    noun = "UNet" if name == "unet" else name
    # the problem is reported at the value that was set
    vae_is_set = "latent_channels" in configs.raw["vae"] and "in_channels" not in configs.raw[name]
    error = count_error(vae["latent_channels"])
    configs.add_problem("vae.latent_channels", error)
    for end in ("in_channels", "out_channels") if error is None else ():
        # transformers of diffusers have as many outputs as inputs unless set
        channels = network["in_channels"] if network[end] is None else network[end]
        error = count_error(channels)
        if error is None and channels != vae["latent_channels"]:
            error = (
                f"expected {vae['latent_channels']} {end}, as many as the autoencoder's latents have, got {channels}; "
                f"use a {noun} made for these latents"
            )
        configs.add_problem("vae.latent_channels" if vae_is_set else f"{name}.{end}", error)
    configs.add_problem("vae.scaling_factor", number_error(vae["scaling_factor"]))
    if vae.get("shift_factor") is not None:
        configs.add_problem("vae.shift_factor", number_error(vae["shift_factor"], positive=False))
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    for key, value, other in (("latents_mean", mean, "latents_std"), ("latents_std", std, "latents_mean")):
        if value is not None:
            error = numbers_error(
                value, vae["latent_channels"], "latent channel", positive=key == "latents_std"
            )
            configs.add_problem(f"vae.{key}", error)
        elif vae.get(other) is not None:
            configs.add_problem(
                f"vae.{key}", f"expected a list with '{other}', got null; set both or neither"
            )
