"""timm's models: made, described on the meta device, cut after a layer, and filled with weights.

N images, C channels, H and W pixels, h and w rows and columns of features.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from dreamkit import ConfigError, PoolingConfig, SourceError, VisionSpec, did_you_mean
from dreamkit_timm.sources import Source, source, weights_file

Built = TypeVar("Built")


@dataclass(frozen=True, kw_only=True)
class TimmConfig(PoolingConfig):
    """`layer` is a block or a stage as timm counts: 0 is the first, -1 the last.

    None is -2 where all give features of one shape, as those of a ViT do, and -1 where they shrink from stage to stage.
    `image_size` is the side in pixels of what is read; the model's own where it is None. `config` holds an
    `architecture` of timm, and the keyword arguments that `timm.create_model` takes for it.
    """

    layer: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError({"image_size": f"{self.image_size} found, but a picture has at least 1 pixel"})


@dataclass(frozen=True)
class Described:
    """What is known of a model before it is made. `layer` counts from 0; `grid` is that of its features."""

    name: str
    arguments: Mapping[str, Any]
    layer: int
    grid: tuple[int, int]
    spec: VisionSpec
    data_config: Mapping[str, Any]  # of timm's preprocessing

    def make(self, weights: Path | None = None) -> Any:
        """The whole model, but for its head."""
        return _create(self.name, self.arguments, weights)


def describe(config: TimmConfig) -> Described:
    """What the model of a section is, from its making and a forward pass on the meta device.

    Raises:
        ConfigError: an unknown model, arguments it does not take, a layer or a size it has not, or no grid of features.
    """
    settings = asdict(config) | {"pretrained": config.pretrained is not None, "config": None}
    return _describe(json.dumps([asdict(source(config)), settings], sort_keys=True))


@lru_cache(maxsize=256)
def _describe(written: str) -> Described:
    """As `describe`, of a source and a section as JSON. Finding out takes a while, and is asked for again and again."""
    told, settings = json.loads(written)
    key = "pretrained" if settings["pretrained"] else "config"
    config, found = TimmConfig(**{**settings, "pretrained": None}), Source(**told)
    model = _outline(found, key)
    height, width = _own_size(model, found)
    own = height if height == width else None
    side = config.image_size or own
    if side is None:
        said = f"none found, but the model's own size, {height} x {width}, is no square; name one"
        raise ConfigError({"image_size": said})
    grids = [] if own is None else _grids(model, own, key)
    arguments = dict(found.arguments)
    if side != own:
        if own is not None:
            _check_size(side, _reduction(model, _layer(config, grids)))
        with suppress(ConfigError):  # only models that depend on their size take it as an argument
            model = on_meta(lambda: _create(found.name, {**arguments, "img_size": side}), key)
            arguments["img_size"] = side
        try:
            grids = _grids(model, side, "image_size")
        except ConfigError as error:
            instead = "another" if own is None else f"{own}, its own,"
            said = f"{side} found, but {error.problems['image_size']}; {instead} may do"
            raise ConfigError({"image_size": said}) from error
    layer = _layer(config, grids)
    dim, *grid = grids[layer]
    tokens, width = config.pooled_shape((grid[0], grid[1]), dim)
    data_config = resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=model.pretrained_cfg)
    spec = VisionSpec(image_size=side, num_tokens=tokens, dim=width)
    return Described(found.name, arguments, layer, (grid[0], grid[1]), spec, data_config)


def features(model: Any, layer: int, pixels_NCHW: Tensor, **options: Any) -> Tensor:
    """Features of one layer, (N, C, h, w): before the last norm, tokens that stand for no place left out."""
    found = model.forward_intermediates(
        pixels_NCHW, indices=[layer], output_fmt="NCHW", intermediates_only=True, **options
    )
    return found[0]


def cut(model: Any, layer: int) -> tuple[str, ...]:
    """Takes out what comes after a layer, and names it."""
    before = {name for name, _ in model.named_parameters()}
    model.prune_intermediate_layers([layer], prune_norm=True, prune_head=True)
    after = {name for name, _ in model.named_parameters()}
    kept = {name[: index + 1] for name in after for index, letter in enumerate(name) if letter == "."}
    gone = set()
    for name in before - after:
        parts = name.split(".")
        heads = (".".join(parts[:count]) for count in range(1, len(parts)))
        gone.add(next((head for head in heads if f"{head}." not in kept), name))
    return tuple(sorted(gone))


def load(config: TimmConfig, found: Described) -> tuple[Any, tuple[str, ...]]:
    """The model with the weights of `config.pretrained`, cut after its layer; and what was taken out.

    Raises:
        SourceError: the file is damaged or another model's, or lacks what the layer needs.
    """
    assert config.pretrained is not None, "the recipe gives either a source or a config"
    file = weights_file(config.pretrained)
    model_class = type(on_meta(lambda: found.make(), "pretrained"))
    plain = model_class.load_state_dict
    missing: list[str] = []

    def telling(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, **options: Any) -> Any:
        # timm is strict with some models only, and it tells no caller what another one lacked
        told = plain(model, state, strict=False, **options)
        missing.extend(told.missing_keys)
        return told

    try:
        with mock.patch.object(model_class, "load_state_dict", telling):
            model = found.make(file)
    except Exception as error:  # what is in the file reaches timm's conversions, which fail in any way
        raise SourceError(f"{file}: timm cannot load it: {one_line(error)}") from error
    dropped = cut(model, found.layer)
    lacking = [name for name in model.state_dict() if name in missing]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise SourceError(f"{file}: the weights lack {shown}; they are incomplete, or another model's")
    return model, dropped


def on_meta(build: Callable[[], Built], key: str) -> Built:
    """What `build` makes, without memory for its weights.

    Raises:
        ConfigError: timm refuses it.
    """
    try:
        with torch.device("meta"):
            return build()
    except ConfigError:
        raise
    except Exception as error:  # a model's constructor and its forward pass fail in any way they like
        raise ConfigError({key: f"timm refuses it: {one_line(error)}"}) from error


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _create(name: str, arguments: Mapping[str, Any], weights: Path | None = None) -> Any:
    overlay = (
        None if weights is None else {"file": str(weights), "source": None, "hf_hub_id": None, "url": None}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old names of architectures, which timm replaces
        return timm.create_model(
            name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=overlay,
            **{**arguments, "num_classes": 0},
        )


def _outline(found: Source, key: str) -> Any:
    """The whole model on the meta device.

    Raises:
        ConfigError: timm refuses its arguments, or it reads no pictures.
    """
    channels = found.arguments.get("in_chans", 3)
    if channels != 3:
        raise ConfigError({_inside(key, "in_chans"): f"in_chans {channels} found, but pictures have 3"})
    try:
        return on_meta(lambda: _create(found.name, found.arguments), key)
    except ConfigError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in found.arguments:
            raise
        kind = type(on_meta(lambda: _create(found.architecture, {}), key))
        known = inspect.signature(kind).parameters
        said = f"{kind.__name__} takes no '{unknown[1]}'; {did_you_mean(unknown[1], known)}"
        raise ConfigError({_inside(key, unknown[1]): said}) from error


def _inside(key: str, argument: str) -> str:
    """The setting that an argument is from: those of a source are all there."""
    return f"config.{argument}" if key == "config" else key


def _own_size(model: Any, found: Source) -> tuple[int, int]:
    """The height and width in pixels that a model is made for."""
    size = found.arguments.get("img_size") or model.pretrained_cfg["input_size"][-2:]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _grids(model: Any, side: int, key: str) -> list[tuple[int, int, int]]:
    """The shape (C, h, w) of what each layer gives of pictures of a size.

    Raises:
        ConfigError: the model takes no such pictures, or gives something else than a grid.
    """
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError({key: f"{type(model).__name__} gives no grid of features, but one is wanted"})

    def shapes() -> list[tuple[int, ...]]:
        with torch.no_grad():
            pixels = torch.zeros(1, 3, side, side)
            found = model.eval().forward_intermediates(pixels, output_fmt="NCHW", intermediates_only=True)
            return [tuple(each.shape[1:]) for each in found]

    found = on_meta(shapes, key)
    grids = [(each[0], each[1], each[2]) for each in found if len(each) == 3]
    if not grids or len(grids) < len(found):
        raise ConfigError(
            {key: f"{type(model).__name__} gives features of shape {found}, but (C, h, w) are wanted"}
        )
    return grids


def _layer(config: TimmConfig, grids: Sequence[tuple[int, int, int]]) -> int:
    layers, layer = len(grids), config.layer
    if layer is None:
        layer = -2 if len(set(grids)) == 1 < layers else -1
    if not -layers <= layer < layers:
        raise ConfigError(
            {"layer": f"layer {layer}, but the model has {layers} layers; give {-layers} to {layers - 1}"}
        )
    return layer % layers


def _reduction(model: Any, layer: int) -> int:
    """How many pixels lie between neighbouring features of a layer."""
    return model.feature_info[layer]["reduction"]


def _check_size(side: int, reduction: int) -> None:
    if side % reduction == 0:
        return
    below = max(side // reduction, 1) * reduction
    fitting = f"{below}" if side < reduction else f"{below} or {below + reduction}"
    raise ConfigError(
        {"image_size": f"{side} found, but the layer's features are {reduction} pixels apart; give {fitting}"}
    )
