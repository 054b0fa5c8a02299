"""Culprits of the checks of language models."""

from __future__ import annotations

import torch

import meta.breaking as broken
from dreamkit.parts.specs import ChatTemplate
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from meta.breaking import with_method, with_part_change, with_spec
from meta.parts import Words


def fails_beyond_40_tokens(self, forward, embeds, positions, segments, cache=None):
    if embeds.shape[1] > 40:
        raise IndexError(f"index {embeds.shape[1]} is out of range")
    return forward(embeds, positions, segments, cache)


def mixes_rows(self, forward, embeds, positions, segments, cache=None):
    hidden = forward(embeds, positions, segments, cache)
    return hidden if cache is not None else hidden + 0.1 * (hidden.mean(0, keepdim=True) - hidden)


def attends_to_later_tokens(self, forward, embeds, positions, segments, cache=None):
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] >= 0)
    mean = (same.to(embeds.dtype) @ embeds) / same.sum(-1, keepdim=True).clamp(min=1)
    return forward(embeds, positions, segments, cache) + 0.1 * mean


def attends_to_padding(self, forward, embeds, positions, segments, cache=None):
    hidden = forward(embeds, positions, segments, cache)
    if cache is not None:
        return hidden
    padding = (segments == -1)[..., None].to(embeds.dtype)
    return hidden + 0.1 * (padding * embeds).sum(1, keepdim=True)


def attends_to_other_documents(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions, segments if cache is not None else segments.clamp(max=0), cache)


def attends_to_empty_slots(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions, segments if cache is None else segments.clamp(min=0), cache)


def embeds_batches_only(self, embed, ids):
    if ids.dim() != 2:
        raise IndexError(f"expected ids of 2 dimensions, got {ids.dim()}")
    return embed(ids)


def returns_a_wrong_scale(self, embedding):
    return embedding()._replace(scale=torch.tensor(1.01))


def returns_gemmas_offset(self):
    return Words.norm_weights.fget(self)._replace(offset=1.0)


def lowercases(self, tokenize, text, special=False):
    return tokenize(text.lower(), special)


def always_parses_special_tokens(self, tokenize, text, special=False):
    return tokenize(text, special=True)


def saves_another_tokenizer(self, save, folder):
    byte_tokenizer().save_pretrained(folder)


def returns_copies(self, original):
    return [torch.nn.Parameter(row.detach().clone()) for row in original()]


def has_no_end_of_turn(part):
    part.chat = ChatTemplate(user=("USER:", ""), assistant=("ASSISTANT:", ""))


def ignores_prompt(self, conversation, turns, prompt):
    return conversation(turns, prompt=False)


def has_no_flags_in_prompts(self, conversation, turns, prompt):
    ids, labelled = conversation(turns, prompt)
    return ids, [] if prompt else labelled


def ends_before_the_answer(self, conversation, turns, prompt):
    return conversation(turns, prompt and turns[-1].role == "assistant")


def ignores_cached_positions(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions if cache is None else torch.zeros_like(positions), segments, cache)


def reverses_ids(self, embed, ids):
    return embed(ids.flip(-1) if ids.dim() == 1 else ids)


def ignores_spans(self, forward, embeds, positions, segments, cache=None, spans=None):
    return forward(embeds, positions, segments, cache)


class FixedRows(Words):
    """A language model whose rows stay."""

    def select_rows(self, cache, rows):
        return False

    def copy_rows(self, cache, rows):
        return None

    def join_rows(self, cache, other):
        return False

    def truncate_rows(self, cache, lengths):
        return False


def copies_nothing(self, select_rows, cache, rows):
    return select_rows(cache, list(dict.fromkeys(rows)))


def loses_tokens_of_others(self, join_rows, cache, other):
    self.truncate_rows(other, [length - 1 for length in other.lengths()])
    return join_rows(cache, other)


def keeps_one_token_less(self, truncate_rows, cache, lengths):
    return truncate_rows(cache, [length - 1 for length in lengths])


def truncates_and_refuses(self, truncate_rows, cache, lengths):
    truncate_rows(cache, lengths)
    return False


def copies_and_refuses(self, copy_rows, cache, rows):
    self.truncate_rows(cache, [length - 1 for length in cache.lengths()])


class UnknownSize(Words):
    """A language model that does not know the memory of its caches."""

    def cache_bytes(self, cache):
        return None


def copies_all_rows_unless_reordered(self, copy_rows, cache, rows):
    every = [*range(len(cache.lengths()))]
    return copy_rows(cache, rows if sorted(rows) == every else every)


def copies_the_shortest_length(self, copy_rows, cache, rows):
    copied = copy_rows(cache, rows)
    self.truncate_rows(copied, [min(cache.lengths())] * len(rows))
    return copied


class KeepsOriginals(Words):
    """A language model whose copies hold the cache that they are from."""

    def copy_rows(self, cache, rows):
        copied = super().copy_rows(cache, rows)
        copied.original = cache
        return copied

    def cache_bytes(self, cache):
        original = getattr(cache, "original", None)
        return super().cache_bytes(cache) + (0 if original is None else super().cache_bytes(original))


def never_shrinks(self, cache_bytes, cache):
    cache.peak = max(cache_bytes(cache), getattr(cache, "peak", 0))
    return cache.peak


LANGUAGE_MODEL = {
    "spec_agrees": with_method(Words, "forward", fails_beyond_40_tokens),
    "batch_invariance": with_method(Words, "forward", mixes_rows),
    "library_agrees": with_method(Llama, "library_forward", broken.changes_the_library),
    "causality": with_method(with_spec(Words, cache=False), "forward", attends_to_later_tokens),
    "padding_invariance": with_method(Words, "forward", attends_to_padding),
    "packing_invariance": with_method(Words, "forward", attends_to_other_documents),
    "document_attention": with_spec(with_method(Llama, "forward", ignores_spans), document_attention=True),
    "cached_decoding": with_method(FixedRows, "forward", attends_to_empty_slots),
    "selected_rows": with_method(Words, "select_rows", copies_nothing),
    "joined_rows": with_method(Words, "join_rows", loses_tokens_of_others),
    "truncated_rows": with_method(Words, "truncate_rows", keeps_one_token_less),
    "copied_rows": with_method(UnknownSize, "copy_rows", lambda self, copy_rows, cache, rows: cache),
    "refused_rows": with_method(Words, "truncate_rows", truncates_and_refuses),
    "cache_size": with_method(Words, "cache_bytes", never_shrinks),
    "embed_any_shape": with_method(Words, "embed", embeds_batches_only),
    "embedding_agrees": with_method(Words, "embedding", returns_a_wrong_scale),
    "head_agrees": with_method(Words, "logits", lambda self, logits, hidden: 1.01 * logits(hidden)),
    "norm_agrees": type("Broken", (Words,), {"norm_weights": property(returns_gemmas_offset)}),
    "vocabulary": with_spec(Words, reserved_tokens=("<s>", "a")),
    "text_round_trip": with_method(Words, "tokenize", lowercases),
    "special_tokens": with_method(Words, "tokenize", always_parses_special_tokens),
    "special_tokens_saved": with_method(Words, "save_tokenizer", saves_another_tokenizer),
    "new_token_rows": with_method(Words, "added_token_parameters", returns_copies),
    "chat_template": with_part_change(Words, has_no_end_of_turn),
    "chat_prompt": with_method(Words, "conversation", ignores_prompt),
}
