"""Parts with the tokenizers and templates of `chat_tokenizers`, conversations, and their ids by the library."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from PIL import Image as PIL

from chat_tokenizers import ENDLESS, SPECIAL, TEMPLATES, TOKENIZERS
from dreamkit import Document, Text
from dreamkit.data.sequence import Sequencer
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.llama import tiny_gated_config

NAMES = SpecialTokens()


Q, V = 2, 3


DRAWN = NAMES.dream_start + NAMES.dream_patch * Q + NAMES.dream_end


READ = NAMES.image_start + NAMES.image_patch * V + NAMES.image_end


PICTURE = PIL.new("RGB", (8, 8))


@cache
def part_of(kind: str, template: str | None, family: Any = CausalLM) -> Any:
    """Return a part with random weights whose tokenizer is of `kind` and has the named template."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = None if template is None else {**TEMPLATES, **ENDLESS}[template]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config = {"model_type": "llama", **tiny_gated_config()}
        return family.from_config(LanguageConfig(config=config, tokenizer=folder))


def sequencer_of(part: Any) -> Sequencer:
    token_ids = dict(zip(NAMES.names(), part.add_tokens(NAMES.names()), strict=True))
    return Sequencer(part, token_ids, NAMES, vision_tokens=V, dream_queries=Q, max_length=10**6)


def library_ids(part: Any, document: Document, prompt: bool, **options: bool) -> list[int]:
    """Return the ids of the library for a document, whose images are the names of their tokens in the text."""
    messages: list[dict[str, str]] = []
    for segment in document:
        if not messages or messages[-1]["role"] != segment.role:
            messages.append({"role": str(segment.role), "content": ""})
        content = segment.text if isinstance(segment, Text) else DRAWN * segment.draw + READ * segment.read
        messages[-1]["content"] += content
    if prompt:
        is_open = messages[-1]["role"] == "assistant"
        options["continue_final_message" if is_open else "add_generation_prompt"] = True
    return part.tokenizer.apply_chat_template(messages, return_dict=False, **options)


def conversation(*turns: tuple[str, str]) -> Document:
    return Document(tuple(Text(text, role=role) for role, text in turns), name="d1")  # type: ignore[arg-type]


def text(digits: str) -> st.SearchStrategy[str]:
    blanks = st.sampled_from(["", " ", "\n", "  ", "\n\n"])
    words = st.lists(st.sampled_from([*digits, *digits, " ", "\n", "é", *SPECIAL[1:]]), max_size=6).map(
        "".join
    )
    return st.tuples(blanks, words, blanks).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> Document:
    turns = [("system", draw(text("0")))] * draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", draw(text("12"))), ("assistant", draw(text("89")))]
    return conversation(*turns[: len(turns) - draw(st.booleans())])
