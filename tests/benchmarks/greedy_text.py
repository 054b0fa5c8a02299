"""Greedy text beside transformers' `generate`, in turn: `python tests/benchmarks/greedy_text.py`.

Both continue one prompt with the same weights. transformers has its own masks, sdpa attention and `DynamicCache`;
dreamkit is `model.generate` with its events. Both must write the same tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import compared, take_turns, timed
from benchmarks.written_models import RECIPES, Course, measured_model, prompts
from dreamkit import DreamModel, TextPiece

OURS, LIBRARY = "ours", "transformers"


def silence(model: DreamModel) -> None:
    """Set the logits to 0 of tokens that dreamkit never writes, and of end tokens, so that both write the same text."""
    part: Any = model.language_model
    silent = {*part.suppressed_ids, *part.spec.eos_ids, *model.token_ids.values()}
    with torch.no_grad():
        head = part.model.get_output_embeddings().weight
        head[sorted(token for token in silent if token < len(head))] = 0
        for rows in part.added_token_parameters():
            rows.zero_()


def library_model(model: DreamModel) -> LlamaForCausalLM:
    """Return transformers' model, which shares the weights of the language model."""
    part: Any = model.language_model
    config = LlamaConfig.from_dict({**part.model.config.to_dict(), "attn_implementation": "sdpa"})
    library = LlamaForCausalLM(config).eval()
    weights = {**part.model.state_dict(), "model.norm.weight": part.norm.weight}
    library.load_state_dict(weights, assign=True)
    return library


def candidates(name: str, tokens: int, length: int, small: bool) -> dict[str, Callable[[], list[int]]]:
    """Return functions that write as many tokens after a prompt of `length` tokens, by candidate."""
    model = measured_model(name, small)
    silence(model)
    library = library_model(model)
    (prompt,) = prompts(model, Course(length, length, None, 0), 1)
    ids = torch.tensor([model.sequencer().prompt(prompt).ids])

    def ours() -> list[int]:
        events = model.generate(prompt, max_tokens=tokens, max_images=0, ignore_eos=True)
        return [token for event in events if isinstance(event, TextPiece) for token in event.ids]

    def theirs() -> list[int]:
        written = library.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return written[0, ids.shape[1] :].tolist()

    return {OURS: ours, LIBRARY: theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=RECIPES, help="measure one model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="written tokens")
    parser.add_argument("--length", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--small", action="store_true", help="a small LLaMA, whose times mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| model | tokens | candidate | ms a token | ms of CPU time | above transformers: time | CPU time |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in [arguments.only] if arguments.only else RECIPES:
        for tokens in arguments.tokens:
            calls = candidates(name, tokens, arguments.length, arguments.small)
            written = {candidate: call() for candidate, call in calls.items()}  # and a warm-up
            if written[OURS] != written[LIBRARY] or len(written[OURS]) != tokens:
                raise ValueError(f"expected the same {tokens} tokens of both, got {written}")
            rounds = take_turns(
                {each: partial(timed, call) for each, call in calls.items()}, arguments.rounds
            )
            for each in calls:
                cells = compared(rounds, each, LIBRARY, "{:.2f}", per=tokens / 1000)
                print(f"| {' | '.join([name, str(tokens), each, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
