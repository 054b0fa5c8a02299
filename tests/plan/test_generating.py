"""The planned memory of generation, against the bytes of live tensors of a real document, counted in another way."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import alive
import dreamkit
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.cli import app
from dreamkit.document import Document, Text
from dreamkit.model.events import collect
from dreamkit.plan.generating import generation_memory
from dreamkit.plan.memory import total_bytes
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry

TOLERANCE = 0.15
REGISTRY = Registry.load()
LARGE_LANGUAGE = alive.WIDE  # a prompt needs the most
LARGE_IMAGES = {"model.image_decoder.config.vae.sample_size": 64, "model.image_decoder.image_size": 64}
SDXL = {
    "model.image_decoder": {
        "name": "sdxl",
        **{"config": REGISTRY.get("image_decoder", "sdxl").tiny_config().config},  # type: ignore[attr-defined]
    }
}


def recipe(changes: dict[str, Any]) -> Recipe:
    return alive.recipe({"trainable": alive.JOINTS}, **changes)


def real_peak(recipe: Recipe, dtype: str) -> int:
    """Return the peak bytes while a document of `alive.LENGTH` tokens is generated, with an image at its end."""
    model = dreamkit.place(build(fit(recipe, REGISTRY)), "cpu", dtype)
    language_model, sequencer = model.language_model, model.sequencer()
    image = sequencer.dream_queries + sequencer.vision_tokens + 4
    prompt = Document((Text("x" * (alive.LENGTH - image - 1)),), name="prompt")
    assert len(sequencer.prompt(prompt)) == alive.LENGTH - image
    tokens = iter([model.token_ids[model.special_tokens.dream_start], language_model.spec.eos_ids[0]])
    real = language_model.logits

    def logits(hidden: Tensor) -> Tensor:
        scores = real(hidden)
        return scores.index_fill(-1, torch.tensor(next(tokens)), scores.max().item() + 1)

    counter = alive.StorageBytes()
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor)
    with patch.object(language_model, "logits", logits), counter:
        (document,) = collect(model.generate(prompt, seed=0))
    assert document.images
    return counter.peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [LARGE_LANGUAGE, LARGE_IMAGES, SDXL], ids=["language", "images", "sdxl"])
def test_the_peak_is_close_to_that_of_a_real_document(changes: dict[str, Any], dtype: str) -> None:
    settings = recipe(changes)
    planned, real = generation_memory(settings, REGISTRY, dtype).peak, real_peak(settings, dtype)
    print(f"{dtype}: {planned / real:.3f} of {real}")
    assert abs(planned / real - 1) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_cache_are_exactly_those_of_the_model(dtype: str) -> None:
    settings = recipe(SDXL)
    planned = generation_memory(settings, REGISTRY, dtype)
    model = dreamkit.place(build(fit(settings, REGISTRY)), "cpu", dtype)
    for name, part in model.parts().items():
        assert planned.weights[name] == total_bytes((*part.parameters(), *part.buffers()))
    assert planned.weights["dream_queries"] == model.dream_queries.nbytes
    cache, places = model.language_model.new_cache(), torch.arange(alive.LENGTH)[None]
    with torch.no_grad():
        embeds = model.language_model.embed(torch.zeros_like(places))
        model.language_model(embeds, places, torch.zeros_like(places), cache=cache)
    assert planned.kv_cache == model.language_model.cache_bytes(cache)


def test_each_beam_has_a_row_of_the_cache() -> None:
    planned = [
        generation_memory(recipe(SDXL | {"generation": {"beams": beams}}), REGISTRY, "float32")
        for beams in (1, 3)
    ]
    assert planned[1].kv_cache == 3 * planned[0].kv_cache > 0
    assert planned[1].peak - planned[0].peak == 2 * planned[0].kv_cache


def test_offloaded_parts_take_turns() -> None:
    planned = generation_memory(recipe(LARGE_LANGUAGE), REGISTRY, "float32")
    waiting = sum(planned.weights[name] for name in WITH_SOURCE) - planned.weights["language_model"]
    assert planned.activations["language_model"] == max(planned.activations.values())
    assert planned.offloaded_peak == planned.peak - waiting


def test_the_command_prints_both_types_and_what_fits() -> None:
    def run(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["plan", "digits/stage2", "--generate", *options])
        return result.exit_code, result.output

    code, out = run("--memory", "1GiB")
    assert code == 0 and "peak with --offload" in out and "KV cache of" in out, out
    assert "fits into 1.00 GiB: --dtype bfloat16, --dtype float32, --dtype bfloat16 --offload" in out
    code, out = run("--memory", "1KiB")
    assert code == 1 and "the least, do not fit into 1.00 KiB" in out
    code, out = run("--json")
    numbers = json.loads(out)
    assert numbers["bfloat16"]["peak"] > numbers["bfloat16"]["offloaded_peak"] > 0
    assert numbers["float32"]["weights"]["language_model"] > numbers["bfloat16"]["weights"]["language_model"]
