"""Culprits of the checks of image decoders."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

import meta.breaking as broken
from dreamkit.parts.specs import Condition
from dreamkit.scaffold.parts.schedulers import Euler
from meta.breaking import with_method
from meta.parts import Decoder, Extra, Float32Decoder, LibraryDecoder, NoPosterior, PosteriorDecoder


def is_infinite_at_the_last_timestep(
    self, loss, latents, condition, extras, *, noise=None, timesteps=None, generator=None
):
    loss_N = loss(latents, condition, extras, noise=noise, timesteps=timesteps, generator=generator)
    return torch.where(timesteps > 0.9998, torch.inf, loss_N)


def does_not_clamp(self, decode, latents):
    return latents.float() / 2 + 0.5


def encodes_with_unseeded_noise(self, encode, targets, generator=None):
    return encode(targets, generator) + 0.1 * torch.randn_like(targets)


def samples_timesteps_on_its_own_device(self, timesteps, count, generator=None):
    return timesteps(count, generator).to(self.network.inlet.weight.device)


def encodes_to_the_mean(self, encode, targets, generator=None):
    return self.posterior(targets)[0]


def has_a_loss_above_zero(self, loss, *args, **kwargs):
    return loss(*args, **kwargs).clamp(min=0.01)


def uses_the_absolute_error(self, loss, latents, condition, extras, *, noise, timesteps, generator=None):
    noisy, target = self.add_noise(latents, noise, timesteps)
    return (self.denoise(noisy, timesteps, condition, extras) - target).abs().flatten(1).mean(1)


def accepts_any_scheduler(self, scheduler, name=None):
    return scheduler(name if name in self.spec.schedulers else None)


class HalfSteps(Euler):
    """A scheduler whose steps are half as long."""

    def step(self, model_output, timestep, sample, **options):
        return super().step(model_output / 2, timestep, sample, **options)


def uses_half_steps(self, scheduler, name=None):
    scheduler(name)  # raises for an unknown name
    return HalfSteps()


def ignores_argument(name):
    """Return a change of `draw_steps` that ignores the argument `name`."""
    return lambda self, draw_steps, *args, **kwargs: draw_steps(*args, **kwargs | {name: None})


def ignores_a_single_generator(self, draw_steps, *args, generators=None, **kwargs):
    listed = generators if isinstance(generators, list) else None
    return draw_steps(*args, generators=listed, **kwargs)


def uses_the_first_generator(self, draw_steps, *args, generators=None, **kwargs):
    if isinstance(generators, list):
        generators = generators[:1] * len(generators)
    return draw_steps(*args, generators=generators, **kwargs)


def guides_always(self, draw_steps, condition, negative=None, extras=None, *, guidance=7.5, **kwargs):
    guidance = 1.5 if negative is not None and guidance == 1 else guidance
    return draw_steps(condition, negative, extras, guidance=guidance, **kwargs)


def detaches_the_first_context(self, denoise, noisy, timesteps, condition, extras):
    context = condition.context
    cut = torch.cat([context[:1].detach(), context[1:]])
    return denoise(noisy, timesteps, Condition(cut, condition.mask, condition.pooled), extras)


def converts_every_module(self, apply, fn, recurse=True):
    return nn.Module._apply(self, fn, recurse)


def renames_an_extra(self, preprocess, pictures):
    pixels, extras = preprocess(pictures)
    return pixels, {"corner": extras["corners"]}


def ignores_extras(self, draw_steps, condition, negative=None, extras=None, **kwargs):
    return draw_steps(condition, negative, None, **kwargs)


@contextmanager
def stores_condition(self, cache_condition, condition):
    self.cached = condition
    yield
    self.cached = None


def uses_the_cached_condition(self, denoise, noisy, timesteps, condition, extras):
    cached = getattr(self, "cached", None)
    return denoise(noisy, timesteps, condition if cached is None else cached, extras)


IMAGE_DECODER = {
    "extras_agree": with_method(Extra, "preprocess", renames_an_extra),
    "spec_agrees": with_method(Decoder, "loss", is_infinite_at_the_last_timestep),
    "library_agrees": with_method(LibraryDecoder, "library_forward", broken.changes_the_library),
    "gradients_reach_input": with_method(Decoder, "denoise", detaches_the_first_context),
    "latents_agree": with_method(Decoder, "decode", does_not_clamp),
    "encode_repeats": with_method(NoPosterior, "encode", encodes_with_unseeded_noise),
    "timesteps_device": with_method(Decoder, "timesteps", samples_timesteps_on_its_own_device),
    "posterior_agrees": with_method(PosteriorDecoder, "encode", encodes_to_the_mean),
    "perfect_prediction": with_method(Decoder, "loss", has_a_loss_above_zero),
    "loss_agrees": with_method(Decoder, "loss", uses_the_absolute_error),
    "scheduler_names": with_method(Decoder, "scheduler", accepts_any_scheduler),
    "perfect_drawing": with_method(Decoder, "scheduler", uses_half_steps),
    "draw_seed": with_method(Decoder, "draw_steps", ignores_a_single_generator),
    "draw_alone": with_method(Decoder, "draw_steps", uses_the_first_generator),
    "draw_size": with_method(Decoder, "draw_steps", ignores_argument("size")),
    "guidance_scale": with_method(Decoder, "draw_steps", guides_always),
    "fixed_latents": with_method(Decoder, "draw_steps", ignores_argument("latents")),
    "constant_condition": with_method(
        with_method(Decoder, "cache_condition", stores_condition), "denoise", uses_the_cached_condition
    ),
    "float32_kept": with_method(Float32Decoder, "_apply", converts_every_module),
}
