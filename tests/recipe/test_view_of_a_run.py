"""The keys of drawings and held-out losses: `train.prompts`, `train.draw_every`, `held_out`, `train.eval_every`."""

from pathlib import Path
from typing import Any

import pytest

from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.registry.registry import Registry
from recipe_files import complete_recipe, only_problem, registry as registry, write


def recipe(held_out: list[dict[str, Any]] | None = None, **train: Any) -> dict[str, Any]:
    content = complete_recipe()
    content["train"] |= train
    return content | ({} if held_out is None else {"held_out": held_out})


def test_a_held_out_path_starts_at_its_file_and_survives_a_checkpoint(
    tmp_path: Path, registry: Registry
) -> None:
    (tmp_path / "base").mkdir()
    content = recipe([{"name": "pairs", "path": "held.jsonl"}], eval_every=2, draw_every=3, prompts=["a", ""])
    write(tmp_path / "base/base.yaml", content)
    file = write(
        tmp_path / "over.yaml", "extends: base/base.yaml\nheld_out: [{name: interleaved, path: b.jsonl}]\n"
    )
    loaded = load_recipe(str(tmp_path / "base/base.yaml"), (), registry)
    assert loaded.held_out[0].config.path == tmp_path / "base/held.jsonl"
    assert recipe_from_dict(loaded.to_dict(), registry) == loaded
    over = load_recipe(str(file), ["held_out.0.name=pairs", f"held_out.0.path={tmp_path}/c.jsonl"], registry)
    assert (over.held_out[0].name, over.held_out[0].config.path) == ("pairs", tmp_path / "c.jsonl")
    assert over.train.prompts == ("a", "")


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (recipe(draw_every=2), "train.prompts", "expected texts to draw images after, got none"),
        (recipe(prompts=["a"]), "train.draw_every", "expected the steps between drawings of prompts, got 0"),
        (recipe(prompts=["a", 3], draw_every=1), "train.prompts.1", "expected a string, got 3"),
        (recipe(eval_every=2), "held_out", "expected data sets to evaluate on, got none"),
        (
            recipe([{"name": "pairs", "path": "a"}]),
            "train.eval_every",
            "expected the steps between evaluations",
        ),
        (recipe([{"name": "pears", "path": "a"}], eval_every=1), "held_out.0.name", "did you mean 'pairs'"),
        (recipe([{"name": "pairs"}], eval_every=1), "held_out.0.path", "missing; expected a path"),
        *(
            (
                recipe([{"name": "pairs", "path": "a", key: value}], eval_every=1),
                f"held_out.0.{key}",
                "unknown key",
            )
            for key, value in (("weight", 2), ("shuffle", "none"))
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(
    tmp_path: Path, registry: Registry, content: dict[str, Any], key: str, message: str
) -> None:
    problem = only_problem(write(tmp_path / "a.yaml", content), registry)
    assert problem.key == key and message in problem.message
    assert problem.where.startswith(f"{tmp_path / 'a.yaml'}:")
