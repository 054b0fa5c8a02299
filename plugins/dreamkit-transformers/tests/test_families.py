"""Each family: logits equal to the library's, its chat template, its special tokens."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dreamkit import ConfigError, SourceError
from dreamkit_transformers import description
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
CASES = {  # family, config, and offset of the RMS norm or None
    "llama 3": (Llama, {"rope_parameters": LLAMA_3}, 0.0),
    "llama with biases": (Llama, {"attention_bias": True}, 0.0),
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
    """Build a part whose weights all affect its output."""
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
def test_logits_equal_the_librarys_from_ids(cls, config, offset, tmp_path):
    part = make(cls, config)
    assert part.spec.packing and part.spec.cache
    ids = torch.randint(260, (2, 12))
    part.model.set_submodule(part.abilities.norm, part.norm)
    part.model.save_pretrained(tmp_path)
    part.tokenizer.save_pretrained(tmp_path)
    library = type(part.model).from_pretrained(tmp_path).eval()
    loaded = cls.from_pretrained(cls.Config(pretrained=str(tmp_path))).eval()
    expected = library(ids).logits
    torch.testing.assert_close(logits(loaded, ids), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loaded.library_forward(ids), expected, atol=1e-5, rtol=1e-5)
    norm = loaded.norm_weights
    assert (None if norm is None else norm.offset) == offset
    if norm is not None:
        assert norm.eps == library.config.rms_norm_eps


@pytest.mark.parametrize(("cls", "config", "offset"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_an_added_row_equal_to_a_known_row_has_its_embedding_and_logit(cls, config, offset):
    part = make(cls, config)
    part.add_tokens(TOKENS)
    part.new_embed[0] = part.model.get_input_embeddings().weight[9]
    if part.new_head is not None:
        part.new_head[0] = part.model.get_output_embeddings().weight[9]
    assert torch.equal(part.embed(torch.tensor(260)), part.embed(torch.tensor(9)))
    _, bias, soft_cap, scale = part.head()
    assert (soft_cap, scale) == (config.get("final_logit_softcapping"), 1.0)
    scores = part.logits(torch.randn(3, 16))
    if bias is None:
        torch.testing.assert_close(scores[:, 260], scores[:, 9])
    else:  # Phi 2: an added token has the mean bias
        torch.testing.assert_close(scores[:, 260] - scores[:, 9], (bias[:260].mean() - bias[9]).expand(3))
        assert bias[260] == bias[261]


@pytest.mark.parametrize(("cls", "config", "offset"), CASES.values(), ids=CASES)
def test_the_spec_of_a_usual_model_type_agrees_with_a_probe(cls, config, offset, monkeypatch):
    model = cls._describe(cls.Config(config={**SIZES, **config}))
    monkeypatch.setattr(description, "find_abilities", lambda *_: pytest.fail("a usual model was probed"))
    usual = model.abilities_of_spec()
    monkeypatch.undo()
    monkeypatch.setattr(description, "USUAL", frozenset())
    assert model.abilities_of_spec() == usual


def test_every_usual_model_type_has_a_case():
    models = (cls._describe(cls.Config(config={**SIZES, **config})) for cls, config, _ in CASES.values())
    assert {model.library_config.model_type for model in models} == description.USUAL


def test_a_gemma_whose_tokens_see_later_tokens_is_an_error(tmp_path):
    part = make(Gemma, CASES["gemma 3"][1])
    part.model.save_pretrained(tmp_path)
    part.tokenizer.save_pretrained(tmp_path)
    config = Gemma.Config(pretrained=str(tmp_path))
    assert Gemma.infer_spec(config) == part.spec
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_bidirectional_attention": True}))
    with pytest.raises(ConfigError, match="cannot be used as a language model"):
        Gemma.infer_spec(config)


def test_gemma_scales_embeddings_by_the_square_root_of_the_width():
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
    ("cls", "names", "user", "assistant", "end"),
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
def test_the_tokenizer_determines_the_chat_template_and_the_ends_of_texts(
    cls, names, user, assistant, end, tmp_path
):
    config = cls.Config(config=cls.tiny_config().config, tokenizer=tokenizer_of(tmp_path, *names))
    part = cls.from_config(config)
    assert (part.chat.user, part.chat.assistant) == (user, assistant)
    ends = ["</s>"] if end is None else ["</s>", end]
    assert part.tokenizer.convert_ids_to_tokens(list(part.spec.eos_ids)) == ends
    assert part.spec == cls.infer_spec(config)
    assert part.spec.bos_id is None and part.spec.pad_id == part.spec.eos_ids[0]


def test_a_model_type_of_another_family_is_an_error():
    with pytest.raises(ConfigError) as caught:
        Gemma.infer_spec(Gemma.Config(config={"model_type": "gemma4"}))
    message = "expected one of gemma3_text, gemma2, gemma, got 'gemma4'; did you mean 'gemma'?"
    assert caught.value.problems == {"config.model_type": message}
    with pytest.raises(ConfigError, match="missing 'model_type': name a model of transformers"):
        CausalLM.infer_spec(LanguageConfig(config={"hidden_size": 16}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"model_type": "own_model", "auto_map": {"AutoConfig": "x.Y"}}',
            "code from the model's own repository, which dreamkit does not run",
        ),
        ('{"model_type": "own_model"}', "expected a text decoder of transformers, got 'own_model'"),
        (
            '{"model_type": "t5"}',
            "expected a text decoder of transformers, got 't5'; known: gpt2, .{,40}$",
        ),
    ],
)
def test_a_model_that_is_not_a_decoder_of_transformers_is_an_error(content, message, tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=message):
        CausalLM.infer_spec(LanguageConfig(pretrained=tokenizer))
