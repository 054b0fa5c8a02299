"""A model's own settings for writing text: honoured, replaced by a recipe's `generation`, or refused by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers

from dreamkit import SourceError
from dreamkit_transformers import generation_file
from dreamkit_transformers.description import LanguageConfig
from dreamkit_transformers.llama import Llama
from small_language import write

FILES = ("generation_config.json", "config.json")  # the second one counts without the first


@pytest.fixture(params=FILES)
def change(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return a function that changes the settings of a model's folder, and returns the part's config."""
    folder, _ = write(tmp_path)
    if request.param == "config.json":
        (tmp_path / "generation_config.json").unlink(missing_ok=True)

    def apply(**values: Any) -> LanguageConfig:
        file = tmp_path / request.param
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return LanguageConfig(pretrained=folder)

    return apply


def test_the_listed_keys_are_those_of_the_installed_class() -> None:
    lists = (
        generation_file.HONOURED,
        generation_file.SAMPLING,
        generation_file.GREEDY,
        generation_file.REFUSED,
        generation_file.OTHER,
    )
    listed = [key for each in lists for key in each]
    installed = set(transformers.GenerationConfig().to_dict()) - {"_from_model_config"}
    assert sorted(listed) == sorted(installed)


def test_values_without_effect_are_those_of_the_installed_class() -> None:
    defaults = transformers.GenerationConfig()._get_default_generation_params()
    for key, neutral in (generation_file.SAMPLING | generation_file.GREEDY | generation_file.REFUSED).items():
        assert defaults.get(key) in (None, *neutral), key


def test_suppressed_and_end_tokens_are_honoured(change: Any) -> None:
    config = change(suppress_tokens=[70, 71], eos_token_id=[2, 9])
    assert Llama.infer_spec(config).eos_ids == (2, 9)
    part = Llama.from_pretrained(config)
    assert {70, 71} <= part.suppressed_ids and not {2, 9} & part.suppressed_ids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"suppress_tokens": [9, 2]}, "suppress_tokens: expected no eos_token_id, got 2"),
        (
            {"suppress_tokens": [-1]},
            r"suppress_tokens: expected a token id or a list of token ids, got \[-1\]",
        ),
        ({"suppress_tokens": [260]}, "suppress_tokens: expected token ids below 260, got 260"),
        ({"eos_token_id": "end"}, r".*eos_token_id.*[\"']end"),
    ],
)
def test_invalid_tokens_are_an_error_with_file_and_key(
    change: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=rf"config\.json: {message}"):
        Llama.infer_spec(change(**values))


@pytest.mark.parametrize("key", generation_file.REFUSED)
def test_a_rule_for_certain_tokens_is_refused_by_name(change: Any, key: str) -> None:
    for neutral in (None, *generation_file.REFUSED[key]):
        Llama.infer_spec(change(**{key: neutral}))
    with pytest.raises(SourceError, match=rf"config\.json: {key}: dreamkit has no such setting"):
        Llama.infer_spec(change(**{key: [[5]]}))


def test_settings_without_effect_are_named(change: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings = {
        "temperature": 0.6,
        "top_k": 50,
        "do_sample": False,
        "num_beams": 1,
        "no_repeat_ngram_size": 3,
    }
    config = change(**settings, repetition_penalty=1.05)
    with caplog.at_level(logging.INFO):
        Llama.from_pretrained(config)
    lines = {record.levelname: record.message for record in caplog.records if "not used" in record.message}
    assert ": temperature of the source; " in lines["INFO"]
    assert ": repetition_penalty, no_repeat_ngram_size of the source; " in lines["WARNING"]


@pytest.mark.parametrize("key", generation_file.GREEDY)
def test_a_setting_that_changes_the_most_likely_text_is_warned_of_once(
    change: Any, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    for neutral in (None, *generation_file.GREEDY[key]):
        Llama.from_pretrained(change(**{key: neutral}))
    assert not [message for message in caplog.messages if "not used" in message]
    Llama.from_pretrained(change(**{key: True if key == "early_stopping" else 3}))
    (message,) = [message for message in caplog.messages if "not used" in message]
    assert f": {key} of the source; texts may differ" in message
