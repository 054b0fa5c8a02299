"""The weight files of a model's folder, by the names that transformers and diffusers give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from dreamkit.errors import SourceError, excerpt
from dreamkit.storage.json_files import read_json
from dreamkit.storage.refused_pickles import COMPRESSED, is_compressed

ADAPTER_CONFIG: Final = "adapter_config.json"  # of peft; transformers applies the adapter beside it
CONVERSION: Final = (
    "convert it to a folder with its library, such as diffusers' "
    "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
)
_DESCRIPTION: Final = "weights (model, pytorch_model or diffusion_pytorch_model, .safetensors or .bin)"
_MOST_SHARDS: Final = 10_000  # a file name may claim any number
_MOST_LISTED: Final = 3

_STEMS = "diffusion_pytorch_model|pytorch_model|model"
_WEIGHTS = re.compile(rf"({_STEMS})(?:-\d+-of-(\d+))?\.(safetensors|bin)")
_INDEX = re.compile(rf"({_STEMS})\.(safetensors|bin)\.index\.json")
_VARIANT = re.compile(rf"({_STEMS})\.([\w-]+?)(-\d+-of-\d+)?\.(safetensors|bin)")
_ADAPTER = re.compile(r"(adapter_model|pytorch_lora_weights)\.\w+")
_STATE = re.compile(r"(training_args|optimizer|scheduler|rng_state\w*|scaler)\.\w+")  # of a trainer
# key of a config.json, the library that writes it, and the names of weights that this library reads
_LIBRARIES = (
    ("_class_name", "diffusers", {"diffusion_pytorch_model"}),
    ("model_type", "transformers", {"model", "pytorch_model"}),
)
_OTHER_FORMATS = {
    ".gguf": "quantized weights; name a folder with the weights before quantization",
    ".h5": "weights for TensorFlow; name a folder with weights for PyTorch",
    ".msgpack": "weights for JAX; name a folder with weights for PyTorch",
    ".onnx": "a model for ONNX; name a folder with weights for PyTorch",
}
_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", *_OTHER_FORMATS}


def is_weight_file(name: str) -> bool:
    """Return True if the name of a file ends like that of weights, of any library."""
    return PurePosixPath(name).suffix.lower() in _SUFFIXES


def is_shard(name: str) -> bool:
    """Return True if a file is one of several with the weights of a model, by its name."""
    match = _WEIGHTS.fullmatch(PurePosixPath(name).name)
    return match is not None and match[2] is not None


def weights_in(names: Iterable[str], parent: PurePosixPath) -> list[str]:
    """Return the weight files in one folder: its safetensors or, without any, its pickles."""
    weights = [str(path) for path in _files_in(names, parent) if _WEIGHTS.fullmatch(path.name)]
    return [name for name in weights if name.endswith(".safetensors")] or weights


def missing_weights(names: Iterable[str], parent: PurePosixPath) -> list[str]:
    """Return descriptions of the weight files that a folder lacks: [] if its weights are complete."""
    names = list(names)
    if weights := weights_in(names, parent):
        return _missing_shards(weights, names)
    for path in _files_in(names, parent):
        if _INDEX.fullmatch(path.name):
            return [f"the shards that '{path}' lists"]
    inside = "" if str(parent) == "." else f" in {parent}/"
    return [f"{_DESCRIPTION}{inside}{unused_weights(names, parent)}"]


def misread_weights(folder: Path, names: Sequence[str]) -> str | None:
    """Return why the library of the `config.json` in a folder would read other files than its weights, else None.

    `names` are the weight files, such as shards, relative to the folder.
    """
    config, files = _json_object(folder / "config.json"), {Path(name).name for name in names}
    for name in sorted(files):
        if name.endswith(".bin") and is_compressed(folder / name):
            return f"{name}: {COMPRESSED}"
    if other := config.get("transformers_weights"):
        return f"config.json: transformers_weights names '{excerpt(str(other))}'; remove this key"
    kinds = _kinds(files)
    for key, library, stems in _LIBRARIES:
        if key in config and kinds and not stems & {stem for stem, _ in kinds}:
            expected, listed = " or ".join(sorted(stems)), shortened([f"'{name}'" for name in sorted(files)])
            return (
                f"{library}, whose config.json this is, reads {expected} and not {listed}; rename the files"
            )
    for stem, suffix in kinds:
        index = f"{stem}.{suffix}.index.json"
        if _reads_whole_file(folder, f"{stem}.{suffix}", files, config):
            continue
        content = _json_object(folder / index)
        shards = content.get("weight_map")
        if not isinstance(shards, dict) or not shards:
            return f"{index}: expected a JSON object with a 'weight_map' of tensors to shards; copy it again"
        if others := sorted({str(shard) for shard in shards.values()} - files):
            listed = shortened([f"'{excerpt(name)}'" for name in others])
            return f"{index} lists {listed}, which is missing or not named as a shard; copy all files again"
        if not isinstance(content.get("metadata"), dict):
            return f"{index}: expected a JSON object with an object 'metadata', which its library needs; copy it again"
    return None


def weights_read(folder: Path, names: Sequence[str]) -> list[str]:
    """Return those of the weight files in a folder that a library reads: without shards that an index does not list.

    Without an index of such shards, which `misread_weights` reports, it is all of them. `names` are as there.
    """
    config, files = _json_object(folder / "config.json"), {Path(name).name: name for name in names}
    unread: set[str] = set()
    for stem, suffix in _kinds(files):
        whole = f"{stem}.{suffix}"
        siblings = {
            name
            for name in files
            if (match := _WEIGHTS.fullmatch(name)) and (match[1], match[3]) == (stem, suffix)
        }
        if _reads_whole_file(folder, whole, files, config):
            unread |= siblings - {whole}
        else:
            shards = _json_object(folder / f"{whole}.index.json").get("weight_map")
            if listed := siblings & set(map(str, shards.values() if isinstance(shards, dict) else ())):
                unread |= siblings - listed
    return [name for file, name in files.items() if file not in unread]


def _kinds(files: Iterable[str]) -> list[tuple[str, str]]:
    """Return the stems and suffixes of weight files: those of one kind are one set of weights, or several."""
    return sorted({(match[1], match[3]) for name in files if (match := _WEIGHTS.fullmatch(name))})


def _reads_whole_file(folder: Path, whole: str, files: Collection[str], config: Mapping[str, Any]) -> bool:
    """Return True if a library reads the file `whole` and no shards: diffusers prefers an index, and others do not."""
    return whole in files and not ("_class_name" in config and (folder / f"{whole}.index.json").is_file())


def _json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one: the part reports a damaged config."""
    try:
        return read_json(file)
    except SourceError:
        return {}


def unused_weights(names: Iterable[str], parent: PurePosixPath) -> str:
    """Return a note, in brackets, on the weight files in a folder that no part reads, with the remedy; "" if none."""
    unused = [
        path
        for path in _files_in(names, parent)
        if is_weight_file(path.name) and not _WEIGHTS.fullmatch(path.name) and not _STATE.fullmatch(path.name)
    ]
    if not unused:
        return ""
    listed = shortened([f"'{path}'" for path in unused])
    return f" (it has {listed}: {_remedy(unused)})"


def _remedy(unused: Sequence[PurePosixPath]) -> str:
    """Return the kind of weight files that no part reads, and what to change."""
    if any(_ADAPTER.fullmatch(path.name) for path in unused):
        return "an adapter without the weights that it adapts; name the folder of those"
    for match in filter(None, (_VARIANT.fullmatch(path.name) for path in unused)):
        stem, variant, shard, suffix = match.groups()
        kind = f"the variant '{variant}', but a recipe has no setting for variants"
        if shard is None:
            return f"{kind}; rename it to {stem}.{suffix}, in a copy of the folder"
        return f"{kind}; load the model with variant='{variant}' in its library, and save it without"
    for path in unused:
        if path.suffix.lower() in _OTHER_FORMATS:
            return _OTHER_FORMATS[path.suffix.lower()]
    return (
        "no part reads a file of this name; if it belongs to the config.json beside it, rename it to "
        f"model.safetensors; if it is a whole model, {CONVERSION}"
    )


def _missing_shards(weights: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the missing shards and indices; the name of each shard has their number."""
    expected = set()
    for name in weights:
        *_, count, suffix = _WEIGHTS.fullmatch(PurePosixPath(name).name).groups()  # type: ignore[union-attr]
        if count is None:
            return []  # the libraries read this file and no shard
        stem = name[: name.rindex("-of-")].rpartition("-")[0]
        numbers = range(1, min(int(count), _MOST_SHARDS) + 1)
        expected |= {f"{stem}-{i:0{len(count)}d}-of-{count}.{suffix}" for i in numbers}
        expected.add(f"{stem}.{suffix}.index.json")
    missing = sorted(expected - set(names))
    return [shortened([f"'{name}'" for name in missing])] if missing else []


def shortened(texts: Sequence[str]) -> str:
    """Return the first texts of a list, and the number of the others."""
    more = len(texts) - _MOST_LISTED
    return ", ".join(texts[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _files_in(names: Iterable[str], parent: PurePosixPath) -> list[PurePosixPath]:
    return [path for path in map(PurePosixPath, names) if path.parent == parent]
