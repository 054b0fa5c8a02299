"""What can be wrong with an image decoder: for each check, one broken in just that way."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

import meta.breaking as broken
from dreamkit.parts.specs import Condition
from dreamkit.scaffold.parts.schedulers import Euler
from meta.breaking import computing
from meta.parts import AskedDecoder, Decoder, Extra, Kept, Spread, Untold


def breaks_at_the_end(self, loss, latents, condition, extras, *, noise=None, timesteps=None, generator=None):
    loss_N = loss(latents, condition, extras, noise=noise, timesteps=timesteps, generator=generator)
    return torch.where(timesteps > 0.9998, torch.inf, loss_N)


def draws_off_the_scale(self, decode, latents):
    return latents.float() / 2 + 0.5


def encodes_with_any_noise(self, encode, targets, generator=None):
    return encode(targets, generator) + 0.1 * torch.randn_like(targets)


def encodes_to_the_mean(self, encode, targets, generator=None):
    return self.posterior(targets)[0]


def never_is_content(self, loss, *args, **kwargs):
    return loss(*args, **kwargs).clamp(min=0.01)


def measures_another_error(self, loss, latents, condition, extras, *, noise, timesteps, generator=None):
    noisy, target = self.add_noise(latents, noise, timesteps)
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


def names_it_differently(self, preprocess, pictures):
    pixels, extras = preprocess(pictures)
    return pixels, {"corner": extras["corners"]}


def listens_to_no_extras(self, denoising, condition, negative=None, extras=None, **kwargs):
    return denoising(condition, negative, None, **kwargs)


@contextmanager
def holds(self, constant, condition):
    self.held = condition
    yield
    self.held = None


def takes_any_for_the_held_one(self, denoise, noisy, timesteps, condition, extras):
    held = getattr(self, "held", None)
    return denoise(noisy, timesteps, condition if held is None else held, extras)


DRAWING = {
    "extras_agree": computing(Extra, "preprocess", names_it_differently),
    "spec_agrees": computing(Decoder, "loss", breaks_at_the_end),
    "library_agrees": computing(AskedDecoder, "library_forward", broken.adds_to_the_library),
    "gradients_reach_input": computing(Decoder, "denoise", blind_to_its_context),
    "latents_agree": computing(Decoder, "decode", draws_off_the_scale),
    "encode_repeats": computing(Untold, "encode", encodes_with_any_noise),
    "posterior_agrees": computing(Spread, "encode", encodes_to_the_mean),
    "perfect_prediction": computing(Decoder, "loss", never_is_content),
    "loss_agrees": computing(Decoder, "loss", measures_another_error),
    "scheduler_names": computing(Decoder, "scheduler", takes_any_scheduler),
    "perfect_drawing": computing(Decoder, "scheduler", steps_by_halves),
    "draw_seed": computing(Decoder, "draw_steps", ignores_a_generator),
    "draw_alone": computing(Decoder, "draw_steps", takes_the_first_generator),
    "draw_size": computing(Decoder, "draw_steps", without("size")),
    "guidance_scale": computing(Decoder, "draw_steps", guides_always),
    "fixed_latents": computing(Decoder, "draw_steps", without("latents")),
    "constant_condition": computing(
        computing(Decoder, "cache_condition", holds), "denoise", takes_any_for_the_held_one
    ),
    "float32_kept": computing(Kept, "_apply", half_of_everything),
}
