"""The probe: its findings for decoders of the library agree with what the library computes."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from dreamkit import ConfigError
from dreamkit_transformers import probe
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.probe import find_abilities
from small_language import MAMBA2, NEXT, TOKENS, positions

BASE = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
WIDE = {**BASE, "intermediate_size": 24, "max_position_embeddings": 64}
SHARED = {**WIDE, "num_key_value_heads": 2}
TYPES = ["sliding_attention", "full_attention"]
SINKS = {**SHARED, "head_dim": 8, "layer_types": TYPES, "sliding_window": 4, "num_local_experts": 4}
OPT = {**BASE, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
NEO = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
CTRL = {"model_type": "ctrl", "n_embd": 16, "dff": 24, "n_layer": 3, "n_head": 4}
# config; then packing, cache, final norm is an RMS norm, scale of the logits
MODELS = {
    "opt": (OPT, True, True, False, 1.0),
    "opt without norm": (
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 12},
        True,
        True,
        False,
        1.0,
    ),
    "bloom": (BASE, False, True, False, 1.0),
    "mpt with a word as scale": (
        {
            "d_model": 16,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "vocab_size": 260,
            "logit_scale": "inv_sqrt_d_model",
        },
        True,
        True,
        False,
        1.0,
    ),
    "falcon": ({**BASE, "ffn_hidden_size": 24}, True, True, False, 1.0),
    "falcon alibi": ({**BASE, "ffn_hidden_size": 24, "alibi": True}, False, True, False, 1.0),
    "mamba2": (
        MAMBA2,
        False,
        True,
        True,
        1.0,
    ),
    "mamba": ({"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, False, False, True, 1.0),
    "qwen3_next": (NEXT, False, True, True, 1.0),
    "gpt_oss": (SINKS, True, True, True, 1.0),
    "gpt2": ({"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 64}, True, True, False, 1.0),
    "gpt_neox": (WIDE, True, True, False, 1.0),
    "gpt_neo": (NEO, True, True, False, 1.0),
    "ctrl": (CTRL, True, True, False, 1.0),  # changes its input in place
    "olmo2": (SHARED, True, True, True, 1.0),
    "cohere": ({**SHARED, "logit_scale": 0.25}, True, True, False, 0.25),
    "granite": ({**SHARED, "logits_scaling": 8.0, "embedding_multiplier": 3.0}, True, True, True, 0.125),
    "stablelm": (SHARED, True, True, False, 1.0),
}
NO_PADDING = ("mamba2", "qwen3_next", "gpt_neo", "mpt with a word as scale")  # in calls with a cache


def make(name):
    values = {"model_type": name.split()[0], **MODELS[name][0]}
    torch.manual_seed(0)
    part = CausalLM.from_config(LanguageConfig(config=values)).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return part


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_findings_agree_with_the_library(name):
    _, packing, cache, rms, scale = MODELS[name]
    part = make(name)
    assert (part.spec.packing, part.spec.cache) == (packing, cache)
    assert part.spec.cache_padding == (cache and name not in NO_PADDING)
    assert (part.norm_weights is not None, part.head().scale) == (rms, scale)
    layers = [part.model.get_submodule(target) for target in part.adapter_targets]
    assert layers and part.model.get_output_embeddings() not in layers
    part.add_tokens(TOKENS)
    texts = [torch.randint(3, 250, (1, length)) for length in (11, 7)]
    expected = [part.library_forward(text)[0] for text in texts]
    for text, logits in zip(texts, expected, strict=True):
        hidden = part(part.embed(text), *positions(text.shape[1]))
        assert_close(part.logits(part.final_norm(hidden))[0, :, :260], logits)
    padded = torch.cat([texts[1], texts[0][:, :4]], 1)
    segments = torch.tensor([[0] * 11, [0] * 7 + [-1] * 4])
    hidden = part(part.embed(torch.cat([texts[0], padded])), torch.arange(11).expand(2, -1), segments)
    assert_close(part.logits(part.final_norm(hidden[1, :7]))[:, :260], expected[1])
    if packing:
        hidden = part(part.embed(torch.cat(texts, 1)), *positions(11, 7))[0]
        assert_close(part.logits(part.final_norm(hidden))[:, :260], torch.cat(expected))
    if cache:
        kv_cache = part.new_cache()
        chunks = []
        for start, end in ((0, 5), (5, 6), (6, 11)):
            position_ids = torch.arange(start, end)[None]
            embeds = part.embed(texts[0][:, start:end])
            chunks.append(part(embeds, position_ids, torch.zeros_like(position_ids), kv_cache))
        assert_close(part.logits(part.final_norm(torch.cat(chunks, 1)))[0, :, :260], expected[0])


NEMOTRON_H = {  # time steps are clamped for several tokens, and not for one
    "hidden_size": 32,
    "layers_block_type": ["mamba", "attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
}


@pytest.mark.parametrize(("clamp", "cache"), [(1e-3, False), (1e-9, True)])
def test_a_recurrence_that_differs_for_single_tokens_has_no_cache(clamp, cache):
    config = {"model_type": "nemotron_h", **NEMOTRON_H, "time_step_min": clamp}
    assert CausalLM.infer_spec(LanguageConfig(config=config)).cache == cache


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_a_config_is_probed_once_without_the_global_generator(monkeypatch):
    config = OPTConfig(num_hidden_layers=3)
    torch.manual_seed(5)
    expected = torch.randn(2)
    torch.manual_seed(5)
    abilities = find_abilities(OPTForCausalLM, config)
    assert torch.equal(torch.randn(2), expected)
    monkeypatch.setattr(probe, "_small_model", lambda *_: pytest.fail("probed twice"))
    assert find_abilities(OPTForCausalLM, OPTConfig(num_hidden_layers=3)) == abilities


@torch.no_grad()
def test_a_small_copy_has_few_parameters_and_keeps_the_width_of_heads():
    config = LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    )
    model = probe._small_model(LlamaForCausalLM, config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
    assert len(model.model.layers) == 2 and model.model.layers[0].self_attn.head_dim == 128


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (BertLMHeadModel, BertConfig(), "its tokens see later tokens"),
        (Gemma3ForConditionalGeneration, Gemma3Config(), "it is more than a text decoder"),
    ],
)
def test_an_unsupported_model_is_an_error_with_the_reason(kind, config, reason):
    with pytest.raises(ConfigError) as caught:
        find_abilities(kind, config, "pretrained")
    ((key, message),) = caught.value.problems.items()
    assert key == "pretrained" and reason in message and kind.__name__ in message


def test_a_decoder_that_scales_embeddings_only_of_ids_is_an_error():
    class IdScaling(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            own = self.model.forward
            self.model.forward = lambda ids=None, inputs_embeds=None, **named: own(
                inputs_embeds=2 * self.model.embed_tokens(ids) if inputs_embeds is None else inputs_embeds,
                **named,
            )

    with pytest.raises(ConfigError, match="differ between tokens and their embeddings"):
        find_abilities(IdScaling, LlamaConfig(**SHARED))


SMALLER = {**SHARED, "hidden_size": 32, "head_dim": 8}


@pytest.mark.parametrize(
    ("config", "norm", "soft_cap"),
    [
        ({"model_type": "openai-gpt", "n_embd": 16, "n_layer": 6, "n_head": 4}, None, None),
        ({"model_type": "opt", **OPT, "num_hidden_layers": 6, "do_layer_norm_before": False}, None, None),
        ({"model_type": "nanochat", **SHARED}, None, 15.0),
        ({"model_type": "gemma2", **SMALLER}, "model.norm", 30.0),
        (
            {"model_type": "gemma2", **SMALLER, "intermediate_size": 48, "final_logit_softcapping": 50.0},
            "model.norm",
            50.0,
        ),
        ({"model_type": "gemma2", **SMALLER, "final_logit_softcapping": 100.0}, "model.norm", 100.0),
        ({"model_type": "minicpm3", "num_hidden_layers": 1}, "model.norm", None),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
@torch.no_grad()
def test_norm_and_soft_cap_hold_for_larger_models(config, norm, soft_cap):
    torch.manual_seed(0)
    part = CausalLM.from_config(LanguageConfig(config=config)).eval()
    for parameter in part.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    assert (part.abilities.norm, part.abilities.soft_cap) == (norm, soft_cap)
    ids = torch.randint(3, 250, (1, 9))
    logits = part.logits(part.final_norm(part(part.embed(ids), *positions(9))))
    assert_close(logits, part.library_forward(ids))


def test_max_length_is_read_from_the_config_or_unlimited():
    mpt = {"model_type": "mpt", "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 16}
    assert CausalLM.infer_spec(LanguageConfig(config=mpt)).max_length == 16
    assert CausalLM.infer_spec(LanguageConfig(config={"model_type": "bloom", **BASE})).max_length == 2**20


def test_layers_without_a_mark_of_the_library_are_found_in_lists():
    part = CausalLM.from_config(LanguageConfig(config=CTRL))
    assert len(part._layers()) == 3
    assert len(part.adapter_targets) == 3 * 6 and "transformer.h.2.ffn.0" in part.adapter_targets


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "blt"}, "its config has no num_hidden_layers"),
        ({"model_type": "xlstm"}, "a small copy fails"),
        ({"model_type": "gpt2", "n_layer": 0}, "at least 1"),
        ({"model_type": "gpt2", "n_layer": 5000}, "at most 1000"),
    ],
    ids=str,
)
def test_a_config_without_a_runnable_model_is_an_error(config, message):
    with pytest.raises(ConfigError, match=message):
        CausalLM.infer_spec(LanguageConfig(config=config))
