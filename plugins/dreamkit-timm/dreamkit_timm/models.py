"""The description of a timm model, computed from its section on the meta device, and the model with its weights.

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
from PIL import Image
from timm.data import create_transform, resolve_data_config

from dreamkit import (
    ConfigError,
    PoolingConfig,
    SourceError,
    VisionSpec,
    count,
    describe_error,
    did_you_mean,
    excerpt,
    locate,
)
from dreamkit_timm.adapters import adapter_layers
from dreamkit_timm.creating import create_model, on_meta, prune
from dreamkit_timm.loading import load_model, weights_error
from dreamkit_timm.sources import WEIGHTS, Source, find_source

MAX_SIDE: Final = 4096  # in pixels
MAX_LAYERS: Final = 1000  # making them takes time, even without weights

Shape = tuple[int, int, int]  # of a layer's features: C, h, w


@dataclass(frozen=True, kw_only=True)
class TimmConfig(PoolingConfig):
    """Settings of a timm model.

    `layer`: a block or a stage as timm counts: 0 is the first, -1 the last. None is -2 if all layers have features of
    one shape, as in a ViT, and -1 if the features shrink from stage to stage.
    `image_size`: side of the input in pixels; None: the model's own.
    `config`: an `architecture` of timm, and keyword arguments of `timm.create_model`.
    """

    layer: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError({"image_size": f"expected at least 1, got {self.image_size}"})


@dataclass(frozen=True)
class Description:
    """A model's name and arguments in timm, and the properties that a part needs before the model exists.

    `layer` counts from 0. `grid` has the rows and columns of its features. `data_config` is of timm's preprocessing.
    """

    name: str
    arguments: Mapping[str, Any]
    layer: int
    grid: tuple[int, int]
    spec: VisionSpec
    data_config: Mapping[str, Any]
    adapter_layers: tuple[str, ...]


def describe(config: TimmConfig) -> Description:
    """Return the description of a section's model, from a forward pass on the meta device.

    Raises:
        ConfigError: the model, an argument, the layer or the size is not supported, or the features have no grid.
    """
    settings = asdict(config) | {"pretrained": config.pretrained is not None, "config": None}
    source = find_source(config)
    try:
        return _describe(json.dumps([asdict(source), settings], sort_keys=True))
    except ConfigError as error:
        if config.pretrained is None or "pretrained" not in error.problems:
            raise
        # the description is of a file's content; the message has the source that holds it
        raise SourceError(f"'{config.pretrained}': {error.problems['pretrained']}") from error


@lru_cache(maxsize=256)
def _describe(text: str) -> Description:
    """Describe a source and its settings, both JSON. It is cached: it takes a while and is often repeated."""
    source_values, settings = json.loads(text)
    key = "pretrained" if settings["pretrained"] else "config"
    config, source = TimmConfig(**{**settings, "pretrained": None}), Source(**source_values)
    model = _meta_model(source, key)
    height, width = _default_size(model, source)
    default = height if height == width else None
    side = config.image_size or default
    if side is None:
        message = f"missing 'image_size': the model's own size, {height} x {width}, is not a square"
        raise ConfigError({"image_size": message})
    if side > MAX_SIDE:
        raise ConfigError({"image_size": f"expected at most {MAX_SIDE}, got {side}"})
    arguments, shapes = dict(source.arguments), [] if default is None else _layer_shapes(model, default, key)
    if side != default:
        stride = None if default is None else _stride(model, _layer_index(config, shapes), default)
        model, arguments, shapes = _resize(source, model, side, default, stride)
    layer = _layer_index(config, shapes)
    dim, rows, columns = shapes[layer]
    tokens, width = config.pooled_shape((rows, columns), dim)
    data_config = resolve_data_config({"input_size": (3, side, side)}, pretrained_cfg=model.pretrained_cfg)
    _check_preprocessing(data_config, key)
    spec = VisionSpec(image_size=side, num_tokens=tokens, dim=width, resized_side=_resized_side(data_config))
    prune(model, layer)
    adapted = _adapter_layers(model, layer, side, (rows, columns))
    return Description(source.name, arguments, layer, (rows, columns), spec, data_config, adapted)


def load(config: TimmConfig, description: Description) -> tuple[Any, tuple[str, ...]]:
    """Load the model with the weights of `config.pretrained`, pruned after its layer; also return the pruned names.

    Raises:
        SourceError: the file is damaged or another model's, or lacks weights of the remaining layers.
    """
    assert config.pretrained is not None, "a config has no weights"
    file = locate(config.pretrained, ["config.json", WEIGHTS]) / WEIGHTS
    model, missing = load_model(description.name, description.arguments, file)
    pruned = prune(model, description.layer)
    required = [name for name in model.state_dict() if name in missing]
    if required:
        names = ", ".join(required[:3]) + (f" and {len(required) - 3} more" if len(required) > 3 else "")
        raise SourceError(f"{file}: the weights lack {names}; they are incomplete, or another model's")
    return model, pruned


def _meta_model(source: Source, key: str) -> Any:
    """Create the whole model on the meta device.

    Raises:
        ConfigError: timm does not take the arguments, or the model does not read RGB images.
    """
    channels = source.arguments.get("in_chans", 3)
    if channels != 3:
        message = f"expected in_chans 3, the channels of an image, got {channels}"
        raise ConfigError({_setting(key, "in_chans"): message})
    for argument, value in source.arguments.items():
        layers = sum(_integers(value)) if re.search("depth|layers|blocks", argument) else 0
        if layers > MAX_LAYERS:
            message = f"expected at most {MAX_LAYERS} layers in {argument}, got {layers}"
            raise ConfigError({_setting(key, argument): message})
    try:
        return on_meta(lambda: create_model(source.name, source.arguments), key)
    except ConfigError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in source.arguments:
            raise
        model_class = type(on_meta(lambda: create_model(source.architecture, {}), key))
        near = did_you_mean(unknown[1], inspect.signature(model_class).parameters)
        message = f"unknown argument '{unknown[1]}' of {model_class.__name__}; {near}"
        raise ConfigError({_setting(key, unknown[1]): message}) from error


def _integers(value: Any) -> Iterator[int]:
    """Yield the integers in an argument, such as the depths of stages."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int):
        yield value


def _setting(key: str, argument: str) -> str:
    """Return the setting that holds an argument: a source holds all of its own."""
    return f"config.{argument}" if key == "config" else key


def _default_size(model: Any, source: Source) -> tuple[int, int]:
    """Return the height and width in pixels of a model's own input."""
    size = source.arguments.get("img_size") or model.pretrained_cfg["input_size"][-2:]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _layer_shapes(model: Any, side: int, key: str, detail: str = "") -> list[Shape]:
    """Return the shape (C, h, w) of each layer's features for images of `side` pixels.

    Raises:
        ConfigError: the model does not take such images, or its features have no grid.
    """
    name = type(model).__name__
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError({key: f"expected a model with a grid of features, got {name}; name another one"})

    def forward() -> list[tuple[int, ...]]:
        with torch.no_grad():
            pixels = torch.zeros(1, 3, side, side)
            layers = model.eval().forward_intermediates(pixels, output_fmt="NCHW", intermediates_only=True)
            return [tuple(features.shape[1:]) for features in layers]

    shapes = on_meta(forward, key, detail)
    grids = [(shape[0], shape[1], shape[2]) for shape in shapes if len(shape) == 3]
    if not grids or len(grids) < len(shapes):
        raise ConfigError({key: f"expected features of shape (C, h, w), got {shapes} from {name}"})
    return grids


def _resize(
    source: Source, model: Any, side: int, default: int | None, stride: int | None
) -> tuple[Any, dict[str, Any], list[Shape]]:
    """Return a model for images of `side` pixels, its arguments, and its layers' shapes.

    Raises:
        ConfigError: the model does not take the size, or `model`'s weights do not fit it; the message names sizes
            that work.
    """
    try:
        return _at_size(source, model, side, stride)
    except ConfigError as error:
        sizes = []
        if default is not None:
            near = () if stride is None else (side // stride * stride, (side // stride + 1) * stride)
            for size in near:
                with suppress(ConfigError):
                    if size != default:
                        _at_size(source, model, size, stride)
                    sizes.append(str(size))
            sizes = sizes or [f"{default}, the model's own"]
        remedy = f"set {' or '.join(sizes)}" if sizes else "try another size"
        raise ConfigError({"image_size": f"{error.problems['image_size']}; {remedy}"}) from error


def _at_size(
    source: Source, model: Any, side: int, stride: int | None
) -> tuple[Any, dict[str, Any], list[Shape]]:
    """Return the same as `_resize`, or raise its error without a remedy."""
    if stride is not None and (side % stride or not side):
        message = f"expected a multiple of {count(stride, 'pixel')}, the distance of the layer's features, got {side}"
        raise ConfigError({"image_size": message})
    arguments, detail = {**source.arguments, "img_size": side}, f" at {count(side, 'pixel')}"
    resized = None
    with suppress(ConfigError):  # only models that depend on their size take this argument
        resized = on_meta(lambda: create_model(source.name, arguments), "image_size")
    if resized is None:
        return model, dict(source.arguments), _layer_shapes(model, side, "image_size", detail)
    shapes = _layer_shapes(resized, side, "image_size", detail)
    if source.has_weights and (error := weights_error(source.name, arguments, model)):
        raise ConfigError(
            {"image_size": f"timm cannot resize the weights to {count(side, 'pixel')}: {error}"}
        )
    return resized, arguments, shapes


def _check_preprocessing(data_config: Mapping[str, Any], key: str) -> None:
    """Process a black and a white image.

    Raises:
        ConfigError: timm cannot; the message names the value without which it can.
    """
    error = _preprocessing_error(data_config)
    if error is None:
        return
    names = (name for name in data_config if name != "input_size")
    wrong = next((name for name in names if not _preprocessing_error({**data_config, name: None})), None)
    value = f" {wrong} {excerpt(repr(data_config[wrong]))}" if wrong is not None else ""
    raise ConfigError({key: f"timm cannot process images with its pretrained_cfg{value}: {error}"})


def _preprocessing_error(data_config: Mapping[str, Any]) -> str | None:
    """Return why timm cannot process images with these settings, of which None is the default; else None."""
    settings = {name: value for name, value in data_config.items() if value is not None}
    try:
        with torch.device("cpu"):
            transform: Any = create_transform(**settings, is_training=False)
            # the extreme values of pixels
            images = [transform(Image.new("RGB", (3, 5), color)) for color in ("black", "white")]
    except Exception as error:  # of any type, about a value of any type
        return describe_error(error)
    is_finite = all(pixels.isfinite().all() for pixels in images)
    return None if is_finite else "expected finite pixels, got inf or NaN"


def _resized_side(data_config: Mapping[str, Any]) -> int | None:
    """Return the side that timm resizes the shorter side of an image to, before it crops; None if that varies."""
    with torch.device("cpu"):
        transform: Any = create_transform(**data_config, is_training=False)
    size = getattr(
        transform.transforms[0], "size", None
    )  # a trimmed border or patches: another transform is first
    return max(size) if isinstance(size, list | tuple) else size


def _adapter_layers(model: Any, layer: int, side: int, grid: tuple[int, int]) -> tuple[str, ...]:
    """Return `adapter_layers`, from a larger image if the grid has one place: gates look like other layers there."""
    if grid == (1, 1):
        with suppress(Exception):  # a forward pass at a size that the model may not take
            return adapter_layers(model, layer, 2 * side)
    return adapter_layers(model, layer, side)


def _layer_index(config: TimmConfig, shapes: Sequence[Shape]) -> int:
    layers, layer = len(shapes), config.layer
    if layer is None:
        layer = -2 if len(set(shapes)) == 1 < layers else -1
    if not -layers <= layer < layers:
        raise ConfigError({"layer": f"expected a layer from {-layers} to {layers - 1}, got {layer}"})
    return layer % layers


def _stride(model: Any, layer: int, default: int) -> int | None:
    """Return the pixels between neighbouring features of a layer, or None if they are not evenly spaced."""
    reduction = model.feature_info[layer]["reduction"]
    return reduction if default % reduction == 0 else None
