"""Language models without a cache, without packing, without attention or without a bos token."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from dreamkit.build.fit import fit
from dreamkit.data.batch import Collator
from dreamkit.document import Document, Image, Text
from dreamkit.model.events import TextPiece, collect
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry

MAMBA = {
    "name": "causal-lm",
    "config": {"model_type": "mamba", "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
}


def collator(model: DreamModel, **options: Any) -> Collator:
    return Collator(
        model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess, **options
    )


def test_generation_is_the_same_with_and_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    part = model.language_model
    prompts = ["a", "longer one", Document((Image(tiny.picture(0)), Text("and then")))]
    options: dict[str, Any] = {"max_tokens": 6, "max_images": 0, "ignore_eos": True}

    def generated_ids() -> list[tuple[int, ...]]:
        return [event.ids for event in model.generate(prompts, **options) if isinstance(event, TextPiece)]

    expected, states = generated_ids(), model.dream_states(prompts)
    part.spec = replace(part.spec, cache=False)
    monkeypatch.setattr(part, "new_cache", lambda: pytest.fail("new_cache was called"))
    assert generated_ids() == expected
    torch.testing.assert_close(model.dream_states(prompts), states)


def test_without_packing_each_document_has_its_own_row_and_its_loss_alone() -> None:
    model = tiny.model(**{"model.language_model": MAMBA}).eval()
    documents = tiny.documents()[:3]
    batch = collator(model)(documents)
    rows = [set(row[row >= 0].tolist()) for row in batch.segment_ids_BT]
    assert [len(row) for row in rows] == [1] * len(rows) and len(rows) >= 3
    assert len(collator(tiny.model())(documents).segment_ids_BT) == 1

    def losses(batch: Any) -> torch.Tensor:
        return model.label_losses(model.language_model(*model.inputs(batch)).flatten(0, 1), batch).by_row

    together = losses(batch)
    for number, document in enumerate(documents):
        alone = collator(model)([document])
        alone_losses = losses(alone)[alone.label_document_L == 0]
        torch.testing.assert_close(
            alone_losses, together[batch.label_document_L == number], atol=1e-5, rtol=1e-5
        )


def test_a_model_without_attention_writes_and_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(**{"model.language_model": MAMBA})
    part, dream_start = model.language_model, model.token_ids["<dream_start>"]
    tokens = iter([*part.tokenize("a"), dream_start, *part.tokenize("b")])

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(tokens)]), len(part.head().weight)).double()

    monkeypatch.setattr(part, "logits", logits)
    (document,) = collect(model.generate("x", max_tokens=3))
    x, a, image, b = document
    assert [x.text, a.text, b.text] == ["x", "a", "b"]
    assert image.draw and image.picture.size == (16, 16)


def test_a_model_without_bos_starts_after_an_eos() -> None:
    model = tiny.model()
    part = model.language_model
    part.spec = replace(part.spec, bos_id=None)
    sequencer = model.sequencer()
    assert sequencer.prompt(Document(())).ids == [part.spec.eos_ids[0]]
    assert sequencer.prompt(Document((Text("a"),))).ids == part.tokenize("a")
    assert sequencer.dummy(read=False, draw=False).targets == 1
    (document,) = collect(model.generate("", max_tokens=2, max_images=0, ignore_eos=True))
    assert len(document) == 1
    batch = collator(model)([Document((Image(tiny.picture(0), draw=True),))])
    assert len(batch.label_ids_L)


@pytest.mark.parametrize("has_bos", [True, False])
def test_training_and_drawing_use_the_same_unconditional_states(has_bos: bool) -> None:
    model = tiny.model()
    part = model.language_model
    part.spec = replace(part.spec, bos_id=part.spec.bos_id if has_bos else None)
    batch = collator(model, condition_drop=0.5)([Document((Text("a"), Image(tiny.picture(0), draw=True)))])
    batch = replace(batch, pixels_NCHW=batch.pixels_NCHW.double())
    with torch.no_grad():
        hidden_RD = part(*model.inputs(batch)).flatten(0, 1)
        trained = part.final_norm(hidden_RD[batch.unconditional_rows_Q])
    torch.testing.assert_close(trained, model.dream_states("")[0])


@pytest.mark.parametrize(("packing", "keys"), [(None, []), (False, []), (True, ["train.packing"])])
def test_the_summary_names_missing_abilities(packing: bool | None, keys: list[str]) -> None:
    registry = Registry.load()
    train = {"trainable": ["dream_queries"], "steps": 1, "batch_size": 1, "packing": packing}
    recipe = recipe_from_dict(tiny.recipe(**{"model.language_model": MAMBA, "train": train}), registry)
    fitted = fit(recipe, registry)
    assert [problem.key for problem in fitted.problems] == keys
    shapes = {part: shapes for part, _, shapes in fitted.summary()}
    assert shapes["language_model"].endswith(", one document a row, decoding without a cache")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_oss", "intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 4},
        {"model_type": "falcon", "alibi": True},
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_that_the_meta_device_cannot_run_is_not_a_config_error(config: dict[str, Any]) -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    section = {"name": "causal-lm", "config": {**sizes, **config}}
    registry = Registry.load()
    recipe = recipe_from_dict(tiny.recipe(**{"model.language_model": section}), registry)
    assert fit(recipe, registry).problems == []
