"""A command imports what it needs and nothing else, so that it answers soon."""

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

# parts of torch alone, as somebody else would publish them; the language model's tokenizer is transformers'
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
    """A folder with the distribution `plain` installed, a recipe of its parts, and a checkpoint of their model."""
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


def loaded(site: Path, folder: Path, *arguments: str, code: int = 0) -> set[str]:
    """The modules that `dreamkit ARGUMENTS`, run in `folder`, has imported when it ends with `code`."""
    script = (
        "import sys; from pathlib import Path; from dreamkit.cli import main\n"
        "try: main()\n"
        "finally: Path('modules').write_text('\\n'.join(sys.modules))\n"
    )
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return set((folder / "modules").read_text().splitlines())


def among(modules: Collection[str], roots: Collection[str]) -> list[str]:
    """Those of `modules` that are one of `roots`, or lie in one."""
    return sorted(m for m in modules if any(m == root or m.startswith(f"{root}.") for root in roots))


@pytest.mark.parametrize(
    ("overrides", "code"), [([], 0), (["train.cache=nowhere"], 2)], ids=["sound", "with a cache"]
)
def test_checking_a_recipe_imports_no_model_and_nothing_that_runs_one(
    site: Path, tmp_path: Path, overrides: list[str], code: int
) -> None:
    modules = loaded(site, tmp_path, "check", str(site / "plain.yaml"), *overrides, code=code)
    assert "plain.parts" in modules and "dreamkit.build.fit" in modules
    assert among(modules, (*MODEL, *TRAINING, *TRAINERS, *NETWORKS, *LIBRARIES, *COMPILERS)) == []


def test_checking_a_shipped_recipe_imports_no_model_and_no_network(site: Path, tmp_path: Path) -> None:
    modules = loaded(site, tmp_path, "check", "digits/stage1")
    assert "dreamkit_transformers.llama" in modules
    assert among(modules, (*MODEL, *TRAINING, *TRAINERS, *NETWORKS)) == []


def test_planning_imports_nothing_that_trains(site: Path, tmp_path: Path) -> None:
    modules = loaded(site, tmp_path, "plan", str(site / "plain.yaml"))
    assert "dreamkit.model.model" in modules
    assert among(modules, (*TRAINING, *TRAINERS, *NETWORKS, *LIBRARIES)) == []


def test_generating_imports_nothing_that_trains(site: Path, tmp_path: Path) -> None:
    modules = loaded(site, tmp_path, "generate", str(site / "checkpoint"), "a", "--out", "out")
    assert "dreamkit.model.model" in modules
    assert (
        among(modules, (*TRAINING, *TRAINERS, *NETWORKS, *LIBRARIES, "dreamkit.plan", "dreamkit.cache")) == []
    )
