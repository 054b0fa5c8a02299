"""What can be wrong with a language model: for each check, one broken in just that way."""

from __future__ import annotations

import torch

import meta.breaking as broken
from dreamkit.parts.specs import ChatTemplate
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from meta.breaking import computing, making, telling
from meta.parts import Words


def fails_beyond(self, forward, embeds, positions, segments, cache=None):
    if embeds.shape[1] > 40:
        raise IndexError(f"index {embeds.shape[1]} is out of range")
    return forward(embeds, positions, segments, cache)


def looks_at_others(self, forward, embeds, positions, segments, cache=None):
    hidden = forward(embeds, positions, segments, cache)
    return hidden if cache is not None else hidden + 0.1 * (hidden.mean(0, keepdim=True) - hidden)


def sees_what_comes(self, forward, embeds, positions, segments, cache=None):
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] >= 0)
    mean = (same.to(embeds.dtype) @ embeds) / same.sum(-1, keepdim=True).clamp(min=1)
    return forward(embeds, positions, segments, cache) + 0.1 * mean


def sees_padding(self, forward, embeds, positions, segments, cache=None):
    hidden = forward(embeds, positions, segments, cache)
    if cache is not None:
        return hidden
    padding = (segments == -1)[..., None].to(embeds.dtype)
    return hidden + 0.1 * (padding * embeds).sum(1, keepdim=True)


def reads_its_neighbours(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions, segments if cache is not None else segments.clamp(max=0), cache)


def sees_empty_slots(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions, segments if cache is None else segments.clamp(min=0), cache)


def embeds_batches_only(self, embed, ids):
    if ids.dim() != 2:
        raise IndexError(f"ids of {ids.dim()} dimensions, but 2 are wanted")
    return embed(ids)


def forgets_the_scale(self, embedding):
    return embedding()._replace(scale=torch.tensor(1.01))


def claims_gemmas_norm(self):
    return Words.norm_weights.fget(self)._replace(offset=1.0)


def lowers_case(self, tokenize, text, special=False):
    return tokenize(text.lower(), special)


def parses_everything(self, tokenize, text, special=False):
    return tokenize(text, special=True)


def saves_another_tokenizer(self, save, folder):
    byte_tokenizer().save_pretrained(folder)


def hands_out_copies(self, original):
    return [torch.nn.Parameter(row.detach().clone()) for row in original()]


def never_ends_its_turn(part):
    part.chat = ChatTemplate(user=("USER:", ""), assistant=("ASSISTANT:", ""))


def forgets_positions(self, forward, embeds, positions, segments, cache=None):
    return forward(embeds, positions if cache is None else torch.zeros_like(positions), segments, cache)


def reverses_words(self, embed, ids):
    return embed(ids.flip(-1) if ids.dim() == 1 else ids)


LANGUAGE = {
    "spec_agrees": computing(Words, "forward", fails_beyond),
    "batch_invariance": computing(Words, "forward", looks_at_others),
    "library_agrees": computing(Llama, "library_forward", broken.adds_to_the_library),
    "causality": computing(telling(Words, cache=False), "forward", sees_what_comes),
    "padding_invariance": computing(Words, "forward", sees_padding),
    "packing_invariance": computing(Words, "forward", reads_its_neighbours),
    "cached_decoding": computing(Words, "forward", sees_empty_slots),
    "embed_any_shape": computing(Words, "embed", embeds_batches_only),
    "embedding_agrees": computing(Words, "embedding", forgets_the_scale),
    "head_agrees": computing(Words, "logits", lambda self, logits, hidden: 1.01 * logits(hidden)),
    "norm_agrees": type("Broken", (Words,), {"norm_weights": property(claims_gemmas_norm)}),
    "vocabulary": telling(Words, reserved_tokens=("<s>", "a")),
    "text_round_trip": computing(Words, "tokenize", lowers_case),
    "special_tokens": computing(Words, "tokenize", parses_everything),
    "special_tokens_saved": computing(Words, "save_tokenizer", saves_another_tokenizer),
    "new_token_rows": computing(Words, "added_token_parameters", hands_out_copies),
    "chat_template": making(Words, never_ends_its_turn),
}
