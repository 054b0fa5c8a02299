"""What a causal language model can honour, found out by trying a small copy of it.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dreamkit import ConfigError
from dreamkit_transformers.configs import on_meta, one_line, quiet
from dreamkit_transformers.driving import Abilities, Masks, new_cache, run
from dreamkit_transformers.masks import TokenCache
from dreamkit_transformers.norms import is_norm
from dreamkit_transformers.shrinking import VOCABULARY, WINDOW, small_copies

LARGEST = 150_000_000  # parameters of a copy that is tried
TOLERANCE = 1e-3  # of the largest hidden state: rounding is a hundred times less, a leak a hundred times more
FIRST, SECOND = 2 * WINDOW + 3, WINDOW + 2  # tokens of two documents, longer than any window


class Undrivable(Exception):
    """A model that dreamkit cannot use; the message is the reason."""


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
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), quiet():
            torch.manual_seed(0)
            return _Probe(_small_model(kind, config)).abilities()
    except Undrivable as reason:
        return str(reason)


def _small_model(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The first of its small copies that runs, with weights that all matter."""
    reasons = []
    for small in small_copies(config):
        try:
            outline = on_meta(partial(make, kind, small))
            count = sum(parameter.numel() for parameter in outline.parameters())
            if count > LARGEST:
                reasons.append(f"a copy of it has {count:,} parameters, too many to try it")
                continue
            model = make(kind, small).eval()
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.base_model(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
        except Exception as error:  # a library's code fails in any way it likes
            reasons.append(f"a copy of it does not run: {one_line(error.__cause__ or error)}")
        else:
            return model
    raise Undrivable("; ".join(reasons) or "its config takes no other number of layers")


def make(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, in float32, with the library's choice of an attention that takes masks."""
    attention = "sdpa" if kind._supports_sdpa else "eager"
    return kind._from_config(config, attn_implementation=attention, dtype=torch.float32)


class _Probe:
    """One small model and two texts, which the library computes by itself to compare with."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder = model.base_model
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
        scale, soft_cap = self._head()
        masks: Masks = next((each for each in self._masks_to_try() if self._packs(each)), "none")
        norm = self._norm()
        cache, width = self._caches(masks), self._width()
        return Abilities(norm, masks, cache, self._linear_layers(), width, scale, soft_cap)

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

    def _norm(self) -> str | None:
        """The name of the module that makes the last hidden states, where it is a norm."""
        made, last = self._called()
        dim = last.shape[-1]
        names = [
            name
            for name, output in made.items()
            if isinstance(output, Tensor)
            and output.numel() == last.numel()
            and torch.equal(output.reshape(last.shape), last)
        ]
        return next((name for name in reversed(names) if is_norm(self.model.get_submodule(name), dim)), None)

    def _linear_layers(self) -> tuple[str, ...]:
        """Names of linear layers that are called: one whose weights are read elsewhere, as by a kernel, is not."""
        called, _ = self._called()
        self.model.train()
        called_in_training, _ = self._called()
        self.model.eval()
        return tuple(
            dict.fromkeys(
                name.rpartition(".")[2]
                for name in called
                if name in called_in_training and self._takes_adapter(name)
            )
        )

    def _takes_adapter(self, name: str) -> bool:
        parent, _, last = name.rpartition(".")
        # kernels of state space models read the weights of this one, for which peft refuses it
        read_by_kernel = last == "out_proj" and any(
            isinstance(sibling, nn.Conv1d) for sibling in self.model.get_submodule(parent).children()
        )
        return isinstance(self.model.get_submodule(name), nn.Linear | Conv1D) and not read_by_kernel

    def _called(self) -> tuple[dict[str, Any], Tensor]:
        """What each module gives for a text, by the module's name, in order; and the last hidden states."""
        given: dict[str, Any] = {}

        def note(name: str) -> Any:
            return lambda _module, _inputs, output: given.__setitem__(name, output)

        hooks = [module.register_forward_hook(note(name)) for name, module in self.model.named_modules()]
        last = self.decoder(self.texts[0], use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        return given, last

    def _head(self) -> tuple[float, float | None]:
        """The scale and the soft cap of the logits.

        A soft cap is a number of the config, as is a scale, or one over it.
        """
        raw = self.model.get_output_embeddings()(self.wanted[0])
        logits = self.model(self.texts[0], use_cache=False).logits
        numbers = {
            float(v) for v in self.model.config.to_dict().values() if type(v) in (int, float) and v > 0
        }
        scales = [1.0, *numbers, *(1 / number for number in numbers)]
        for scale in scales:
            if _same(scale * raw, logits):
                return scale, None
        for cap in numbers:
            if _same(cap * torch.tanh(raw / cap), logits):
                return 1.0, cap
        raise Undrivable(
            "its logits are not those of its head, nor a number of its config times them, nor soft-capped"
        )

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
