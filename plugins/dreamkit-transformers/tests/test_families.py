"""Each family computes what the library computes from ids, and owns its template and its special tokens."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dreamkit import ConfigError, SourceError
from dreamkit_transformers import described
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.families import Gemma, Mistral, Phi, Qwen
from dreamkit_transformers.llama import Llama, Vicuna
from small_language import TOKENS, positions

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
HEADS = {"head_dim": 8}  # wider than hidden_size / heads
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
CASES = {
    "llama 3": (Llama, {"rope_parameters": LLAMA_3}, 0.0),
    "llama 3 tied": (Llama, {"rope_parameters": LLAMA_3, "tie_word_embeddings": True}, 0.0),
    "vicuna": (Vicuna, {}, 0.0),
    "mistral": (Mistral, {"sliding_window": 4}, 0.0),
    "qwen 3": (Qwen, HEADS, 0.0),
    "qwen 2": (Qwen, {"model_type": "qwen2", "tie_word_embeddings": True}, 0.0),
    "gemma 1": (Gemma, {"model_type": "gemma", **HEADS}, 1.0),
    "gemma 2": (Gemma, {"model_type": "gemma2", **HEADS, **LAYERS, "final_logit_softcapping": 3.0}, 1.0),
    "gemma 3": (Gemma, {"model_type": "gemma3_text", **HEADS, **LAYERS}, 1.0),
    "phi 3": (Phi, {"sliding_window": 4}, 0.0),
    "phi 2": (Phi, {"model_type": "phi"}, None),
}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make(cls, config):
    """A part whose every weight matters."""
    torch.manual_seed(0)
    part = cls.from_config(cls.Config(config={**SIZES, **config})).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def logits(part, ids):
    rows, length = ids.shape
    position_ids, segment_ids = (each.expand(rows, -1) for each in positions(length))
    return part.logits(part.final_norm(part(part.embed(ids), position_ids, segment_ids)))


@pytest.mark.parametrize(("cls", "config", "offset"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_logits_are_the_librarys_from_ids(cls, config, offset, tmp_path):
    part = make(cls, config)
    assert part.spec.packing and part.spec.cache
    ids = torch.randint(260, (2, 12))
    part.model.set_submodule(part.abilities.norm, part.norm)
    part.model.save_pretrained(tmp_path)
    part.tokenizer.save_pretrained(tmp_path)
    library = type(part.model).from_pretrained(tmp_path).eval()
    read = cls.from_pretrained(cls.Config(pretrained=str(tmp_path))).eval()
    expected = library(ids, output_hidden_states=True)
    torch.testing.assert_close(logits(read, ids), expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(read.library_forward(ids), expected.logits, atol=1e-5, rtol=1e-5)
    norm = read.norm_weights
    assert (None if norm is None else norm.offset) == offset
    if norm is not None:
        assert norm.eps == library.config.rms_norm_eps


@pytest.mark.parametrize(("cls", "config", "offset"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_added_tokens_are_embedded_and_judged_like_the_others(cls, config, offset):
    """A new row that copies a known one has its embedding, scaled alike, and its logit."""
    part = make(cls, config)
    part.add_tokens(TOKENS)
    part.new_embed[0] = part.model.get_input_embeddings().weight[9]
    if part.new_head is not None:
        part.new_head[0] = part.model.get_output_embeddings().weight[9]
    assert torch.equal(part.embed(torch.tensor(260)), part.embed(torch.tensor(9)))
    _, bias, soft_cap, scale = part.head()
    assert (soft_cap, scale) == (config.get("final_logit_softcapping"), 1.0)
    found = part.logits(torch.randn(3, 16))
    if bias is None:
        torch.testing.assert_close(found[:, 260], found[:, 9])
    else:  # phi's: a token that was never seen has the mean bias
        torch.testing.assert_close(found[:, 260] - found[:, 9], (bias[:260].mean() - bias[9]).expand(3))
        assert bias[260] == bias[261]


@pytest.mark.parametrize(("cls", "config", "offset"), CASES.values(), ids=CASES)
def test_what_a_spec_takes_for_usual_is_what_a_trial_finds(cls, config, offset, monkeypatch):
    found = cls._described(cls.Config(config={**SIZES, **config}))
    monkeypatch.setattr(described, "abilities", lambda *_: pytest.fail("it was tried"))
    usual = found.limits()
    monkeypatch.undo()
    monkeypatch.setattr(described, "USUAL", frozenset())
    assert found.limits() == usual


def test_every_model_type_that_is_taken_for_usual_has_a_case():
    made = (cls._described(cls.Config(config={**SIZES, **config})) for cls, config, _ in CASES.values())
    assert {found.library_config.model_type for found in made} == described.USUAL


def test_a_gemma_whose_tokens_see_those_after_them_is_refused(tmp_path):
    part = make(Gemma, CASES["gemma 3"][1])
    part.model.save_pretrained(tmp_path)
    part.tokenizer.save_pretrained(tmp_path)
    config = Gemma.Config(pretrained=str(tmp_path))
    assert Gemma.infer_spec(config) == part.spec
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_bidirectional_attention": True}))
    with pytest.raises(ConfigError, match="cannot be used as a language model"):
        Gemma.infer_spec(config)


def test_gemmas_embeddings_are_scaled_by_the_root_of_the_width():
    part = make(Gemma, CASES["gemma 3"][1])
    part.add_tokens(TOKENS)
    torch.testing.assert_close(part.embed(torch.tensor(261)), 4 * part.new_embed[1])


def tokenizer_of(tmp_path, *names, bos=None, eos="</s>"):
    words = models.WordLevel({name: index for index, name in enumerate(["<unk>", "</s>", *names])}, "<unk>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token=eos, bos_token=bos, additional_special_tokens=list(names)
    )
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("cls", "names", "asked", "said", "end"),
    [
        (
            Llama,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
            "<|eot_id|>",
        ),
        (Mistral, (), ("[INST]", "[/INST]"), ("", "</s>"), None),
        (
            Qwen,
            ("<|im_start|>", "<|im_end|>"),
            ("<|im_start|>user\n", "<|im_end|>\n"),
            ("<|im_start|>assistant\n", "<|im_end|>\n"),
            "<|im_end|>",
        ),
        (
            Gemma,
            ("<start_of_turn>", "<end_of_turn>"),
            ("<start_of_turn>user\n", "<end_of_turn>\n"),
            ("<start_of_turn>model\n", "<end_of_turn>\n"),
            "<end_of_turn>",
        ),
        (
            Phi,
            ("<|user|>", "<|assistant|>", "<|end|>"),
            ("<|user|>\n", "<|end|>\n"),
            ("<|assistant|>\n", "<|end|>\n"),
            "<|end|>",
        ),
        (
            Phi,
            ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
            ("<|im_start|>user<|im_sep|>", "<|im_end|>"),
            ("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
            "<|im_end|>",
        ),
        (Phi, (), ("Instruct: ", "\n"), ("Output: ", "</s>"), None),
    ],
    ids=["llama 3", "mistral", "qwen", "gemma", "phi 3", "phi 4", "phi 2"],
)
def test_what_stands_around_turns_and_ends_a_text(cls, names, asked, said, end, tmp_path):
    config = cls.Config(config=cls.tiny_config().config, tokenizer=tokenizer_of(tmp_path, *names))
    part = cls.from_config(config)
    assert (part.chat.user, part.chat.assistant) == (asked, said)
    ends = ["</s>"] if end is None else ["</s>", end]
    assert part.tokenizer.convert_ids_to_tokens(list(part.spec.eos_ids)) == ends
    assert part.spec == cls.infer_spec(config)
    assert part.spec.bos_id is None and part.spec.pad_id == part.spec.eos_ids[0]


def test_a_model_type_that_is_not_the_familys():
    with pytest.raises(ConfigError) as caught:
        Gemma.infer_spec(Gemma.Config(config={"model_type": "gemma4"}))
    assert caught.value.problems == {
        "config.model_type": "'gemma4' found, but a decoder's is wanted; did you mean 'gemma'?"
    }
    with pytest.raises(ConfigError, match="which of the library's models is meant"):
        CausalLM.infer_spec(LanguageConfig(config={"hidden_size": 16}))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('{"model_type": "own_model", "auto_map": {"AutoConfig": "x.Y"}}', "dreamkit runs no such code"),
        ('{"model_type": "own_model"}', "a decoder of text that transformers knows"),
        ('{"model_type": "t5"}', "'t5', which is an encoder and a decoder, but .* known: gpt2, .{,40}$"),
    ],
)
def test_models_that_are_not_the_librarys(written, words, tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    (tmp_path / "config.json").write_text(written)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=words):
        CausalLM.infer_spec(LanguageConfig(pretrained=tokenizer))
