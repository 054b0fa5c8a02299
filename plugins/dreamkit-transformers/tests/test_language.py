import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from dreamkit import ChatTemplate, ConfigError, DreamkitError, LanguageSpec, SourceError
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.llama import VICUNA_SYSTEM_PROMPT, Llama, Vicuna, VicunaConfig
from dreamkit_transformers.tokenizers import byte_tokenizer

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPEC = LanguageSpec(
    dim=32,
    vocab_size=260,
    max_length=64,
    bos_id=1,
    eos_ids=(2,),
    pad_id=0,
    reserved_tokens=("<pad>", "<s>", "</s>"),
)
TOKENS = ["<dream_start>", "<dream_end>", "</s>"]


class Mistral(CausalLM):
    """A family with a sliding window, shorter than the documents of these tests."""

    model_types = ("mistral",)
    config_class = MistralConfig
    model_class = MistralForCausalLM

    @classmethod
    def chat_template(cls, config, tokenizer):
        return ChatTemplate(("", ""), ("", ""))


def make(family=Llama, seed=0, **config):
    torch.manual_seed(seed)
    if family is Mistral:
        config = {"sliding_window": 3, **config}
    return family.from_config(family.Config(config={**SMALL, **config})).eval()


@pytest.fixture
def source(tmp_path):
    """A folder in the library's format, with changes to its config."""

    def write(kind=LlamaForCausalLM, config_kind=LlamaConfig, tokenizer=None, **config):
        torch.manual_seed(0)
        tokenizer = tokenizer or byte_tokenizer()
        model = kind(config_kind(vocab_size=260, **SMALL, **config))
        tokenizer.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        return str(tmp_path), model.eval()

    return write


def positions(*lengths):
    """Positions and segments of one row of documents of these lengths."""
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    segment_ids = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])[None]
    return position_ids, segment_ids


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_hidden_states_and_logits_are_the_librarys(source, changes):
    folder, model = source(**changes)
    part = Llama.from_pretrained(LanguageConfig(pretrained=folder))
    ids = torch.randint(260, (2, 9))
    position_ids, segment_ids = (each.expand(2, -1) for each in positions(9))
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True)
        hidden = part(part.embed(ids), position_ids, segment_ids)
        normed = part.final_norm(hidden)
        torch.testing.assert_close(normed, expected.hidden_states[-1])
        torch.testing.assert_close(part.logits(normed), expected.logits)
        assert not torch.allclose(hidden, normed)
        weight, eps, offset = part.norm_weights
        by_hand = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * (offset + weight)
        torch.testing.assert_close(by_hand, normed)


documents = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@pytest.mark.parametrize("family", [Llama, Mistral])
@settings(deadline=None, max_examples=15)
@given(lengths=documents, padding=st.integers(0, 3))
def test_packed_and_padded_is_each_document_alone(family, lengths, padding):
    part = make(family)
    texts = [torch.randn(1, length, 32) for length in lengths]
    position_ids, segment_ids = positions(*lengths)
    embeds = torch.cat([*texts, torch.randn(1, padding, 32)], dim=1)
    position_ids = torch.cat([position_ids, torch.zeros(1, padding, dtype=torch.long)], dim=1)
    segment_ids = torch.cat([segment_ids, torch.full((1, padding), -1)], dim=1)
    with torch.no_grad():
        together = part(embeds, position_ids, segment_ids)
        assert together.isfinite().all()
        apart = torch.cat([part(text, *positions(text.shape[1])) for text in texts], dim=1)
    torch.testing.assert_close(together[:, : sum(lengths)], apart, atol=1e-5, rtol=1e-5)


def test_the_sliding_window_is_the_librarys(source):
    folder, model = source(MistralForCausalLM, MistralConfig, sliding_window=3)
    part = Mistral.from_pretrained(LanguageConfig(pretrained=folder))
    ids = torch.randint(260, (1, 12))
    with torch.no_grad():
        hidden = part(part.embed(ids), *positions(12))
        torch.testing.assert_close(part.logits(part.final_norm(hidden)), model(ids).logits)
    wide = make(Mistral, sliding_window=None)
    narrow = make(Mistral)
    wide.load_state_dict(narrow.state_dict())
    embeds = torch.randn(1, 12, 32)
    assert not torch.allclose(wide(embeds, *positions(12))[:, -1], narrow(embeds, *positions(12))[:, -1])


@pytest.mark.parametrize("family", [Llama, Mistral])
@settings(deadline=None, max_examples=15)
@given(calls=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
def test_a_cache_with_holes_is_one_full_pass(family, calls):
    """Two documents go on by different numbers of tokens a call; the shorter leaves empty slots behind it."""
    part = make(family)
    calls = [call for call in calls if any(call)]
    lengths = [sum(call[row] for call in calls) for row in range(2)]
    texts = [torch.randn(1, max(length, 1), 32) for length in lengths]
    cache, done = part.new_cache(), [0, 0]
    pieces = [[], []]
    with torch.no_grad():
        for call in calls:
            width = max(call)
            embeds = torch.randn(2, width, 32)
            position_ids = torch.randint(9, (2, width))
            segment_ids = torch.full((2, width), -1)
            for row, count in enumerate(call):
                start, end = done[row], done[row] + count
                embeds[row, :count] = texts[row][0, start:end]
                position_ids[row, :count] = torch.arange(start, end)
                segment_ids[row, :count] = 0
                done[row] = end
            hidden = part(embeds, position_ids, segment_ids, cache)
            assert hidden.isfinite().all()
            for row, count in enumerate(call):
                pieces[row].append(hidden[row, :count])
        for row, length in enumerate(lengths):
            if length:
                whole = part(texts[row], *positions(length))[0]
                torch.testing.assert_close(torch.cat(pieces[row]), whole, atol=1e-5, rtol=1e-5)


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
    parameters = part.new_token_parameters()
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


def test_new_rows_start_near_the_mean_row():
    part = make()
    part.add_tokens(TOKENS)
    for rows, weight in zip(
        part.new_token_parameters(),
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
    for parameter in part.new_token_parameters():
        parameter.requires_grad_(True)
    ids = torch.tensor([[1, 260, 9]])
    hidden = part(part.embed(ids), *positions(3))
    part.logits(part.final_norm(hidden)).logsumexp(-1).sum().backward()
    new_embed, new_head = part.new_token_parameters()
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
    assert part.unwritten_ids == {0, 260, 261, 262}


def test_the_spec_of_a_source(source, tmp_path):
    folder, _ = source()
    config = LanguageConfig(pretrained=folder)
    assert Llama.spec_from(config) == SPEC == Llama.from_pretrained(config).spec
    assert Llama.spec_from(LanguageConfig(config=SMALL)) == SPEC == make().spec
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [9, 2, 8]}))
    assert Llama.spec_from(config).eos_ids == (2, 9, 8)
    assert len(Llama.spec_from(config).reserved_tokens) == 5
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not tensors: a spec needs none, but they must be there")
    assert Llama.spec_from(config).dim == 32
    weights.unlink()
    for made in (Llama.spec_from, Llama.from_pretrained):
        with pytest.raises(SourceError, match="weights"):
            made(config)


def test_random_weights_come_from_the_global_generator():
    first, same, other = (make(seed=seed).state_dict()["model.lm_head.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_gradient_checkpointing_of_a_frozen_model():
    """It recomputes where there is something to differentiate, changes no gradient, and leaves a cache alone."""
    part = make()
    part.requires_grad_(False)
    embeds = torch.randn(1, 5, 32)
    calls = []
    part.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))

    def gradient():
        leaf = embeds.clone().requires_grad_()
        part(leaf, *positions(5)).square().sum().backward()
        return leaf.grad

    expected = gradient()
    assert len(calls) == 1
    part.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), expected)
    assert len(calls) == 3  # once forward, once again backward
    cache = part.new_cache()
    with torch.no_grad():
        position_ids, segment_ids = positions(5)
        part(embeds[:, :3], position_ids[:, :3], segment_ids[:, :3], cache)
        last = part(embeds[:, 3:], position_ids[:, 3:], segment_ids[:, 3:], cache)
        torch.testing.assert_close(last, part(embeds, position_ids, segment_ids)[:, 3:])


def test_chat_templates():
    assert make().chat == ChatTemplate(
        user=("[INST]", "[/INST]"), assistant=("", "</s>"), system=("<<SYS>>\n", "\n<</SYS>>\n\n")
    )
    vicuna = ChatTemplate(
        user=("USER:", ""), assistant=("ASSISTANT:", "</s>"), default_system=VICUNA_SYSTEM_PROMPT
    )
    assert make(Vicuna).chat == vicuna
    silent = Vicuna.from_config(VicunaConfig(config=SMALL, system_prompt=""))
    assert silent.chat == replace(vicuna, default_system="")


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"hidden_sise": 8}, "config.hidden_sise", ["'hidden_sise'", "'hidden_size'"]),
        ({"hidden_size": 32.0}, "config.hidden_size", ["expected int"]),
        ({"num_attention_heads": 5}, "config", ["32", "5"]),
        ({"num_key_value_heads": 3}, "config", ["no model can be made"]),
        ({"num_hidden_layers": 10**5}, "config.num_hidden_layers", ["100000 found", "at most 1000"]),
        ({"vocab_size": 100}, "config.vocab_size", ["260 tokens", "100"]),
        ({"max_position_embeddings": 0}, "config.max_position_embeddings", ["0 found, but at least 1"]),
        ({"hidden_act": "gleu"}, "config.hidden_act", ["'gleu' found", "did you mean 'gelu'?"]),
        ({"rope_parameters": {"rope_type": "yarm"}}, "config", ["yarm"]),
    ],
)
def test_a_config_that_makes_no_model(change, key, words):
    with pytest.raises(ConfigError) as caught:
        Llama.spec_from(LanguageConfig(config={**SMALL, **change}))
    ((found, said),) = caught.value.problems.items()
    assert found == key and all(word in said for word in words), said


def test_all_that_is_wrong_with_a_section_is_told_at_once(tmp_path):
    wrong = {"hidden_sise": 8, "hidden_act": "gleu", "vocab_size": 0, "rms_norm_eps": "small"}
    config = LanguageConfig(config={**SMALL, **wrong}, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError) as caught:
        Llama.spec_from(config)
    assert caught.value.problems.keys() == {"tokenizer", *(f"config.{name}" for name in wrong)}


def test_an_outline_has_the_modules_of_the_part(source):
    folder, _ = source()
    for config in (LanguageConfig(pretrained=folder), LanguageConfig(config=SMALL)):
        outline = Llama.outline(config)
        assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
        assert [name for name, _ in outline.named_modules()] == [name for name, _ in make().named_modules()]


def test_sources_that_do_not_fit(source, tmp_path):
    folder, _ = source(MistralForCausalLM, MistralConfig)
    config = LanguageConfig(pretrained=folder)
    with pytest.raises(SourceError, match="model_type 'mistral', but 'llama' is needed"):
        Llama.spec_from(config)
    source()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"lacks 'tokenizer\.json' or 'tokenizer\.model'"):
        Llama.spec_from(config)
    other = tmp_path / "other"
    byte_tokenizer().save_pretrained(other)
    assert Llama.from_pretrained(replace(config, tokenizer=str(other))).spec == SPEC
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="lacks weights"):
        Llama.from_pretrained(replace(config, tokenizer=str(other)))


def test_a_part_moves_by_state_dict():
    first, second = make(seed=1), make(seed=2)
    for part in (first, second):
        part.add_tokens(TOKENS)
    second.load_state_dict(first.state_dict())
    ids = torch.tensor([[1, 260, 7]])
    normed = [part.final_norm(part(part.embed(ids), *positions(3))) for part in (first, second)]
    assert torch.equal(first.logits(normed[0]), second.logits(normed[1]))
