"""Import of published checkpoints: every form of their files, and errors."""

import json
import os
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
from recipe_files import changed

REFERENCE = Path(__file__).parents[1] / "reference" / "published-sd"
VISION, HEAD = "clip_vision_embedding", "stable_diffusion_head"
REGISTRY = Registry.load()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a copy of the reference, which a test may change."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "published")) / "checkpoint"


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REFERENCE.parent / "published-sdxl", tmp_path / "published")) / "checkpoint"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("original") / "out"
    return import_published(REFERENCE / "checkpoint", out, REGISTRY).state_dict()


def convert(published: Path) -> DreamModel:
    return import_published(published, published.parent / "out", REGISTRY)


def edit(published: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = published / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def assert_equal(model: DreamModel, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def halves(published: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    names = sorted(state)
    first = names[: len(names) // 2]
    return {n: state[n] for n in first}, {n: state[n] for n in names if n not in first}


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_are_read_and_a_missing_one_is_named(
    published: Path, original: dict[str, Tensor], stem: str, suffix: str
) -> None:
    weight_map = {}
    for number, shard in enumerate(halves(published), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(shard, published / file)
        weight_map |= dict.fromkeys(shard, file)
    (published / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(convert(published), original)
    (published / f"{stem}-00001-of-00002.{suffix}").unlink()
    with pytest.raises(CheckpointError, match=rf"{stem}-00001-of-00002\.{suffix} is missing"):
        convert(published)


def test_targets_are_never_imported(published: Path, original: dict[str, Tensor]) -> None:
    """An import of this `_target_` would end the program."""
    edit(published, lambda c: c["plugins_init_kwargs"][VISION].update(_target_="antigravity.sys.exit"))
    assert_equal(convert(published), original)


def test_a_component_may_have_an_absolute_path(
    published: Path, original: dict[str, Tensor], tmp_path: Path
) -> None:
    moved = shutil.move(published.parent / "components" / "sd", tmp_path / "elsewhere")
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(diffusion_name_or_path=str(moved)))
    assert_equal(convert(published), original)


def test_mlp_projectors_are_converted(published: Path) -> None:
    """The published MLP saves layers 0 and 2 of a Sequential; here the visual one has biases."""
    weights = {f"projector.projector.{n}.weight": torch.randn(48, 32 if n == 0 else 48) for n in (0, 2)}
    biases = {f"projector.projector.{n}.bias": torch.randn(48) for n in (0, 2)}
    drawn = {f"projector.projector.{n}.weight": torch.randn(24, 48 if n == 0 else 24) for n in (0, 2)}
    for name, layers in ((VISION, weights | biases), (HEAD, drawn)):
        state = torch.load(published / f"{name}.bin", weights_only=True)
        others = {k: v for k, v in state.items() if not k.startswith("projector.")}
        torch.save(others | layers, published / f"{name}.bin")
        edit(
            published,
            lambda c, name=name: c["plugins_init_kwargs"][name].update(
                projector_type="mlp", projector_depth=2
            ),
        )
    model = convert(published)
    for projector, layers in ((model.visual_projector, weights | biases), (model.condition_projector, drawn)):
        first, second = projector.dense_layers() or ()
        assert torch.equal(first.weight, layers["projector.projector.0.weight"])
        assert torch.equal(second.weight, layers["projector.projector.2.weight"])
        assert (second.bias is None) == ("projector.projector.2.bias" not in layers)


def test_an_unused_layer_is_refused(published: Path) -> None:
    state = torch.load(published / f"{HEAD}.bin", weights_only=True)
    others = {k: v for k, v in state.items() if not k.startswith("projector.")}
    layers = {f"projector.projector.{n}.weight": torch.randn(24, 48 if n == 0 else 24) for n in (0, 2, 4)}
    torch.save(others | layers, published / f"{HEAD}.bin")
    change = {"projector_type": "mlp", "projector_depth": 2}
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(change))
    with pytest.raises(CheckpointError, match=r"unused tensors 4\.weight; projector_depth is 2"):
        convert(published)


def test_tied_weights_stay_tied(published: Path) -> None:
    state = load_file(published / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    (published / "model.safetensors").unlink()
    torch.save(state, published / "pytorch_model.bin")
    model = convert(published)
    ids = torch.arange(5)
    assert torch.equal(model.language_model.embed(ids), model.language_model.head().weight[ids])


def test_state_dicts_in_the_old_format_are_read(published: Path, original: dict[str, Tensor]) -> None:
    file = published / "dream_embedding.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert_equal(convert(published), original)


def test_tokenizer_files_of_older_libraries_are_read(published: Path, original: dict[str, Tensor]) -> None:
    """Before transformers 4.34, only added_tokens.json had the ids of added tokens."""
    file = published / "tokenizer_config.json"
    config = json.loads(file.read_text())
    for key in ("added_tokens_decoder", "additional_special_tokens"):
        del config[key]
    file.write_text(json.dumps(config))
    assert_equal(convert(published), original)


def test_token_ids_must_agree(published: Path) -> None:
    def swap(config: dict[str, Any]) -> None:
        ids = config["special_tokens2ids_dict"]["additional_special_tokens"]
        ids["<dream_start>"], ids["<im_start>"] = ids["<im_start>"], ids["<dream_start>"]

    edit(published, swap)
    with pytest.raises(CheckpointError, match=r"expected id 401 of <dream_start>, .* got 403"):
        convert(published)


def test_a_published_checkpoint_draws_in_the_steps_of_its_own_code(published: Path) -> None:
    recipe = convert(published).recipe
    assert recipe is not None
    generation = recipe.generation
    assert (generation.scheduler, generation.steps) == ("ddpm", 50)


def test_missing_settings_have_the_published_defaults(published: Path, original: dict[str, Tensor]) -> None:
    def drop(config: dict[str, Any]) -> None:
        del config["plugins_init_kwargs"][VISION]["select_layer"]
        for name in (VISION, HEAD):
            del config["plugins_init_kwargs"][name]["projector_type"]
            del config["plugins_init_kwargs"][name]["projector_depth"]

    edit(published, drop)
    assert_equal(convert(published), original)


def test_an_unsupported_training_setting_is_named(published: Path) -> None:
    change = {"snr_gamma": 5.0, "resolution": 32, "noise_offset": 0.1}
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(change))
    with pytest.warns(UserWarning, match=r"noise_offset=0\.1 is ignored"):
        model = convert(published)
    assert model.image_decoder.spec.image_size == 32
    assert model.recipe is not None and model.recipe.model.image_decoder.config.snr_gamma == 5.0


XL = {"_target_": "omni.models.dreamllm_sdxl.modeling_plugins.StableDiffusionXLHead"}


def test_xl_has_its_own_parts(xl: Path) -> None:
    model = convert(xl)
    state = torch.load(xl / "stable_diffusion_xl_head.bin", weights_only=True)
    (layer,) = model.pooled_projector.dense_layers()
    assert torch.equal(layer.weight, state["global_projector.projector.weight"])
    assert torch.equal(layer.bias, state["global_projector.projector.bias"])
    recipe = model.recipe
    assert recipe is not None and recipe.model.image_decoder.name == "sdxl"
    assert model.special_tokens.dream_patch == "<dream_patch>" != model.special_tokens.image_patch


@pytest.mark.parametrize("absent", ["unet.conv_in.weight", "global_projector.projector.bias"])
def test_a_head_without_a_tensor_is_refused(xl: Path, absent: str) -> None:
    file = xl / "stable_diffusion_xl_head.bin"
    state = torch.load(file, weights_only=True)
    others = {name: tensor for name, tensor in state.items() if name != absent}
    torch.save(others | ({} if "unet" in absent else {"global_projector.projector.odd": torch.ones(1)}), file)
    with pytest.raises(DreamkitError, match=r"conv_in\.weight|odd"):
        convert(xl)


def test_a_head_of_another_kind_is_refused(published: Path) -> None:
    """Each kind of head has its own file name."""
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(XL))
    with pytest.raises(CheckpointError, match=r"stable_diffusion_xl_head\.bin is missing"):
        convert(published)
    (published / f"{HEAD}.bin").rename(published / "stable_diffusion_xl_head.bin")
    with pytest.raises(DreamkitError, match="use the image decoder 'stable-diffusion'"):
        convert(published)


def test_an_unknown_projector_is_refused(published: Path) -> None:
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(projector_type="sam"))
    with pytest.raises(CheckpointError, match="expected projector_type linear or mlp, got 'sam'"):
        convert(published)


def test_a_long_value_is_shown_shortened(published: Path) -> None:
    text = (published / "config.json").read_text()
    for path in (
        ("plugins_init_kwargs", HEAD, "projector_type"),
        ("plugins_init_kwargs", HEAD, "resolution"),
        ("plugins_init_kwargs", HEAD, "diffusion_name_or_path"),
        ("plugins_init_kwargs", VISION, "select_layer"),
        ("special_tokens2ids_dict", "additional_special_tokens", "<dream_start>"),
        ("hidden_act",),
        ("loss_weight_lm",),
    ):
        (published / "config.json").write_text(json.dumps(changed(json.loads(text), path, 2000 * "QUJD")))
        with pytest.raises(DreamkitError) as caught:
            convert(published)
        assert 21 * "QUJD" not in str(caught.value), path


def test_an_unreachable_component_is_named(published: Path) -> None:
    change = {"diffusion_name_or_path": "nobody/no-such-model"}
    edit(published, lambda c: c["plugins_init_kwargs"][HEAD].update(change))
    with pytest.raises(SourceError, match=r"config.json names 'nobody/no-such-model'"):
        convert(published)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "dream_embedding.bin", f"{HEAD}.bin"])
def test_a_missing_file_is_named(published: Path, name: str) -> None:
    (published / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        convert(published)


@pytest.mark.parametrize("name", ["model.safetensors", "dream_embedding.bin"])
def test_a_damaged_file_is_named(published: Path, name: str) -> None:
    whole = (published / name).read_bytes()
    (published / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DreamkitError, match=name):
        convert(published)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickled_code_does_not_run(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published)
    torch.save({"dream_queries": Bomb()}, published / "dream_embedding.bin")
    with pytest.raises(
        CheckpointError,
        match=r"dream_embedding\.bin: expected a pickle of tensors, got one that also names .*pathlib\.Path",
    ):
        convert(published)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("file", [f"{VISION}.bin", f"{HEAD}.bin", "dream_embedding.bin", "model.safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * torch.nan, "expected finite values, got NaN"),
        (lambda tensor: tensor / 0, "expected finite values, got (inf|NaN)"),
        (lambda tensor: tensor.to(torch.int8), "expected floating-point weights, got int8"),
    ],
    ids=["nan", "inf", "int8"],
)
def test_weights_that_are_not_finite_numbers_are_refused(
    published: Path, file: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    path = published / file
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    name = sorted(state)[-1]
    (save_file if path.suffix == ".safetensors" else torch.save)(state | {name: change(state[name])}, path)
    with pytest.raises(CheckpointError, match=f"{path}: {name}: {message}"):
        convert(published)
    assert not (published.parent / "out").exists()


def test_shards_without_an_index_and_an_adapter_are_named(published: Path) -> None:
    (published / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"got an adapter of peft beside them \(adapter_config\.json\)"):
        convert(published)
    (published / "adapter_config.json").unlink()
    (published / "model.safetensors").rename(published / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"it lacks 'model\.safetensors\.index\.json'"):
        convert(published)


@pytest.mark.parametrize("name", ["model.safetensors", "dream_embedding.bin", f"{HEAD}.bin"])
def test_a_file_of_another_kind_is_named_with_its_kind(published: Path, name: str) -> None:
    (published / name).unlink()
    os.mkfifo(published / name)
    with pytest.raises(
        CheckpointError, match=f"{published / name}: expected a regular file, got a named pipe"
    ):
        convert(published)


@pytest.mark.parametrize(
    "other", ["../elsewhere.safetensors", "/etc/hostname", "a" * 5000, "a\0b", "none.bin"]
)
def test_shards_are_files_beside_their_index(published: Path, other: str) -> None:
    shutil.copy(published / "model.safetensors", published.parent / "elsewhere.safetensors")
    index = published / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": other}}))
    with pytest.raises(CheckpointError, match=f"{index}: .* is missing from its folder"):
        convert(published)


def test_a_tensor_in_two_shards_is_refused(published: Path) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        shutil.copy(published / "model.safetensors", published / name)
    weight_map = dict(zip("ab", names, strict=True))
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=rf"{names[1]}: \S+ is in {names[0]} too"):
        convert(published)


def test_a_projector_of_another_shape_is_refused_on_one_line(published: Path) -> None:
    state = torch.load(published / f"{HEAD}.bin", weights_only=True)
    torch.save(state | {"projector.projector.weight": torch.zeros(3)}, published / f"{HEAD}.bin")
    with pytest.raises(
        CheckpointError, match=rf"{HEAD}\.bin: projector.* size mismatch for weight: .*\[3\]"
    ) as caught:
        convert(published)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [torch.zeros(1).expand(10**6, 10**6), torch.zeros(6, 48, device="meta")])
def test_a_tensor_without_a_number_for_each_element_is_refused(published: Path, value: Tensor) -> None:
    torch.save({"dream_queries": value}, published / "dream_embedding.bin")
    with pytest.raises(
        CheckpointError, match=r"dream_embedding.bin: expected tensors, got 'dream_queries' \(a "
    ):
        convert(published)


def test_a_wrong_shape_is_refused(published: Path) -> None:
    torch.save({"dream_queries": torch.zeros(1, 6, 7)}, published / "dream_embedding.bin")
    with pytest.raises(CheckpointError, match=r"dream_embedding.bin: .*\(6, 48\), got \(6, 7\)"):
        convert(published)


def test_another_kind_of_checkpoint_is_refused(published: Path) -> None:
    edit(published, lambda c: c.pop("plugins_init_kwargs"))
    with pytest.raises(CheckpointError, match="expected 'plugins_init_kwargs', got model_type 'dreamllm'"):
        convert(published)


def test_a_failed_import_writes_nothing(published: Path) -> None:
    (published / "dream_embedding.bin").unlink()
    with pytest.raises(CheckpointError):
        convert(published)
    assert sorted(path.name for path in published.parent.iterdir()) == [
        "checkpoint",
        "components",
        "expected.safetensors",
        "meta.json",
    ]
