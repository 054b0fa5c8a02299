"""Checkpoints: what they hold, that they come back as they were, and what is said when they cannot."""

import hashlib
import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError, DreamkitError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import describe_files
from tiny import on_sources

REGISTRY = Registry.load()
NO_TENSORS = hashlib.sha256(b"no tensors").hexdigest()
ADAPTER = {"target": "language_model", "rank": 2}


def built(recipe: dict[str, Any] | None = None, **changes: Any) -> DreamModel:
    return build(fit(recipe_from_dict(recipe or tiny.recipe(**changes), REGISTRY, where="tiny"), REGISTRY))


def disturb(parameters: list[nn.Parameter]) -> None:
    """Stands in for training."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def same(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    assert [name for name, tensor in a.items() if not torch.equal(tensor, b[name])] == []


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "dreamkit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(built(), folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = built()
    disturb(list(model.parameters()))
    save_checkpoint(model, tmp_path / "checkpoint")
    loaded, report = load_checkpoint(tmp_path / "checkpoint", REGISTRY)
    same(loaded, model)
    assert loaded.recipe == model.recipe and loaded.token_ids == model.token_ids
    assert loaded.sources == model.sources and not any(loaded.sources.values())
    for part in report.parts.values():
        assert part.loaded > 0 and (part.from_source, part.missing, part.fresh) == (0, 0, 0)


def test_the_report_is_a_table(saved: Path) -> None:
    _, report = load_checkpoint(saved)
    console = Console(width=200, file=StringIO(), record=True)
    console.print(report)
    table = console.export_text()
    for word in (*report.parts, "loaded", "missing", "fresh"):
        assert word in table


def test_it_holds_only_what_its_sources_do_not(sources: Path, tmp_path: Path) -> None:
    model = built(on_sources(sources))
    model.set_trainable(["visual_projector", "dream_queries", "new_tokens"])
    disturb(list(model.parameters()))
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    held = {path.stem: set(load_file(path)) for path in folder.glob("*.safetensors")}
    assert held.keys() == {"language_model", "visual_projector", "condition_projector", "dream_queries"}
    assert held["language_model"] == {"new_embed", "new_head"}
    loaded, report = load_checkpoint(folder)
    same(loaded, model)
    language = report.parts["language_model"]
    assert language.loaded == 2 and language.from_source > 10
    assert loaded.sources == model.sources


def test_what_was_ever_trained_stays_held(sources: Path, tmp_path: Path) -> None:
    first = built(on_sources(sources))
    first.set_trainable(["language_model"])
    disturb(list(first.parameters()))
    save_checkpoint(first, tmp_path / "first")
    second = built(on_sources(sources))
    report = load_weights(second, tmp_path / "first")
    assert report.parts["language_model"].from_source == 0
    second.set_trainable(["dream_queries"])
    disturb(list(second.parameters()))
    save_checkpoint(second, tmp_path / "second")
    third, _ = load_checkpoint(tmp_path / "second")
    same(third.language_model, first.language_model)
    third.set_trainable([])
    save_checkpoint(third, tmp_path / "third")
    same(load_checkpoint(tmp_path / "third")[0], third)


def test_adapters_come_back(sources: Path, tmp_path: Path) -> None:
    model = built(on_sources(sources, **{"model.adapters": [ADAPTER]}))
    model.set_trainable([])
    disturb(list(model.parameters()))
    save_checkpoint(model, tmp_path / "checkpoint")
    assert set(load_file(tmp_path / "checkpoint/language_model.safetensors")) == {"new_embed", "new_head"}
    adapter = load_file(tmp_path / "checkpoint/adapters/language_model/adapter_model.safetensors")
    assert all(".lora_" in name for name in adapter) and len(adapter) > 20
    same(load_checkpoint(tmp_path / "checkpoint")[0], model)


def test_format_1_had_adapters_among_the_weights(sources: Path, tmp_path: Path) -> None:
    model = built(on_sources(sources, **{"model.adapters": [ADAPTER | {"use_dora": True}]}))
    model.set_trainable([])
    disturb(list(model.parameters()))
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    own = dict(model.language_model.named_parameters())
    held = {name: p.detach() for name, p in own.items() if "lora_" in name or name.startswith("new_")}
    save_file(held, folder / "language_model.safetensors")
    shutil.rmtree(folder / "adapters")
    manifest = json.loads((folder / "dreamkit.json").read_text())
    del manifest["adapters"]
    manifest |= {"format": 1, "parts": manifest["parts"] | {"language_model": len(held)}}
    manifest["files"] = describe_files(folder)
    del manifest["files"]["dreamkit.json"]
    (folder / "dreamkit.json").write_text(json.dumps(manifest))
    same(load_checkpoint(folder)[0], model)


def test_tied_weights_are_held_once_and_stay_tied(tmp_path: Path) -> None:
    recipe = tiny.recipe()
    recipe["model"]["language_model"]["config"]["tie_word_embeddings"] = True
    model = built(recipe)
    disturb(list(model.parameters()))
    save_checkpoint(model, tmp_path / "checkpoint")
    held = load_file(tmp_path / "checkpoint/language_model.safetensors")
    assert len([name for name in held if "embed_tokens" in name or "lm_head" in name]) == 1
    loaded, _ = load_checkpoint(tmp_path / "checkpoint")
    same(loaded, model)
    inner = loaded.language_model.model
    assert inner.get_input_embeddings().weight is inner.get_output_embeddings().weight


def test_a_stage_may_add_adapters_to_the_one_before(saved: Path) -> None:
    model = built(**{"model.adapters": [ADAPTER]})
    report = load_weights(model, saved)
    assert report.parts["language_model"].fresh > 10
    before, _ = load_checkpoint(saved)
    layer = model.language_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert torch.equal(layer.weight, before.language_model.model.model.layers[0].self_attn.q_proj.weight)


def doesnt_fit(model: DreamModel, folder: Path, said: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=said):
        load_weights(model, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_do_not_fit_change_nothing(saved: Path, sources: Path, tmp_path: Path) -> None:
    doesnt_fit(
        built(**{"model.dream_queries": 5}), saved, r"dream_queries: \(3, 32\) in the checkpoint, \(5, 32\)"
    )
    mlp = built(**{"model.visual_projector": {"name": "mlp"}})
    doesnt_fit(mlp, saved, "its visual_projector is 'linear', but the recipe's is 'mlp'")
    tokens = built(**{"model.special_tokens": {"dream_start": "<go>"}})
    doesnt_fit(tokens, saved, r"<dream_start>.*<go>")
    no_bias = built(**{"model.visual_projector": {"name": "linear", "bias": False}})
    doesnt_fit(no_bias, saved, "visual_projector: layer.bias: in the checkpoint, but not in the model")
    adapted = built(**{"model.adapters": [ADAPTER]})
    save_checkpoint(adapted, tmp_path / "adapted")
    doesnt_fit(built(), tmp_path / "adapted", "adapters on language_model: give model.adapters the same, or")
    other_rank = built(**{"model.adapters": [ADAPTER | {"rank": 3}]})
    doesnt_fit(
        other_rank, tmp_path / "adapted", "its adapter of language_model has rank 2, but the recipe's has 3"
    )
    stands = built(on_sources(sources))
    stands.set_trainable([])
    save_checkpoint(stands, tmp_path / "stands")
    doesnt_fit(built(), tmp_path / "stands", "stands on '.*', but the recipe builds it from a config")


def test_a_source_that_changed(sources: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(sources, tmp_path / "sources"))
    model = built(on_sources(own))
    model.set_trainable([])
    save_checkpoint(model, tmp_path / "checkpoint")
    weights = own / "vision_encoder/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"its vision_encoder stands on .*differ now: model\.safetensors"
    ):
        load_checkpoint(tmp_path / "checkpoint")
    shutil.rmtree(own / "vision_encoder")
    with pytest.raises(CheckpointError, match=r"its vision_encoder stands on .*cannot be read"):
        load_checkpoint(tmp_path / "checkpoint")


def test_the_tokenizer_of_a_config_is_the_checkpoints_own(sources: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(sources / "language_model", tmp_path / "tokenizer"))
    recipe = tiny.recipe()
    recipe["model"]["language_model"]["tokenizer"] = str(elsewhere)
    model = built(recipe)
    save_checkpoint(model, tmp_path / "checkpoint")
    shutil.rmtree(elsewhere)
    (tmp_path / "checkpoint").rename(tmp_path / "moved")
    loaded, _ = load_checkpoint(tmp_path / "moved")
    assert loaded.language_model.tokenize("a cat") == model.language_model.tokenize("a cat")


FILES = ["dream_queries", "image_decoder", "language_model", "visual_projector"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.integers(0), st.integers(0, 7))
def test_any_changed_bit_is_found(saved: Path, name: str, place: int, bit: int) -> None:
    path = saved / f"{name}.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place % len(whole)] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: its bytes are not those"):
            Manifest.read(saved)
    finally:
        path.write_bytes(whole)


def test_a_file_cut_short_and_a_file_gone(copied: Path) -> None:
    path = copied / "language_model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    (copied / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(copied)
    assert f"language_model.safetensors: expected {size} bytes, got {size // 2}" in str(caught.value)
    assert "tokenizer/tokenizer.json: missing" in str(caught.value)


def test_a_newer_format(copied: Path) -> None:
    edit_manifest(copied, format=Manifest.FORMAT + 1, dreamkit="9.9", anything="else")
    with pytest.raises(
        CheckpointError,
        match=rf"version {Manifest.FORMAT + 1}, written by dreamkit 9\.9.*up to {Manifest.FORMAT}",
    ):
        load_checkpoint(copied)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": "one"}', "\xff"])
def test_a_manifest_that_is_none(copied: Path, text: str) -> None:
    (copied / "dreamkit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"dreamkit\.json"):
        load_checkpoint(copied)


@pytest.mark.parametrize("version", [True, None, -1, 0, 1.0, "1"])
def test_a_format_that_is_no_version(copied: Path, version: Any) -> None:
    edit_manifest(copied, format=version)
    with pytest.raises(CheckpointError, match=r"dreamkit\.json: the checkpoint is damaged.*\n  format: "):
        Manifest.read(copied)


def places(value: Any, key: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of everything inside a value; of many files one is enough."""
    inside = list(value.items())[:9] if isinstance(value, dict) else []
    return [key, *(place for name, item in inside for place in places(item, (*key, name)))]


def changed(value: Any, key: tuple[str, ...], change: Any) -> Any:
    if not key:
        return change
    return value | {key[0]: changed(value[key[0]], key[1:], change)}


@pytest.mark.parametrize("change", [None, [], [1], True, 1.5, {"odd": None}])
def test_a_manifest_damaged_anywhere_is_refused(copied: Path, change: Any) -> None:
    whole = json.loads((copied / "dreamkit.json").read_text())
    keys = [key for key in places(whole) if key[:1] != ("recipe",) or len(key) < 2]
    assert len(keys) > 60
    for key in keys:
        if key == ("recipe",) and isinstance(change, dict):
            continue  # what is in a recipe, the recipe's schema judges
        (copied / "dreamkit.json").write_text(json.dumps(changed(whole, key, change)))
        with pytest.raises(CheckpointError, match="the checkpoint is damaged") as caught:
            Manifest.read(copied, verify=False)
        assert ".".join(key) in str(caught.value)


@pytest.mark.parametrize("change", [None, [], {}, "text"])
def test_a_damaged_recipe_is_refused(copied: Path, change: Any) -> None:
    whole = json.loads((copied / "dreamkit.json").read_text())
    keys = [(), ("model",), ("model", "language_model"), ("model", "language_model", "name"), ("train",)]
    for key in keys:
        (copied / "dreamkit.json").write_text(
            json.dumps(changed(whole, ("recipe", *key), change if key or change != "text" else {}))
        )
        with pytest.raises(DreamkitError):
            load_checkpoint(copied)


def test_parts_and_files_must_agree(copied: Path, saved: Path) -> None:
    manifest = json.loads((copied / "dreamkit.json").read_text())
    edit_manifest(copied, parts=manifest["parts"] | {"nobody": 3})
    with pytest.raises(CheckpointError, match="'nobody' found, but no file nobody"):
        Manifest.read(copied)
    edit_manifest(copied, parts=manifest["parts"], adapters={"nobody": 3})
    said = r"adapters: 'nobody' found, but no file adapters/nobody/.*\n.*not among the components"
    with pytest.raises(CheckpointError, match=said):
        Manifest.read(copied)
    edit_manifest(copied, adapters={})
    for name in ("../x.safetensors", "/etc/passwd"):
        edit_manifest(copied, files=manifest["files"] | {name: {"size": 1, "sha256": ""}}, parts={})
        with pytest.raises(CheckpointError, match=f"'{name}' is not inside the checkpoint"):
            Manifest.read(copied)
    (copied / "visual_projector.safetensors").write_text("no tensors")
    files = manifest["files"] | {"visual_projector.safetensors": {"size": 10, "sha256": NO_TENSORS}}
    edit_manifest(copied, files=files, parts=manifest["parts"])
    with pytest.raises(CheckpointError, match=r"visual_projector\.safetensors .* holds no tensors"):
        load_checkpoint(copied)


def test_a_component_that_is_not_installed(copied: Path) -> None:
    manifest = json.loads((copied / "dreamkit.json").read_text())
    manifest["components"]["vision_encoder"] |= {
        "name": "fancy",
        "distribution": "fancy-dist",
        "version": "3.1",
    }
    edit_manifest(copied, components=manifest["components"])
    with pytest.raises(CheckpointError, match=r"vision_encoder 'fancy' of fancy-dist 3\.1"):
        load_checkpoint(copied)


@pytest.fixture
def older(copied: Path) -> Path:
    """A checkpoint whose manifest names the core as its distribution was once called."""
    components = json.loads((copied / "dreamkit.json").read_text())["components"]
    of_core = [record for record in components.values() if record["distribution"] == "dreamkit-core"]
    assert of_core
    for record in of_core:
        record["distribution"] = "dreamkit"
    edit_manifest(copied, components=components)
    return copied


def test_a_checkpoint_of_the_older_distribution_loads_without_notice(
    older: Path, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, report = load_checkpoint(older)
    assert capfd.readouterr() == ("", "")
    same(model, load_checkpoint(saved)[0])
    assert report.parts == load_checkpoint(saved)[1].parts
    assert Manifest.read(older).components == Manifest.read(saved).components


def test_what_the_older_distribution_gave_is_asked_of_the_present_one(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMKIT_PLUGINS", "transformers,diffusers")
    with pytest.raises(CheckpointError, match=r"of dreamkit-core 0\.\S+, which is needed to load it"):
        load_checkpoint(older)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no dreamkit\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_checkpoint(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="it is a file"):
        load_checkpoint(tmp_path / "file")


def test_only_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a checkpoint; name another"):
        save_checkpoint(built(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_save_that_fails_leaves_the_former_checkpoint(copied: Path) -> None:
    before, _ = load_checkpoint(copied)

    def no_space(folder: Path) -> None:
        raise OSError("no space left")

    model = built()
    disturb(list(model.parameters()))
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(model, copied, beside=no_space)
    same(load_checkpoint(copied)[0], before)
    save_checkpoint(model, copied, beside=lambda folder: None)
    same(load_checkpoint(copied)[0], model)
    assert [path.name for path in copied.parent.iterdir()] == ["checkpoint"]


def test_a_save_cut_off_between_its_renames_is_explained(copied: Path) -> None:
    copied.rename(copied.with_name(".checkpoint.replaced"))
    with pytest.raises(CheckpointError, match=r"interrupted save left .*\.checkpoint\.replaced"):
        load_checkpoint(copied)


def test_files_beside_are_verified_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(
        built(), folder, beside=lambda partial: (partial / "more.txt").write_text("more") and None
    )
    (folder / "more.txt").write_text("less")
    with pytest.raises(CheckpointError, match=r"more\.txt: its bytes"):
        load_checkpoint(folder)


def test_a_model_without_a_recipe_cannot_be_saved(tmp_path: Path) -> None:
    model = built()
    model.recipe = None
    with pytest.raises(CheckpointError, match=r"without a recipe"):
        save_checkpoint(model, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())
