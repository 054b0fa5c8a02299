"""Damaged checkpoints, and other folders in the place of one: each is refused with its reason."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError, DreamkitError
from dreamkit.storage.folders import describe_files
from dreamkit.storage.tensor_files import tensor_problem
from saved_models import assert_equal, build_tiny, copied as copied, edit_manifest, perturb, saved as saved

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


@pytest.mark.parametrize(
    "adapters",
    [
        5,
        "text",
        [5],
        [{}],
        [{"rank": 2}],
        [{"target": "nobody"}],
        [{"target": "vision_encoder", "rank": "a"}],
    ],
    ids=str,
)
def test_damaged_adapters_of_a_recipe_are_refused(copied: Path, adapters: Any) -> None:
    manifest = json.loads((copied / "dreamkit.json").read_text())
    (copied / "dreamkit.json").write_text(
        json.dumps(replaced(manifest, ("recipe", "model", "adapters"), adapters))
    )
    model = build_tiny()
    for load in (load_checkpoint, lambda folder: load_weights(model, folder)):
        with pytest.raises(DreamkitError, match=r"dreamkit\.json: model\.adapters"):
            load(copied)


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
    fancy = {"name": "fancy", "distribution": "fancy-dist", "version": "3.1"}
    manifest["components"]["vision_encoder"] |= fancy
    manifest["recipe"]["model"]["vision_encoder"]["name"] = "fancy"
    edit_manifest(copied, components=manifest["components"], recipe=manifest["recipe"])
    with pytest.raises(CheckpointError, match=r"vision_encoder 'fancy' of fancy-dist 3\.1"):
        load_checkpoint(copied)


def test_the_components_of_a_manifest_are_those_of_its_recipe(copied: Path) -> None:
    components = json.loads((copied / "dreamkit.json").read_text())["components"]
    clip, linear = components["vision_encoder"], components["visual_projector"]
    others = {key: record for key, record in components.items() if key != "vision_encoder"}
    for changed, message in (
        (others, r"vision_encoder: expected vision_encoder 'clip', as in its recipe, got none"),
        (others | {"vision_encoder": clip | {"name": "siglip"}}, r"'clip', as in its recipe, got .*'siglip'"),
        (others | {"vision_encoder": linear}, r"'clip', as in its recipe, got projector 'linear'"),
        (
            components | {"data.7": clip},
            r"data\.7: expected none, as in its recipe, got vision_encoder 'clip'",
        ),
        (components | {"pooled_projector": linear}, r"pooled_projector: expected none, as .*, got projector"),
    ):
        edit_manifest(copied, components=changed)
        with pytest.raises(CheckpointError, match=rf"the checkpoint is damaged.*\n  components: .*{message}"):
            load_checkpoint(copied)


def change_tensor(folder: Path, part: str, change: Callable[[Tensor], Tensor], name: str = "") -> str:
    """Change a tensor in a part's file, and the hash in the manifest; return the name of the tensor."""
    file = folder / f"{part}.safetensors"
    tensors = load_file(file)
    name = name or sorted(tensors)[0]
    save_file(tensors | {name: change(tensors[name].clone())}, file)
    files = {name: record for name, record in describe_files(folder).items() if name != Manifest.FILE}
    edit_manifest(folder, files=files)
    return name


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_tensors_that_are_not_finite_are_refused(copied: Path, part: str, value: str) -> None:
    name = change_tensor(copied, part, lambda tensor: tensor.index_fill(0, torch.tensor([1]), float(value)))
    kind = "NaN" if value == "nan" else "inf"
    model, before = build_tiny(), build_tiny().state_dict()
    for load in (load_checkpoint, lambda folder: load_weights(model, folder)):
        with pytest.raises(CheckpointError, match=f"{part}: {name}: expected finite values, got {kind}"):
            load(copied)
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str
)
def test_other_types_of_numbers_are_refused(copied: Path, dtype: torch.dtype) -> None:
    name = change_tensor(copied, "language_model", lambda tensor: tensor.to(dtype))
    with pytest.raises(CheckpointError, match=rf"{name}: expected float32, got {str(dtype)[6:]}$"):
        load_checkpoint(copied)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_floating_point_types_are_interchangeable(copied: Path, saved: Path, dtype: torch.dtype) -> None:
    name = change_tensor(copied, "language_model", lambda tensor: tensor.to(dtype))
    loaded, original = (
        load_checkpoint(folder)[0].language_model.state_dict()[name] for folder in (copied, saved)
    )
    assert loaded.dtype == torch.float32 and torch.equal(loaded, original.to(dtype).float())
    change_tensor(copied, "language_model", lambda tensor: tensor.double().fill_(1e300), name)
    with pytest.raises(CheckpointError, match=f"{name}: expected finite values, got inf"):
        load_checkpoint(copied)


def test_constants_of_an_architecture_need_not_be_finite() -> None:
    """A buffer may be a mask of -inf, which the model has from its constructor."""
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    assert tensor_problem(mask.clone(), mask) is None
    assert tensor_problem(mask.half(), mask) is None
    assert tensor_problem(mask.T.clone(), mask) == "expected finite values, got inf"
    assert tensor_problem(torch.tensor([1]), torch.tensor([True])) == "expected bool, got int64"


@pytest.mark.parametrize("is_replaced", [True, False], ids=["replaced", "removed"])
@pytest.mark.parametrize("name", ["language_model.safetensors", "dream_queries.safetensors", ""])
def test_a_checkpoint_that_changes_while_it_is_loaded_is_an_error(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool, name: str
) -> None:
    """Another process may write the next resume point, or remove this one, after the files were verified."""
    other = tmp_path / "other"
    model = build_tiny()
    perturb(model)
    save_checkpoint(model, other)

    def verify_then_change(self: Manifest, folder: Path, *, read: bool = True) -> None:
        monkeypatch.undo()
        self.verify(folder, read=read)
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        if is_replaced:
            (other / name).rename(target)
            if name:
                shutil.copy(other / "dreamkit.json", folder)

    monkeypatch.setattr(Manifest, "verify", verify_then_change)
    with pytest.raises(DreamkitError) as caught:
        load_checkpoint(copied)
    assert str(copied) in str(caught.value)
    if is_replaced:
        assert "it was replaced or removed while it was loaded; load it again" in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("dreamkit.storage.folders.sha256", refuse)
    with pytest.raises(CheckpointError, match=r"\.safetensors: cannot be read: Permission denied"):
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
