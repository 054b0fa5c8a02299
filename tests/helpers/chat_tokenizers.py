"""Tokenizers of every kind and chat templates of every habit, for conversations of digits.

Users' digits are 1 and 2, answers' are 8 and 9; templates have none, so that labels show whose text they are.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = [
    "user assistant system model think 1 2 8 9 12 21 89 98 112 889",
    "a word of text\n\nQ: 1 2\nA: 8 9 </think> [INST] [/INST] USER: ASSISTANT:",
]


def byte_level(**named: bool) -> PreTrainedTokenizerBase:
    """Return a tokenizer as GPT-2's."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    learner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(CORPUS * 3, trainer)
    return fast(learner, **named)


def sentencepiece(legacy: bool = False, **named: bool) -> PreTrainedTokenizerBase:
    """Return a tokenizer as LLaMA's: a prefix space before a text, or with `legacy` after special tokens too."""
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    learner.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return LlamaTokenizer(
        model["vocab"],
        merges,
        add_prefix_space=True,
        legacy=legacy,
        extra_special_tokens=SPECIAL[3:],
        **named,
    )


def unigram() -> PreTrainedTokenizerBase:
    """Return a tokenizer as T5's, which normalizes."""
    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizers.NFKC()
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator(CORPUS * 3, trainer)
    return fast(learner)


def wordpiece() -> PreTrainedTokenizerBase:
    """Return a tokenizer as BERT's: a start and an end token around a text, and lower case."""
    learner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    learner.train_from_iterator(CORPUS * 3, trainer)
    learner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return fast(learner)


def fast(learner: Tokenizer, **named: bool) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=SPECIAL[3:],
        clean_up_tokenization_spaces=False,
        **named,
    )


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level with bos": lambda: byte_level(add_bos_token=True),
    "sentencepiece": sentencepiece,
    "sentencepiece with bos and eos": lambda: sentencepiece(add_bos_token=True, add_eos_token=True),
    "sentencepiece of old": lambda: sentencepiece(legacy=True, add_bos_token=True),
    "unigram": unigram,
    "wordpiece": wordpiece,
}

EACH = "{% for m in messages %}"
CHATML = EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
INST = (
    "{{ bos_token }}"
    + EACH
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML + START,
    "zephyr": EACH + "<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "bos": "{{ bos_token }}" + CHATML + START,
    "thinks in the prompt": CHATML + START.replace("{% endif %}", "<think>\n{% endif %}"),
    "decorates the last answer": EACH + "<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + START,
    "cuts reasoning": EACH
    + "<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% endfor %}" + START,
    "alternating roles": INST,
    "trims": CHATML.replace("m.content", "m.content | trim") + START,
    "default system": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    + CHATML
    + START,
    "system inside": EACH
    + "{% if m.role == 'system' %}{% elif m.role == 'user' %}[INST] {% if loop.index0 == 1 and "
    "messages[0].role == 'system' %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "plain words": EACH
    + "{{ m.role | upper }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "channels": EACH + "<|im_start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}<|system|>final{% endif %}<|user|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% else %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
    "ends once": EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% else %}{{ eos_token }}{% endif %}",
}
# templates that do not end the last answer
ENDLESS = {
    "ends at the next turn": EACH + "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "opens alone": EACH + "<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}",
}
