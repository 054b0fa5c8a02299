"""The losses of a training step (arXiv 2309.11499, section 3).

Shape suffixes are those of `dreamkit.parts` and `dreamkit.data.batch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dreamkit.data.batch import Batch
from dreamkit.parts.sampling import sample_latents

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel


class Losses(NamedTuple):
    """The losses of one training step.

    Attributes:
        loss: the weighted sum (), for the backward pass.
        lm: the language-model loss (), detached and without its weight.
        denoising: the denoising loss (), detached and without its weight.
        by_document: the detached loss of each document (documents,), to find one that is not finite.
    """

    loss: Tensor
    lm: Tensor
    denoising: Tensor
    by_document: Tensor


def training_losses(model: DreamModel, batch: Batch, counts: Tensor | None = None) -> Losses:
    """Compute the losses of a batch. Arguments are those of `DreamModel.forward`."""
    counts = (batch.counts if counts is None else counts).clamp(min=1)
    spans = {"spans": batch.spans} if model.language_model.spec.document_attention else {}
    hidden_RD = rearrange(model.language_model(*model.inputs(batch), **spans), "b t d -> (b t) d")
    image_loss_M = model.image_losses(hidden_RD, batch) * batch.draw_weight_M
    # Last, so that the backward pass begins with it and its gradients are freed first.
    label_sum, label_loss_L = model.label_losses(hidden_RD, batch)
    lm, denoising = label_sum / counts[0], image_loss_M.sum() / counts[1]
    by_document = image_loss_M.new_zeros(len(batch.documents))
    weighted_L = (label_loss_L * batch.label_weight_L).to(by_document.dtype)
    by_document = by_document.index_add(0, batch.label_document_L, weighted_L)
    by_document = by_document.index_add(0, batch.draw_document_M, image_loss_M.detach())
    return Losses(
        loss=model.lm_weight * lm + model.denoising_weight * denoising,
        lm=lm.detach(),
        denoising=denoising.detach(),
        by_document=by_document,
    )


def image_losses(model: DreamModel, hidden_RD: Tensor, batch: Batch) -> Tensor:
    """Compute the denoising loss (M,) of the images to draw from hidden states before the final norm."""
    base_M = batch.dream_rows_MQ[:, 0]
    if batch.unconditional_rows_Q is not None:
        drop_M = batch.drop_M
        if drop_M is None:
            drop_M = torch.rand(base_M.shape[0], device=base_M.device) < batch.condition_drop
        base_M = torch.where(drop_M, batch.unconditional_rows_Q[0], base_M)
    condition = model.image_condition(hidden_RD, base_M)
    latents = model.latents(batch)
    noise = None if batch.noise is None else batch.noise.to(latents.dtype)
    return model.image_decoder.loss(latents, condition, batch.extras, noise=noise, timesteps=batch.timesteps)


def latents_to_draw(model: DreamModel, batch: Batch) -> Tensor:
    """Return scaled latents (M, c, h, w) of the images to draw, sampled from their posterior if it is not fixed."""
    if batch.latents is not None:
        return batch.latents
    noise = batch.posterior_noise
    if batch.latent_mean_Mchw is not None:
        return sample_latents(batch.latent_mean_Mchw, batch.latent_std_Mchw, noise=noise)
    targets_MCHW = batch.targets_MCHW
    assert targets_MCHW is not None, "a batch has targets or moments of its images to draw"
    if noise is not None:
        return sample_latents(*model.image_decoder.posterior(targets_MCHW), noise=noise)
    if batch.encode_seeds is None:
        return model.image_decoder.encode(targets_MCHW)
    # One call for each image: one generator for all would make an image's latents depend on the others.
    generators = [torch.Generator(targets_MCHW.device).manual_seed(seed) for seed in batch.encode_seeds]
    images = zip(targets_MCHW.split(1), generators, strict=True)
    return torch.cat([model.image_decoder.encode(image, generator) for image, generator in images])
