"""Damaged checkpoints, and other folders in the place of one: each is refused with its reason."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import CheckpointError, DreamkitError
from saved_models import assert_equal, copied as copied, edit_manifest, saved as saved

NO_TENSORS = hashlib.sha256(b"no tensors").hexdigest()
FILES = ["dream_queries", "image_decoder", "language_model", "visual_projector"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.integers(0), st.integers(0, 7))
def test_any_changed_bit_is_reported(saved: Path, name: str, place: int, bit: int) -> None:
    path = saved / f"{name}.safetensors"
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[place % len(original)] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: its content has changed"):
            Manifest.read(saved)
    finally:
        path.write_bytes(original)


def test_a_short_file_and_a_missing_file_are_reported(copied: Path) -> None:
    path = copied / "language_model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    (copied / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(copied)
    assert f"language_model.safetensors: expected {size} bytes, got {size // 2}" in str(caught.value)
    assert "tokenizer/tokenizer.json: missing" in str(caught.value)


def test_a_newer_format_is_refused(copied: Path) -> None:
    edit_manifest(copied, format=Manifest.FORMAT + 1, dreamkit="9.9", anything="else")
    with pytest.raises(
        CheckpointError,
        match=rf"version {Manifest.FORMAT + 1}, written by dreamkit 9\.9.*up to {Manifest.FORMAT}",
    ):
        load_checkpoint(copied)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": "one"}', "\xff"])
def test_an_invalid_manifest_is_refused(copied: Path, text: str) -> None:
    (copied / "dreamkit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"dreamkit\.json"):
        load_checkpoint(copied)


@pytest.mark.parametrize("version", [True, None, -1, 0, 1.0, "1"])
def test_an_invalid_format_is_refused(copied: Path, version: Any) -> None:
    edit_manifest(copied, format=version)
    with pytest.raises(CheckpointError, match=r"dreamkit\.json: the checkpoint is damaged.*\n  format: "):
        Manifest.read(copied)


def places(value: Any, key: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the keys of every value inside `value`, of at most nine in each dict."""
    inside = list(value.items())[:9] if isinstance(value, dict) else []
    return [key, *(place for name, item in inside for place in places(item, (*key, name)))]


def replaced(value: Any, key: tuple[str, ...], change: Any) -> Any:
    if not key:
        return change
    return value | {key[0]: replaced(value[key[0]], key[1:], change)}


@pytest.mark.parametrize("change", [None, [], [1], True, 1.5, {"unknown": None}])
def test_a_wrong_type_anywhere_in_the_manifest_is_reported(copied: Path, change: Any) -> None:
    manifest = json.loads((copied / "dreamkit.json").read_text())
    keys = [key for key in places(manifest) if key[:1] != ("recipe",) or len(key) < 2]
    assert len(keys) > 60
    for key in keys:
        if key == ("recipe",) and isinstance(change, dict):
            continue  # the recipe reader checks the content of a recipe
        (copied / "dreamkit.json").write_text(json.dumps(replaced(manifest, key, change)))
        with pytest.raises(CheckpointError, match="the checkpoint is damaged") as caught:
            Manifest.read(copied, verify=False)
        assert ".".join(key) in str(caught.value)


@pytest.mark.parametrize("change", [None, [], {}, "text"])
def test_a_damaged_recipe_is_refused(copied: Path, change: Any) -> None:
    manifest = json.loads((copied / "dreamkit.json").read_text())
    keys = [(), ("model",), ("model", "language_model"), ("model", "language_model", "name"), ("train",)]
    for key in keys:
        (copied / "dreamkit.json").write_text(
            json.dumps(replaced(manifest, ("recipe", *key), change if key or change != "text" else {}))
        )
        with pytest.raises(DreamkitError):
            load_checkpoint(copied)


def test_parts_and_files_must_agree(copied: Path, saved: Path) -> None:
    manifest = json.loads((copied / "dreamkit.json").read_text())
    edit_manifest(copied, parts=manifest["parts"] | {"nobody": 3})
    with pytest.raises(CheckpointError, match="'nobody' has no file nobody"):
        Manifest.read(copied)
    edit_manifest(copied, parts=manifest["parts"], adapters={"nobody": 3})
    message = r"adapters: 'nobody' has no file adapters/nobody/.*\n.*'nobody' is not in components"
    with pytest.raises(CheckpointError, match=message):
        Manifest.read(copied)
    edit_manifest(copied, adapters={})
    for name in ("../x.safetensors", "/etc/passwd"):
        edit_manifest(copied, files=manifest["files"] | {name: {"size": 1, "sha256": ""}}, parts={})
        with pytest.raises(CheckpointError, match=f"'{name}' is not inside the checkpoint"):
            Manifest.read(copied)
    (copied / "visual_projector.safetensors").write_text("no tensors")
    files = manifest["files"] | {"visual_projector.safetensors": {"size": 10, "sha256": NO_TENSORS}}
    edit_manifest(copied, files=files, parts=manifest["parts"])
    with pytest.raises(CheckpointError, match=r"visual_projector\.safetensors: .* not a safetensors file"):
        load_checkpoint(copied)


def test_a_missing_component_is_named_with_its_distribution(copied: Path) -> None:
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
    """A checkpoint whose manifest has the core's old distribution name."""
    components = json.loads((copied / "dreamkit.json").read_text())["components"]
    core_records = [record for record in components.values() if record["distribution"] == "dreamkit-core"]
    assert core_records
    for record in core_records:
        record["distribution"] = "dreamkit"
    edit_manifest(copied, components=components)
    return copied


def test_a_checkpoint_with_the_old_distribution_name_loads_silently(
    older: Path, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, report = load_checkpoint(older)
    assert capfd.readouterr() == ("", "")
    assert_equal(model, load_checkpoint(saved)[0])
    assert report.parts == load_checkpoint(saved)[1].parts
    assert Manifest.read(older).components == Manifest.read(saved).components


def test_the_error_about_a_missing_component_has_the_present_distribution_name(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMKIT_PLUGINS", "transformers,diffusers")
    with pytest.raises(CheckpointError, match=r"of dreamkit-core 0\.\S+, which is needed to load it"):
        load_checkpoint(older)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no dreamkit\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_checkpoint(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="it is a file"):
        load_checkpoint(tmp_path / "file")
