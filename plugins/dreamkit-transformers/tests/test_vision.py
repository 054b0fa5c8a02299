"""CLIP and SigLIP: features, preprocessing, specs and errors."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dreamkit import ConfigError, DreamkitError, SourceError, VisionSpec, to_rgb
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.siglip import Siglip
from dreamkit_transformers.tokenizers import byte_tokenizer, read_tokenizer
from dreamkit_transformers.vision import VisionConfig

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 20,
    "patch_size": 5,
}
CLIP_PROCESSOR = {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
SIGLIP_PROCESSOR = {"size": {"height": 20, "width": 20}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# part, library's model, config and processor classes, arguments of the processor, number of class tokens
FAMILIES = [
    (Clip, CLIPVisionModel, CLIPVisionConfig, CLIPImageProcessor, CLIP_PROCESSOR, 1),
    (Siglip, SiglipVisionModel, SiglipVisionConfig, SiglipImageProcessor, SIGLIP_PROCESSOR, 0),
]
families = pytest.mark.parametrize("family", FAMILIES, ids=["clip", "siglip"])


@pytest.fixture
def folders(tmp_path):
    """Return a function that writes a model into a folder in the library's format and returns both."""

    def write(family, **config):
        _, model_class, config_class, processor_class, processor, _ = family
        torch.manual_seed(0)
        model = model_class(config_class(**{**SMALL, **config})).eval()
        model.save_pretrained(tmp_path)
        processor_class(**processor).save_pretrained(tmp_path)
        return str(tmp_path), model

    return write


def pictures():
    """Return images of every mode and shape that files contain, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise, "RGBA")
    rotated = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise[..., :3]).save(rotated, "PNG", exif=exif)
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return {
        "rgb": rgba.convert("RGB"),
        "rgba": rgba,
        "grey": rgba.convert("L"),
        "palette": rgba.convert("P"),
        "one pixel": Image.new("RGB", (1, 1), (10, 20, 30)),
        "wide": Image.fromarray(np.tile(noise[:2, :, :3], (1, 8, 1))),
        "rotated": Image.open(io.BytesIO(rotated.getvalue())),
        "16 bits": deep,
        "same size": rgba.convert("RGB").resize((20, 20)),
    }


@families
@pytest.mark.parametrize("layer", [-1, -2, -4, 0, 2, 3])
def test_features_equal_the_librarys_hidden_states(family, layer, folders):
    part_class, *_, class_tokens = family
    folder, model = folders(family)
    part = part_class.from_pretrained(VisionConfig(pretrained=folder, layer=layer))
    pixels = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[layer][:, class_tokens:]
        assert torch.equal(part(pixels), expected)


@families
def test_unused_modules_are_dropped_and_named(family, folders):
    part_class = family[0]
    folder, model = folders(family)
    part = part_class.from_pretrained(VisionConfig(pretrained=folder))
    dropped = {f"{name}." for name in part.dropped}
    absent = {name for name in model.state_dict() if any(name.startswith(prefix) for prefix in dropped)}
    assert {"encoder.layers.2", "post_layernorm"} <= set(part.dropped)
    assert {f"model.{name}" for name in set(model.state_dict()) - absent} == set(part.state_dict())
    part(torch.randn(1, 3, 20, 20)).sum().backward()
    unused = [name for name, parameter in part.named_parameters() if parameter.grad is None]
    assert unused == []


@families
def test_a_spec_reads_no_weights_but_requires_their_files(family, folders, tmp_path):
    part_class = family[0]
    folder, _ = folders(family)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not tensors: a spec needs none, but they must be there")
    assert part_class.infer_spec(VisionConfig(pretrained=folder)) == VisionSpec(20, 16, 16)
    weights.unlink()
    for build in (part_class.infer_spec, part_class.from_pretrained):
        with pytest.raises(SourceError, match="weights"):
            build(VisionConfig(pretrained=folder))


@families
def test_meta_modules_of_a_source_have_the_names_of_the_part(family, folders):
    folder, _ = folders(family)
    meta_part = family[0].meta_modules(VisionConfig(pretrained=folder))
    part = family[0].from_config(VisionConfig(config=SMALL))
    assert {parameter.device.type for parameter in meta_part.parameters()} == {"meta"}
    assert [name for name, _ in meta_part.named_modules()] == [name for name, _ in part.named_modules()]


@families
def test_random_weights_come_from_the_global_generator(family):
    part_class = family[0]
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(part_class.from_config(VisionConfig(config=SMALL)).state_dict())
    weight = "model.encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(states[0][weight], states[1][weight])
    assert not torch.equal(states[0][weight], states[2][weight])


@families
@pytest.mark.parametrize("name", pictures())
def test_preprocess_equals_the_librarys_for_the_rgb_image(family, name, folders):
    part_class, _, _, processor_class, processor, _ = family
    folder, _ = folders(family)
    picture = pictures()[name]
    expected = processor_class(**processor)(to_rgb(picture), return_tensors="pt")["pixel_values"]
    for config in (VisionConfig(pretrained=folder), VisionConfig(config=SMALL)):
        build = part_class.from_pretrained if config.pretrained else part_class.from_config
        pixels = build(config).preprocess([picture])
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, expected)


def test_clip_loads_the_vision_tower_of_a_whole_clip(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    whole = CLIPModel(CLIPConfig(vision_config=SMALL, text_config=text)).eval()
    whole.save_pretrained(tmp_path)
    CLIPImageProcessor(**CLIP_PROCESSOR).save_pretrained(tmp_path)
    part = Clip.from_pretrained(VisionConfig(pretrained=str(tmp_path)))
    pixels = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        expected = whole.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert torch.equal(part(pixels), expected)


@families
@pytest.mark.parametrize(
    ("change", "key", "parts"),
    [
        (
            {"hidden_sise": 8},
            "config.hidden_sise",
            ["unknown key 'hidden_sise'", "did you mean 'hidden_size'?"],
        ),
        ({"hidden_size": "8"}, "config.hidden_size", ["expected int"]),
        ({"hidden_size": 15}, "config", ["15"]),
        ({"hidden_size": 0}, "config.hidden_size", ["expected at least 1, got 0"]),
        ({"hidden_act": "gleu"}, "config.hidden_act", ["got 'gleu'"]),
        ({"num_hidden_layers": 10**5}, "config.num_hidden_layers", ["at most 1000"]),
        ({"patch_size": 0}, "config.patch_size", ["expected at least 1, got 0"]),
        ({"patch_size": 21}, "config.patch_size", ["expected 1 to 20 (image_size), got 21"]),
        ({"image_size": [20, 20]}, "config.image_size", ["expected an integer, got [20, 20]"]),
        ({"num_channels": 1}, "config.num_channels", ["expected 3, the channels of an image, got 1"]),
    ],
)
def test_an_invalid_config_value_is_an_error_at_its_key(family, change, key, parts):
    with pytest.raises(ConfigError) as caught:
        family[0].infer_spec(VisionConfig(config={**SMALL, **change}))
    ((actual_key, message),) = caught.value.problems.items()
    assert actual_key == key and all(part in message for part in parts), message


@families
def test_all_errors_of_a_section_are_reported_together(family):
    invalid = {"hidden_sise": 8, "hidden_act": "gleu", "patch_size": 0}
    with pytest.raises(ConfigError) as caught:
        family[0].infer_spec(VisionConfig(config={**SMALL, **invalid}))
    assert caught.value.problems.keys() == {f"config.{name}" for name in invalid}
    with pytest.raises(ConfigError) as caught:
        family[0].infer_spec(VisionConfig(config={**SMALL, "num_channels": 1, "patch_size": 21}, layer=9))
    assert caught.value.problems.keys() == {"config.num_channels", "config.patch_size", "layer"}


@families
@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_beyond_the_model_is_an_error(family, layer, folders):
    folder, _ = folders(family)
    for source in ({"pretrained": folder}, {"config": SMALL}):
        with pytest.raises(
            DreamkitError, match=rf"expected -4 to 3 \(0: the embeddings\), got {layer}; the model has 3"
        ):
            family[0].infer_spec(VisionConfig(layer=layer, **source))


def test_a_source_of_another_model_or_image_size_is_an_error(folders, tmp_path):
    folder, _ = folders(FAMILIES[0])
    with pytest.raises(
        SourceError, match="expected model_type 'siglip_vision_model' or 'siglip', got 'clip_vision_model'"
    ):
        Siglip.infer_spec(VisionConfig(pretrained=folder))
    file = tmp_path / "preprocessor_config.json"
    processor = json.loads(file.read_text())
    file.write_text(json.dumps({**processor, "crop_size": {"height": 16, "width": 20}}))
    with pytest.raises(
        SourceError, match=r"expected pixels of shape \(3, 20, 20\) \(config.json\), got \(3, 16, 20\)"
    ):
        Clip.infer_spec(VisionConfig(pretrained=folder))
    file.unlink()
    with pytest.raises(SourceError, match="preprocessor_config"):
        Clip.infer_spec(VisionConfig(pretrained=folder))


@families
@pytest.mark.parametrize("image_size", [None, 30])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"crop_size": 20, "do_center_crop": True},
        {"crop_size": {"height": 16, "width": 20}, "do_center_crop": True},
        {"do_center_crop": False},
        {"do_center_crop": True, "crop_size": None},
        {"do_resize": False},
        {"do_resize": None},
        {"size": {"shortest_edge": 40}},
        {"size": {"height": 20, "width": 40}},
        {"size": {"height": 0, "width": 20}},
        {"size": 20},
        {"size": "wide"},
        {"size": None},
    ],
    ids=str,
)
def test_the_spec_read_from_a_processor_file_agrees_with_the_processor(
    family, change, image_size, folders, tmp_path
):
    """Both return the same spec or raise the same error."""
    folder, _ = folders(family)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    config, outcomes = VisionConfig(pretrained=folder, image_size=image_size), []
    for read_spec in (family[0].infer_spec, lambda config: family[0].from_pretrained(config).spec):
        try:
            outcomes.append(read_spec(config))
        except SourceError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@families
@pytest.mark.parametrize(
    "beside", [None, {"size": {"shortest_edge": 40}, "crop_size": 40}], ids=["alone", "both"]
)
def test_the_file_of_a_whole_processor_is_read(family, beside, folders, tmp_path):
    """transformers 5 saves no other file; if there are two, the library reads this one."""
    part_class, _, _, processor_class, values, _ = family
    folder, _ = folders(family)
    whole = {CLIPImageProcessor: CLIPProcessor, SiglipImageProcessor: SiglipProcessor}[processor_class]
    mean = processor_class(**{**values, "image_mean": [0.1, 0.2, 0.3]})
    own = tmp_path / "preprocessor_config.json"
    expected = part_class.from_pretrained(VisionConfig(pretrained=folder)).spec
    own.unlink()
    whole(mean, byte_tokenizer()).save_pretrained(tmp_path)
    if beside is not None:
        own.write_text(json.dumps(beside))
    else:
        assert not own.exists()
    config = VisionConfig(pretrained=folder)
    assert part_class.infer_spec(config) == expected
    part, picture = part_class.from_pretrained(config), pictures()["rgb"]
    library = processor_class.from_pretrained(tmp_path)([picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(part.preprocess([picture]), library)
    assert len(read_tokenizer(folder)) == len(byte_tokenizer())


def test_a_whole_processor_without_an_image_processor_is_an_error(folders, tmp_path):
    folder, _ = folders(FAMILIES[0])
    own, whole = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    whole.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert Clip.infer_spec(VisionConfig(pretrained=folder)).image_size == 20
    own.unlink()
    for value, name in ((None, "none"), ([1], "list")):
        whole.write_text(json.dumps({} if value is None else {"image_processor": value}))
        message = (
            rf"{whole}: expected a JSON object 'image_processor', got {name}; add preprocessor_config\.json"
        )
        with pytest.raises(SourceError, match=message):
            Clip.infer_spec(VisionConfig(pretrained=folder))


def test_damaged_weights_or_those_of_another_model_are_an_error(folders, tmp_path):
    folder, _ = folders(FAMILIES[0])
    weights = tmp_path / "model.safetensors"
    SiglipVisionModel(SiglipVisionConfig(**SMALL)).save_pretrained(tmp_path / "siglip")
    weights.write_bytes((tmp_path / "siglip/model.safetensors").read_bytes())
    with pytest.raises(SourceError, match=r"do not fit CLIPVisionModel: missing embeddings\.class_embedding"):
        Clip.from_pretrained(VisionConfig(pretrained=folder))
    CLIPVisionModel(CLIPVisionConfig(**{**SMALL, "image_size": 25})).save_pretrained(tmp_path / "larger")
    weights.write_bytes((tmp_path / "larger/model.safetensors").read_bytes())
    with pytest.raises(SourceError, match=r"position_embedding\.weight of shape \(17, 16\), got \(26, 16\)"):
        Clip.from_pretrained(VisionConfig(pretrained=folder))
    weights.write_bytes(b"not tensors")
    with pytest.raises(SourceError, match="cannot load its weights"):
        Clip.from_pretrained(VisionConfig(pretrained=folder))
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(SourceError, match="cannot be read"):
        Clip.infer_spec(VisionConfig(pretrained=folder))
