"""What a causal language model can honour, found out by trying a small copy of it.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamkit import ConfigError
from dreamkit_transformers.adaptable import pattern, takes_adapter
from dreamkit_transformers.configs import on_meta, one_line, quiet
from dreamkit_transformers.driving import Abilities, Masks, Undrivable, decoder_of, new_cache, run
from dreamkit_transformers.heads import logits_of_head, soft_capped
from dreamkit_transformers.masks import TokenCache
from dreamkit_transformers.norms import is_norm
from dreamkit_transformers.shrinking import SHORT, VOCABULARY, WINDOW, limited_copies, small_copies

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LARGEST = 150_000_000  # parameters of a copy that is tried
TOLERANCE = 1e-3  # of the largest hidden state: rounding is a hundred times less, a leak a hundred times more
FIRST, SECOND = 2 * WINDOW + 3, WINDOW + 2  # tokens of two documents, longer than any window


def abilities(kind: type[PreTrainedModel], config: PreTrainedConfig, key: str = "config") -> Abilities:
    """What models of this class and config can do; found once in a process for each config. `key` is its setting.

    Raises:
        ConfigError: none can be driven, with the reason.
    """
    values = json.dumps(config.to_dict(), sort_keys=True, default=str)
    found = _abilities(kind, type(config), values)  # type: ignore[arg-type]  # classes are hashable
    if isinstance(found, str):
        raise ConfigError({key: f"{kind.__name__} cannot be used as a language model: {found}"})
    return found


@lru_cache(maxsize=4096)
def _abilities(
    kind: type[PreTrainedModel], config_kind: type[PreTrainedConfig], values: str
) -> Abilities | str:
    """What was found, or the reason why there is nothing to find."""
    config = config_kind.from_dict(json.loads(values))
    if config.is_encoder_decoder:
        return "it has an encoder besides its decoder"
    if config.get_text_config() is not config:
        return "it is more than a decoder of text"
    if getattr(config, "num_hidden_layers", None) is None:
        return "its config does not tell how many layers it has"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), quiet():
            torch.manual_seed(0)
            return _found(kind, config)
    except Undrivable as reason:
        return str(reason)
    except Exception as error:  # a library's code fails in any way it likes
        return f"a copy of it fails: {one_line(error)}"


def _found(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Abilities:
    """What is found with one copy, and is so with another of other sizes."""
    first = _Probe(_small_model(kind, config))
    found = first.abilities()
    other = _Probe(_small_model(kind, config, deeper=True))
    scale, soft_cap = logits_of_head(config, (first.model, other.model), first.ids)
    length = None if _tells_length(config) else _length(kind, config)
    found = replace(found, scale=scale(config), soft_cap=soft_cap, length=length)
    found = replace(found, on_meta=_runs_on_meta(kind, first.model.config, found))
    norm = found.norm if other.norm() == found.norm else None  # not that of the last layer
    for each in dict.fromkeys((norm, None)):
        if other.computes_with(replace(found, norm=each, scale=scale(other.model.config))):
            return replace(found, norm=each)
    raise Undrivable("its logits are not what its embedding, decoder and head give one after the other")


def _runs_on_meta(kind: type[PreTrainedModel], config: Any, found: Abilities) -> bool:
    positions = torch.arange(2)[None]

    def trial() -> Tensor:
        embeds = torch.zeros(1, 2, getattr(config, found.width))
        decoder = decoder_of(make(kind, config))
        return run(
            decoder, found.masks, embeds, positions.to("meta"), torch.zeros_like(positions, device="meta")
        )

    try:
        on_meta(trial)
    except ConfigError:
        return False
    return True


def _tells_length(config: Any) -> bool:
    return bool(getattr(config, "max_position_embeddings", None))


def _length(kind: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
    """The config's name for the longest text, where there is one: made small, it lets no longer text through."""
    for name, small in limited_copies(config):
        try:
            model = make(kind, small).eval()
            decoder_of(model)(torch.zeros(1, SHORT, dtype=torch.long), use_cache=False)
        except Exception:  # some other number, which cannot be as small
            continue
        try:
            decoder_of(model)(torch.zeros(1, SHORT + 1, dtype=torch.long), use_cache=False)
        except Exception:
            return name
    return None


def _small_model(
    kind: type[PreTrainedModel], config: PreTrainedConfig, deeper: bool = False
) -> PreTrainedModel:
    """The first of its small copies that runs, with weights that all matter."""
    reasons = []
    for small in small_copies(config, deeper):
        try:
            outline = on_meta(partial(make, kind, small))
            count = sum(parameter.numel() for parameter in outline.parameters())
            if count > LARGEST:
                reasons.append(
                    f"what it does is tried on a small copy, but one of it has {count:,} parameters"
                )
                continue
            model = make(kind, small).eval()
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            decoder_of(model)(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
        except Exception as error:  # a library's code fails in any way it likes
            reasons.append(f"a copy of it does not run: {one_line(error.__cause__ or error)}")
        else:
            return model
    raise Undrivable(
        "; ".join(dict.fromkeys(reasons))
        or "no small copy of it can be made, on which to try what it does: its config is of one size"
    )


def make(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, in float32, with the library's choice of an attention that takes masks."""
    attention = "sdpa" if kind._supports_sdpa else "eager"
    return kind._from_config(config, attn_implementation=attention, dtype=torch.float32)


class _Probe:
    """One small model and two texts, which the library computes by itself to compare with."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder = decoder_of(model)
        if self.decoder is model:
            raise Undrivable("the library does not tell its decoder from its head")
        self.embedding = model.get_input_embeddings()
        if not isinstance(self.embedding, nn.Embedding) or not isinstance(
            model.get_output_embeddings(), nn.Linear
        ):
            raise Undrivable("its words have no embedding matrix, or its head is none")
        self.ids = torch.randint(3, VOCABULARY, (2, FIRST))
        self.texts = [self.ids[:1], self.ids[1:, :SECOND]]
        self.embeds = [self.embedding(ids) for ids in self.texts]
        self.wanted = [self.decoder(ids, use_cache=False).last_hidden_state for ids in self.texts]

    def abilities(self) -> Abilities:
        self._can_be_driven()
        masks: Masks = next((each for each in self._masks_to_try() if self._packs(each)), "none")
        cache, width = self._caches(masks), self._width()
        return Abilities(self.norm(), masks, cache, self._linear_layers(), width)

    def computes_with(self, found: Abilities) -> bool:
        """Whether its logits are those of its parts, used in the way that was found."""
        wanted = self.model(self.texts[0], use_cache=False).logits
        norm: nn.Module = nn.Identity()
        if found.norm is not None:
            norm = self.model.get_submodule(found.norm)
            self.model.set_submodule(found.norm, nn.Identity())
        position_ids = torch.arange(FIRST)[None]
        try:
            hidden = run(
                self.decoder, found.masks, self.embeds[0], position_ids, torch.zeros_like(position_ids)
            )
            logits = found.scale * self.model.get_output_embeddings()(norm(hidden))
        except Exception:  # a model that reads its norm's weights finds none
            return False
        finally:
            if found.norm is not None:
                self.model.set_submodule(found.norm, norm)
        return _same(soft_capped(logits, found.soft_cap), wanted)

    def _can_be_driven(self) -> None:
        text, embeds, wanted = self.texts[0], self.embeds[0], self.wanted[0]
        if not _same(self.decoder(text[:, :-2], use_cache=False).last_hidden_state, wanted[:, :-2]):
            raise Undrivable("its tokens see those that come after them")
        try:
            found = self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        except Exception as error:
            raise Undrivable(f"it takes no inputs_embeds: {one_line(error)}") from error
        if not _same(found, wanted):
            raise Undrivable("embeddings give it other hidden states than the tokens they belong to")
        if found.shape != embeds.shape:
            raise Undrivable(
                f"its embeddings have width {embeds.shape[-1]}, but its hidden states {found.shape[-1]}"
            )

    def _width(self) -> str:
        """The config's name for the width of the embedding."""
        width, config = self.embeds[0].shape[-1], self.model.config
        if config.hidden_size == width:
            return "hidden_size"
        names = (name for name, value in config.to_dict().items() if value == width and name.endswith("_dim"))
        name = next(names, None)
        if name is None:
            raise Undrivable(f"its embeddings have width {width}, which its config does not tell")
        return name

    def norm(self) -> str | None:
        """The name of the module that makes the last hidden states, where it is a norm and does nothing else."""
        made, last = self._called()
        dim = last.shape[-1]
        names = [
            name
            for name, (output, *more) in made.items()
            if not more
            and isinstance(output, Tensor)
            and output.numel() == last.numel()
            and torch.equal(output.reshape(last.shape), last)
        ]
        return next((name for name in reversed(names) if is_norm(self.model.get_submodule(name), dim)), None)

    def _linear_layers(self) -> frozenset[str]:
        """Patterns of linear layers that are called: one whose weights are read elsewhere, as by a kernel, is not."""
        called, _ = self._called()
        self.model.train()
        called_in_training, _ = self._called()
        self.model.eval()
        both = called.keys() & called_in_training.keys()
        return frozenset(pattern(name) for name in both if takes_adapter(self.model, name))

    def _called(self) -> tuple[dict[str, list[Any]], Tensor]:
        """All that each module gives for a text, by the module's name; and the last hidden states."""
        given: dict[str, list[Any]] = {}

        def note(name: str) -> Any:
            return lambda _module, _inputs, output: given.setdefault(name, []).append(output)

        hooks = [module.register_forward_hook(note(name)) for name, module in self.model.named_modules()]
        last = self.decoder(self.texts[0], use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        return given, last

    def _masks_to_try(self) -> Iterator[Masks]:
        if getattr(self.model.config, "layer_types", None) is not None:
            yield "by type"
        yield "one"

    def _packs(self, masks: Masks) -> bool:
        """Whether two documents in a row, among padding, are what each is alone."""
        noise = 10 * torch.randn(1, 2, self.embeds[0].shape[-1])
        embeds = torch.cat([noise, self.embeds[0], noise, self.embeds[1], noise], 1)
        position_ids, segment_ids = [], []
        for length, segment in ((2, -1), (FIRST, 0), (2, -1), (SECOND, 1), (2, -1)):
            position_ids.append(torch.arange(length))
            segment_ids.append(torch.full((length,), segment))
        try:
            found = run(
                self.decoder, masks, embeds, torch.cat(position_ids)[None], torch.cat(segment_ids)[None]
            )
        except Exception:  # masks that a model does not know fail in any way
            return False
        first, second = found[:, 2 : 2 + FIRST], found[:, 4 + FIRST : 4 + FIRST + SECOND]
        return bool(found.isfinite().all()) and _same(first, self.wanted[0]) and _same(second, self.wanted[1])

    def _caches(self, masks: Masks) -> bool:
        """Whether two documents that go on by turns, with empty slots between, are what each is alone."""
        cache = new_cache(self.model.config, masks)
        done, pieces = [0, 0], [[], []]  # type: ignore[var-annotated]
        try:
            for counts in (
                (WINDOW, WINDOW - 1),
                (1, 0),
                (0, 1),
                (FIRST - WINDOW - 2, 1),
                (1, SECOND - WINDOW - 1),
            ):
                hidden = self._step(masks, cache, done, counts)
                if not hidden.isfinite().all():
                    return False
                for row, count in enumerate(counts):
                    pieces[row].append(hidden[row, :count])
                    done[row] += count
        except Exception:
            return False
        return all(_same(torch.cat(pieces[row])[None], self.wanted[row]) for row in (0, 1))

    def _step(self, masks: Masks, cache: TokenCache, done: list[int], counts: tuple[int, ...]) -> Tensor:
        width = max(counts)
        embeds = torch.randn(2, width, self.embeds[0].shape[-1])
        position_ids, segment_ids = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), -1)
        for row, count in enumerate(counts):
            embeds[row, :count] = self.embeds[row][0, done[row] : done[row] + count]
            position_ids[row, :count] = torch.arange(done[row], done[row] + count)
            segment_ids[row, :count] = 0
        return run(self.decoder, masks, embeds, position_ids, segment_ids, cache)


def _same(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool(
        (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    )
