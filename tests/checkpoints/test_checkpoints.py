"""Checkpoints: their content, equality after loading, and safe saving."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import tiny
from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError, printable
from dreamkit.model.model import DreamModel
from dreamkit.storage.folders import describe_files
from saved_models import (
    REGISTRY,
    assert_equal,
    build_tiny,
    copied as copied,
    perturb,
    saved as saved,
)
from tiny import on_sources

ADAPTER = {"target": "language_model", "rank": 2}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sources(tmp_path_factory.mktemp("sources"))


def test_the_files_of_a_checkpoint_are_those_of_safetensors(saved: Path, tmp_path: Path) -> None:
    files = sorted(saved.rglob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        save_file(load_file(file), tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_loaded_model_equals_the_saved_one(tmp_path: Path) -> None:
    model = build_tiny()
    perturb(model)
    save_checkpoint(model, tmp_path / "checkpoint")
    loaded, report = load_checkpoint(tmp_path / "checkpoint", REGISTRY)
    assert_equal(loaded, model)
    assert loaded.recipe == model.recipe and loaded.token_ids == model.token_ids
    assert loaded.sources == model.sources and not any(loaded.sources.values())
    for part in report.parts.values():
        assert part.loaded > 0 and (part.from_source, part.missing, part.fresh) == (0, 0, 0)


def test_the_report_is_printed_as_a_table(saved: Path) -> None:
    _, report = load_checkpoint(saved)
    console = Console(width=200, file=StringIO(), record=True)
    console.print(report)
    table = console.export_text()
    for word in (*report.parts, "loaded", "from source", "initialised"):
        assert word in table
    assert "missing" not in table  # it reads like an error, and there is none


def test_a_checkpoint_has_only_tensors_that_its_sources_lack(sources: Path, tmp_path: Path) -> None:
    model = build_tiny(on_sources(sources))
    model.set_trainable(["visual_projector", "dream_queries", "new_tokens"])
    perturb(model)
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    saved_keys = {path.stem: set(load_file(path)) for path in folder.glob("*.safetensors")}
    assert saved_keys.keys() == {"language_model", "visual_projector", "condition_projector", "dream_queries"}
    assert saved_keys["language_model"] == {"new_embed", "new_head"}
    loaded, report = load_checkpoint(folder)
    assert_equal(loaded, model)
    language = report.parts["language_model"]
    assert language.loaded == 2 and language.from_source > 10
    assert loaded.sources == model.sources


def test_a_part_once_trained_is_saved_by_later_stages(sources: Path, tmp_path: Path) -> None:
    first = build_tiny(on_sources(sources))
    first.set_trainable(["language_model"])
    perturb(first)
    save_checkpoint(first, tmp_path / "first")
    second = build_tiny(on_sources(sources))
    report = load_weights(second, tmp_path / "first")
    assert report.parts["language_model"].from_source == 0
    second.set_trainable(["dream_queries"])
    perturb(second)
    save_checkpoint(second, tmp_path / "second")
    third, _ = load_checkpoint(tmp_path / "second")
    assert_equal(third.language_model, first.language_model)
    third.set_trainable([])
    save_checkpoint(third, tmp_path / "third")
    assert_equal(load_checkpoint(tmp_path / "third")[0], third)


def test_adapters_are_saved_apart_and_loaded(sources: Path, tmp_path: Path) -> None:
    model = build_tiny(on_sources(sources, **{"model.adapters": [ADAPTER]}))
    model.set_trainable([])
    perturb(model)
    save_checkpoint(model, tmp_path / "checkpoint")
    assert set(load_file(tmp_path / "checkpoint/language_model.safetensors")) == {"new_embed", "new_head"}
    adapter = load_file(tmp_path / "checkpoint/adapters/language_model/adapter_model.safetensors")
    assert all(".lora_" in name for name in adapter) and len(adapter) > 20
    assert_equal(load_checkpoint(tmp_path / "checkpoint")[0], model)


def test_format_1_with_adapters_among_the_weights_loads(sources: Path, tmp_path: Path) -> None:
    model = build_tiny(on_sources(sources, **{"model.adapters": [ADAPTER | {"use_dora": True}]}))
    model.set_trainable([])
    perturb(model)
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    own = dict(model.language_model.named_parameters())
    tensors = {name: p.detach() for name, p in own.items() if "lora_" in name or name.startswith("new_")}
    save_file(tensors, folder / "language_model.safetensors")
    shutil.rmtree(folder / "adapters")
    manifest = json.loads((folder / "dreamkit.json").read_text())
    del manifest["adapters"]
    manifest |= {"format": 1, "parts": manifest["parts"] | {"language_model": len(tensors)}}
    manifest["files"] = describe_files(folder)
    del manifest["files"]["dreamkit.json"]
    (folder / "dreamkit.json").write_text(json.dumps(manifest))
    assert_equal(load_checkpoint(folder)[0], model)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    recipe = tiny.recipe()
    recipe["model"]["language_model"]["config"]["tie_word_embeddings"] = True
    model = build_tiny(recipe)
    perturb(model)
    save_checkpoint(model, tmp_path / "checkpoint")
    tensors = load_file(tmp_path / "checkpoint/language_model.safetensors")
    assert len([name for name in tensors if "embed_tokens" in name or "lm_head" in name]) == 1
    loaded, _ = load_checkpoint(tmp_path / "checkpoint")
    assert_equal(loaded, model)
    inner = loaded.language_model.model
    assert inner.get_input_embeddings().weight is inner.get_output_embeddings().weight


def test_a_stage_may_add_adapters(saved: Path) -> None:
    model = build_tiny(**{"model.adapters": [ADAPTER]})
    report = load_weights(model, saved)
    assert report.parts["language_model"].fresh > 10
    before, _ = load_checkpoint(saved)
    layer = model.language_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert torch.equal(layer.weight, before.language_model.model.model.layers[0].self_attn.q_proj.weight)


def assert_refused(model: DreamModel, folder: Path, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_do_not_fit_change_nothing(saved: Path, sources: Path, tmp_path: Path) -> None:
    assert_refused(
        build_tiny(**{"model.dream_queries": 5}),
        saved,
        r"dream_queries: \(3, 32\) in the checkpoint, \(5, 32\)",
    )
    mlp = build_tiny(**{"model.visual_projector": {"name": "mlp"}})
    assert_refused(mlp, saved, "expected visual_projector 'linear', got 'mlp' in the recipe")
    tokens = build_tiny(**{"model.special_tokens": {"dream_start": "<go>"}})
    assert_refused(tokens, saved, r"<dream_start>.*<go>")
    no_bias = build_tiny(**{"model.visual_projector": {"name": "linear", "bias": False}})
    assert_refused(no_bias, saved, "visual_projector: layer.bias: in the checkpoint, but not in the model")
    adapted = build_tiny(**{"model.adapters": [ADAPTER]})
    save_checkpoint(adapted, tmp_path / "adapted")
    assert_refused(
        build_tiny(),
        tmp_path / "adapted",
        "adapters on language_model: use the same model.adapters, or merge",
    )
    other_rank = build_tiny(**{"model.adapters": [ADAPTER | {"rank": 3}]})
    assert_refused(
        other_rank,
        tmp_path / "adapted",
        "expected rank 2 of the adapter of language_model, got 3 in the recipe",
    )
    sourced = build_tiny(on_sources(sources))
    sourced.set_trainable([])
    save_checkpoint(sourced, tmp_path / "sourced")
    assert_refused(build_tiny(), tmp_path / "sourced", "is '.*', but the recipe builds it from a config")


def test_a_changed_or_missing_source_is_refused(sources: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(sources, tmp_path / "sources"))
    model = build_tiny(on_sources(own))
    model.set_trainable([])
    save_checkpoint(model, tmp_path / "checkpoint")
    weights = own / "vision_encoder/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"the source of its vision_encoder .*these files differ: model\.safetensors"
    ):
        load_checkpoint(tmp_path / "checkpoint")
    shutil.rmtree(own / "vision_encoder")
    with pytest.raises(CheckpointError, match=r"cannot read '.*', the source of its vision_encoder"):
        load_checkpoint(tmp_path / "checkpoint")


def test_names_of_a_source_may_have_format_and_control_characters(sources: Path, tmp_path: Path) -> None:
    own, joined = Path(shutil.copytree(sources, tmp_path / "sources")), "\u2764\u200d\xad\ufeff\n"
    notes = own / f"vision_encoder/notes {joined}.txt"
    notes.write_text("a cat")
    config = own / "vision_encoder/config.json"
    labels = {"label2id": {joined: 0, "b": 1}, "id2label": {"0": joined, "1": "b"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | labels))
    model = build_tiny(on_sources(own))
    save_checkpoint(model, tmp_path / "checkpoint")
    loaded, _ = load_checkpoint(tmp_path / "checkpoint")
    assert_equal(loaded, model)
    notes.write_text("a dog")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "checkpoint")
    assert f"these files differ: notes {printable(joined)}.txt; restore" in str(caught.value)


def test_the_checkpoint_has_its_own_tokenizer(sources: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(sources / "language_model", tmp_path / "tokenizer"))
    recipe = tiny.recipe()
    recipe["model"]["language_model"]["tokenizer"] = str(elsewhere)
    model = build_tiny(recipe)
    save_checkpoint(model, tmp_path / "checkpoint")
    shutil.rmtree(elsewhere)
    (tmp_path / "checkpoint").rename(tmp_path / "moved")
    loaded, _ = load_checkpoint(tmp_path / "moved")
    assert loaded.language_model.tokenize("a cat") == model.language_model.tokenize("a cat")


def test_only_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a checkpoint; name another"):
        save_checkpoint(build_tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_save_leaves_the_old_checkpoint(copied: Path) -> None:
    before, _ = load_checkpoint(copied)

    def no_space(folder: Path) -> None:
        raise OSError("no space left")

    model = build_tiny()
    perturb(model)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(model, copied, beside=no_space)
    assert_equal(load_checkpoint(copied)[0], before)
    save_checkpoint(model, copied, beside=lambda folder: None)
    assert_equal(load_checkpoint(copied)[0], model)
    assert [path.name for path in copied.parent.iterdir()] == ["checkpoint"]


def test_the_error_names_the_folder_of_an_interrupted_save(copied: Path) -> None:
    copied.rename(copied.with_name(".checkpoint.replaced"))
    with pytest.raises(CheckpointError, match=r"interrupted save left .*\.checkpoint\.replaced"):
        load_checkpoint(copied)


def test_additional_files_are_verified_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(
        build_tiny(), folder, beside=lambda partial: (partial / "more.txt").write_text("more") and None
    )
    (folder / "more.txt").write_text("less")
    with pytest.raises(CheckpointError, match=r"more\.txt: its content has changed"):
        load_checkpoint(folder)


def test_a_model_without_a_recipe_cannot_be_saved(tmp_path: Path) -> None:
    model = build_tiny()
    model.recipe = None
    with pytest.raises(CheckpointError, match="the model has no recipe"):
        save_checkpoint(model, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
