"""The tokenizer: a token for each byte, and three special ones."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dreamkit import PartConfig, locate

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer_of(config: PartConfig) -> PreTrainedTokenizerFast:
    if config.pretrained is not None:
        folder = locate(config.pretrained, ["tokenizer.json"], weights=False)
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    names = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
