"""Each command imports only the modules it needs, so that it starts fast."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import yaml

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.hookspecs import Component
from dreamkit.registry.registry import Registered, Registry
from meta.installing import hook, install

# Parts of a third-party plug-in. They need only torch, and transformers for the tokenizer.
PARTS = {"vision_encoder": "Eye", "language_model": "Tongue", "image_decoder": "Hand"}
RECIPE = {
    "model": {
        **{kind: {"name": "plain", "config": {}} for kind in PARTS},
        "visual_projector": {"name": "linear"},
        "condition_projector": {"name": "linear"},
        "dream_queries": 3,
    },
    "train": {"trainable": ["condition_projector", "dream_queries"], "steps": 1, "batch_size": 1},
    "generation": {"max_tokens": 2, "max_images": 0},
}
MODEL = ("dreamkit.model", "dreamkit.kernels", "dreamkit.plan", "dreamkit.checkpoints.load")
TRAINING = ("dreamkit.training", "dreamkit.cache.model_check", "dreamkit.cache.write")
TRAINERS = ("peft", "transformers.trainer")
NETWORKS = ("transformers.modeling_utils", "diffusers.models", "timm", "sklearn")
LIBRARIES = ("accelerate", "transformers.models", "diffusers")
COMPILERS = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the distribution `plain` installed, a recipe of its parts and a checkpoint of them."""
    site = tmp_path_factory.mktemp("site")
    hooks = "".join(hook(kind, "plain", f"plain.parts:{cls}") for kind, cls in PARTS.items())
    modules = "".join(
        f"from dreamkit.scaffold.parts.{kind} import NewPart as {cls}\n" for kind, cls in PARTS.items()
    )
    install(site, "plain", hooks, modules)
    (site / "plain.yaml").write_text(yaml.safe_dump(RECIPE))
    plain = [
        Registered(
            Component("plain", f"dreamkit.scaffold.parts.{kind}:NewPart"), kind, "plain", "1.0", "plain"
        )
        for kind in PARTS
    ]
    linear = Registry.load().components("projector")["linear"]
    registry = Registry([*plain, linear])
    model = build(fit(recipe_from_dict(RECIPE, registry), registry))
    save_checkpoint(model, site / "checkpoint", registry=registry)
    return site


def imported_modules(site: Path, folder: Path, *arguments: str, code: int = 0) -> set[str]:
    """Run `dreamkit ARGUMENTS` in `folder`, expect the exit code `code`, and return the modules it has imported."""
    script = (
        "import sys; from pathlib import Path; from dreamkit.cli import main\n"
        "try: main()\n"
        "finally: Path('modules').write_text('\\n'.join(sys.modules))\n"
    )
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == code, process.stdout + process.stderr
    return set((folder / "modules").read_text().splitlines())


def among(modules: Collection[str], roots: Collection[str]) -> list[str]:
    """Return those of `modules` that are in `roots` or in a package of `roots`."""
    return sorted(m for m in modules if any(m == root or m.startswith(f"{root}.") for root in roots))


@pytest.mark.parametrize(
    ("overrides", "code"), [([], 0), (["train.cache=nowhere"], 2)], ids=["valid", "missing cache"]
)
def test_check_imports_no_model_trainer_library_or_compiler(
    site: Path, tmp_path: Path, overrides: list[str], code: int
) -> None:
    modules = imported_modules(site, tmp_path, "check", str(site / "plain.yaml"), *overrides, code=code)
    assert "plain.parts" in modules and "dreamkit.build.fit" in modules
    assert among(modules, (*MODEL, *TRAINING, *TRAINERS, *NETWORKS, *LIBRARIES, *COMPILERS)) == []


def test_check_of_a_shipped_recipe_imports_no_model_and_no_networks(site: Path, tmp_path: Path) -> None:
    modules = imported_modules(site, tmp_path, "check", "digits/stage1")
    assert "dreamkit_transformers.llama" in modules
    networks = {*NETWORKS} - {"sklearn"}  # which has the handwriting of the data set
    assert among(modules, (*MODEL, *TRAINING, *TRAINERS, *networks)) == []


def test_plan_imports_no_training_code(site: Path, tmp_path: Path) -> None:
    modules = imported_modules(site, tmp_path, "plan", str(site / "plain.yaml"))
    assert "dreamkit.model.model" in modules
    assert among(modules, (*TRAINING, *TRAINERS, *NETWORKS, *LIBRARIES)) == []


def test_generate_imports_no_training_code(site: Path, tmp_path: Path) -> None:
    modules = imported_modules(site, tmp_path, "generate", str(site / "checkpoint"), "a", "--out", "out")
    assert "dreamkit.model.model" in modules
    assert (
        among(modules, (*TRAINING, *TRAINERS, *NETWORKS, *LIBRARIES, "dreamkit.plan", "dreamkit.cache")) == []
    )
