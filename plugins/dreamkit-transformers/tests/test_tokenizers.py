"""Tokenizers: special tokens, saving, and bytes."""

import json

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer

from dreamkit import SourceError
from dreamkit_transformers.tokenizers import (
    add_special,
    bos_of,
    byte_tokenizer,
    new_tokens,
    read_tokenizer,
    save_tokenizer,
)

ADDED = ["<dream_start>", "<dream_end>"]
WORDS = ["draw a three", "what is this?", "</s> two <dream_start>", "<s>"]


def word_tokenizer(**kwargs):
    """Return a LLaMA tokenizer trained on a few words, with bytes for the rest."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    trained.train_from_iterator(WORDS * 4, trainer)
    vocabulary = trained.get_vocab()
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return LlamaTokenizer(vocabulary, merges, add_prefix_space=True, **kwargs)


def encode(tokenizer, text, special=False):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer])
def test_new_tokens_follow_the_vocabulary_and_are_saved(make, tmp_path):
    tokenizer = make()
    size = len(tokenizer)
    add_special(tokenizer, [*ADDED, "</s>", "<dream_end>"])
    assert new_tokens(tokenizer) == ADDED
    assert tokenizer.convert_tokens_to_ids(ADDED) == [size, size + 1]
    add_special(tokenizer, ADDED)
    assert new_tokens(tokenizer) == ADDED and len(tokenizer) == size + 2
    save_tokenizer(tokenizer, tmp_path)
    loaded = read_tokenizer(str(tmp_path))
    assert new_tokens(loaded) == ADDED and len(loaded) == size + 2


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer, lambda: word_tokenizer(legacy=True)])
def test_a_saved_tokenizer_has_the_same_ids(make, tmp_path):
    tokenizer = make()
    add_special(tokenizer, ADDED)
    save_tokenizer(tokenizer, tmp_path)
    loaded = read_tokenizer(str(tmp_path))
    texts = [*WORDS, "", " ", "three<dream_start>draw </s>this <dream_end> a", "\n\u00e9"]
    for special in (False, True):
        assert [encode(loaded, t, special) for t in texts] == [encode(tokenizer, t, special) for t in texts]


PARTS = st.sampled_from(["<s>", "</s>", "<unk>", "<pad>", *ADDED, " ", "\n", "<", "</", "s>", "draw", "a"])
TOKENIZERS = [byte_tokenizer(), word_tokenizer()]
for each in TOKENIZERS:
    add_special(each, ADDED)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.lists(PARTS | st.text(max_size=4)).map("".join))
def test_plain_text_contains_no_special_token(tokenizer, text):
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(t) for t in ADDED}
    assert not special & set(encode(tokenizer, text))


@given(st.text())
def test_the_byte_tokenizer_decodes_any_text_to_itself(text):
    text = text.encode("utf-8", "ignore").decode()
    tokenizer = TOKENIZERS[0]
    assert tokenizer.decode(encode(tokenizer, text), skip_special_tokens=True) == text


def test_a_missing_or_damaged_tokenizer_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"'tokenizer\.json' or 'tokenizer\.model'"):
        read_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="the tokenizer cannot be read"):
        read_tokenizer(str(tmp_path))


def test_the_bos_is_the_token_that_the_tokenizer_puts_before_a_text():
    assert bos_of(byte_tokenizer()) == 1 and bos_of(byte_tokenizer(has_bos=False)) is None
    assert bos_of(word_tokenizer()) is None and bos_of(word_tokenizer(add_bos_token=True)) == 1
    assert bos_of(word_tokenizer(add_eos_token=True)) is None


def test_two_tokens_before_a_text_are_an_error():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> <s> $A", special_tokens=[("<s>", 1), ("<unk>", 3)]
    )
    with pytest.raises(SourceError, match=r"expected at most one token before a text, got 2 \(<unk>, <s>\)"):
        bos_of(tokenizer)


def test_a_tokenizer_of_a_checkpoint_of_release_0_1_keeps_its_bos(tmp_path):
    """That release wrote the names of new tokens and no flag, and put a bos where the tokenizer has one."""
    tokenizer = word_tokenizer()
    tokenizer.init_kwargs["dreamkit_new_tokens"] = []
    for round in range(2):
        save_tokenizer(tokenizer, tmp_path / str(round))
        tokenizer = read_tokenizer(str(tmp_path / str(round)))
        add_special(tokenizer, ADDED)
        assert bos_of(tokenizer) == 1
    present = word_tokenizer()
    add_special(present, ADDED)
    save_tokenizer(present, tmp_path / "present")
    assert bos_of(read_tokenizer(str(tmp_path / "present"))) is None


def test_a_template_with_an_unknown_token_is_an_error_and_no_panic(tmp_path):
    save_tokenizer(byte_tokenizer(), tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    step = {"SpecialToken": {"id": "<gone>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [step, text],
        "pair": [text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    file.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"the tokenizer cannot be read: .*panic of the library tokenizers"):
        read_tokenizer(str(tmp_path))
