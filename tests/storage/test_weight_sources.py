"""Weights of a source: shards and their index, what the libraries read, and files of another name or kind."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from dreamkit.errors import SourceError
from dreamkit.storage.sources import fingerprint, locate
from named_files import write

COMMIT = "a" * 40
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def write_index(file: Path, *shards: str) -> None:
    weight_map = {f"weight {n}": shard for n, shard in enumerate(shards)}
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_weights_are_needed_only_beside_a_config(tmp_path: Path) -> None:
    write(tmp_path, "unet/config.json", "scheduler/scheduler_config.json", "unet/readme.safetensors")
    files = ["unet/config.json", "scheduler/scheduler_config.json"]
    assert locate(str(tmp_path), files, weights=False) == tmp_path
    with pytest.raises(SourceError, match=r"weights .* in unet/"):
        locate(str(tmp_path), files)
    write(tmp_path, "unet/diffusion_pytorch_model.bin")
    assert locate(str(tmp_path), files) == tmp_path


def test_a_missing_shard_or_index_is_named(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
    lacking = r"lacks 'model-00002-of-00003\.safetensors', 'model\.safetensors\.index\.json';"
    with pytest.raises(SourceError, match=lacking):
        locate(str(tmp_path), ["config.json"])
    write(tmp_path, "model-00002-of-00003.safetensors")
    with pytest.raises(SourceError, match=r"lacks 'model\.safetensors\.index\.json';"):
        locate(str(tmp_path), ["config.json"])
    write_index(tmp_path / "model.safetensors.index.json", *SHARDS)
    assert locate(str(tmp_path), ["config.json"]) == tmp_path


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    """Libraries map its entries into memory as if they were weights."""
    write(tmp_path, "config.json")
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin: .* a zip file with compressed entries"):
        locate(str(tmp_path), ["config.json"])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "expected a JSON object with a 'weight_map' of tensors to shards"),
        ("[]", "expected a JSON object with a 'weight_map' of tensors to shards"),
        ('{"weight_map": {}}', "expected a JSON object with a 'weight_map' of tensors to shards"),
        (
            '{"weight_map": {"a": "other.safetensors"}}',
            r"lists 'other\.safetensors', which is missing or not named",
        ),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            r"lists '\.\./model\.safetensors', which is missing",
        ),
        *(
            (
                json.dumps({"weight_map": dict(zip("abc", SHARDS, strict=True)), **metadata}),
                "expected a JSON object with an object 'metadata'",
            )
            for metadata in ({}, {"metadata": None}, {"metadata": []})
        ),
    ],
)
def test_an_index_lists_the_shards_beside_it(tmp_path: Path, index: str, message: str) -> None:
    write(tmp_path, "config.json", "other.safetensors", *SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SourceError, match=rf"model\.safetensors\.index\.json:? {message}"):
        locate(str(tmp_path), ["config.json"])
    assert locate(str(tmp_path), ["config.json"], weights=False) == tmp_path


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (
            {"model_type": "llama"},
            "diffusion_pytorch_model.safetensors",
            "transformers.* reads model or pytorch_model",
        ),
        (
            {"_class_name": "AutoencoderKL"},
            "model.safetensors",
            "diffusers.* reads diffusion_pytorch_model and not",
        ),
        (
            {"_class_name": "AutoencoderKL"},
            "pytorch_model.bin",
            "diffusers.* reads diffusion_pytorch_model and not",
        ),
        (
            {"model_type": "llama", "transformers_weights": "a.safetensors"},
            "model.safetensors",
            "names 'a.safetensors'",
        ),
    ],
)
def test_weights_are_those_that_the_library_reads(
    tmp_path: Path, config: dict[str, str], name: str, message: str
) -> None:
    write(tmp_path, name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=message):
        locate(str(tmp_path), ["config.json"])
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path), ["config.json"]) == tmp_path


def test_only_diffusers_reads_an_index_beside_a_whole_file(tmp_path: Path) -> None:
    for config, stem in (
        ({"model_type": "llama"}, "model"),
        ({"_class_name": "A"}, "diffusion_pytorch_model"),
    ):
        folder = tmp_path / stem
        write(folder, f"{stem}.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        write_index(folder / f"{stem}.safetensors.index.json", f"{stem}-00001-of-00001.safetensors")
        if stem == "model":
            assert locate(str(folder), ["config.json"]) == folder
        else:
            with pytest.raises(
                SourceError, match=r"lists 'diffusion_.*00001\.safetensors', which is missing"
            ):
                locate(str(folder), ["config.json"])


def test_the_shards_of_an_index_are_missed(tmp_path: Path) -> None:
    write(tmp_path, "config.json", "pytorch_model.bin.index.json")
    with pytest.raises(SourceError, match=r"lacks the shards that 'pytorch_model\.bin\.index\.json' lists"):
        locate(str(tmp_path), ["config.json"])


def test_a_shard_of_a_huge_number_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path, "config.json", f"model-1-of-{'9' * 30}.safetensors")
    with pytest.raises(SourceError, match=r" and \d+ more;"):
        locate(str(tmp_path), ["config.json"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.fp16.safetensors", r"variant 'fp16'.*; rename it to model\.safetensors"),
        ("pytorch_model.non_ema.bin", r"variant 'non_ema'.*; rename it to pytorch_model\.bin"),
        (
            "diffusion_pytorch_model.bf16.safetensors",
            r"variant 'bf16'.*; rename it to diffusion_pytorch_model\.safetensors",
        ),
        ("model.fp16-00001-of-00002.safetensors", "with variant='fp16' in its library, and save it without"),
        ("adapter_model.safetensors", "an adapter without the weights that it adapts"),
        ("pytorch_lora_weights.safetensors", "an adapter without the weights that it adapts"),
        ("consolidated.00.pth", r"rename it to model\.safetensors"),
        ("v1-5-pruned.ckpt", "from_single_file"),
        ("llama-q4.gguf", "weights before quantization"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "JAX"),
    ],
)
@pytest.mark.parametrize("parent", ["", "unet/"])
def test_weights_of_another_name_are_listed_with_a_remedy(
    tmp_path: Path, name: str, remedy: str, parent: str
) -> None:
    write(tmp_path, f"{parent}config.json", f"{parent}{name}", f"{parent}training_args.bin")
    with pytest.raises(SourceError) as caught:
        locate(str(tmp_path), [f"{parent}config.json"])
    assert re.search(rf"lacks weights .* \(it has '{parent}{re.escape(name)}': .*{remedy}", str(caught.value))
    assert "training_args" not in str(caught.value).partition("; it holds")[0]
    (tmp_path / parent / "config.json").unlink()
    with pytest.raises(
        SourceError, match=rf"lacks '{parent}config\.json' \(it has '{parent}{re.escape(name)}"
    ):
        locate(str(tmp_path), [f"{parent}config.json"])


@pytest.mark.parametrize("name", ["model.safetensors", "v1-5.ckpt", "other.gguf"])
@pytest.mark.parametrize("prefix", ["./", ""])
def test_a_single_file_is_refused_with_its_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str
) -> None:
    write(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"got '{prefix}{name}', a single file; convert it"):
        locate(f"{prefix}{name}", ["config.json"])
    if prefix:
        write(tmp_path, "config.json")
        with pytest.raises(SourceError, match=f"is a file; name the folder that holds it: '{tmp_path}'"):
            locate(f"{prefix}{name}", ["config.json"])


@pytest.mark.parametrize("place", ["", "unet/"])
@pytest.mark.parametrize("weights", [True, False])
def test_an_adapter_beside_weights_is_refused(tmp_path: Path, place: str, weights: bool) -> None:
    """transformers would apply it to the weights without a word."""
    write(tmp_path, "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer.json")
    files = ["unet/config.json"]
    assert locate(str(tmp_path), files, weights=weights) == tmp_path
    write(tmp_path, f"{place}adapter_config.json")
    with pytest.raises(SourceError, match=rf"got an adapter of peft .*\({place}adapter_config\.json\)"):
        locate(str(tmp_path), files, weights=weights)
    assert locate(str(tmp_path), ["tokenizer.json"], weights=False) == tmp_path
    assert fingerprint(str(tmp_path))


def test_an_adapter_in_the_hub_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    write(snapshot, "config.json", "model.safetensors", "adapter_config.json")
    write(snapshot.parents[1], "refs/main")
    (snapshot.parents[1] / "refs/main").write_text(COMMIT)
    for name in ("owner/name", str(snapshot)):
        with pytest.raises(SourceError, match=f"'{name}': expected weights alone, got an adapter of peft"):
            locate(name, ["config.json"])
