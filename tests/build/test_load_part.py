"""Weights of sources: each part of each library refuses those that are not finite numbers, and adapters with them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel

import tiny
from dreamkit.build.load_part import load_part
from dreamkit.errors import SourceError
from dreamkit.storage.tensor_files import FLOAT_TYPES
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from dreamkit_transformers.vision import VisionConfig
from small_language import write as write_llama
from tiny_decoders import tiny_decoder


@dataclass
class Source:
    """A folder in the format of a library: a weight file, a weight in it, and the name of that weight in the part."""

    folder: Path
    file: str
    weight: str
    name_in_part: str
    part_class: Any
    config: Any

    def load(self) -> Any:
        return load_part(self.part_class, self.config(pretrained=str(self.folder)))

    def change(self, function: Callable[[Tensor], Tensor], weight: str | None = None) -> None:
        """Replace a weight by the value of a function, as safetensors or as a pickle."""
        path, name = self.folder / self.file, weight or self.weight
        state = load_file(path)
        save_file(state | {name: function(state[name].clone())}, path, {"format": "pt"})

    def pickle(self) -> Path:
        """Replace the weights by a pickle of them."""
        path = self.folder / self.file
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
        return path.with_name(f"{stem}.bin")


def llama(folder: Path) -> Source:
    write_llama(folder)
    weight = "model.layers.0.mlp.up_proj.weight"
    return Source(folder, "model.safetensors", weight, f"model.{weight}", Llama, LanguageConfig)


def clip(folder: Path) -> Source:
    config = CLIPVisionConfig(**tiny.RECIPE["model"]["vision_encoder"]["config"])
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    weight = "encoder.layers.0.mlp.fc1.weight"
    stored = next(name for name in load_file(folder / "model.safetensors") if name.endswith(weight))
    return Source(folder, "model.safetensors", stored, f"model.{weight}", Clip, VisionConfig)


def stable_diffusion(folder: Path, module: str = "unet") -> Source:
    decoder = tiny_decoder(StableDiffusion)
    for name in ("unet", "vae"):
        getattr(decoder, name).save_pretrained(folder / name)
    decoder.schedule.save_pretrained(folder / "scheduler")
    weight = "conv_in.weight" if module == "unet" else "encoder.conv_in.weight"
    file = f"{module}/diffusion_pytorch_model.safetensors"
    return Source(folder, file, weight, f"{module}.{weight}", StableDiffusion, StableDiffusion.Config)


def vae(folder: Path) -> Source:
    return stable_diffusion(folder, "vae")


def timm_vit(folder: Path) -> Source:
    values = dict(Timm.tiny_config().config or {})
    model = timm.create_model(values.pop("architecture"), num_classes=5, **values)
    save_for_hf(model, folder, safe_serialization=True)
    weight = "blocks.0.attn.qkv.weight"
    return Source(folder, "model.safetensors", weight, f"model.{weight}", Timm, TimmConfig)


@pytest.fixture(params=[llama, clip, stable_diffusion, vae, timm_vit], ids=lambda make: make.__name__)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return request.param(tmp_path / "source")


pickled = pytest.mark.parametrize(
    "source", [llama, clip, stable_diffusion, vae], indirect=True, ids=lambda f: f.__name__
)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused(source: Source, value: str) -> None:
    source.load()
    source.change(lambda tensor: tensor.index_fill(0, torch.tensor([1]), float(value)))
    kind = "NaN" if value == "nan" else "inf"
    with pytest.raises(SourceError, match=f"expected finite weights, got {kind} in {source.name_in_part}"):
        source.load()


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in FLOAT_TYPES], ids=str)
def test_floating_point_types_are_interchangeable(source: Source, dtype: torch.dtype) -> None:
    source.change(lambda tensor: tensor.to(torch.float16).float())
    expected = source.load().state_dict()[source.name_in_part]
    source.change(lambda tensor: tensor.half().to(dtype))
    actual = source.load().state_dict()[source.name_in_part]
    assert actual.dtype == torch.float32
    assert torch.allclose(actual, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str
)
def test_weights_of_other_types_are_refused(source: Source, dtype: torch.dtype) -> None:
    source.change(lambda tensor: tensor.to(dtype))
    name = str(dtype).removeprefix("torch.")
    message = f"{source.file}: expected {source.weight} in float64, float32, bfloat16 or float16, got {name}"
    with pytest.raises(SourceError, match=message):
        source.load()


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no numbers of 4 bits")
def test_weights_of_4_bits_are_refused_by_their_type(source: Source) -> None:
    """Libraries fail on them, each with an error of torch about shapes or kernels."""
    source.change(lambda tensor: tensor.to(torch.uint8).view(torch.float4_e2m1fn_x2))
    with pytest.raises(
        SourceError, match=f"{source.file}: expected {source.weight} in .*, got float4_e2m1fn_x2"
    ):
        source.load()


@pytest.mark.parametrize(  # LLaMA has no biases
    "source", [clip, stable_diffusion, vae, timm_vit], indirect=True, ids=lambda make: make.__name__
)
def test_a_bias_of_integers_is_refused(source: Source) -> None:
    bias = source.weight.removesuffix("weight") + "bias"
    source.change(lambda tensor: tensor.to(torch.int64), bias)
    with pytest.raises(SourceError, match=f"expected {bias} in float64, "):
        source.load()


def test_values_beyond_float32_are_refused(source: Source) -> None:
    source.change(lambda tensor: tensor.double().fill_(1e300))
    with pytest.raises(SourceError, match=f"got inf in {source.name_in_part}"):
        source.load()


def test_stored_indices_and_masks_are_no_weights(tmp_path: Path) -> None:
    """Older files of GPT-2 have the mask of each layer, under the name of a bias."""
    config = GPT2Config(
        vocab_size=260, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    mask = torch.ones(1, 1, 32, 32).tril().bool()
    masks = {f"transformer.h.{layer}.attn.bias": mask.clone() for layer in (0, 1)}
    positions = {"transformer.position_ids": torch.arange(32)}
    save_file(load_file(file) | masks | positions, file, {"format": "pt"})
    load_part(CausalLM, LanguageConfig(pretrained=str(tmp_path)))


def test_a_buffer_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("resnet10t", num_classes=5), tmp_path, safe_serialization=True)
    source = Source(tmp_path, "model.safetensors", "bn1.running_var", "", Timm, TimmConfig)
    source.change(lambda tensor: tensor.fill_(float("inf")))
    with pytest.raises(SourceError, match=r"got inf in model\.bn1\.running_var"):
        source.load()


@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "cache"])
def test_an_adapter_beside_weights_is_refused(
    source: Source, is_local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would apply it: the part would compute something else than the weights that its recipe names."""
    LoraConfig(target_modules=["up_proj"]).save_pretrained((source.folder / source.file).parent)
    name = str(source.folder)
    if not is_local:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        cache, commit, name = tmp_path / "hub/models--owner--name", "a" * 40, "owner/name"
        shutil.copytree(source.folder, cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs/main").write_text(commit)
    config = source.config(pretrained=name)
    for build in (lambda: load_part(source.part_class, config), lambda: source.part_class.infer_spec(config)):
        with pytest.raises(
            SourceError, match=r"got an adapter of peft beside them \(.*adapter_config\.json\)"
        ):
            build()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("exploded",))


@pickled
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "old"])
def test_a_pickle_with_code_is_refused_in_our_words(
    source: Source, old_format: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    file = source.pickle()
    source.load()
    state = torch.load(file, weights_only=True) | {"more": Bomb()}
    torch.save(state, file, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(SourceError) as caught:
        source.load()
    message = str(caught.value)
    assert f"{file}: expected a pickle of tensors, got one that also names" in message
    assert "print'; loading it would run this code" in message and "safetensors" in message
    assert "weights_only" not in message and "\n" not in message
    assert "exploded" not in capfd.readouterr().out


@pytest.mark.parametrize("source", [llama, stable_diffusion], indirect=True)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_torch_did_not_write_is_refused_in_our_words(
    source: Source, protocol: int, capfd: pytest.CaptureFixture[str]
) -> None:
    file = source.pickle()
    for content, name in (
        ({"a": 1, "more": Bomb()}, "print"),
        (torch.load(file, weights_only=True), "torch."),
    ):
        file.write_bytes(pickle.dumps(content, protocol))
        capfd.readouterr()
        message = f"{file}: expected a pickle of tensors, got one that also names .*{name}.*'; loading"
        with pytest.raises(SourceError, match=message):
            source.load()
        out, err = capfd.readouterr()
        assert "exploded" not in out and "pickle" not in err


def write_shards(source: Source, *shards: dict[str, Tensor]) -> list[str]:
    """Write shards, and replace the index by theirs; return their names."""
    path, count = source.folder / source.file, len(shards)
    names = [f"{path.stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, path.with_name(name), {"format": "pt"})
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    path.with_name(f"{path.name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map | {"more": names[0]}})
    )
    return names


def split(state: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    return [dict(list(state.items())[first::count]) for first in range(count)]


@pytest.mark.parametrize("source", [llama, stable_diffusion], indirect=True)
def test_a_tensor_in_two_shards_is_refused(source: Source) -> None:
    """Libraries would take the last one, whatever the index says."""
    path = source.folder / source.file
    state = load_file(path)
    names = write_shards(source, state, {source.weight: state[source.weight] + 1})
    path.unlink()
    with pytest.raises(SourceError, match=f"{names[1]}: {source.weight} is in .*{names[0]} too"):
        source.load()


@pytest.mark.parametrize("source", [llama, stable_diffusion], indirect=True)
@pytest.mark.parametrize("counts", [(3, 2), (2, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("is_whole_file_there", [False, True], ids=["shards", "whole"])
def test_weights_that_no_library_reads_are_not_checked(
    source: Source, counts: tuple[int, int], is_whole_file_there: bool
) -> None:
    """Another save, with shards of another size, leaves shards that the index does not list."""
    path = source.folder / source.file
    state = load_file(path)
    stale, listed = ({name: tensor + n for name, tensor in state.items()} for n in (1, 2))
    unread = write_shards(source, *split(stale, counts[0]))
    read = write_shards(source, *split(listed, counts[1]))
    if not is_whole_file_there:
        path.unlink()
    elif source.part_class is Llama:  # transformers prefers a whole file, and diffusers an index
        listed, read, unread = state, [path.name], [*read, *unread]
    else:
        unread.append(path.name)
    for damage in (b"", b"damaged"):
        for name in unread:
            if damage:
                path.with_name(name).write_bytes(damage)
        assert torch.equal(source.load().state_dict()[source.name_in_part], listed[source.weight])
    path.with_name(read[-1]).write_bytes(b"damaged")
    with pytest.raises(SourceError, match=f"{read[-1]}: it is not a safetensors file"):
        source.load()


def repeated(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1].expand(10**6, 10**6)


@pytest.mark.parametrize("source", [llama, stable_diffusion], indirect=True)
@pytest.mark.parametrize(
    "change",
    [Tensor.to_sparse, lambda tensor: tensor.to("meta"), repeated],
    ids=["sparse", "meta", "repeated"],
)
def test_pickled_tensors_have_a_number_for_each_element(
    source: Source, change: Callable[[Tensor], Tensor]
) -> None:
    file = source.pickle()
    state = torch.load(file, weights_only=True)
    torch.save(state | {source.weight: change(state[source.weight])}, file)
    with pytest.raises(SourceError, match=f"{file}: expected tensors, got '{source.weight}' \\(a .*tensor"):
        source.load()


@pickled
def test_damaged_pickles_and_pointers_of_git_lfs_are_named(source: Source) -> None:
    file = source.pickle()
    for content, message in (
        (b"", "got another kind of file or a damaged one; copy it again"),
        (file.read_bytes()[:-2000], "got another kind of file or a damaged one; copy it again"),
        (b"garbage" * 10, "got another kind of file or a damaged one; copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "run `git lfs pull`"),
    ):
        file.write_bytes(content)
        with pytest.raises(SourceError, match=f"{file}: expected .*{message}"):
            source.load()


def test_a_pointer_of_git_lfs_in_place_of_safetensors_is_named(source: Source) -> None:
    file = source.folder / source.file
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(SourceError, match=f"{file}: expected weights, got a pointer of git-lfs"):
        source.load()


@pickled
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, r"expected tensors, got 'state_dict' \(dict\); save its state dict alone"),
        ([1], "expected a state dict of tensors, got a pickled list"),
        ({7: torch.ones(1)}, r"expected names of tensors, got 7 \(integer\); save its state dict alone"),
    ],
    ids=["nested", "list", "number"],
)
def test_a_pickle_is_a_state_dict(source: Source, content: Any, message: str) -> None:
    file = source.pickle()
    torch.save(content, file)
    with pytest.raises(SourceError, match=f"{file}: {message}"):
        source.load()


def test_weights_of_folders_without_a_part_are_not_read(tmp_path: Path) -> None:
    source = stable_diffusion(tmp_path)
    (tmp_path / "text_encoder").mkdir()
    torch.save({"a.weight": Bomb()}, tmp_path / "text_encoder/pytorch_model.bin")
    source.load()
    (tmp_path / source.file).write_bytes(b"damaged")
    with pytest.raises(SourceError, match=f"{source.file}: it is not a safetensors file"):
        source.load()


def test_names_of_hostile_files_do_not_flood_a_message(source: Source) -> None:
    path, state = source.folder / source.file, load_file(source.folder / source.file)
    save_file(
        state | {"\x1b[2J" + "a" * 10**5 + ".weight": torch.ones(1).to(torch.int8)}, path, {"format": "pt"}
    )
    with pytest.raises(SourceError) as caught:
        source.load()
    assert len(str(caught.value)) < 1000 and "\x1b" not in str(caught.value)


@pickled
def test_pickled_weights_are_checked_too(source: Source) -> None:
    file = source.pickle()
    state = torch.load(file, weights_only=True)
    for value, message in (
        (
            state[source.weight].to(torch.int8),
            f"expected {source.weight} in float64, float32, bfloat16 or float16, got int8",
        ),
        (state[source.weight] * torch.nan, f"got NaN in {source.name_in_part}"),
    ):
        torch.save(state | {source.weight: value}, file)
        with pytest.raises(SourceError, match=message):
            source.load()
