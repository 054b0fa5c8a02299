"""The model: four kinds of parts composed, with its two losses.

Shape suffixes are those of `dreamkit.parts` and `dreamkit.data.batch`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from dreamkit.data.batch import Batch, Collator, ImageCache
from dreamkit.data.image_noise import ImageNoise
from dreamkit.data.sequence import Sequencer
from dreamkit.earlier_names import EarlierName, with_earlier_arguments
from dreamkit.errors import DreamkitError
from dreamkit.kernels import usable
from dreamkit.kernels.assemble_embeddings import assemble_embeddings, fill_slots
from dreamkit.kernels.label_loss import LabelLoss, label_loss
from dreamkit.kernels.query_projection import rows_of
from dreamkit.model.conditioning import fused_condition
from dreamkit.model.document_rows import Rows
from dreamkit.model.drawing import draw_images
from dreamkit.model.evaluating import evaluating
from dreamkit.model.events import Event
from dreamkit.model.generation import generate
from dreamkit.model.input_maker import InputMaker
from dreamkit.model.likelihood import LogLikelihood, log_likelihoods
from dreamkit.model.likelihood_pairs import pairs_of
from dreamkit.model.losses import Losses, image_losses, latents_to_draw, training_losses
from dreamkit.model.prompts import Prompt, prompt_documents
from dreamkit.model.trainable import reached_parts, set_trainable
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.language import LanguageModel
from dreamkit.parts.part import Part
from dreamkit.parts.projector import Projector
from dreamkit.parts.specs import Condition
from dreamkit.parts.vision import VisionEncoder
from dreamkit.recipe.generation_section import GenerationSection
from dreamkit.recipe.sections import PARTS, TRAINABLE, Recipe
from dreamkit.recipe.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

QUERY_STD = 0.02  # standard deviation of initial dream queries, as in DreamLLM's published code


class DreamModel(nn.Module):
    """A language model that reads images with a vision encoder and draws them with an image decoder.

    DreamLLM, arXiv 2309.11499. Build it from a recipe, or from parts whose shapes fit each other.

    Args:
        language_model: reads and writes the tokens; the special tokens that it lacks are added.
        vision_encoder: turns an image into V vision tokens.
        image_decoder: draws an image from a condition.
        visual_projector: maps vision tokens to width D.
        condition_projector: maps dream states (N, Q, D) to the context (N, Q', C).
        pooled_projector: maps the mean of the dream states to the pooled vector (N, P); None if the decoder takes none.
        dream_queries: number Q of dream queries.
        special_tokens: names of the tokens around images; None is the published names.
        lm_weight: weight of the language-model loss.
        denoising_weight: weight of the denoising loss; 10 in the published stages II and III.

    Attributes:
        recipe: recipe that the model was built from; None if it was built from parts.
        sources: source of each part's weights by the part's name, None for random weights.
        changed: names of the tensors that may differ from their source: once trainable, or read from a checkpoint.
        dream_queries: trained inputs (Q, D) whose hidden states become an image's condition.
        token_ids: ids of the special tokens by their names.
    """

    PARTS: ClassVar[tuple[str, ...]] = PARTS
    TRAINABLE: ClassVar[tuple[str, ...]] = TRAINABLE

    recipe: Recipe | None = None
    sources: dict[str, str | None]
    changed: set[str]

    vm_weight = EarlierName("denoising_weight")
    drawn_from = EarlierName("image_condition")

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
        """Return the model's parts by name."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    def sequencer(self, max_length: int | None = None) -> Sequencer:
        """Return a sequencer that turns documents into this model's sequences.

        A sequence has at most `max_length` tokens; None is the language model's own limit.
        """
        return Sequencer(
            self.language_model,
            self.token_ids,
            self.special_tokens,
            vision_tokens=self.visual_projector.spec.out_tokens,
            dream_queries=len(self.dream_queries),
            max_length=max_length,
        )

    def collator(self, recipe: Recipe, cache: ImageCache | None = None) -> Collator:
        """Return the function that makes the batches of a training by `recipe`, with outputs from `cache`."""
        return Collator(
            self.sequencer(recipe.train.max_length),
            self.vision_encoder.preprocess,
            self.image_decoder.preprocess,
            packing=recipe.train.packing,
            condition_drop=recipe.loss.condition_drop,
            cache=cache,
            noise=ImageNoise(recipe.train.seed, self.image_decoder),
            is_float64=recipe.train.precision == "float64",
        )

    def set_trainable(self, names: Collection[str]) -> None:
        """Make the named parts and all adapters trainable, and freeze everything else.

        `names` are names of `TRAINABLE`. `new_tokens` are the rows of added tokens: they can be trained while the
        language model is frozen. `condition_projector` includes a pooled projector, which most recipes do not name.

        Raises:
            DreamkitError: an unknown name, a quantized part, or `new_tokens` when no token was added to the vocabulary.
        """
        set_trainable(self, names)

    def reached_parts(self) -> dict[str, Part]:
        """Return the parts that a gradient passes through: they, or parts before them, have trainable parameters."""
        return reached_parts(self)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass, in the parts that it passes through. Call `set_trainable` first.

        Other parts store no activations.
        """
        for part in self.reached_parts().values():
            part.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> Self:
        """Set training mode in parts with trainable parameters; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.parts().values():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def forward(self, batch: Batch, *, counts: Tensor | None = None) -> Losses:
        """Compute the losses of one training step (arXiv 2309.11499, section 3).

        Both are sums over this batch, divided by `counts` (2,): the labelled tokens and the drawn images of the global
        batch, over all processes and accumulation steps. The default is this batch's own counts.
        """
        return training_losses(self, batch, counts)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the language model's inputs: embeddings (B, T, D) with filled slots, positions and segments (B, T)."""
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
        """Return the vision features (N, V, dim), before the projector, of the images to read; compute missing ones."""
        if batch.features_NVd is not None:
            return batch.features_NVd
        return cast(Tensor, self.vision_encoder(batch.pixels_NCHW))

    def latents(self, batch: Batch) -> Tensor:
        """Return scaled latents (M, c, h, w) of the images to draw, sampled from their posterior.

        A batch without random numbers gets a new sample in each call.
        """
        return latents_to_draw(self, batch)

    def label_losses(self, hidden_RD: Tensor, batch: Batch) -> LabelLoss:
        """Compute the cross entropy of the L labelled rows, as a weighted sum and of each; other rows skip the head."""
        rows_LD = self.language_model.final_norm(hidden_RD[batch.label_rows_L])
        return label_loss(self.language_model.logits, rows_LD, batch.label_ids_L, batch.label_weight_L)

    def image_losses(self, hidden_RD: Tensor, batch: Batch) -> Tensor:
        """Compute the denoising loss (M,) of the images to draw."""
        return image_losses(self, hidden_RD, batch)

    def image_condition(self, hidden_RD: Tensor, base_N: Tensor) -> Condition:
        """Return each image's condition, computed from its Q rows of `hidden_RD` (R, D), before the final norm.

        The rows start at the image's row of `base_N` (N,).
        """
        if usable(hidden_RD):
            fused = fused_condition(self, hidden_RD, base_N)
            if fused is not None:
                return fused
        rows_NQ = rows_of(base_N, len(self.dream_queries))
        return self.condition(self.language_model.final_norm(hidden_RD[rows_NQ]))

    def condition(self, dream_states_NQD: Tensor) -> Condition:
        """Return the condition of dream states (N, Q, D), after the final norm; their mean gives the pooled vector."""
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
        **settings: Any,
    ) -> Iterator[Event]:
        """Continue each prompt with text and images; yield each event when it happens. `collect` returns the documents.

        A document depends only on its own prompt and seed, not on the batch. A returned document can be a prompt: at
        temperature 0, a continuation of any beginning of it with the same seed has the same text and images, unless it
        has several beams. The model is in evaluation mode until the iterator ends or is closed.

        Args:
            prompts: documents or strings, one or several.
            seed: one for all documents, or one per document, from 0 to 2**64 - 1. Image n of a document, counted from
                its beginning, is drawn from the noise of (seed, n).
            **settings: fields of a recipe's `generation` section, which replace those of the model's recipe:
                `max_tokens`, `max_images`, `stop`, `ignore_eos` (continue after an end token, up to the limits);
                `temperature` (0 is greedy), `top_k`, `top_p`, `min_p`, `repetition_penalty`; `beams` (above 1: beam
                search, which draws nothing), `length_penalty`; `scheduler`, `steps`, `guidance`, `negative_prompt`,
                `size` ((height, width) of images in pixels; None is the decoder's own); `preview_every` (decode an
                unfinished image after every that many steps; 0: never); `log_probs`, `dream_probs` (probabilities in
                the events, see `TokenScore`).

        Raises:
            DocumentError: a prompt, or the negative prompt, is longer than the model's length, or the number of seeds
                is wrong.
            DreamkitError: a setting is unknown or has a value that a recipe could not have; a seed is not an integer
                in its range; the decoder does not support the size, the scheduler or its number of steps; logits,
                latents or pixels are not finite.
        """
        with evaluating(self):
            documents = prompt_documents(prompts)
            yield from generate(self, documents, seed, settings)

    @torch.no_grad()
    def log_likelihood(
        self, prompts: Sequence[Prompt | Sequence[int]], continuations: Sequence[str | Sequence[int]]
    ) -> list[LogLikelihood]:
        """Return the log probability of each continuation after the prompt of the same index.

        Each pair is read in one pass, as in training, but without the last token of the continuation. The result does
        not depend on other pairs. Images that are the same object are encoded once.

        A text goes on with the prompt's last text, in a conversation with the assistant's. Whitespace at the end of the
        prompt goes to it, and both are tokenized together, as in lm-evaluation-harness (`TemplateLM._encode_pair`).
        After an image, a question or token ids it begins anew, and tokens that a model wrote (`Text.ids`) stay.

        Args:
            prompts: documents, texts, or lists of token ids, to which nothing is added. A prompt without a token is the
                bos token or, if the language model has none, its first eos token.
            continuations: texts, in which names of special tokens are plain text, or lists of token ids.

        Raises:
            DocumentError: the numbers of prompts and continuations differ; a continuation has no token; an id is not
                in the vocabulary; an image cannot be read; a pair without its last token is longer than the model's
                length.
            DreamkitError: logits are not finite.
        """
        with evaluating(self):
            return log_likelihoods(self, pairs_of(self, prompts, continuations))

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: GenerationSection
    ) -> list[Picture | DreamkitError]:
        """Draw one image after each of N prompts, without any text between them.

        Of `options`, those of drawing count: scheduler, steps, guidance, negative prompt and size.
        An image is the first one that `generate` draws with the same seed and settings, if the model draws it at once.
        In place of an image whose values are not finite, the result has the error about them.

        Raises:
            DocumentError: a prompt, or the negative prompt, is longer than the model's length.
            DreamkitError: the decoder does not support the size.
        """
        with evaluating(self):
            return draw_images(self, prompt_documents(prompts), seeds, options)

    @torch.no_grad()
    def dream_states(self, prompts: Prompt | Sequence[Prompt]) -> Tensor:
        """Return the dream states (N, Q, D), after the final norm, that follow each of N prompts.

        Raises:
            DocumentError: a prompt is longer than the model's length.
        """
        maker = InputMaker(self)
        sequences = [maker.sequencer.prompt(document) for document in prompt_documents(prompts)]
        embeds = [torch.cat([prompt, maker.dream_inputs()]) for prompt in maker.prompt_inputs(sequences)]
        hidden = Rows(self, range(len(embeds)), has_cache=False).feed(dict(enumerate(embeds)))
        ends = torch.stack([each[-len(self.dream_queries) :] for each in hidden.values()])
        return self.language_model.final_norm(ends)
