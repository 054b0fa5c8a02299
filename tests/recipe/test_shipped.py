"""The shipped recipes: each is valid, also with other parts, and has the numbers of the paper."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dreamkit.build.fit import fit
from dreamkit.recipe.loading import draft_recipe, load_recipe
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

SHIPPED = Registry.load().recipes()
STAGES = ("stage1-read", "stage1-draw", "stage2", "stage3")
WITH = {
    "image_decoder": ("sd21", "sd15", "sdxl"),
    "language_model": ("vicuna", "llama"),
    "vision_encoder": ("clip", "siglip"),
    "adapters": (None, "lora", "qlora"),
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def recipe(registry: Registry, name: str, *swaps: str | None) -> Recipe:
    return load_recipe(name, [f"dreamllm/with/{swap}" for swap in swaps if swap], registry)


def test_every_recipe_in_the_folder_is_shipped(registry: Registry) -> None:
    folder = Path(__file__).parents[2] / "recipes"
    files = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")}
    assert files <= SHIPPED.keys()
    released = {f"dreamllm/{whose}/{stage}" for whose in ("paper", "released") for stage in STAGES}
    swaps = {f"dreamllm/with/{swap}" for swap in itertools.chain(*WITH.values()) if swap}
    assert files == released | swaps | {"dreamllm/base"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid(registry: Registry, name: str) -> None:
    """Recipes in `with/` are merged over a stage."""
    if name.endswith("/base"):
        problems = draft_recipe(name, (), registry)[1]
        assert {problem.key for problem in problems} <= {"train", "train.trainable", "train.steps"}
        return
    loaded = (
        recipe(registry, "dreamllm/paper/stage2", Path(name).name)
        if "/with/" in name
        else load_recipe(name, (), registry)
    )
    assert loaded.train.trainable and loaded.data
    assert fit(loaded, registry).problems == []


@pytest.mark.parametrize("name", SHIPPED)
def test_the_header_ends_with_a_command_that_names_the_recipe(name: str) -> None:
    lines = itertools.takewhile(lambda line: line.startswith("# "), SHIPPED[name].read_text().splitlines())
    *_, last = lines
    assert name.endswith("/base") or name in last.split(), last


@pytest.mark.parametrize("name", SHIPPED)
def test_the_header_begins_with_a_short_sentence(registry: Registry, name: str) -> None:
    summary = registry.shipped_recipes()[name].summary
    assert summary.endswith(".") and len(summary) <= 48
    assert SHIPPED[name].read_text().startswith(f"# {summary}\n")


@pytest.mark.parametrize("swaps", list(itertools.product(*WITH.values())), ids=str)
def test_parts_swap_in_every_stage(registry: Registry, swaps: tuple[str | None, ...]) -> None:
    """Each combination is valid and trains the same parts, except that an adapter replaces its part."""
    stages = STAGES[2:] if swaps[-1] else STAGES
    for whose, stage in itertools.product(("paper", "released"), stages):
        swapped, plain = (recipe(registry, f"dreamllm/{whose}/{stage}", *names) for names in (swaps, ()))
        adapted = {adapter.target for adapter in swapped.model.adapters}
        assert adapted == ({"language_model"} if swaps[-1] else set())
        assert set(swapped.train.trainable) == set(plain.train.trainable) - adapted
        assert swapped.model.language_model.quantize == ("nf4" if "qlora" in swaps else None)
        assert fit(swapped, registry).problems == []


def test_recipes_have_the_numbers_of_the_paper(registry: Registry) -> None:
    """Table of arXiv 2309.11499's appendix, and the released configs; steps are documents over the global batch."""
    rows = {
        # stage: (documents in thousands, epochs, learning rate, (lm, vm)) of the paper, and documents as released
        "stage1-read": (558, 1, 2e-3, (1, 0), 558),
        "stage1-draw": (30_000, 1, 2e-3, (0, 1), 60_000),
        "stage2": (4_000, 1, 2e-5, (1, 10), 17_000),
        "stage3": (120, 3, 4e-5, (1, 10), 1_285),
    }
    for stage, (documents, epochs, rate, loss, released) in rows.items():
        for whose, total, batch in (("paper", documents * epochs, 8), ("released", released, 16)):
            loaded = recipe(registry, f"dreamllm/{whose}/{stage}")
            train = loaded.train
            assert train.global_batch == batch * 128
            assert train.steps == pytest.approx(total * 1000 / (batch * 128), rel=0.005)
            assert train.warmup == 0.003
            assert (train.learning_rate, train.weight_decay, train.schedule) == (rate, 0, "cosine")
            assert (train.max_length, loaded.model.dream_queries) == (2048, 64)
            assert (loaded.loss.lm, loaded.loss.denoising) == loss
            is_trained = "language_model" in train.trainable
            assert is_trained == (stage in ("stage2", "stage3"))
            assert not {"vision_encoder", "image_decoder"} & set(train.trainable)


def test_one_line_swaps_a_part(registry: Registry, tmp_path: Path) -> None:
    """Three ways: a file that extends two recipes, a recipe on the command line, a section on the command line."""
    own = tmp_path / "own.yaml"
    own.write_text("extends: [dreamllm/paper/stage2, dreamllm/with/sdxl]\n")
    section = "{name: sdxl, pretrained: stabilityai/stable-diffusion-xl-base-1.0}"
    by_file = load_recipe(str(own), (), registry)
    by_recipe = recipe(registry, "dreamllm/paper/stage2", "sdxl")
    by_part = load_recipe("dreamllm/paper/stage2", [f"model.image_decoder={section}"], registry)
    assert by_file == by_recipe == by_part
    assert by_file.model.image_decoder.name == "sdxl"


def test_recipes_override_in_order_and_settings_override_all(registry: Registry, tmp_path: Path) -> None:
    for name, steps in (("first", 1), ("second", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"train: {{steps: {steps}, warmup: {steps}}}\n")
    overrides = [str(tmp_path / "first.yaml"), "train.steps=3", str(tmp_path / "second.yaml")]
    train = load_recipe("dreamllm/paper/stage2", overrides, registry).train
    assert (train.steps, train.warmup) == (3, 2)


@pytest.mark.parametrize("whose", ["paper", "released"])
def test_images_of_mmc4_stand_after_their_texts_as_in_the_published_code(
    registry: Registry, whose: str
) -> None:
    mmc4, _ = load_recipe(f"dreamllm/{whose}/stage2", (), registry).data
    assert (mmc4.name, mmc4.config.place) == ("mmc4", "after")
