"""Well-known models of the hub: described offline."""

from pathlib import Path

import pytest

import dreamkit_transformers
from dreamkit import SourceError
from dreamkit_transformers.causal_lm import LanguageConfig
from dreamkit_transformers.families import Gemma, Mistral, Phi, Qwen
from dreamkit_transformers.llama import Llama, Vicuna, VicunaConfig

# parameters as published, without rows of added tokens; then max_length, window, bos_id and eos_ids
KNOWN = [
    (Vicuna, "lmsys/vicuna-7b-v1.1", 6_738_415_616, 2048, None, 1, (2,)),
    (Vicuna, "lmsys/vicuna-7b-v1.5", 6_738_415_616, 4096, None, 1, (2,)),
    (Llama, "huggyllama/llama-7b", 6_738_415_616, 2048, None, 1, (2,)),
    (Llama, "meta-llama/Llama-2-7b-hf", 6_738_415_616, 4096, None, 1, (2,)),
    (Llama, "meta-llama/Llama-3.1-8B", 8_030_261_248, 131072, None, 128000, (128001, 128009)),
    (Llama, "meta-llama/Llama-3.2-1B", 1_235_814_400, 131072, None, 128000, (128001, 128009)),
    (Mistral, "mistralai/Mistral-7B-v0.1", 7_241_732_096, 32768, 4096, 1, (2,)),
    (Qwen, "Qwen/Qwen2.5-7B", 7_615_616_512, 131072, None, None, (151643, 151645)),
    (Qwen, "Qwen/Qwen2.5-0.5B", 494_032_768, 32768, None, None, (151643, 151645)),
    (Qwen, "Qwen/Qwen3-8B", 8_190_735_360, 40960, None, None, (151645, 151643)),
    (Gemma, "google/gemma-2-2b", 2_614_341_888, 8192, 4096, 2, (1, 107)),
    (Gemma, "google/gemma-3-1b-pt", 999_885_952, 32768, 512, 2, (1, 106)),
    (Phi, "microsoft/Phi-3-mini-4k-instruct", 3_821_079_552, 4096, 2047, None, (32000, 32001, 32007)),
    (Phi, "microsoft/phi-4", 14_659_507_200, 16384, None, None, (100265,)),
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(("family", "name", "count", "length", "window", "bos", "ends"), KNOWN)
def test_a_well_known_model_has_its_published_size(family, name, count, length, window, bos, ends):
    config = family.Config(pretrained=name)
    spec = family.infer_spec(config)
    assert (spec.max_length, spec.sliding_window, spec.bos_id, spec.eos_ids) == (length, window, bos, ends)
    assert spec.packing and spec.cache
    part = family.meta_modules(config)
    assert part.spec == spec
    assert part.abilities.masks != "none" and part.abilities.cache  # found by a probe, unlike the spec
    assert {parameter.device.type for parameter in part.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in part.parameters()) == count
    ids = part.add_tokens(["<dream_start>", "<dream_end>"])
    assert len(set(ids)) == 2 and min(ids) >= part.tokenizer.vocab_size
    assert {tuple(rows.shape) for rows in part.added_token_parameters()} == {(2, spec.dim)}


def test_weights_of_a_well_known_model_are_not_included():
    config = VicunaConfig(pretrained="lmsys/vicuna-7b-v1.1")
    with pytest.raises(SourceError, match=r"the cache .* does not hold it"):
        Vicuna.from_pretrained(config)
    with pytest.raises(SourceError, match=r"the cache .* does not hold it"):
        Llama.from_config(LanguageConfig(config={"num_hidden_layers": 1}, tokenizer="lmsys/vicuna-7b-v1.1"))


def test_an_unknown_name_is_an_error():
    with pytest.raises(SourceError, match="lmsys/vicuna-7b-v9"):
        Vicuna.infer_spec(VicunaConfig(pretrained="lmsys/vicuna-7b-v9"))


def test_the_readme_lists_every_well_known_model() -> None:
    folder = Path(dreamkit_transformers.__file__).parent / "known"
    page = (folder.parents[1] / "README.md").read_text(encoding="utf-8")
    names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    assert names and [name for name in names if f"`{name}`" not in page] == []
