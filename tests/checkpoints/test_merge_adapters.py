"""`dreamkit merge-adapters`: equal outputs, only changed tensors in the checkpoint, and errors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from adapted_models import (
    REGISTRY,
    VARIANTS,
    adapted as adapted,
    adapters,
    build_model,
    build_pipeline,
    close,
    denoising_inputs,
    outputs,
    perturb_adapters,
    sources as sources,
)
from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError
from dreamkit.model.adapters import is_adapter
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import WITH_SOURCE

# peft reads this attribute of transformers' models
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_checkpoint_has_the_same_outputs(run, variant: str, tmp_path: Path) -> None:
    sources = tiny.write_sources(tmp_path / "sources")
    model = build_model(tiny.on_sources(sources, **adapters(**VARIANTS[variant])))
    model.set_trainable([])
    perturb_adapters(model)
    save_checkpoint(model, tmp_path / "checkpoint", registry=REGISTRY)
    code, _, err = run("merge-adapters", tmp_path / "checkpoint", tmp_path / "merged")
    assert code == 0, err
    assert err.endswith(
        f"merged the adapters of language_model, vision_encoder, image_decoder; wrote {tmp_path / 'merged'}\n"
    )
    merged, report = load_checkpoint(tmp_path / "merged", REGISTRY)
    assert not any(is_adapter(name) for name in merged.state_dict())
    assert merged.recipe is not None and model.recipe is not None
    assert merged.recipe.model.adapters == () and merged.sources == model.sources
    close(outputs(merged), outputs(model), 5e-5)

    # only tensors that differ from the sources are saved
    plain = build_model(tiny.on_sources(sources)).state_dict()
    for part in WITH_SOURCE:
        saved = load_file(tmp_path / f"merged/{part}.safetensors")
        new = {name for name in saved if name.startswith("new_")}
        differing = {
            name for name in saved.keys() - new if not torch.equal(saved[name], plain[f"{part}.{name}"])
        }
        layers = {name for name in saved.keys() - new if not name.endswith(".bias")}
        assert differing == layers and layers
        assert report.parts[part].from_source > 0
    assert not (tmp_path / "merged/adapters").exists()

    # a stage without adapters can start from it
    load_weights(build_model(tiny.on_sources(sources)), tmp_path / "merged")


def test_a_part_without_a_source_is_merged_too(run, tmp_path: Path) -> None:
    model = build_model(tiny.recipe(**adapters(("image_decoder",))))
    perturb_adapters(model)
    save_checkpoint(model, tmp_path / "checkpoint", registry=REGISTRY)
    assert run("merge-adapters", tmp_path / "checkpoint", tmp_path / "merged")[0] == 0
    close(outputs(load_checkpoint(tmp_path / "merged", REGISTRY)[0]), outputs(model), 5e-5)


def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = build_model(tiny.recipe(**adapters(("language_model",))))
    name = next(name for name, _ in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    save_checkpoint(model, tmp_path / "broken", registry=REGISTRY)
    with pytest.raises(
        CheckpointError, match=r"language_model: .*lora_B\.weight: expected finite values, got NaN"
    ):
        load_checkpoint(tmp_path / "broken", REGISTRY)


def test_an_impossible_merge_is_refused_and_writes_nothing(run, tmp_path: Path) -> None:
    plain, broken, out = tmp_path / "plain", tmp_path / "broken", tmp_path / "out"
    save_checkpoint(build_model(tiny.recipe()), plain, registry=REGISTRY)
    model = build_model(tiny.recipe(**adapters(("language_model",))))
    with torch.no_grad():
        for matrix in ("lora_A", "lora_B"):  # finite, unlike their product
            next(p for n, p in model.named_parameters() if matrix in n).fill_(3e38)
    save_checkpoint(model, broken, registry=REGISTRY)

    assert run("merge-adapters", plain, out) == (
        2,
        "",
        f"dreamkit: {plain}: it has no adapters to merge; use it as it is\n",
    )
    code, _, err = run("merge-adapters", broken, out)
    assert code == 2 and f"{broken}: language_model: cannot merge the adapter of " in err
    message = f"dreamkit: {plain} is not empty; name a new folder\n"
    assert run("merge-adapters", broken, plain) == (2, "", message)
    code, _, err = run("merge-adapters", tmp_path / "none", out)
    assert code == 2 and "is not a checkpoint: there is no such folder" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "plain"]


def test_the_examples_of_the_docs_read_and_merge_adapters(
    run, monkeypatch: pytest.MonkeyPatch, adapted: tuple[DreamModel, Path], sources: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    section = page.partition("## Adapters in peft and diffusers")[2].partition("\n## ")[0]
    language, decoder = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^```sh\ndreamkit (.*?)\n```$", section, re.DOTALL | re.MULTILINE)
    model, folder = adapted
    # a folder of this name comes before the hub model
    shutil.copytree(sources / "language_model", tmp_path / "lmsys/vicuna-7b-v1.1")
    build_pipeline(sources).save_pretrained(tmp_path / "stable-diffusion-v1-5/stable-diffusion-v1-5")
    shutil.copytree(folder.parent, tmp_path / "run1/checkpoint")
    monkeypatch.chdir(tmp_path)

    namespace: dict[str, Any] = {}
    exec(language, namespace)
    exec(decoder, namespace)
    ids = torch.arange(24).view(2, 12)
    noisy, timesteps, condition = denoising_inputs(model.image_decoder)
    with torch.no_grad():
        torch.testing.assert_close(namespace["model"](ids).logits, model.language_model.library_forward(ids))
        torch.testing.assert_close(
            namespace["pipeline"].unet(noisy, timesteps, condition.context).sample,
            model.image_decoder.denoise(noisy, timesteps, condition, {}),
        )
    assert run(*command.split())[0] == 0 and (tmp_path / "merged/dreamkit.json").is_file()


def test_inspect_counts_the_tensors_of_an_adapter(run, adapted: tuple[DreamModel, Path]) -> None:
    _, out, _ = run("inspect", adapted[1].parent)
    tensors = load_file(adapted[1] / "image_decoder/adapter_model.safetensors")
    assert re.search(rf"image_decoder .*\n  adapter +{len(tensors)} +\S+ (bytes|kB)", out), out
