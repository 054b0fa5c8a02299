"""For each check, a part or data set that breaks only its property: `CULPRITS[kind][check]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

import meta.breaking as broken
from dreamkit.parts.projectors import Linear
from dreamkit.testing.subject_kinds import WIDTHS
from dreamkit_transformers.llama import Vicuna
from dreamkit_transformers.siglip import Siglip
from meta.breaking import (
    preprocessing,
    with_class_method,
    with_config,
    with_method,
    with_part_change,
    with_spec,
)
from meta.datasets import DATASET, MORE_DATASETS
from meta.decoders import IMAGE_DECODER, ignores_extras
from meta.language_models import (
    LANGUAGE_MODEL,
    FixedRows,
    KeepsOriginals,
    UnknownSize,
    copies_all_rows_unless_reordered,
    copies_and_refuses,
    copies_the_shortest_length,
    ends_before_the_answer,
    has_no_flags_in_prompts,
    ignores_cached_positions,
    reverses_ids,
)
from meta.parts import (
    Decoder,
    Extra,
    Misspelled,
    NoPosteriorMethod,
    NoPosteriorModule,
    Plain,
    Tower,
    Words,
    WrongPosteriorModule,
)


def of_any_kind(base: type, method: str) -> dict[str, type]:
    """Return the culprits of every kind of part; `method` is its main computation."""
    return {
        "config_frozen": with_config(base, broken.not_frozen),
        "config_round_trip": with_config(base, broken.counts_its_creations),
        "spec_without_weights": with_class_method(base, "infer_spec", broken.creates_weights),
        "batch_of_one": with_method(base, method, broken.drops_the_batch_dimension),
        "batch_invariance": with_method(base, method, broken.mixes_rows),
        "determinism": with_method(base, method, broken.adds_random_noise),
        "inputs_unchanged": with_method(base, method, broken.changes_its_input),
        "state_dict_round_trip": broken.omits_a_buffer(base, method),
        "dtype_kept": with_method(base, method, broken.upcasts),
        "device_kept": with_method(base, method, broken.computes_on_the_cpu),
        "gradients_reach_trainable": with_part_change(base, broken.has_an_unused_parameter),
        "frozen_stays_frozen": with_method(base, method, broken.unfreezes),
        "gradients_reach_input": with_method(base, method, broken.detaches_the_first_row),
        "gradient_checkpointing": broken.changes_when_recomputing(base, method),
    }


def with_source(base: type) -> dict[str, type]:
    """Return the culprits of a part with pretrained weights."""
    targets = (*base.adapter_targets, "no_such_layer")
    return {
        "adapters_attach": type("Broken", (base,), {"adapter_targets": targets}),
        "meta_modules_agree": with_class_method(base, "meta_modules", broken.adds_a_meta_module),
    }


def of_image_readers(base: type) -> dict[str, type]:
    return {
        name: with_method(base, "preprocess", preprocessing(change))
        for name, change in {
            "preprocess_any": broken.refuses_banners,
            "preprocess_upright": broken.ignores_orientation,
            "preprocess_colours": broken.mirrors,
            "preprocess_alone": broken.normalizes_the_batch,
            "pictures_unchanged": broken.shrinks_the_image,
        }.items()
    } | {"resized_side_agrees": with_spec(base, resized_side=9)}


VISION_ENCODER = {
    "spec_agrees": with_spec(Tower, num_tokens=9),
    "library_agrees": with_method(Siglip, "library_forward", broken.changes_the_library),
}


def ignores_out_dim(cls, original, config, **widths):
    return dataclasses.replace(original(config, **widths), out_dim=WIDTHS["out_dim"])


def miscounts_tokens(cls, original, config, **widths):
    """Return a wrong spec only for `WIDTHS`; for other widths, `any_neighbours` would fail too."""
    spec = original(config, **widths)
    return dataclasses.replace(spec, out_tokens=9) if widths == WIDTHS else spec


PROJECTOR = {
    "spec_agrees": with_class_method(Plain, "infer_spec", miscounts_tokens),
    "any_neighbours": with_class_method(Linear, "infer_spec", ignores_out_dim),
    "dense_layers_agree": with_method(
        Linear, "forward", lambda self, original, tokens: torch.tanh(original(tokens))
    ),
}


CULPRITS: Mapping[str, Mapping[str, Any]] = {
    "vision_encoder": of_any_kind(Tower, "forward")
    | with_source(Tower)
    | of_image_readers(Tower)
    | VISION_ENCODER,
    "language_model": of_any_kind(Words, "forward") | with_source(Words) | LANGUAGE_MODEL,
    "projector": of_any_kind(Plain, "forward") | PROJECTOR,
    "image_decoder": of_any_kind(Decoder, "denoise")
    | with_source(Decoder)
    | of_image_readers(Decoder)
    | IMAGE_DECODER,
    "dataset": DATASET,
}


# second culprits of a check, as (kind, check, part)


def rounds_to_bfloat16(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output.bfloat16().to(output.dtype)


def unfreezes_in_training(self, forward, rows, *rest):
    if self.training:
        next(iter(self.trainable_parameters())).requires_grad_(True)
    return forward(rows, *rest)


def swaps_channels(pixels_of, pictures):
    return pixels_of(pictures).flip(1)


MORE_CULPRITS = [
    *MORE_DATASETS,
    ("language_model", "cached_decoding", with_method(FixedRows, "forward", ignores_cached_positions)),
    (
        "language_model",
        "copied_rows",
        with_method(UnknownSize, "copy_rows", copies_all_rows_unless_reordered),
    ),
    ("language_model", "copied_rows", with_method(Words, "copy_rows", copies_the_shortest_length)),
    ("language_model", "refused_rows", with_method(Words, "copy_rows", copies_and_refuses)),
    ("language_model", "cache_size", KeepsOriginals),
    ("language_model", "embed_any_shape", with_method(Words, "embed", reverses_ids)),
    ("language_model", "chat_prompt", with_method(Words, "conversation", has_no_flags_in_prompts)),
    ("language_model", "chat_prompt", with_method(Vicuna, "conversation", ends_before_the_answer)),
    ("projector", "dtype_kept", with_method(Plain, "forward", rounds_to_bfloat16)),
    ("projector", "frozen_stays_frozen", with_method(Plain, "forward", unfreezes_in_training)),
    ("image_decoder", "extras_agree", with_method(Extra, "draw_steps", ignores_extras)),
    ("image_decoder", "posterior_agrees", WrongPosteriorModule),
    ("image_decoder", "posterior_agrees", NoPosteriorModule),
    ("image_decoder", "posterior_agrees", Misspelled),
    ("image_decoder", "posterior_agrees", NoPosteriorMethod),
    ("image_decoder", "resized_side_agrees", with_spec(Extra, resized_side=16)),
    ("vision_encoder", "preprocess_colours", with_method(Tower, "preprocess", preprocessing(swaps_channels))),
    (
        "vision_encoder",
        "library_agrees",
        with_method(Siglip, "forward", lambda self, forward, x: forward(x) * 1.01),
    ),
]
