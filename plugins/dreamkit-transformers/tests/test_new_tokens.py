"""Words, and tokens that are added to a vocabulary."""

from dataclasses import replace

import pytest
import torch

from dreamkit import DreamkitError
from dreamkit_transformers.causal_lm import LanguageConfig
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from small_language import SMALL, SPEC, TOKENS, make, positions


def overfull_tokenizer(tmp_path):
    """More tokens than the model has rows, as where a padding token was added and the model left as it was."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    return Llama.from_config(
        LanguageConfig(config={**SMALL, "vocab_size": 260}, tokenizer=str(tmp_path))
    ).eval()


@pytest.mark.parametrize(("vocab_size", "rows", "total"), [(260, 2, 262), (261, 2, 262), (270, 2, 270)])
@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_have_rows_of_their_own(vocab_size, rows, total, tied):
    part = make(vocab_size=vocab_size, tie_word_embeddings=tied)
    before = part.model.get_input_embeddings().weight.clone()
    assert part.add_tokens(TOKENS) == [260, 261, 2]
    assert part.add_tokens(["<dream_end>"]) == [261]
    assert torch.equal(before, part.model.get_input_embeddings().weight)
    parameters = part.added_token_parameters()
    assert [tuple(parameter.shape) for parameter in parameters] == [(rows, 32)] * (1 if tied else 2)
    head_rows = parameters[-1]
    ids = torch.tensor([[5, 260, 2, 261]])
    expected = torch.stack([before[5], parameters[0][0], before[2], parameters[0][1]])
    assert torch.equal(part.embed(ids)[0], expected)
    assert torch.equal(part.embed(torch.tensor(260)), parameters[0][0])
    normed = torch.randn(3, 32)
    logits = part.logits(normed)
    assert logits.shape == (3, total) and part.head().weight.shape == (total, 32)
    torch.testing.assert_close(logits, normed @ part.head().weight.T)
    torch.testing.assert_close(logits[:, 260:262], normed @ head_rows.T)
    torch.testing.assert_close(logits[:, :260], normed @ part.model.lm_head.weight[:260].T)
    assert part.spec == replace(SPEC, vocab_size=vocab_size)
    with pytest.raises(DreamkitError, match="too late"):
        part.add_tokens(["<later>"])


def test_a_token_that_the_model_has_no_row_for_gets_one(tmp_path):
    part = overfull_tokenizer(tmp_path)
    assert part.spec.pad_id == 260
    assert part.add_tokens(TOKENS) == [261, 262, 2]
    assert part.embed(torch.tensor([260, 262])).shape == (2, 32)
    assert part.logits(torch.randn(1, 32)).shape == (1, 263)


def test_words_that_the_model_has_no_row_for_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(5)])
    tokenizer.save_pretrained(tmp_path)
    config = LanguageConfig(config={**SMALL, "vocab_size": 260}, tokenizer=str(tmp_path))
    with pytest.raises(
        DreamkitError, match="the tokenizer has 265 tokens, but the model's vocab_size is 260"
    ):
        Llama.infer_spec(config)


def test_new_rows_start_near_the_mean_row():
    part = make()
    part.add_tokens(TOKENS)
    for rows, weight in zip(
        part.added_token_parameters(),
        (part.model.model.embed_tokens.weight, part.model.lm_head.weight),
        strict=True,
    ):
        assert (rows - weight.mean(0)).abs().max() < weight.std()
        assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("vocab_size", [260, 270])
def test_only_new_rows_learn_under_a_frozen_model(vocab_size):
    part = make(vocab_size=vocab_size)
    part.add_tokens(TOKENS)
    part.requires_grad_(False)
    for parameter in part.added_token_parameters():
        parameter.requires_grad_(True)
    ids = torch.tensor([[1, 260, 9]])
    hidden = part(part.embed(ids), *positions(3))
    part.logits(part.final_norm(hidden)).logsumexp(-1).sum().backward()
    new_embed, new_head = part.added_token_parameters()
    assert new_embed.grad[0].abs().sum() > 0 and new_embed.grad[1].abs().sum() == 0
    assert (new_head.grad.abs().sum(-1) > 0).all()
    learned = {name for name, parameter in part.named_parameters() if parameter.grad is not None}
    assert learned == {"new_embed", "new_head"}


def test_embedding_reads_nothing_back_and_has_no_loop():
    """The operators of a call do not depend on how many added tokens there are among how many."""

    def operators(ids):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            part.embed(ids)
        return sum(event.count for event in profile.key_averages() if event.key.startswith("aten::"))

    part = make()
    part.add_tokens(TOKENS)
    few, many = torch.tensor([[1, 260]]), torch.tensor([[260, 261] * 20])
    assert operators(few) == operators(many)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        part.embed(many)
    names = {event.key for event in profile.key_averages()}
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


def test_words(tmp_path):
    part = make()
    ids = part.add_tokens(["<dream_start>"])
    text = "a </s><dream_start> b"
    assert part.decode(part.tokenize(text)) == text
    assert part.tokenize("a<dream_start>", special=True) == [*part.tokenize("a"), *ids]
    assert part.decode([1, *part.tokenize("a"), *ids, *part.tokenize("b"), 2]) == "ab"
    assert part.tokenize("") == []
    part.save_tokenizer(tmp_path)
    again = Llama.from_config(LanguageConfig(config=SMALL, tokenizer=str(tmp_path)))
    assert again.spec == part.spec
    assert again.add_tokens(["<dream_start>"]) == ids
    assert again.tokenize(text, special=True) == part.tokenize(text, special=True)
    again.load_state_dict(part.state_dict())


def test_a_padded_vocabulary_survives_saving(tmp_path):
    part = make(vocab_size=270)
    part.add_tokens(TOKENS)
    part.save_tokenizer(tmp_path)
    again = Llama.from_config(LanguageConfig(config={**SMALL, "vocab_size": 270}, tokenizer=str(tmp_path)))
    assert again.add_tokens(TOKENS) == [260, 261, 2]
    again.load_state_dict(part.state_dict())
    ids = torch.tensor([260, 261, 2, 265])
    assert torch.equal(again.embed(ids), part.embed(ids))


def test_what_a_text_never_holds():
    part = make(vocab_size=263)
    part.add_tokens(TOKENS)
    assert part.suppressed_ids == {0, 260, 261, 262}
