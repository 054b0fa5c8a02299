"""The keys of an image processor's file. A test compares these lists with the library's classes.

The library's own processor computes with every key, so only the size of its images is read here: a spec is inferred
without the processor's class if no other key is set than those of these lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SIZE_KEYS: Final = frozenset({"do_resize", "size", "do_center_crop", "crop_size"})
RESAMPLE: Final = "resample"
VALUE_KEYS: Final = frozenset(
    ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb")
)
# keys that only the class can interpret, unless they are null
CLASS_KEYS: Final = frozenset(
    [
        "default_to_square",
        "do_pad",
        "pad_size",
        "data_format",
        "input_data_format",
        "device",
        "return_tensors",
        "disable_grouping",
        "image_seq_length",
    ]
)
# those of a NaFlex processor that decide its patches, and those that also count for the square images used here
PATCH_KEYS: Final = frozenset(("do_resize", "patch_size", "max_num_patches"))
COPIED_KEYS: Final = frozenset({RESAMPLE}) | VALUE_KEYS - {"do_convert_rgb"}  # images are RGB

_NOTES: Final = ("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys")
_RESAMPLINGS: Final = (
    4  # Pillow's first numbers: nearest, Lanczos, bilinear, bicubic; torchvision lacks the others
)

_NUMBER_KEYS: Final = frozenset(("rescale_factor", "image_mean", "image_std"))
_LARGEST: Final = 1e4  # of the usual numbers, whose pixels are finite


def class_name(values: Mapping[str, Any]) -> str | None:
    """Return the name of the processor's class that a file names, also one of earlier releases, or None."""
    earlier = str(values.get("feature_extractor_type") or "").replace("FeatureExtractor", "ImageProcessor")
    return str(values.get("image_processor_type") or earlier) or None


def is_plain(values: Mapping[str, Any], name: str, size_keys: frozenset[str]) -> bool:
    """Return True if `size_keys` alone decide the size of the images that a processor of the class `name` makes."""
    if class_name(values) not in (None, name, f"{name}Fast"):
        return False
    resample = values.get(RESAMPLE, 0)
    if type(resample) is not int or resample not in range(_RESAMPLINGS):
        return False
    if not all(_is_usual(key, values[key]) for key in _NUMBER_KEYS & values.keys()):
        return False
    nullable = {*CLASS_KEYS, "do_convert_rgb"}  # as in files of SigLIP 2
    allowed = {RESAMPLE, *VALUE_KEYS, *size_keys}
    return all(
        key in nullable if value is None else key in allowed
        for key, value in values.items()
        if key not in _NOTES
    )


def _is_usual(key: str, value: Any) -> bool:
    """Return True if a value of `_NUMBER_KEYS` makes finite pixels; False if the class must show it."""
    numbers = value if isinstance(value, list) and len(value) == 3 else [value]
    least = 1 / _LARGEST if key == "image_std" else -_LARGEST
    return all(type(number) in (int, float) and least <= number <= _LARGEST for number in numbers)
