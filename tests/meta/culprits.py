"""For each check, parts that are broken in just that way: `CULPRITS[kind][check]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import meta.breaking as broken
from dreamkit.projectors import Linear
from dreamkit.scaffold.parts.image_decoder import NewPart
from dreamkit.scaffold.parts.schedulers import Euler
from dreamkit.specs import ChatTemplate, Condition
from dreamkit.testing.subjects import WIDTHS
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from dreamkit_transformers.vision import Siglip
from meta.breaking import computing, making, preprocessing, telling, with_class_method, with_config


class Tower(Siglip):
    """A vision encoder whose library is not asked, so that what is broken in it is not also another's."""

    def library_forward(self, pixels_NCHW):
        return None


class Words(Llama):
    """A language model whose library is not asked."""

    def library_forward(self, ids_BT):
        return None


class Plain(Linear):
    """A projector that promises no matrices."""

    def dense_layers(self):
        return None


class Decoder(NewPart):
    """A small image decoder, with an outline."""

    @classmethod
    def outline(cls, config):
        with torch.device("meta"):
            return cls(config)


class AskedDecoder(Decoder):
    """One with something like a library behind it."""

    def library_forward(self, noisy, timesteps_N, condition, extras):
        return self.network(noisy, timesteps_N, condition)


def of_any_kind(base: type, method: str) -> dict[str, type]:
    """What can be wrong with a part of any kind; `method` is its main computation."""
    return {
        "config_frozen": with_config(base, broken.not_frozen),
        "config_round_trip": with_config(base, broken.counts_its_makings),
        "spec_without_weights": with_class_method(base, "spec_from", broken.makes_weights),
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
        "outline_agrees": with_class_method(base, "outline", broken.has_more_in_its_outline),
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


# a language model's own


def fails_beyond(self, forward, embeds, positions, segments, cache=None):
    if embeds.shape[1] > 40:
        raise IndexError(f"index {embeds.shape[1]} is out of range")
    return forward(embeds, positions, segments, cache)


def looks_at_others(self, forward, embeds, positions, segments, cache=None):
    hidden = forward(embeds, positions, segments, cache)
    return hidden if cache is not None else hidden + 0.1 * (hidden.mean(0, keepdim=True) - hidden)


def sees_what_comes(self, forward, embeds, positions, segments, cache=None):
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] >= 0)
    mean = (same.to(embeds.dtype) @ embeds) / same.sum(-1, keepdim=True).clamp(min=1)
    return forward(embeds, positions, segments, cache) + 0.1 * mean


def sees_padding(self, forward, embeds, positions, segments, cache=None):
    hidden = forward(embeds, positions, segments, cache)
    if cache is not None:
        return hidden
    padding = (segments == -1)[..., None].to(embeds.dtype)
    return hidden + 0.1 * (padding * embeds).sum(1, keepdim=True)


def reads_its_neighbours(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions, segments if cache is not None else segments.clamp(max=0), cache)


def sees_empty_slots(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions, segments if cache is None else segments.clamp(min=0), cache)


def embeds_batches_only(self, embed, ids):
    if ids.dim() != 2:
        raise IndexError(f"ids of {ids.dim()} dimensions, but 2 are wanted")
    return embed(ids)


def claims_gemmas_norm(self):
    return Words.norm_weights.fget(self)._replace(offset=1.0)


def lowers_case(self, tokenize, text, special=False):
    return tokenize(text.lower(), special)


def parses_everything(self, tokenize, text, special=False):
    return tokenize(text, special=True)


def saves_another_tokenizer(self, save, folder):
    byte_tokenizer().save_pretrained(folder)


def hands_out_copies(self, original):
    return [torch.nn.Parameter(row.detach().clone()) for row in original()]


def never_ends_its_turn(part):
    part.chat = ChatTemplate(user=("USER:", ""), assistant=("ASSISTANT:", ""))


LANGUAGE = {
    "spec_agrees": computing(Words, "forward", fails_beyond),
    "batch_invariance": computing(Words, "forward", looks_at_others),
    "library_agrees": computing(Llama, "library_forward", broken.adds_to_the_library),
    "causality": computing(telling(Words, cache=False), "forward", sees_what_comes),
    "padding_invariance": computing(Words, "forward", sees_padding),
    "packing_invariance": computing(Words, "forward", reads_its_neighbours),
    "cached_decoding": computing(Words, "forward", sees_empty_slots),
    "embed_any_shape": computing(Words, "embed", embeds_batches_only),
    "head_agrees": computing(Words, "logits", lambda self, logits, hidden: 1.01 * logits(hidden)),
    "norm_agrees": type("Broken", (Words,), {"norm_weights": property(claims_gemmas_norm)}),
    "vocabulary": telling(Words, reserved_tokens=("<s>", "a")),
    "text_round_trip": computing(Words, "tokenize", lowers_case),
    "special_tokens": computing(Words, "tokenize", parses_everything),
    "special_tokens_saved": computing(Words, "save_tokenizer", saves_another_tokenizer),
    "new_token_rows": computing(Words, "new_token_parameters", hands_out_copies),
    "chat_template": making(Words, never_ends_its_turn),
}


VISION = {
    "spec_agrees": telling(Tower, num_tokens=9),
    "library_agrees": computing(Siglip, "library_forward", broken.adds_to_the_library),
}


# an image decoder's own


def breaks_at_the_end(self, loss, latents, condition, extras, *, noise=None, timesteps=None, generator=None):
    loss_N = loss(latents, condition, extras, noise=noise, timesteps=timesteps, generator=generator)
    return torch.where(timesteps > 0.9998, torch.inf, loss_N)


def draws_off_the_scale(self, decode, latents):
    return latents.float() / 2 + 0.5


def encodes_with_any_noise(self, encode, targets, generator=None):
    return encode(targets, generator) + 0.1 * torch.randn_like(targets)


def never_is_content(self, loss, *args, **kwargs):
    return loss(*args, **kwargs).clamp(min=0.01)


def measures_another_error(self, loss, latents, condition, extras, *, noise, timesteps, generator=None):
    noisy, target = self.noisy(latents, noise, timesteps)
    return (self.denoise(noisy, timesteps, condition, extras) - target).abs().flatten(1).mean(1)


def takes_any_scheduler(self, scheduler, name=None):
    return scheduler(name if name in self.spec.schedulers else None)


class HalfSteps(Euler):
    """Belongs to an objective of twice the size."""

    def step(self, model_output, timestep, sample, **options):
        return super().step(model_output / 2, timestep, sample, **options)


def steps_by_halves(self, scheduler, name=None):
    scheduler(name)  # which refuses what it does not know
    return HalfSteps()


def without(name):
    """Drawing that does not listen to one of its arguments."""
    return lambda self, denoising, *args, **kwargs: denoising(*args, **kwargs | {name: None})


def ignores_a_generator(self, denoising, *args, generators=None, **kwargs):
    listed = generators if isinstance(generators, list) else None
    return denoising(*args, generators=listed, **kwargs)


def takes_the_first_generator(self, denoising, *args, generators=None, **kwargs):
    if isinstance(generators, list):
        generators = generators[:1] * len(generators)
    return denoising(*args, generators=generators, **kwargs)


def guides_always(self, denoising, condition, negative=None, extras=None, *, guidance=7.5, **kwargs):
    guidance = 1.5 if negative is not None and guidance == 1 else guidance
    return denoising(condition, negative, extras, guidance=guidance, **kwargs)


def blind_to_its_context(self, denoise, noisy, timesteps, condition, extras):
    context = condition.context
    cut = torch.cat([context[:1].detach(), context[1:]])
    return denoise(noisy, timesteps, Condition(cut, condition.mask, condition.pooled), extras)


def half_of_everything(self, apply, fn, recurse=True):
    return nn.Module._apply(self, fn, recurse)


class Extra(Decoder):
    """A decoder that is told where a picture was cut."""

    def preprocess(self, pictures):
        corners = torch.tensor([[float(picture.width), float(picture.height)] for picture in pictures])
        return super().preprocess(pictures)[0], {"corners": corners / 1000}

    def default_extras(self, count, size):
        return {"corners": torch.zeros(count, 2)}

    def denoise(self, noisy, timesteps_N, condition, extras):
        shift = extras["corners"].sum(-1)[:, None, None, None]
        return super().denoise(noisy, timesteps_N, condition, extras) + shift.to(noisy.dtype)


class Kept(telling(Decoder, float32_modules=("vae",))):
    """A decoder with a last layer that half precision would break."""

    def __init__(self, config):
        super().__init__(config)
        self.vae = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def trainable_parameters(self):
        return self.network.parameters()

    def decode(self, latents):
        return super().decode(self.vae(latents.to(self.vae.weight.dtype)))


def names_it_differently(self, preprocess, pictures):
    pixels, extras = preprocess(pictures)
    return pixels, {"corner": extras["corners"]}


DRAWING = {
    "extras_agree": computing(Extra, "preprocess", names_it_differently),
    "spec_agrees": computing(Decoder, "loss", breaks_at_the_end),
    "library_agrees": computing(AskedDecoder, "library_forward", broken.adds_to_the_library),
    "gradients_reach_input": computing(Decoder, "denoise", blind_to_its_context),
    "latents_agree": computing(Decoder, "decode", draws_off_the_scale),
    "encode_repeats": computing(Decoder, "encode", encodes_with_any_noise),
    "perfect_prediction": computing(Decoder, "loss", never_is_content),
    "loss_agrees": computing(Decoder, "loss", measures_another_error),
    "scheduler_names": computing(Decoder, "scheduler", takes_any_scheduler),
    "perfect_drawing": computing(Decoder, "scheduler", steps_by_halves),
    "sample_seed": computing(Decoder, "denoising", ignores_a_generator),
    "sample_alone": computing(Decoder, "denoising", takes_the_first_generator),
    "sample_size": computing(Decoder, "denoising", without("size")),
    "guidance_scale": computing(Decoder, "denoising", guides_always),
    "fixed_latents": computing(Decoder, "denoising", without("latents")),
    "float32_kept": computing(
        telling(Decoder, float32_modules=("network.outlet",)), "_apply", half_of_everything
    ),
}


# a projector's own


def always_as_wide(cls, original, config, **widths):
    return dataclasses.replace(original(config, **widths), out_dim=WIDTHS["out_dim"])


def miscounts(cls, original, config, **widths):
    """At one width alone, since at all widths it would be another check's business too."""
    spec = original(config, **widths)
    return dataclasses.replace(spec, out_tokens=9) if widths == WIDTHS else spec


PROJECTING = {
    "spec_agrees": with_class_method(Plain, "spec_from", miscounts),
    "any_neighbours": with_class_method(Linear, "spec_from", always_as_wide),
    "dense_layers_agree": computing(
        Linear, "forward", lambda self, original, tokens: torch.tanh(original(tokens))
    ),
}


# more ways of failing a check than one, as (kind, check, part)


def forgets_positions(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions if cache is None else torch.zeros_like(positions), segments, cache)


def reverses_words(self, embed, ids):
    return embed(ids.flip(-1) if ids.dim() == 1 else ids)


def rounds_halfway(self, forward, rows, *rest):
    output = forward(rows, *rest)
    return output.bfloat16().to(output.dtype)


def listens_to_no_extras(self, denoising, condition, negative=None, extras=None, **kwargs):
    return denoising(condition, negative, None, **kwargs)


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
    ("image_decoder", "extras_agree", computing(Extra, "denoising", listens_to_no_extras)),
    ("vision_encoder", "preprocess_colours", computing(Tower, "preprocess", preprocessing(swaps_channels))),
    (
        "vision_encoder",
        "library_agrees",
        computing(Siglip, "forward", lambda self, forward, x: forward(x) * 1.01),
    ),
]


# parts that are sound, and unlike those that culprits are made of


class Zeros(Plain):
    """A matrix of zeros, as the last one of a network often is at first."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        torch.nn.init.zeros_(self.layer.weight)


class Resampler(Plain):
    """Learned tokens, as many as it likes, that look at those it is given."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.latents = nn.Parameter(torch.randn(spec.out_tokens, spec.in_dim))

    @classmethod
    def spec_from(cls, config, *, in_dim, in_tokens, out_dim):
        return dataclasses.replace(
            super().spec_from(config, in_dim=in_dim, in_tokens=in_tokens, out_dim=out_dim), out_tokens=3
        )

    def forward(self, tokens):
        weights = (self.latents @ tokens.transpose(1, 2)).softmax(-1)
        return super().forward(weights @ tokens)


class Pooled(Decoder):
    """A decoder that wants a pooled vector, exactly 5 tokens of context, and no size but its own."""

    @classmethod
    def spec_from(cls, config):
        return dataclasses.replace(super().spec_from(config), pooled_dim=6, context_tokens=5)

    def denoise(self, noisy, timesteps_N, condition, extras):
        if condition.context.shape[1] != 5 or condition.pooled is None:
            raise ValueError("5 tokens of context and a pooled vector are wanted")
        if noisy.shape[-2:] != (self.spec.image_size, self.spec.image_size):
            raise ValueError(f"only {self.spec.image_size} pixels can be drawn")
        shift = condition.pooled.mean(-1)[:, None, None, None]
        return super().denoise(noisy, timesteps_N, condition, extras) + shift


LONELY = {"packing": False, "cache": False, "bos_id": None, "reserved_tokens": ("</s>", "<pad>")}


class Loner(telling(Words, **LONELY)):
    """A language model that can neither pack nor cache, and starts without a token."""

    def forward(self, embeds_BTD, position_ids_BT, segment_ids_BT, cache=None):
        assert cache is None
        return super().forward(embeds_BTD, position_ids_BT, segment_ids_BT)


SOUND = [
    ("projector", Zeros),
    ("projector", Resampler),
    ("image_decoder", Extra),
    ("image_decoder", Pooled),
    ("image_decoder", Kept),
    ("language_model", Loner),
    ("language_model", telling(Words, sliding_window=4096)),
]


# what an installed plug-in registers, so that parts made of it are registered too
BASES = {"vision_encoder": Tower, "language_model": Words, "projector": Plain, "image_decoder": Decoder}

CULPRITS: Mapping[str, Mapping[str, Any]] = {
    "vision_encoder": of_any_kind(Tower, "forward") | with_source(Tower) | reading_pictures(Tower) | VISION,
    "language_model": of_any_kind(Words, "forward") | with_source(Words) | LANGUAGE,
    "projector": of_any_kind(Plain, "forward") | PROJECTING,
    "image_decoder": of_any_kind(Decoder, "denoise")
    | with_source(Decoder)
    | reading_pictures(Decoder)
    | DRAWING,
}
