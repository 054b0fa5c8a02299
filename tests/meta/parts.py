"""Working parts: the base classes of culprits, and others that differ from them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.projectors import Linear
from dreamkit.scaffold.parts.image_decoder import NewPart
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.siglip import Siglip
from meta.breaking import with_spec
from meta.datasets import Computed, Notes, Sampled


class Tower(Siglip):
    """A vision encoder without a library to compare with, so that a mistake fails only its own check."""

    def library_forward(self, pixels_NCHW):
        return None


class Words(Llama):
    """A language model without a library to compare with."""

    def library_forward(self, ids_BT):
        return None


class Plain(Linear):
    """A projector without `dense_layers`."""

    def dense_layers(self):
        return None


class Decoder(NewPart):
    """A small image decoder with `meta_modules`."""

    @classmethod
    def meta_modules(cls, config):
        with torch.device("meta"):
            return cls(config)


class LibraryDecoder(Decoder):
    """An image decoder that compares with its own network as its library."""

    def library_forward(self, noisy, timesteps_N, condition, extras):
        return self.network(noisy, timesteps_N, condition)


class Extra(with_spec(Decoder, resized_side=None)):
    """A decoder whose extras are the size of the image."""

    def preprocess(self, pictures):
        corners = torch.tensor([[float(picture.width), float(picture.height)] for picture in pictures])
        return super().preprocess(pictures)[0], {"corners": corners / 1000}

    def default_extras(self, count, size):
        return {"corners": torch.zeros(count, 2)}

    def denoise(self, noisy, timesteps_N, condition, extras):
        shift = extras["corners"].sum(-1)[:, None, None, None]
        return super().denoise(noisy, timesteps_N, condition, extras) + shift.to(noisy.dtype)


class NoPosterior(Decoder):
    """A decoder without a posterior: it overrides `encode`."""

    posterior_module = None
    posterior = ImageDecoder.posterior

    def encode(self, targets_NCHW, generator=None):
        return targets_NCHW


class Float32Decoder(with_spec(Decoder, float32_modules=("vae",))):
    """A decoder whose last layer must stay in float32."""

    def __init__(self, config):
        super().__init__(config)
        self.vae = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def trainable_parameters(self):
        return self.network.parameters()

    def decode(self, latents):
        return super().decode(self.vae(latents.to(self.vae.weight.dtype)))


class PosteriorDecoder(Decoder):
    """A decoder whose latents are sampled around the output of a layer."""

    posterior_module = "vae"

    def __init__(self, config):
        super().__init__(config)
        self.vae = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def trainable_parameters(self):
        return self.network.parameters()

    @torch.no_grad()
    def posterior(self, targets_NCHW):
        mean = self.vae(targets_NCHW)
        return mean, 0.1 * torch.ones_like(mean)


class WrongPosteriorModule(PosteriorDecoder):
    """A decoder whose `posterior_module` is another module."""

    posterior_module = "network"


class NoPosteriorModule(PosteriorDecoder):
    """A decoder with `posterior`, but without `posterior_module`."""

    posterior_module = None


class Misspelled(PosteriorDecoder):
    """A decoder whose `posterior_module` does not exist."""

    posterior_module = "vea"


class NoPosteriorMethod(NoPosterior):
    """A decoder with `posterior_module`, but without `posterior`."""

    posterior_module = "network"


class Zeros(Plain):
    """A projector with a matrix of zeros, a frequent initial value of last layers."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        torch.nn.init.zeros_(self.layer.weight)


class Resampler(Plain):
    """A projector with its own number of tokens: learned latents attend to the input."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.latents = nn.Parameter(torch.randn(spec.out_tokens, spec.in_dim))

    @classmethod
    def infer_spec(cls, config, *, in_dim, in_tokens, out_dim):
        return dataclasses.replace(
            super().infer_spec(config, in_dim=in_dim, in_tokens=in_tokens, out_dim=out_dim), out_tokens=3
        )

    def forward(self, tokens):
        weights = (self.latents @ tokens.transpose(1, 2)).softmax(-1)
        return super().forward(weights @ tokens)


class Pooled(Decoder):
    """A decoder that requires a pooled vector, 5 context tokens and its default size."""

    @classmethod
    def infer_spec(cls, config):
        return dataclasses.replace(super().infer_spec(config), pooled_dim=6, context_tokens=5)

    def denoise(self, noisy, timesteps_N, condition, extras):
        if condition.context.shape[1] != 5 or condition.pooled is None:
            raise ValueError("expected 5 context tokens and a pooled vector")
        if noisy.shape[-2:] != (self.spec.image_size, self.spec.image_size):
            raise ValueError(f"expected images of {self.spec.image_size} pixels")
        shift = condition.pooled.mean(-1)[:, None, None, None]
        return super().denoise(noisy, timesteps_N, condition, extras) + shift


MINIMAL = {"packing": False, "cache": False, "bos_id": None, "reserved_tokens": ("</s>", "<pad>")}


class Minimal(with_spec(Words, **MINIMAL)):
    """A language model without packing, cache and bos."""

    def forward(self, embeds_BTD, position_ids_BT, segment_ids_BT, cache=None):
        assert cache is None
        return super().forward(embeds_BTD, position_ids_BT, segment_ids_BT)


# registered by an installed plug-in, and so are their subclasses
BASES = {
    "vision_encoder": Tower,
    "language_model": Words,
    "projector": Plain,
    "image_decoder": Decoder,
    "dataset": Notes,
}

SOUND = [
    ("projector", Zeros),
    ("projector", Resampler),
    ("image_decoder", Extra),
    ("image_decoder", Pooled),
    ("image_decoder", Float32Decoder),
    ("image_decoder", PosteriorDecoder),
    ("image_decoder", NoPosterior),
    ("language_model", Minimal),
    ("language_model", with_spec(Words, sliding_window=4096)),
    ("dataset", Sampled),
    ("dataset", Computed),
]
