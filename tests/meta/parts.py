"""Sound parts: those that culprits are made of, and others that are unlike them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.projectors import Linear
from dreamkit.scaffold.parts.image_decoder import NewPart
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.siglip import Siglip
from meta.breaking import telling


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
    def meta_modules(cls, config):
        with torch.device("meta"):
            return cls(config)


class AskedDecoder(Decoder):
    """One with something like a library behind it."""

    def library_forward(self, noisy, timesteps_N, condition, extras):
        return self.network(noisy, timesteps_N, condition)


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


class Untold(Decoder):
    """A decoder that tells no posterior: its latents are made by an `encode` of its own."""

    posterior_module = None
    posterior = ImageDecoder.posterior

    def encode(self, targets_NCHW, generator=None):
        return targets_NCHW


class Kept(telling(Decoder, float32_modules=("vae",))):
    """A decoder with a last layer that half precision would break."""

    def __init__(self, config):
        super().__init__(config)
        self.vae = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def trainable_parameters(self):
        return self.network.parameters()

    def decode(self, latents):
        return super().decode(self.vae(latents.to(self.vae.weight.dtype)))


class Spread(Decoder):
    """A decoder whose latents are drawn around what a layer makes of the picture."""

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


class Rooted(Spread):
    """One that says of another module that it makes its latents."""

    posterior_module = "network"


class Rootless(Spread):
    """One that does not say what makes its latents."""

    posterior_module = None


class Misspelled(Spread):
    """One that names a module which it has not."""

    posterior_module = "vea"


class Promising(Untold):
    """One that says what makes its latents, and does not tell them."""

    posterior_module = "network"


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
    def infer_spec(cls, config, *, in_dim, in_tokens, out_dim):
        return dataclasses.replace(
            super().infer_spec(config, in_dim=in_dim, in_tokens=in_tokens, out_dim=out_dim), out_tokens=3
        )

    def forward(self, tokens):
        weights = (self.latents @ tokens.transpose(1, 2)).softmax(-1)
        return super().forward(weights @ tokens)


class Pooled(Decoder):
    """A decoder that wants a pooled vector, exactly 5 tokens of context, and no size but its own."""

    @classmethod
    def infer_spec(cls, config):
        return dataclasses.replace(super().infer_spec(config), pooled_dim=6, context_tokens=5)

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


# what an installed plug-in registers, so that parts made of it are registered too
BASES = {"vision_encoder": Tower, "language_model": Words, "projector": Plain, "image_decoder": Decoder}

SOUND = [
    ("projector", Zeros),
    ("projector", Resampler),
    ("image_decoder", Extra),
    ("image_decoder", Pooled),
    ("image_decoder", Kept),
    ("image_decoder", Spread),
    ("image_decoder", Untold),
    ("language_model", Loner),
    ("language_model", telling(Words, sliding_window=4096)),
]
