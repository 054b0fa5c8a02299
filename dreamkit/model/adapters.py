"""LoRA adapters (arXiv 2106.09685) by peft: add one to a part, write it for peft and diffusers, merge it.

`adapter_root` of a part names the library's model inside it. Adapters go into this model; their files use its names.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor, nn

from dreamkit.errors import DreamkitError, describe_error
from dreamkit.parts.part import Part
from dreamkit.recipe.sections import AdapterSection
from dreamkit.storage.weight_files import ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import LoraConfig

Value = TypeVar("Value")

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"  # the file that peft loads
_NAME: Final = "default"  # peft's name of an unnamed adapter
_PEFT_PREFIX: Final = "base_model.model."  # prefix of names in peft's files
# Models that diffusers' pipelines load adapters into, the file of these adapters and the key of its metadata.
_PIPELINE_MODELS: Final = ("unet", "transformer")
_PIPELINE_WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_PIPELINE_METADATA: Final = "lora_adapter_metadata"


def is_adapter(parameter_name: str) -> bool:
    """Return True if the parameter belongs to a peft adapter: peft names all of these `lora_...`."""
    return any(name.startswith("lora_") for name in parameter_name.split("."))


def stored_name(name: str) -> str:
    """Return the name of an adapted module's tensor in checkpoint files.

    A layer's tensors have their names without an adapter. An adapter's tensors have the names that peft saves.
    """
    path = [level for level in name.split(".") if level != "base_layer"]
    for index, level in enumerate(path, start=1):
        if level.startswith("lora_"):
            is_magnitude = level == "lora_magnitude_vector"
            path[index:] = [] if is_magnitude else [inner for inner in path[index:] if inner != _NAME]
            break
    return ".".join(path)


def adapter_root(part: Part) -> nn.Module:
    """Return the module of a part that its adapters go into."""
    return part.get_submodule(part.adapter_root)


def adapt(part: Part, adapter: AdapterSection, as_stored: bool = False) -> None:
    """Add a LoRA adapter to the layers of a part, in place; only the adapter stays trainable.

    An adapter has the type of the weights. With `as_stored`, it is that of the weights in float32, whatever their type.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import; few recipes use adapters

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft accepts any number
        lora_dropout=adapter.dropout,
        target_modules=list(part.adapter_targets if adapter.modules is None else adapter.modules),
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        task_type="CAUSAL_LM" if adapter.target == "language_model" else None,
    )
    part.requires_grad_(False)
    with warnings.catch_warnings():
        # The weights of transformers' Conv1D are transposed. peft sets `fan_in_fan_out` itself, with a warning.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        with _placeholders(part) if as_stored else nullcontext():
            inject_adapter_in_model(config, adapter_root(part), _NAME)
    if as_stored:
        initialise_magnitudes(part)


@contextmanager
def _placeholders(part: Part) -> Iterator[None]:
    """Replace the weights of a part by zeros of float32, which take no memory."""
    weights = [(weight, weight.data) for weight in part.parameters() if weight.is_floating_point()]
    for weight, data in weights:
        weight.data = torch.zeros((), device=data.device).expand(data.shape)
    try:
        yield
    finally:
        for weight, data in weights:
            weight.data = data


def initialise_magnitudes(part: Part) -> None:
    """Initialise the magnitudes of DoRA (arXiv 2402.09353), if any, from the weights in float32, layer by layer."""
    from peft.tuners.lora import LoraLayer

    for layer in part.modules():
        if isinstance(layer, LoraLayer) and _NAME in layer.lora_variant:
            weight = layer.get_base_layer().weight
            data, weight.data = weight.data, weight.data.float()
            layer.lora_variant[_NAME].init(layer, adapter_name=_NAME)
            weight.data = data


def adapter_tensors(
    part: Part, tensors: Mapping[str, Tensor], base: str | None
) -> dict[str, tuple[dict[str, Tensor], dict[str, str] | None]]:
    """Return the tensors and the metadata of each file of a part's adapter, by its name beside peft's config.

    peft loads the first one on the library's model. If diffusers has pipelines for this model, these load another one.
    `tensors` are named by `stored_name` in the part; `base` is the source of the part's weights.
    """
    prefix, in_root = part.adapter_root, _in_root(part, tensors)
    files: dict[str, tuple[dict[str, Tensor], dict[str, str] | None]] = {
        ADAPTER_WEIGHTS: ({_PEFT_PREFIX + name: tensor for name, tensor in in_root.items()}, None)
    }
    if prefix in _PIPELINE_MODELS:
        config = {f"{prefix}.{key}": value for key, value in _config(part, in_root, base).items()}
        files[_PIPELINE_WEIGHTS] = (
            {f"{prefix}.{name}": tensor for name, tensor in in_root.items()},
            {"format": "pt", _PIPELINE_METADATA: _json(config)},
        )
    return files


def write_adapter_config(part: Part, names: Iterable[str], folder: Path, base: str | None) -> None:
    """Write peft's config of a part's adapter, whose tensors have these names, into a new folder."""
    folder.mkdir(parents=True)
    config = _json(_config(part, _in_root(part, dict.fromkeys(names)), base))
    (folder / ADAPTER_CONFIG).write_text(config + "\n", encoding="utf-8")


def _in_root(part: Part, tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return the tensors of a part's adapter by their names in the library's model."""
    prefix = f"{part.adapter_root}." if part.adapter_root else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _config(part: Part, names: Iterable[str], base: str | None) -> dict[str, Any]:
    lora_config: LoraConfig = adapter_root(part).peft_config[_NAME]  # type: ignore[index,assignment]
    return {
        **lora_config.to_dict(),
        # full names: the library's model may have layers that the part has dropped
        "target_modules": sorted({name.partition(".lora_")[0] for name in names}),
        "inference_mode": True,
        "base_model_name_or_path": base,
    }


def names_in_part(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of peft's file of an adapter by their stored names in `part`."""
    root = f"{part.adapter_root}." if part.adapter_root else ""
    return {root + name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()}


def merge(part: Part) -> set[str]:
    """Merge the adapter of a part into its layers, in place; return the names of the changed parameters.

    Raises:
        DreamkitError: merged weights would not be finite, or another layer shares the weights.
    """
    from peft.tuners.lora import LoraLayer

    owners: dict[int, list[str]] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(stored_name(name))
    layers = {name: layer for name, layer in part.named_modules() if isinstance(layer, LoraLayer)}
    merged: set[str] = set()
    for name, layer in layers.items():
        base: Any = layer.get_base_layer()
        shared = sorted({*owners[id(base.weight)]} - {f"{name}.weight"})
        if shared:
            raise DreamkitError(
                f"cannot merge the adapter of {name}: its weights are also {', '.join(shared)}, "
                "which would change too; train an adapter of other layers"
            )
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise DreamkitError(f"cannot merge the adapter of {name}: {describe_error(error)}") from error
        part.set_submodule(name, base)
        merged |= {f"{name}.{inner}" for inner, _ in base.named_parameters()}
    del adapter_root(part).peft_config
    return merged


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, default=sorted)  # `default`: a peft config holds sets
