"""What is known of a timm model from its section, found out on the meta device; and such a model with its weights.

C channels, h and w rows and columns of features.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from timm.data import resolve_data_config

from dreamkit import ConfigError, PoolingConfig, SourceError, VisionSpec, did_you_mean
from dreamkit_timm.adapters import adaptable
from dreamkit_timm.loading import fill, misfit
from dreamkit_timm.making import cut, make, on_meta
from dreamkit_timm.sources import Source, source, weights_file

MAX_SIDE: Final = 4096  # in pixels
MAX_LAYERS: Final = 1000  # making them takes time, even without weights


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
    """What is known of a model before it is made. `layer` counts from 0; `grid` is that of its features.

    `adapted` are the layers that an adapter goes into.
    """

    name: str
    arguments: Mapping[str, Any]
    layer: int
    grid: tuple[int, int]
    spec: VisionSpec
    data_config: Mapping[str, Any]  # of timm's preprocessing
    adapted: tuple[str, ...]

    def make(self) -> Any:
        """The whole model, but for its head."""
        return make(self.name, self.arguments)


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
    if side > MAX_SIDE:
        raise ConfigError({"image_size": f"{side} found, but at most {MAX_SIDE} is wanted"})
    arguments, grids = dict(found.arguments), [] if own is None else _grids(model, own, key)
    if side != own:
        apart = None if own is None else _apart(model, _layer(config, grids), own)
        model, arguments, grids = _resized(found, model, side, own, apart)
    layer = _layer(config, grids)
    dim, *grid = grids[layer]
    tokens, width = config.pooled_shape((grid[0], grid[1]), dim)
    data_config = resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=model.pretrained_cfg)
    spec = VisionSpec(image_size=side, num_tokens=tokens, dim=width)
    cut(model, layer)
    adapted = _adaptable(model, layer, side, (grid[0], grid[1]))
    return Described(found.name, arguments, layer, (grid[0], grid[1]), spec, data_config, adapted)


def load(config: TimmConfig, found: Described) -> tuple[Any, tuple[str, ...]]:
    """The model with the weights of `config.pretrained`, cut after its layer; and what was taken out.

    Raises:
        SourceError: the file is damaged or another model's, or lacks what the layer needs.
    """
    assert config.pretrained is not None, "the recipe gives either a source or a config"
    file = weights_file(config.pretrained)
    model, missing = fill(found.name, found.arguments, file)
    dropped = cut(model, found.layer)
    lacking = [name for name in model.state_dict() if name in missing]
    if lacking:
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise SourceError(f"{file}: the weights lack {shown}; they are incomplete, or another model's")
    return model, dropped


def _outline(found: Source, key: str) -> Any:
    """The whole model on the meta device.

    Raises:
        ConfigError: timm refuses its arguments, or it reads no pictures.
    """
    channels = found.arguments.get("in_chans", 3)
    if channels != 3:
        raise ConfigError({_inside(key, "in_chans"): f"in_chans {channels} found, but pictures have 3"})
    for argument, value in found.arguments.items():
        layers = sum(_counts(value)) if re.search("depth|layers|blocks", argument) else 0
        if layers > MAX_LAYERS:
            said = f"{argument} {layers} found, but at most {MAX_LAYERS} layers are wanted"
            raise ConfigError({_inside(key, argument): said})
    try:
        return on_meta(lambda: make(found.name, found.arguments), key)
    except ConfigError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in found.arguments:
            raise
        kind = type(on_meta(lambda: make(found.architecture, {}), key))
        known = inspect.signature(kind).parameters
        said = f"{kind.__name__} takes no '{unknown[1]}'; {did_you_mean(unknown[1], known)}"
        raise ConfigError({_inside(key, unknown[1]): said}) from error


def _counts(value: Any) -> Iterator[int]:
    """The numbers in an argument, such as the depths of stages."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _counts(each)
    elif isinstance(value, int):
        yield value


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


def _resized(
    found: Source, model: Any, side: int, own: int | None, apart: int | None
) -> tuple[Any, dict[str, Any], list[tuple[int, int, int]]]:
    """A model that reads another size, its arguments, and what its layers give.

    Raises:
        ConfigError: there is none, or the weights of `model` do not fit it.
    """
    try:
        return _at(found, model, side, apart)
    except ConfigError as error:
        tried = () if apart is None else (side // apart * apart, (side // apart + 1) * apart)
        fitting = [str(each) for each in tried if own is not None and _takes(found, model, each, own, apart)]
        if not fitting and own is not None:
            fitting = [f"{own}, its own"]
        instead = f"give {' or '.join(fitting)}" if fitting else "another may do"
        raise ConfigError(
            {"image_size": f"{side} found, but {error.problems['image_size']}; {instead}"}
        ) from error


def _takes(found: Source, model: Any, side: int, own: int, apart: int | None) -> bool:
    if side == own:
        return True
    try:
        _at(found, model, side, apart)
    except ConfigError:
        return False
    return True


def _at(
    found: Source, model: Any, side: int, apart: int | None
) -> tuple[Any, dict[str, Any], list[tuple[int, int, int]]]:
    """As `_resized`, but that the error only says what is wrong."""
    if apart is not None and (side % apart or not side):
        raise ConfigError({"image_size": f"the layer's features are {apart} pixels apart"})
    arguments = {**found.arguments, "img_size": side}
    sized = None
    with suppress(ConfigError):  # only models that depend on their size take it as an argument
        sized = on_meta(lambda: make(found.name, arguments), "image_size")
    if sized is None:
        return model, dict(found.arguments), _grids(model, side, "image_size")
    grids = _grids(sized, side, "image_size")
    if found.has_weights and (said := misfit(found.name, arguments, model)):
        raise ConfigError({"image_size": f"timm does not resize the weights to it: {said}"})
    return sized, arguments, grids


def _adaptable(model: Any, layer: int, side: int, grid: tuple[int, int]) -> tuple[str, ...]:
    """As `adaptable`, with more than one place, by which gates are told from other layers, if the model can."""
    if grid == (1, 1):
        with suppress(Exception):  # a forward pass at a size the model is not made for
            return adaptable(model, layer, 2 * side)
    return adaptable(model, layer, side)


def _layer(config: TimmConfig, grids: Sequence[tuple[int, int, int]]) -> int:
    layers, layer = len(grids), config.layer
    if layer is None:
        layer = -2 if len(set(grids)) == 1 < layers else -1
    if not -layers <= layer < layers:
        raise ConfigError(
            {"layer": f"layer {layer}, but the model has {layers} layers; give {-layers} to {layers - 1}"}
        )
    return layer % layers


def _apart(model: Any, layer: int, own: int) -> int | None:
    """How many pixels lie between neighbouring features of a layer; None where they do not lie evenly."""
    reduction = model.feature_info[layer]["reduction"]
    return reduction if own % reduction == 0 else None
