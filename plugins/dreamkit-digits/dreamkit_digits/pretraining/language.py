"""The tiny LLaMA: half a million parameters that know digit words, counting and written addition."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerBase

from dreamkit_digits import phrases
from dreamkit_digits.pretraining import common, sentences

STEPS = 1500
BATCH = 16
LENGTH = 128
"""Tokens a row: sentences one after the other, each with its <s> and </s>."""
RATE = 3e-3
DECAY = 0.1
MERGES = 450
"""More than the words need; training stops when every word is one token."""
MAX_POSITIONS = 512


def new_tokenizer() -> LlamaTokenizer:
    """Return a LLaMA tokenizer of the pretraining words, with byte fallback for any other text."""
    special = ["<unk>", "<s>", "</s>"]
    specials = special + [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Splitting at spaces while learning keeps merges inside words; LLaMA's own tokenizer then needs no split.
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + MERGES, special_tokens=specials, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(sentences.every_word(), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return LlamaTokenizer(model["vocab"], merges, add_prefix_space=True)


def rows(tokenizer: PreTrainedTokenizerBase, steps: int, seed: int) -> Tensor:
    """Return (steps * 16, 128) token ids of random sentences, each between <s> and </s>."""
    rng = random.Random(seed)
    needed = steps * BATCH * LENGTH
    ids: list[int] = []
    known: dict[str, list[int]] = {}
    while len(ids) < needed:
        text = sentences.sentence(rng)
        if text not in known:
            known[text] = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        ids += known[text]
    return torch.tensor(ids[:needed]).view(-1, LENGTH)


def train(folder: Path, steps: int = STEPS) -> None:
    """Train tokenizer and language model and write both to `folder`."""
    common.seeded(4)
    tokenizer = new_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_POSITIONS,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer, schedule = common.cosine_adamw(model.parameters(), RATE, steps, DECAY)
    texts = rows(tokenizer, steps, seed=4)
    for step in common.progress(range(steps), "llama"):
        ids = texts[step * BATCH : (step + 1) * BATCH]
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


@torch.no_grad()
def measure(folder: Path) -> dict[str, float]:
    """Return perplexity on new sentences, and the share of written sums that come out right."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    texts = rows(tokenizer, 8, seed=5)
    logits = model(input_ids=texts[:, :-1]).logits
    entropy = functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())

    def next_word(text: str) -> str:
        ids = tokenizer(text, return_tensors="pt").input_ids
        return str(tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax())).strip()

    def sums(pairs: list[tuple[int, int]]) -> float:
        words = phrases.WORDS
        right = [next_word(f"{words[a]} plus {words[b]} is") == words[a + b] for a, b in pairs]
        return sum(right) / len(right)

    return {
        "perplexity": math.exp(float(entropy)),
        "trained_sum_accuracy": sums(list(phrases.TRAIN_PAIRS)),
        "held_out_sum_accuracy": sums(sorted(phrases.HELD_OUT_PAIRS)),
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
    }
