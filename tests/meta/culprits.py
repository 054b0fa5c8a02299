"""For each check, parts that are broken in just that way: `CULPRITS[kind][check]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

import meta.breaking as broken
from dreamkit.parts.projectors import Linear
from dreamkit.testing.subject_kinds import WIDTHS
from dreamkit_transformers.siglip import Siglip
from meta.breaking import computing, making, preprocessing, telling, with_class_method, with_config
from meta.decoders import DRAWING, listens_to_no_extras
from meta.language_models import LANGUAGE, forgets_positions, reverses_words
from meta.parts import Decoder, Extra, Misspelled, Plain, Promising, Rooted, Rootless, Tower, Words


def of_any_kind(base: type, method: str) -> dict[str, type]:
    """What can be wrong with a part of any kind; `method` is its main computation."""
    return {
        "config_frozen": with_config(base, broken.not_frozen),
        "config_round_trip": with_config(base, broken.counts_its_makings),
        "spec_without_weights": with_class_method(base, "infer_spec", broken.makes_weights),
        "batch_of_one": computing(base, method, broken.loses_the_row),
        "batch_invariance": computing(base, method, broken.looks_at_others),
        "determinism": computing(base, method, broken.drops_out),
        "inputs_unchanged": computing(base, method, broken.writes_into_its_input),
        "state_dict_round_trip": broken.forgets_a_shift(base, method),
        "dtype_kept": computing(base, method, broken.upcasts),
        "device_kept": computing(base, method, broken.stays_on_the_processor),
        "gradients_reach_trainable": making(base, broken.has_an_idle_parameter),
        "frozen_stays_frozen": computing(base, method, broken.thaws),
        "gradients_reach_input": computing(base, method, broken.cuts_the_first_row),
        "gradient_checkpointing": broken.checkpoints_badly(base, method),
    }


def with_source(base: type) -> dict[str, type]:
    """What can be wrong with a part that has weights to name."""
    targets = (*base.adapter_targets, "no_such_layer")
    return {
        "adapters_attach": type("Broken", (base,), {"adapter_targets": targets}),
        "meta_modules_agree": with_class_method(base, "meta_modules", broken.has_more_in_its_outline),
    }


def reading_pictures(base: type) -> dict[str, type]:
    return {
        name: computing(base, "preprocess", preprocessing(change))
        for name, change in {
            "preprocess_any": broken.refuses_banners,
            "preprocess_upright": broken.lies_on_its_side,
            "preprocess_colours": broken.mirrors,
            "preprocess_alone": broken.normalizes_the_batch,
            "pictures_unchanged": broken.shrinks_the_picture,
        }.items()
    }


VISION = {
    "spec_agrees": telling(Tower, num_tokens=9),
    "library_agrees": computing(Siglip, "library_forward", broken.adds_to_the_library),
}


def always_as_wide(cls, original, config, **widths):
    return dataclasses.replace(original(config, **widths), out_dim=WIDTHS["out_dim"])


def miscounts(cls, original, config, **widths):
    """At one width alone, since at all widths it would be another check's business too."""
    spec = original(config, **widths)
    return dataclasses.replace(spec, out_tokens=9) if widths == WIDTHS else spec


PROJECTING = {
    "spec_agrees": with_class_method(Plain, "infer_spec", miscounts),
    "any_neighbours": with_class_method(Linear, "infer_spec", always_as_wide),
    "dense_layers_agree": computing(
        Linear, "forward", lambda self, original, tokens: torch.tanh(original(tokens))
    ),
}


CULPRITS: Mapping[str, Mapping[str, Any]] = {
    "vision_encoder": of_any_kind(Tower, "forward") | with_source(Tower) | reading_pictures(Tower) | VISION,
    "language_model": of_any_kind(Words, "forward") | with_source(Words) | LANGUAGE,
    "projector": of_any_kind(Plain, "forward") | PROJECTING,
    "image_decoder": of_any_kind(Decoder, "denoise")
    | with_source(Decoder)
    | reading_pictures(Decoder)
    | DRAWING,
}


# more ways of failing a check than one, as (kind, check, part)


def rounds_halfway(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output.bfloat16().to(output.dtype)


def thaws_in_training(self, forward, rows, *rest):
    if self.training:
        next(iter(self.trainable_parameters())).requires_grad_(True)
    return forward(rows, *rest)


def swaps_channels(pixels_of, pictures):
    return pixels_of(pictures).flip(1)


MORE = [
    ("language_model", "cached_decoding", computing(Words, "forward", forgets_positions)),
    ("language_model", "embed_any_shape", computing(Words, "embed", reverses_words)),
    ("projector", "dtype_kept", computing(Plain, "forward", rounds_halfway)),
    ("projector", "frozen_stays_frozen", computing(Plain, "forward", thaws_in_training)),
    ("image_decoder", "extras_agree", computing(Extra, "draw_steps", listens_to_no_extras)),
    ("image_decoder", "posterior_agrees", Rooted),
    ("image_decoder", "posterior_agrees", Rootless),
    ("image_decoder", "posterior_agrees", Misspelled),
    ("image_decoder", "posterior_agrees", Promising),
    ("vision_encoder", "preprocess_colours", computing(Tower, "preprocess", preprocessing(swaps_channels))),
    (
        "vision_encoder",
        "library_agrees",
        computing(Siglip, "forward", lambda self, forward, x: forward(x) * 1.01),
    ),
]
