"""Find what a causal language model supports by running a small copy of it.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamkit import ConfigError, describe_error
from dreamkit_transformers.adapter_layers import accepts_adapter, name_pattern
from dreamkit_transformers.configs import on_meta, quiet_library, random_model
from dreamkit_transformers.document_attention import replaced_attention
from dreamkit_transformers.heads import logit_scales, named_soft_cap, soft_capped
from dreamkit_transformers.rope import UnsupportedRopeError, length_dependent, switch_length
from dreamkit_transformers.small_configs import VOCABULARY, WINDOW, small_copies
from dreamkit_transformers.text_decoder import (
    Abilities,
    Masks,
    UnsupportedModelError,
    decoder_of,
    new_cache,
    replaced_module,
    run_decoder,
)
from dreamkit_transformers.token_cache import TokenCache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_PARAMETERS = 150_000_000  # of a copy
TOLERANCE = 1e-3  # of the largest value; rounding errors are 100 times smaller, leaks 100 times larger
# of single steps: rounding errors reach 1e-5, and forms of a recurrence that differ 2e-3
STEP_TOLERANCE = 1e-4
STEPS = 20  # so many that what a recurrence adds up shows
FIRST, SECOND = 2 * WINDOW + 3, WINDOW + 2  # tokens of two documents, longer than any window
NOT_CAUSAL = {"use_bidirectional_attention": True, "is_decoder": False}  # keys that let tokens see later ones
HUGE = 1e6  # logits that only a soft cap would reduce


def find_abilities(kind: type[PreTrainedModel], config: PreTrainedConfig, key: str = "config") -> Abilities:
    """Return the abilities of models of this class and config; each config is probed once per process.

    Raises:
        ConfigError: dreamkit cannot run such a model; the error is at `key`, the setting that names the model.
    """
    values = json.dumps(config.to_dict(), sort_keys=True, default=str)
    result = _probed(kind, type(config), values)  # type: ignore[arg-type]  # classes are hashable
    if isinstance(result, str):
        raise ConfigError({key: f"{kind.__name__} cannot be used as a language model: {result}"})
    return result


@lru_cache(maxsize=4096)
def _probed(kind: type[PreTrainedModel], config_kind: type[PreTrainedConfig], values: str) -> Abilities | str:
    """Return the abilities, or the reason why the model is unsupported."""
    config = config_kind.from_dict(json.loads(values))
    if config.is_encoder_decoder:
        return "it is an encoder-decoder (is_encoder_decoder)"
    if config.get_text_config() is not config:
        return "it is more than a text decoder"
    if getattr(config, "num_hidden_layers", None) is None:
        return "its config has no num_hidden_layers"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), quiet_library():
            torch.manual_seed(0)
            switch_length(config)  # raises for several
            probe = _Probe(_small_model(kind, config))
            return probe.with_logits(probe.abilities(kind), config)
    except (UnsupportedModelError, UnsupportedRopeError) as reason:
        return str(reason)
    except Exception as error:  # model code raises any exception
        return f"a small copy fails: {describe_error(error)}"


def _small_model(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Return the first small copy that runs, with random weights that all affect its output."""
    reasons = []
    for small in small_copies(config):
        try:
            meta_model = on_meta(partial(random_model, kind, small))
            count = sum(parameter.numel() for parameter in meta_model.parameters())
            if count > MAX_PARAMETERS:
                reasons.append(
                    f"expected a small copy of at most {MAX_PARAMETERS:,} parameters, got {count:,}"
                )
                continue
            model = random_model(kind, small).eval()
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            decoder_of(model)(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
        except Exception as error:  # model code raises any exception
            reasons.append(f"a small copy fails: {describe_error(error.__cause__ or error)}")
        else:
            return model
    raise UnsupportedModelError(
        "; ".join(dict.fromkeys(reasons)) or "its config class rejects every small copy of the config"
    )


class _Probe:
    """One small model, two texts, and the hidden states that the library computes for each text alone."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder = decoder_of(model)
        self.head = model.get_output_embeddings()
        self.embedding = model.get_input_embeddings()
        if self.decoder is model:
            raise UnsupportedModelError("its decoder and its head are one module")
        if not isinstance(self.embedding, nn.Embedding) or not isinstance(self.head, nn.Linear):
            raise UnsupportedModelError("its embedding is not a matrix, or its head is not a linear layer")
        self.ids = torch.randint(3, VOCABULARY, (2, FIRST))
        self.texts = [self.ids[:1], self.ids[1:, :SECOND]]
        self.expected = [self.decoder(ids, use_cache=False).last_hidden_state for ids in self.texts]

    @property
    def embeds(self) -> list[Tensor]:
        """The embeddings of both texts, computed anew: CTRL and GIT change their input in place."""
        return [self.embedding(ids) for ids in self.texts]

    def abilities(self, kind: type[PreTrainedModel]) -> Abilities:
        """Return all abilities except those of the head."""
        self._check_embeddings()
        masks: Masks = next((each for each in self._masks_to_try() if self._packs(each)), "none")
        if masks == "none" and (rope_type := length_dependent(self.model.config)) is not None:
            raise UnsupportedModelError(
                f"rope_type '{rope_type}' makes its positions depend on the longest document of a batch; "
                "name a model with another rope_type in its rope_parameters"
            )
        outputs, last_hidden = self._module_outputs()
        cache_padding = self._continues_with_padding(masks)
        return Abilities(
            norm=self._final_norm(outputs, last_hidden),
            masks=masks,
            cache=cache_padding or self._continues_alone(masks),
            cache_padding=cache_padding,
            documents=masks != "none" and self._packs(masks, by_document=True),
            linear_layers=frozenset(
                name_pattern(name) for name in outputs if accepts_adapter(self.model, name)
            ),
            on_meta=self._runs_on_meta(kind, masks),
        )

    def with_logits(self, abilities: Abilities, config: PreTrainedConfig) -> Abilities:
        """Add the scale and the soft cap that `config` names, tested on this copy.

        The final norm is dropped if the model does not compute its logits from the norm's output.
        """
        small = self.model.config
        scales = zip(logit_scales(small), logit_scales(config), strict=True)
        norms = dict.fromkeys((abilities.norm, None))
        soft_caps = dict.fromkeys((named_soft_cap(config), None))
        for norm, (small_scale, scale), soft_cap in product(norms, scales, soft_caps):
            candidate = replace(abilities, norm=norm, scale=small_scale, soft_cap=soft_cap)
            if self._computes_logits(candidate):
                return replace(candidate, scale=scale)
        raise UnsupportedModelError(
            "its logits are not those of its embedding, decoder and head, with a scale and a soft cap of its config"
        )

    def _computes_logits(self, candidate: Abilities) -> bool:
        """Return True if the model's parts, run one after the other, compute its logits."""
        norm = nn.Identity() if candidate.norm is None else self.model.get_submodule(candidate.norm)
        positions = torch.arange(FIRST)[None]
        try:
            with replaced_module(self.model, candidate.norm, nn.Identity()):
                hidden = run_decoder(
                    self.decoder, candidate.masks, self.embeds[0], positions, torch.zeros_like(positions)
                )
        except Exception:  # a model that reads its norm's weights finds none
            return False
        output = candidate.scale * self.head(norm(hidden))
        # large logits show a soft cap that the config does not name
        factor = (HUGE if candidate.soft_cap is None else 2 * candidate.soft_cap) / output.abs().max()
        hook = self.head.register_forward_hook(lambda _module, _inputs, output: factor * output)
        logits = self.model(self.texts[0], use_cache=False).logits
        hook.remove()
        return _close(soft_capped(factor * output, candidate.soft_cap), logits)

    def _check_embeddings(self) -> None:
        """Raise UnsupportedModelError unless the decoder is causal and computes the same from embeddings."""
        text, embeds, expected = self.texts[0], self.embeds[0], self.expected[0]
        if not _close(self.decoder(text[:, :-2], use_cache=False).last_hidden_state, expected[:, :-2]):
            config = self.model.config
            keys = [key for key, value in NOT_CAUSAL.items() if getattr(config, key, None) is value]
            raise UnsupportedModelError(f"its tokens see later tokens{f' ({keys[0]})' if keys else ''}")
        try:
            hidden = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        except Exception as error:
            raise UnsupportedModelError(
                f"it does not accept inputs_embeds: {describe_error(error)}"
            ) from error
        if not _close(hidden, expected):
            raise UnsupportedModelError("its hidden states differ between tokens and their embeddings")
        if hidden.shape != embeds.shape:
            raise UnsupportedModelError(
                f"its embeddings have width {embeds.shape[-1]}, but its hidden states {hidden.shape[-1]}"
            )
        if embeds.shape[-1] != width_of(self.model.config):
            raise UnsupportedModelError(
                f"its config does not name the width {embeds.shape[-1]} of its embeddings"
            )

    def _runs_on_meta(self, kind: type[PreTrainedModel], masks: Masks) -> bool:
        config = self.model.config
        positions = torch.arange(2)[None]

        def run_once() -> Tensor:
            embeds = torch.zeros(1, 2, width_of(config))
            decoder = decoder_of(random_model(kind, config))
            segments = torch.zeros_like(positions, device="meta")
            return run_decoder(decoder, masks, embeds, positions.to("meta"), segments)

        try:
            on_meta(run_once)
        except ConfigError:
            return False
        return True

    def _final_norm(self, outputs: dict[str, list[Any]], last_hidden: Tensor) -> str | None:
        """Return the name of the norm whose output is `last_hidden`, unless it belongs to a layer."""
        for name in reversed(outputs):
            output, *more = outputs[name]
            if (
                "Norm" in type(self.model.get_submodule(name)).__name__
                and name_pattern(name) == name
                and not more
                and isinstance(output, Tensor)
                and output.numel() == last_hidden.numel()
                and torch.equal(output.reshape(last_hidden.shape), last_hidden)
            ):
                return name
        return None

    def _module_outputs(self) -> tuple[dict[str, list[Any]], Tensor]:
        """Return all outputs of each called module for a text, by the module's name; and the last hidden states."""
        outputs: dict[str, list[Any]] = {}

        def record(name: str) -> Any:
            return lambda _module, _inputs, output: outputs.setdefault(name, []).append(output)

        hooks = [module.register_forward_hook(record(name)) for name, module in self.model.named_modules()]
        last_hidden = self.decoder(self.texts[0], use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        return outputs, last_hidden

    def _masks_to_try(self) -> Iterator[Masks]:
        if getattr(self.model.config, "layer_types", None) is not None:
            yield "by type"
        yield "one"

    def _packs(self, masks: Masks, by_document: bool = False) -> bool:
        """Return True if two documents in one row, among padding, get the same hidden states as each alone.

        With `by_document`, attention runs in each of them alone.
        """
        first_embeds, second_embeds = self.embeds
        noise = 10 * torch.randn(1, 2, first_embeds.shape[-1])
        embeds = torch.cat([noise, first_embeds, noise, second_embeds, noise], 1)
        position_ids, segment_ids = [], []
        for length, segment in ((2, -1), (FIRST, 0), (2, -1), (SECOND, 1), (2, -1)):
            position_ids.append(torch.arange(length))
            segment_ids.append(torch.full((length,), segment))
        inputs = (embeds, torch.cat(position_ids)[None], torch.cat(segment_ids)[None])
        spans = ((2, 2 + FIRST), (4 + FIRST, 4 + FIRST + SECOND))
        try:
            if by_document:
                with replaced_attention(self.decoder.config):
                    hidden = run_decoder(self.decoder, masks, *inputs, spans=(spans,))
            else:
                hidden = run_decoder(self.decoder, masks, *inputs)
        except Exception:  # models fail in any way on masks of another form
            return False
        first, second = hidden[:, 2 : 2 + FIRST], hidden[:, 4 + FIRST : 4 + FIRST + SECOND]
        return (
            bool(hidden.isfinite().all())
            and _close(first, self.expected[0])
            and _close(second, self.expected[1])
        )

    def _continues_with_padding(self, masks: Masks) -> bool:
        """Return True if two documents, continued in turn with empty slots, get the same as each alone."""
        steps = (
            (WINDOW, WINDOW - 1),
            (1, 0),
            (0, 1),
            (FIRST - WINDOW - 2, 1),
            (1, SECOND - WINDOW - 1),
        )
        return self._continues(masks, new_cache(self.model.config, masks), self.texts, steps)

    def _continues_alone(self, masks: Masks) -> bool:
        """Return True if two documents of one length, continued in pieces, get the same as each at once.

        Recurrent layers have a form for many tokens and one for a single token. Some round or clamp differently, and
        the difference grows with each token.
        """
        pieces = (WINDOW - 3, 1, 1, 1, SECOND - WINDOW, WINDOW + 1, *[1] * STEPS)
        texts = [*torch.randint(3, VOCABULARY, (2, 1, sum(pieces)))]
        steps = [(tokens, tokens) for tokens in pieces]
        cache = new_cache(self.model.config, masks, padding=False)
        return self._continues(masks, cache, texts, steps, STEP_TOLERANCE)

    def _continues(
        self,
        masks: Masks,
        cache: TokenCache,
        texts: Sequence[Tensor],
        steps: Sequence[tuple[int, int]],
        tolerance: float = TOLERANCE,
    ) -> bool:
        """Return True if each step, of so many tokens in both rows, gives the hidden states of each text alone."""
        lengths = [0, 0]
        grows = length_dependent(self.model.config) is not None  # tokens change when more of them follow
        try:
            whole = [self.decoder(text, use_cache=False).last_hidden_state for text in texts]
            for counts in steps:
                hidden = self._step(masks, cache, texts, lengths, counts)
                if not hidden.isfinite().all():
                    return False
                for row, count in enumerate(counts):
                    lengths[row] += count
                    if not count:
                        continue
                    start, end = lengths[row] - count, lengths[row]
                    expected = whole[row]
                    if grows:
                        expected = self.decoder(texts[row][:, :end], use_cache=False).last_hidden_state
                    if not _close(hidden[row, :count], expected[0, start:end], tolerance):
                        return False
        except Exception:
            return False
        return True

    def _step(
        self,
        masks: Masks,
        cache: TokenCache,
        texts: Sequence[Tensor],
        lengths: list[int],
        counts: tuple[int, int],
    ) -> Tensor:
        """Run the next `counts` tokens of each text, after the `lengths` tokens in `cache`."""
        width = max(counts)
        embeds = torch.randn(2, width, self.embedding.embedding_dim)
        position_ids, segment_ids = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), -1)
        for row, count in enumerate(counts):
            embeds[row, :count] = self.embedding(texts[row][0, lengths[row] : lengths[row] + count])
            position_ids[row, :count] = torch.arange(lengths[row], lengths[row] + count)
            segment_ids[row, :count] = 0
        return run_decoder(self.decoder, masks, embeds, position_ids, segment_ids, cache)


def width_of(config: Any) -> int:
    """Return the width D of embeddings and hidden states; OPT projects them from and to the width of its layers."""
    width: int = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
    return width


def _close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return actual.shape == expected.shape and bool(
        (actual - expected).abs().max() <= tolerance * expected.abs().max()
    )
