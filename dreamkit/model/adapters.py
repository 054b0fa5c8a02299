"""LoRA adapters (arXiv 2106.09685) by peft: put into a part, written so that peft and diffusers open them, and merged.

`adapter_root` of a part names the library's model inside it. Adapters go into that, and are written as seen from it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import save_file
from torch import Tensor, nn

from dreamkit.errors import DreamkitError
from dreamkit.parts.part import Part
from dreamkit.recipe.sections import AdapterSection

if TYPE_CHECKING:
    from peft import LoraConfig

_NAME: Final = "default"  # what peft calls an adapter that was given no name
_PEFT_PREFIX: Final = "base_model.model."  # before the names in its files
# Models that diffusers' pipelines load adapters into, with their file and the key of its metadata.
_PIPELINE_MODELS: Final = ("unet", "transformer")
_PIPELINE_WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_PIPELINE_METADATA: Final = "lora_adapter_metadata"


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to a peft adapter: peft names every one of them `lora_...`."""
    return any(piece.startswith("lora_") for piece in parameter_name.split("."))


def spelled(name: str) -> str:
    """What files call the tensor `name` of an adapted module.

    An adapted layer is called as it would be without an adapter, and an adapter's tensors as peft saves them.
    """
    path = [piece for piece in name.split(".") if piece != "base_layer"]
    for index, piece in enumerate(path, start=1):
        if piece.startswith("lora_"):
            is_magnitude = piece == "lora_magnitude_vector"
            path[index:] = [] if is_magnitude else [inner for inner in path[index:] if inner != _NAME]
            break
    return ".".join(path)


def adapter_root(part: Part) -> nn.Module:
    """The module of a part that its adapters go into."""
    return part.get_submodule(part.adapter_root)


def adapt(part: Part, adapter: AdapterSection) -> None:
    """Puts a LoRA adapter into the layers of a part, in place; only the adapter stays trainable."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and few recipes adapt

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=adapter.dropout,
        target_modules=list(part.adapter_targets if adapter.modules is None else adapter.modules),
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        task_type="CAUSAL_LM" if adapter.target == "language_model" else None,
    )
    part.requires_grad_(False)
    with warnings.catch_warnings():
        # a Conv1D of transformers has its weights the other way round; peft sets this itself, and says so
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        inject_adapter_in_model(config, adapter_root(part), _NAME)


def write_adapter(part: Part, tensors: Mapping[str, Tensor], file: Path, base: str | None) -> None:
    """Writes a part's adapter, `tensors` by their spelled names in the part, to `file`, and beside it what else peft
    wants to open its folder on the library's model; of a model that diffusers has pipelines for, these can too.

    `base` is the source of the part.
    """
    inside = {_below(part, name): tensor for name, tensor in tensors.items()}
    made: LoraConfig = adapter_root(part).peft_config[_NAME]  # type: ignore[index,assignment]
    config = {
        **made.to_dict(),
        # in full, as the library's model may have more layers than the part has kept
        "target_modules": sorted({name.partition(".lora_")[0] for name in inside}),
        "inference_mode": True,
        "base_model_name_or_path": base,
    }
    file.parent.mkdir(parents=True)
    file.with_name("adapter_config.json").write_text(_json(config) + "\n", encoding="utf-8")
    save_file({_PEFT_PREFIX + name: tensor for name, tensor in inside.items()}, file)
    prefix = part.adapter_root
    if prefix in _PIPELINE_MODELS:
        metadata = _json({f"{prefix}.{key}": value for key, value in config.items()})
        save_file(
            {f"{prefix}.{name}": tensor for name, tensor in inside.items()},
            file.with_name(_PIPELINE_WEIGHTS),
            metadata={"format": "pt", _PIPELINE_METADATA: metadata},
        )


def in_part(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter's file of weights, by their spelled names in `part`."""
    above = f"{part.adapter_root}." if part.adapter_root else ""
    return {above + name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()}


def merge(part: Part) -> set[str]:
    """Folds the adapter of a part into its layers, in place, and tells the names of their parameters.

    Raises:
        DreamkitError: weights that would not be finite, or that another layer shares.
    """
    from peft.tuners.lora import LoraLayer

    owners: dict[int, list[str]] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(spelled(name))
    layers = {name: layer for name, layer in part.named_modules() if isinstance(layer, LoraLayer)}
    merged: set[str] = set()
    for name, layer in layers.items():
        base: Any = layer.get_base_layer()
        shared = sorted({*owners[id(base.weight)]} - {f"{name}.weight"})
        if shared:
            raise DreamkitError(
                f"the adapter of {name} cannot be merged: its weights are also {', '.join(shared)}, which would "
                "change with them; train it with an adapter of other layers"
            )
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise DreamkitError(f"the adapter of {name} cannot be merged: {error}") from error
        part.set_submodule(name, base)
        merged |= {f"{name}.{inner}" for inner, _ in base.named_parameters()}
    del adapter_root(part).peft_config
    return merged


def _below(part: Part, name: str) -> str:
    return name.removeprefix(f"{part.adapter_root}.") if part.adapter_root else name


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, default=sorted)  # the other sets of a peft config
