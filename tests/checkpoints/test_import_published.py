"""Importing published checkpoints: every way their files come, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamkit.checkpoints.published import import_published
from dreamkit.errors import CheckpointError, DreamkitError, SourceError
from dreamkit.model.model import DreamModel
from dreamkit.registry.registry import Registry

REFERENCE = Path(__file__).parents[1] / "reference" / "published-sd"
VISION, HEAD = "clip_vision_embedding", "stable_diffusion_head"
REGISTRY = Registry.load()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the reference that a test may change."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "published")) / "checkpoint"


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REFERENCE.parent / "published-sdxl", tmp_path / "published")) / "checkpoint"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("original") / "out"
    return import_published(REFERENCE / "checkpoint", out, REGISTRY).state_dict()


def run(published: Path) -> DreamModel:
    return import_published(published, published.parent / "out", REGISTRY)


def edit(published: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = published / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def same(model: DreamModel, original: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in original.items())


def halves(published: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    names = sorted(state)
    first = names[: len(names) // 2]
    return {n: state[n] for n in first}, {n: state[n] for n in names if n not in first}


def test_sharded_safetensors(published: Path, original: dict[str, Tensor]) -> None:
    weight_map = {}
    for number, part in enumerate(halves(published), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file(part, published / file)
        weight_map |= dict.fromkeys(part, file)
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(run(published), original)


def test_sharded_bin(published: Path, original: dict[str, Tensor]) -> None:
    weight_map = {}
    for number, part in enumerate(halves(published), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(part, published / file)
        weight_map |= dict.fromkeys(part, file)
    (published / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(run(published), original)


def test_missing_shard(published: Path) -> None:
    weight_map = {}
    for number, part in enumerate(halves(published), 1):
        weight_map |= dict.fromkeys(part, f"model-0000{number}-of-00002.safetensors")
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors is missing"):
        run(published)


def test_targets_are_data(published: Path, original: dict[str, Tensor]) -> None:
    """A `_target_` that would end the program if anything looked it up."""
    edit(published, lambda c: c["plugins_init_kwargs"][VISION].update(_target_="antigravity.sys.exit"))
    same(run(published), original)


def test_components_by_absolute_path(published: Path, original: dict[str, Tensor], tmp_path: Path) -> None:
    moved = shutil.move(published.parent / "components" / "sd", tmp_path / "elsewhere")
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(diffusion_name_or_path=str(moved)))
    same(run(published), original)


def test_mlp_projectors(published: Path) -> None:
    """Layers 0 and 2 of a Sequential, as the published MLP saves them; biased to read, unbiased to draw."""
    weights = {f"projector.projector.{n}.weight": torch.randn(48, 32 if n == 0 else 48) for n in (0, 2)}
    biases = {f"projector.projector.{n}.bias": torch.randn(48) for n in (0, 2)}
    drawn = {f"projector.projector.{n}.weight": torch.randn(24, 48 if n == 0 else 24) for n in (0, 2)}
    for name, layers in ((VISION, weights | biases), (HEAD, drawn)):
        state = torch.load(published / f"{name}.bin", weights_only=True)
        kept = {k: v for k, v in state.items() if not k.startswith("projector.")}
        torch.save(kept | layers, published / f"{name}.bin")
        edit(
            published,
            lambda c, name=name: c["plugins_init_kwargs"][name].update(
                projector_type="mlp", projector_depth=2
            ),
        )
    model = run(published)
    for projector, layers in ((model.visual_projector, weights | biases), (model.condition_projector, drawn)):
        first, second = projector.dense_layers() or ()
        assert torch.equal(first.weight, layers["projector.projector.0.weight"])
        assert torch.equal(second.weight, layers["projector.projector.2.weight"])
        assert (second.bias is None) == ("projector.projector.2.bias" not in layers)


def test_a_layer_too_many_is_not_left_out(published: Path) -> None:
    state = torch.load(published / f"{HEAD}.bin", weights_only=True)
    kept = {k: v for k, v in state.items() if not k.startswith("projector.")}
    layers = {f"projector.projector.{n}.weight": torch.randn(24, 48 if n == 0 else 24) for n in (0, 2, 4)}
    torch.save(kept | layers, published / f"{HEAD}.bin")
    change = {"projector_type": "mlp", "projector_depth": 2}
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(change))
    with pytest.raises(CheckpointError, match=r"4\.weight would be left out; projector_depth is 2"):
        run(published)


def test_tied_weights(published: Path) -> None:
    state = load_file(published / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    (published / "model.safetensors").unlink()
    torch.save(state, published / "pytorch_model.bin")
    model = run(published)
    ids = torch.arange(5)
    assert torch.equal(model.language_model.embed(ids), model.language_model.head().weight[ids])


def test_state_dicts_of_the_old_form(published: Path, original: dict[str, Tensor]) -> None:
    file = published / "dream_embedding.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    same(run(published), original)


def test_tokenizer_files_of_older_libraries(published: Path, original: dict[str, Tensor]) -> None:
    """Before transformers 4.34 the ids of added tokens stood in added_tokens.json alone."""
    file = published / "tokenizer_config.json"
    config = json.loads(file.read_text())
    for key in ("added_tokens_decoder", "additional_special_tokens"):
        del config[key]
    file.write_text(json.dumps(config))
    same(run(published), original)


def test_token_ids_must_agree(published: Path) -> None:
    def swap(config: dict[str, Any]) -> None:
        ids = config["special_tokens2ids_dict"]["additional_special_tokens"]
        ids["<dream_start>"], ids["<im_start>"] = ids["<im_start>"], ids["<dream_start>"]

    edit(published, swap)
    with pytest.raises(CheckpointError, match=r"gives <dream_start> the id 403, but config\.json says 401"):
        run(published)


def test_settings_that_are_left_out_have_the_published_defaults(
    published: Path, original: dict[str, Tensor]
) -> None:
    def drop(config: dict[str, Any]) -> None:
        del config["plugins_init_kwargs"][VISION]["select_layer"]
        for name in (VISION, HEAD):
            del config["plugins_init_kwargs"][name]["projector_type"]
            del config["plugins_init_kwargs"][name]["projector_depth"]

    edit(published, drop)
    same(run(published), original)


def test_training_settings_are_kept_or_named(published: Path) -> None:
    change = {"snr_gamma": 5.0, "resolution": 32, "noise_offset": 0.1}
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(change))
    with pytest.warns(UserWarning, match=r"noise_offset=0\.1 is left out"):
        model = run(published)
    assert model.image_decoder.spec.image_size == 32
    assert model.recipe is not None and model.recipe.model.image_decoder.config.snr_gamma == 5.0


XL = {"_target_": "omni.models.dreamllm_sdxl.modeling_plugins.StableDiffusionXLHead"}


def test_xl_has_parts_of_its_own(xl: Path) -> None:
    model = run(xl)
    state = torch.load(xl / "stable_diffusion_xl_head.bin", weights_only=True)
    (layer,) = model.pooled_projector.dense_layers()
    assert torch.equal(layer.weight, state["global_projector.projector.weight"])
    assert torch.equal(layer.bias, state["global_projector.projector.bias"])
    recipe = model.recipe
    assert recipe is not None and recipe.model.image_decoder.name == "sdxl"
    assert model.special_tokens.dream_patch == "<dream_patch>" != model.special_tokens.image_patch


@pytest.mark.parametrize("left", ["unet.conv_in.weight", "global_projector.projector.bias"])
def test_a_head_that_lacks_a_tensor(xl: Path, left: str) -> None:
    file = xl / "stable_diffusion_xl_head.bin"
    state = torch.load(file, weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if name != left}
    torch.save(kept | ({} if "unet" in left else {"global_projector.projector.odd": torch.ones(1)}), file)
    with pytest.raises(DreamkitError, match=r"conv_in\.weight|odd"):
        run(xl)


def test_a_head_of_the_other_kind(published: Path) -> None:
    """Its file is looked for under the name that its kind saves it by."""
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(XL))
    with pytest.raises(CheckpointError, match=r"stable_diffusion_xl_head\.bin is missing"):
        run(published)
    (published / f"{HEAD}.bin").rename(published / "stable_diffusion_xl_head.bin")
    with pytest.raises(DreamkitError, match="use the image decoder 'stable-diffusion'"):
        run(published)


def test_unknown_projector(published: Path) -> None:
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(projector_type="sam"))
    with pytest.raises(CheckpointError, match="projector_type 'sam'"):
        run(published)


def test_unreachable_component(published: Path) -> None:
    change = {"diffusion_name_or_path": "nobody/no-such-model"}
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(change))
    with pytest.raises(SourceError, match=r"config.json names 'nobody/no-such-model'"):
        run(published)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "dream_embedding.bin", f"{HEAD}.bin"])
def test_missing_file(published: Path, name: str) -> None:
    (published / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        run(published)


@pytest.mark.parametrize("name", ["model.safetensors", "dream_embedding.bin"])
def test_damaged_file(published: Path, name: str) -> None:
    whole = (published / name).read_bytes()
    (published / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DreamkitError, match=name):
        run(published)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickled_code_does_not_run(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published)
    torch.save({"dream_queries": Bomb()}, published / "dream_embedding.bin")
    with pytest.raises(
        CheckpointError, match=r"dream_embedding.bin cannot be read as a state dict of tensors"
    ):
        run(published)
    assert not Path("exploded").exists()


def test_wrong_shape(published: Path) -> None:
    torch.save({"dream_queries": torch.zeros(1, 6, 7)}, published / "dream_embedding.bin")
    with pytest.raises(CheckpointError, match=r"dream_embedding.bin.*\(6, 7\).*\(6, 48\)"):
        run(published)


def test_another_kind_of_checkpoint(published: Path) -> None:
    edit(published, lambda c: c.pop("plugins_init_kwargs"))
    with pytest.raises(CheckpointError, match="has no 'plugins_init_kwargs', but model_type 'dreamllm'"):
        run(published)


def test_nothing_half_written(published: Path) -> None:
    (published / "dream_embedding.bin").unlink()
    with pytest.raises(CheckpointError):
        run(published)
    assert sorted(path.name for path in published.parent.iterdir()) == [
        "checkpoint",
        "components",
        "expected.safetensors",
        "meta.json",
    ]
