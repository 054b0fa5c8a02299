"""The model: four parts composed, and its two losses.

Shape suffixes are those of `dreamkit.parts` and `dreamkit.data.batch`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from dreamkit.data.batch import Batch
from dreamkit.data.sequence import Sequencer
from dreamkit.document import Document, Text
from dreamkit.earlier_names import EarlierName, with_earlier_arguments
from dreamkit.errors import DreamkitError, did_you_mean
from dreamkit.kernels import usable
from dreamkit.kernels.assemble_embeddings import assemble_embeddings, fill_slots
from dreamkit.kernels.label_loss import LabelLoss, label_loss
from dreamkit.kernels.query_projection import rows_of
from dreamkit.model.adapters import is_adapter
from dreamkit.model.conditioning import fused_condition
from dreamkit.model.events import Event
from dreamkit.model.generation import Generation
from dreamkit.model.session import Session
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.language import LanguageModel
from dreamkit.parts.part import Part
from dreamkit.parts.projector import Projector
from dreamkit.parts.sampling import sample_latents
from dreamkit.parts.specs import Condition
from dreamkit.parts.vision import VisionEncoder
from dreamkit.recipe.sections import PARTS, TRAINABLE, Recipe
from dreamkit.recipe.special_tokens import SpecialTokens

# what each part is given comes from these
FED_BY: Final[dict[str, tuple[str, ...]]] = {
    "vision_encoder": (),
    "visual_projector": ("vision_encoder",),
    "language_model": ("visual_projector", "dream_queries"),
    "condition_projector": ("language_model",),
    "pooled_projector": ("language_model",),
    "image_decoder": ("condition_projector", "pooled_projector"),
}
Prompt = Document | str
QUERY_STD = 0.02  # initial scale of the dream queries, as in the published code


class Losses(NamedTuple):
    """`loss` is what backward runs on; `lm` and `denoising` are its two detached parts, without their weights.

    `by_document` (documents,) holds each document's detached loss, to find the one that is not finite.
    """

    loss: Tensor
    lm: Tensor
    denoising: Tensor
    by_document: Tensor


class DreamModel(nn.Module):
    """A language model that reads images through one part and draws them through another.

    `recipe` and `sources` (part -> the name its weights came from, or None) say how it was built, where a recipe did.
    `changed` names the tensors that may differ from their source: ever trainable, or read from a checkpoint.
    """

    PARTS: ClassVar[tuple[str, ...]] = PARTS
    TRAINABLE: ClassVar[tuple[str, ...]] = TRAINABLE

    recipe: Recipe | None = None
    sources: dict[str, str | None]
    changed: set[str]

    vm_weight = EarlierName("denoising_weight")

    @with_earlier_arguments(vm_weight="denoising_weight")
    def __init__(
        self,
        *,
        language_model: LanguageModel,
        vision_encoder: VisionEncoder,
        image_decoder: ImageDecoder,
        visual_projector: Projector,
        condition_projector: Projector,
        pooled_projector: Projector | None = None,
        dream_queries: int,
        special_tokens: SpecialTokens | None = None,
        lm_weight: float = 1.0,
        denoising_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.vision_encoder = vision_encoder
        self.image_decoder = image_decoder
        self.visual_projector = visual_projector
        self.condition_projector = condition_projector
        self.pooled_projector = pooled_projector
        self.dream_queries = nn.Parameter(QUERY_STD * torch.randn(dream_queries, language_model.spec.dim))
        self.special_tokens = special_tokens or SpecialTokens()
        names = self.special_tokens.names()
        self.token_ids = dict(zip(names, language_model.add_tokens(names), strict=True))
        self.lm_weight = lm_weight
        self.denoising_weight = denoising_weight
        self.sources = {}
        self.changed = set()

    def parts(self) -> dict[str, Part]:
        """The parts this model has, by name."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    def sequencer(self, max_length: int | None = None) -> Sequencer:
        """What turns documents into this model's sequences, rows of at most `max_length` tokens."""
        return Sequencer(
            self.language_model,
            self.token_ids,
            self.special_tokens,
            vision_tokens=self.visual_projector.spec.out_tokens,
            dream_queries=len(self.dream_queries),
            max_length=max_length,
        )

    def set_trainable(self, names: Collection[str]) -> None:
        """Trains the named parts and nothing else, but for adapters, which are always trained.

        Names are those of `TRAINABLE`; `new_tokens` are the rows of added tokens, which learn under a frozen
        language model too. A pooled projector, which most recipes leave to be inferred, learns where the condition
        projector does, and where it is named.

        Raises:
            DreamkitError: an unknown name, or `new_tokens` where the vocabulary held every token already.
        """
        for name in names:
            if name not in TRAINABLE:
                raise DreamkitError(f"cannot train '{name}'; {did_you_mean(name, TRAINABLE)}")
        rows = self.language_model.added_token_parameters()
        if "new_tokens" in names and not rows:
            raise DreamkitError(
                "cannot train 'new_tokens': the language model's vocabulary already holds "
                f"{', '.join(self.token_ids)}; train 'language_model' or an adapter of it instead"
            )
        if "condition_projector" in names:
            names = {*names, "pooled_projector"}
        for part_name, part in self.parts().items():
            part.requires_grad_(False)
            for parameter in part.trainable_parameters() if part_name in names else ():
                parameter.requires_grad_(True)
            for name, parameter in part.named_parameters():
                if is_adapter(name):
                    parameter.requires_grad_(True)
        for row in rows:
            row.requires_grad_("new_tokens" in names or "language_model" in names)
        self.dream_queries.requires_grad_("dream_queries" in names)
        self.changed |= {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def reached_parts(self) -> dict[str, Part]:
        """The parts that a gradient passes through: something in them learns, or before them."""

        def reached(name: str) -> bool:
            if name == "dream_queries":
                return self.dream_queries.requires_grad
            part = self.parts().get(name)
            own = part is not None and any(parameter.requires_grad for parameter in part.parameters())
            return own or any(reached(feeding) for feeding in FED_BY[name])

        return {name: part for name, part in self.parts().items() if reached(name)}

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass, in the parts that it passes through once `set_trainable` has
        been called; those of other parts are not kept anyway."""
        for part in self.reached_parts().values():
            part.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained; frozen parts stay in evaluation mode: nothing in them drops out."""
        super().train(mode)
        for part in self.parts().values():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def forward(self, batch: Batch, *, counts: Tensor | None = None) -> Losses:
        """One training step's losses.

        Both are sums over this batch divided by `counts`, (2,): the labelled tokens and the drawn images of the global
        batch, over all ranks and accumulation steps (default: this batch's own).
        """
        counts = (batch.counts if counts is None else counts).clamp(min=1)
        hidden_RD = rearrange(self.language_model(*self.inputs(batch)), "b t d -> (b t) d")
        image_loss_M = self.image_losses(hidden_RD, batch) * batch.draw_weight_M
        # last, so that the backward pass begins with it, and its gradients wait for nothing
        label_sum, label_loss_L = self.label_losses(hidden_RD, batch)
        lm, denoising = label_sum / counts[0], image_loss_M.sum() / counts[1]
        by_document = image_loss_M.new_zeros(len(batch.documents))
        weighted_L = (label_loss_L * batch.label_weight_L).to(by_document.dtype)
        by_document = by_document.index_add(0, batch.label_document_L, weighted_L)
        by_document = by_document.index_add(0, batch.draw_document_M, image_loss_M.detach())
        return Losses(
            loss=self.lm_weight * lm + self.denoising_weight * denoising,
            lm=lm.detach(),
            denoising=denoising.detach(),
            by_document=by_document,
        )

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the language model is given: embeddings (B, T, D) with the slots filled, positions and segments."""
        ids_BT = batch.input_ids_BT
        vision_NVD = self.visual_projector(self.features(batch))
        slots = (batch.vision_rows_NV, vision_NVD, batch.query_rows_KQ, self.dream_queries)
        tables = self.language_model.embedding() if usable(ids_BT) else None
        if tables is None:
            embeds_BTD = fill_slots(self.language_model.embed(ids_BT), *slots)
        else:
            embeds_BTD = assemble_embeddings(ids_BT, batch.slots_BT, *slots, *tables)
        return embeds_BTD, batch.position_ids_BT, batch.segment_ids_BT

    def features(self, batch: Batch) -> Tensor:
        """Vision features (N, V, dim) of the images to read, before the projector; computed unless they came along."""
        if batch.features_NVd is not None:
            return batch.features_NVd
        return cast(Tensor, self.vision_encoder(batch.pixels_NCHW))

    def latents(self, batch: Batch) -> Tensor:
        """Scaled latents (M, c, h, w) of the images to draw, sampled anew each time from their posterior."""
        if batch.latents is not None:
            return batch.latents
        if batch.latent_mean_Mchw is not None:
            return sample_latents(batch.latent_mean_Mchw, batch.latent_std_Mchw)
        assert batch.targets_MCHW is not None, "an image to draw is targets or moments"
        return self.image_decoder.encode(batch.targets_MCHW)

    def label_losses(self, hidden_RD: Tensor, batch: Batch) -> LabelLoss:
        """Cross entropy of the rows that have a label, in all and of each; the head runs on no other row."""
        rows_LD = self.language_model.final_norm(hidden_RD[batch.label_rows_L])
        return label_loss(self.language_model.logits, rows_LD, batch.label_ids_L, batch.label_weight_L)

    def image_losses(self, hidden_RD: Tensor, batch: Batch) -> Tensor:
        """Denoising loss (M,) of the images to draw."""
        base_M, drop_M, unconditional = batch.dream_rows_MQ[:, 0], None, None
        if batch.unconditional_rows_Q is not None:
            drop_M = torch.rand(base_M.shape[0], device=base_M.device) < batch.condition_drop
            unconditional = batch.unconditional_rows_Q[0]
        condition = self.image_condition(hidden_RD, base_M, drop_M, unconditional)
        return self.image_decoder.loss(
            self.latents(batch), condition, batch.extras, noise=batch.noise, timesteps=batch.timesteps
        )

    def image_condition(
        self,
        hidden_RD: Tensor,
        base_N: Tensor,
        drop_N: Tensor | None = None,
        unconditional: Tensor | None = None,
    ) -> Condition:
        """What each image is drawn from: the rows of its dream queries, from `base_N` on in `hidden_RD` (R, D).

        `hidden_RD` is before the final norm. Where `drop_N` is true, they are the rows from `unconditional` () on.
        """
        blocks = (base_N, drop_N, unconditional, len(self.dream_queries))
        if usable(hidden_RD):
            fused = fused_condition(
                self.language_model, self.condition_projector, self.pooled_projector, hidden_RD, *blocks
            )
            if fused is not None:
                return fused
        return self.condition(self.language_model.final_norm(hidden_RD[rows_of(*blocks)]))

    def condition(self, dream_states_NQD: Tensor) -> Condition:
        """Dream states, after the final norm -> what the decoder draws from. The pooled vector is of their mean."""
        pooled = None
        if self.pooled_projector is not None:
            pooled = self.pooled_projector(dream_states_NQD.mean(1, keepdim=True)).squeeze(1)
        return Condition(self.condition_projector(dream_states_NQD), pooled=pooled)

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        ignore_eos: bool = False,
        **settings: Any,
    ) -> Iterator[Event]:
        """Go on from each prompt, and yield what happens as it happens; `collect` gathers the documents.

        `seed` is one for every document, or one each: a document depends on its own prompt and seed alone, not on the
        batch it is in. `size` is (height, width) in pixels. `ignore_eos` writes up to the limits. `settings` are the
        fields of a recipe's `generation` section, and take the place of the model's own: `max_tokens`, `max_images`,
        `temperature` (0 is greedy), `top_p`, `scheduler`, `steps`, `guidance`.

        Raises:
            DocumentError: a prompt that does not fit into the model's length, or a number of seeds that is not theirs.
            DreamkitError: an unknown setting, a scheduler that the decoder does not have, or more steps than it takes.
        """
        was_training = self.training
        self.eval()
        try:
            documents = _documents(prompts)
            generation = Generation(
                self, documents, seed=seed, size=size, ignore_eos=ignore_eos, settings=settings
            )
            yield from generation.events()
        finally:
            self.train(was_training)

    @torch.no_grad()
    def dream_states(self, prompts: Prompt | Sequence[Prompt]) -> Tensor:
        """Return the hidden states (N, Q, D) of the dream queries after each prompt, after the final norm."""
        documents = _documents(prompts)
        session = Session(self, len(documents))
        embeds = [torch.cat([prompt, session.dream_inputs()]) for prompt in session.prompt_inputs(documents)]
        hidden = session.feed(dict(enumerate(embeds)))
        return torch.stack([session.dream_states(hidden[number]) for number in range(len(documents))])


def _documents(prompts: Prompt | Sequence[Prompt]) -> list[Document]:
    several = [prompts] if isinstance(prompts, (Document, str)) else list(prompts)
    return [
        Document((Text(p),) if p else (), name=f"prompt {n}") if isinstance(p, str) else p
        for n, p in enumerate(several)
    ]
