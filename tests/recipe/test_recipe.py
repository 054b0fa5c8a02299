"""Recipes: what is read, what is refused, and where the error says it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.errors import RecipeError, RecipeProblem
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import draft_recipe, load_recipe, recipe_from_dict
from dreamkit.recipe.tree import parse
from dreamkit.registry.kinds import ShippedRecipe
from dreamkit.registry.registry import Registry
from tiny import recipe as tiny_recipe

TRAIN: dict[str, Any] = {
    "trainable": ["visual_projector", "new_tokens"],
    "steps": 3,
    "batch_size": 2,
    "learning_rate": 2e-3,
}


def whole_recipe() -> dict[str, Any]:
    return {
        **tiny_recipe(**{"model.adapters": [{"target": "language_model", "rank": 2}]}),
        "data": [{"name": "pairs", "path": "pairs.jsonl", "weight": 2}],
        "loss": {"lm": 1, "denoising": 10, "condition_drop": 0.1},
        "train": {**TRAIN, "trainable": list(TRAIN["trainable"])},
    }


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A valid recipe, `base.yaml`."""
    return write(tmp_path / "base.yaml", whole_recipe())


def write(path: Path, content: str | dict[str, Any]) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def problems(path: Path | str, registry: Registry, *overrides: str) -> tuple[RecipeProblem, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides, registry)
    return caught.value.problems


def only_problem(path: Path, registry: Registry, *overrides: str) -> RecipeProblem:
    found = problems(path, registry, *overrides)
    assert len(found) == 1, found
    return found[0]


def line_of(path: Path, text: str) -> str:
    """`file:line` of the first line of a file that holds `text`."""
    lines = path.read_text().splitlines()
    return f"{path}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every value in a tree with its path, those inside before those around them."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, item in inside for leaf in leaves(item, (*path, key))] + [(path, value)]


# -- what is read -------------------------------------------------------------------------------------------


def test_a_valid_recipe_is_read_with_its_defaults(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), (), registry)
    assert recipe.model.dream_queries == 3
    assert recipe.model.vision_encoder.name == "clip"
    assert recipe.model.vision_encoder.config.layer == -2
    assert recipe.model.adapters[0].rank == 2 and recipe.model.adapters[0].alpha == 32
    assert recipe.data[0].weight == 2 and recipe.data[0].config.path == base.parent / "pairs.jsonl"
    assert recipe.train.trainable == ("visual_projector", "new_tokens") and recipe.train.schedule == "cosine"
    assert isinstance(recipe.loss.denoising, float)
    assert fit(recipe, registry).problems == []


def test_plain_values_and_back(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), (), registry)
    plain = json.loads(json.dumps(recipe.to_dict()))
    assert recipe_from_dict(plain, registry) == recipe
    assert load_recipe(str(write(base.parent / "plain.yaml", plain)), (), registry) == recipe


def test_a_model_without_training_is_a_recipe(tmp_path: Path, registry: Registry) -> None:
    recipe = load_recipe(str(write(tmp_path / "model.yaml", tiny_recipe())), (), registry)
    assert recipe.train.trainable == () and recipe.data == ()


def test_recipe_from_dict_is_as_strict(registry: Registry) -> None:
    data = whole_recipe()
    data["train"]["stepz"] = 3
    with pytest.raises(
        RecipeError, match=r"dreamkit\.json: train\.stepz: unknown key 'stepz'; did you mean 'steps'\?"
    ):
        recipe_from_dict(data, registry, where="dreamkit.json")


def test_places_are_those_of_the_keys(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), ("train.steps=5",), registry)
    assert recipe.place("model.dream_queries") == line_of(base, "dream_queries")
    assert recipe.place("model.pooled_projector") == line_of(base, "model:")
    assert recipe.place("train.steps") == "command line"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_: -#", max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_values)
@settings(deadline=None)
def test_json_is_yaml(value: Any) -> None:
    tree, found = parse(json.dumps(value, ensure_ascii=False), lambda line: f"file:{line}", Path())
    assert found == []
    assert tree.plain() == value and repr(tree.plain()) == repr(value)  # repr: 1 is not 1.0 and not True


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1E3", 1000.0), ("+.5", 0.5), ("0x1F", 31), ("0o17", 15), ("017", 17), ("-3", -3)]
    + [(text, text) for text in ("yes", "off", "12:30", "2026-01-01", "1_000", "e5", "0b1", ".", "<<")]
    + [("~", None), ("", None), ("True", True), ("-.inf", -math.inf), ("'3'", "3")],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    tree, found = parse(text, lambda line: f"file:{line}", Path())
    assert found == [] and tree.plain() == value and type(tree.plain()) is type(value)


# -- composing ----------------------------------------------------------------------------------------------


def test_extending_merges_sections_and_replaces_lists(base: Path, registry: Registry) -> None:
    path = write(
        base.parent / "more.yaml",
        "extends: base.yaml\nloss: {denoising: 3}\nmodel: {vision_encoder: {layer: -1}}\n"
        "train: {trainable: [dream_queries]}\n",
    )
    recipe = load_recipe(str(path), (), registry)
    assert (recipe.loss.denoising, recipe.loss.condition_drop) == (3, 0.1)
    assert recipe.train.trainable == ("dream_queries",) and recipe.train.steps == 3
    assert recipe.model.vision_encoder.config.layer == -1
    assert recipe.model.vision_encoder.config.config["patch_size"] == 8


def test_later_bases_lie_over_earlier_ones(base: Path, registry: Registry) -> None:
    write(base.parent / "a.yaml", "train: {steps: 10, seed: 10}\n")
    write(base.parent / "b.yaml", "train: {steps: 20, seed: 20, workers: 1}\n")
    path = write(base.parent / "c.yaml", "extends: [base.yaml, b.yaml, a.yaml]\ntrain: {seed: 30}\n")
    train = load_recipe(str(path), (), registry).train
    assert (train.steps, train.seed, train.workers) == (10, 30, 1)


def test_naming_another_part_replaces_its_section(base: Path, registry: Registry) -> None:
    config = "{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, "
    config += "image_size: 16, patch_size: 8}"
    path = write(
        base.parent / "siglip.yaml",
        f"extends: base.yaml\nmodel:\n  vision_encoder: {{name: siglip, config: {config}}}\n"
        "  condition_projector: {name: mlp}\n",
    )
    recipe = load_recipe(str(path), (), registry)
    assert recipe.model.vision_encoder.config.config["num_hidden_layers"] == 2  # the base has 3
    assert recipe.model.condition_projector.config.bias is True  # the base's linear one has none


def test_a_shipped_recipe_is_found_by_name(base: Path) -> None:
    registry = Registry([], [ShippedRecipe("tiny/base", base, "tiny 1.0", "tiny")])
    with pytest.raises(RecipeError) as caught:  # this registry has no parts, but the recipe is found
        load_recipe("tiny/base", (), registry)
    assert {problem.where.rpartition(":")[0] for problem in caught.value.problems} == {str(base)}
    extending = write(base.parent / "own.yaml", "extends: tiny/bse\n")
    (problem,) = (p for p in problems(extending, registry) if p.key == "extends")
    assert problem.where == f"{extending}:1" and "did you mean 'tiny/base'?" in problem.message


def test_a_cycle_is_told_with_its_links(tmp_path: Path, registry: Registry) -> None:
    a = write(tmp_path / "a.yaml", "extends: b.yaml\n")
    b = write(tmp_path / "b.yaml", "# loops\nextends: a.yaml\n")
    problem = next(p for p in problems(a, registry) if p.key == "extends")
    assert problem.where == f"{b}:2"
    assert "a.yaml -> b.yaml -> a.yaml" in problem.message


def test_a_missing_base_is_the_only_problem_of_a_part_whose_source_it_may_give(
    tmp_path: Path, registry: Registry
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("extends: missing.yaml\nmodel:\n  image_decoder: {name: sdxl}\n")
    draft, problems = draft_recipe(str(file), (), registry)
    assert draft is not None and draft.model.image_decoder is None
    assert [problem.key for problem in problems + fit(draft, registry).problems] == ["extends"]


def test_a_missing_base_does_not_hide_other_problems(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path / "a.yaml", "extends: nowhere.yaml\ntrain: {stepz: 3}\n")
    found = problems(path, registry)
    assert [(p.where, p.key) for p in found] == [(f"{path}:1", "extends"), (f"{path}:2", "train.stepz")]


def test_a_problem_is_placed_in_the_file_that_has_it(base: Path, registry: Registry) -> None:
    broken = base.read_text().replace("steps: 3", "steps: three")
    write(base, broken)
    path = write(base.parent / "more.yaml", "extends: base.yaml\nloss: {denoising: much}\n")
    found = problems(path, registry)
    assert {(p.where, p.key) for p in found} == {
        (line_of(base, "steps: three"), "train.steps"),
        (f"{path}:2", "loss.denoising"),
    }


# -- overriding ---------------------------------------------------------------------------------------------


def test_overrides(base: Path, registry: Registry) -> None:
    recipe = load_recipe(
        str(base),
        [
            "train.learning_rate=2e-5",
            "data.0.weight=3",
            "train.trainable=[dream_queries]",
            "train.packing=false",
            "model.condition_projector={name: mlp, depth: 3}",
            "model.adapters.0.rank=4",
            "loss={lm: 2}",
        ],
        registry,
    )
    assert recipe.train.learning_rate == 2e-5 and recipe.train.packing is False
    assert recipe.data[0].weight == 3
    assert recipe.train.trainable == ("dream_queries",)
    assert recipe.model.condition_projector.config.depth == 3
    assert recipe.model.adapters[0].rank == 4
    assert (recipe.loss.lm, recipe.loss.denoising) == (2, 10)


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_of_overrides_of_one_part_does_not_matter(
    base: Path, registry: Registry, turned: bool
) -> None:
    overrides = ["model.condition_projector.name=mlp", "model.condition_projector.depth=1"]
    recipe = load_recipe(str(base), overrides[::-1] if turned else overrides, registry)
    assert recipe.model.condition_projector.config.depth == 1


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("steps", "steps", "expected key=value, such as train.steps=100, or the name of a recipe"),
        ("with/sdxl", "recipe", "with/sdxl'; did you mean 'dreamllm/with/sdxl'?"),
        ("=3", "=3", "expected key=value"),
        ("train..steps=3", "train..steps=3", "expected key=value"),
        ("train.steps=[", "train.steps", "invalid YAML"),
        ("train.steps=", "train.steps", "expected an integer, got null"),
        ("train.step=3", "train.step", "did you mean 'steps'?"),
        (
            "train.steps.now=3",
            "train.steps.now",
            "expected train.steps to be a section, got 3 (integer) at {place}",
        ),
        ("data={}", "data", "expected a list of a section with name, weight, got a section"),
        ("data.0={}", "data.0", "an empty section changes nothing; set its keys"),
        ("loss={}", "loss", "an empty section changes nothing; set its keys"),
        ("init.0=x", "init.0", "init has no items; set the whole list"),
        ("train.steps=0x" + 5000 * "f", "train.steps", "expected a number of at most 100 digits"),
        ("train.steps=" + 5000 * "9", "train.steps", "expected a number of at most 100 digits"),
        (
            "train.learning_rate=1e+30",
            "train.learning_rate",
            "expected more than 0 and at most 100, got 1e+30",
        ),
        ("train.workers=257", "train.workers", "at least 0 and at most 256"),
        ("init=~nosuchuser/x", "init", "invalid path '~nosuchuser/x'"),
        ("data.0.path=~nosuchuser/x", "data.0.path", "invalid path '~nosuchuser/x'"),
        ("init=" + 300 * "x", "init", "File name too long"),
        ("data.0.path=" + 300 * "x", "data.0.path", "File name too long"),
        ('init="\\ud800"', "init", "cannot read"),
        ("data.1.weight=3", "data.1", "expected an index from 0 to 0 of the list data, got '1'"),
        ("data.first.weight=3", "data.first", "of the list data, got 'first'"),
        (
            "model.image_decoder.name=stable-difusion",
            "model.image_decoder.name",
            "did you mean 'stable-diffusion'?",
        ),
    ],
)
def test_wrong_overrides(base: Path, registry: Registry, override: str, key: str, message: str) -> None:
    problem = only_problem(base, registry, override)
    assert (problem.where, problem.key) == ("command line", key)
    assert message.format(place=line_of(base, "steps: 3")) in problem.message
    assert len(problem.message) < 600 and problem.message.encode()


def test_overrides_are_applied_one_after_the_other(base: Path, registry: Registry) -> None:
    overrides = [
        "data=[{name: pairs, path: other.jsonl, direction: read}]",
        "data.0.weight=3",
        "data.0.direction=draw",
        "model.adapters=[]",
    ]
    recipe = load_recipe(str(base), overrides, registry)
    assert recipe.data[0].config.path == Path.cwd() / "other.jsonl"
    assert (recipe.data[0].weight, recipe.data[0].config.direction) == (3, "draw")
    assert recipe.model.adapters == ()


def test_an_override_hides_no_earlier_one_that_is_wrong(base: Path, registry: Registry) -> None:
    found = {problem.key: problem.message for problem in problems(base, registry, "train=3", "train.steps=4")}
    assert "got 3 (integer)" in found["train"]
    assert "expected train to be a section, got 3 (integer) at command line" in found["train.steps"]


def test_an_item_of_a_list_that_is_not_set(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path / "model.yaml", tiny_recipe())
    problem = only_problem(path, registry, "model.adapters.0.rank=3")
    assert (problem.where, problem.key) == ("command line", "model.adapters.0")
    assert "model.adapters has no items; set the whole list, as in model.adapters=[...]" in problem.message


# -- ${...} -------------------------------------------------------------------------------------------------


def test_interpolation(base: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_FOLDER", "/data")
    path = write(
        base.parent / "more.yaml",
        "extends: base.yaml\ntrain: {steps: 40, warmup: '${train.steps}', batch_size: '${model.dream_queries}'}\n"
        "data: [{name: pairs, path: '${oc.env:DATA_FOLDER}/pairs.jsonl'}]\ngeneration: {steps: '${.max_images}'}\n",
    )
    recipe = load_recipe(str(path), ["train.steps=7"], registry)
    assert (recipe.train.warmup, recipe.train.batch_size, recipe.generation.steps) == (7, 3, 2)
    assert recipe.data[0].config.path == Path("/data/pairs.jsonl")


@pytest.mark.parametrize(
    "text", ["${nowhere}", "${train.steps", "${train.warmup}", "${oc.env:NOT_SET_ANYWHERE}", "${x:1}"]
)
def test_what_cannot_be_filled_in(base: Path, registry: Registry, text: str) -> None:
    path = write(base.parent / "more.yaml", f"extends: base.yaml\ntrain:\n  warmup: '{text}'\n  stepz: 1\n")
    filled, unknown = problems(path, registry)
    assert (filled.where, filled.key) == (f"{path}:3", "train.warmup")
    assert f"cannot resolve '{text}' (string)" in filled.message
    assert unknown.key == "train.stepz"


# -- sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("weights", "{folder}/weights"),
        ("./elsewhere", "{folder}/elsewhere"),
        ("/abs/olute", "/abs/olute"),
        ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14"),
        ("pkg:dreamkit_digits/parts/clip", "pkg:dreamkit_digits/parts/clip"),
    ],
)
def test_a_relative_source_starts_from_the_file_it_is_written_in(
    base: Path, registry: Registry, written: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base.parent / "weights").mkdir()
    inner = base.parent / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    data = whole_recipe()
    data["model"]["vision_encoder"] = {"name": "clip", "pretrained": written}
    data["init"] = "run/checkpoint"
    write(base, data)
    recipe = load_recipe(str(write(inner / "more.yaml", "extends: ../base.yaml\n")), (), registry)
    assert recipe.model.vision_encoder.config.pretrained == read.format(folder=base.parent)
    assert recipe.init == str(base.parent / "run/checkpoint")
    assert load_recipe(str(base), ["init=run"], registry).init == str(inner / "run")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            "pretrained: x/y, config: {}",
            "expected one source, got 'pretrained' ({place}) and 'config' ({place})",
        ),
        ("layer: -1", "missing 'pretrained' or 'config'"),
        ("pretrained: null", "missing 'pretrained' or 'config'"),
    ],
)
def test_a_part_has_exactly_one_source(
    tmp_path: Path, registry: Registry, sources: str, message: str
) -> None:
    data = whole_recipe()
    del data["model"]["vision_encoder"]
    base = write(tmp_path / "base.yaml", data)
    path = write(
        tmp_path / "a.yaml", f"extends: {base}\nmodel:\n  vision_encoder: {{name: clip, {sources}}}\n"
    )
    problem = only_problem(path, registry)
    assert (problem.where, problem.key) == (f"{path}:3", "model.vision_encoder")
    assert message.format(place=f"{path}:3") in problem.message


# -- what is refused ----------------------------------------------------------------------------------------


def test_all_problems_are_found_in_one_run(base: Path, registry: Registry) -> None:
    path = write(
        base.parent / "bad.yaml",
        """\
extends: base.yaml
modle: {}
model:
  language_model: {name: vicuna, system_promt: hello}
  vision_encoder: {name: klip, pretrained: a/b}
  condition_projector:
    bias: "no"
  dream_queries: 64.0
  adapters: [{target: language_mode}]
loss: {condition_drop: 1.5}
train:
  trainable: [visual_projectr, 3]
  packing: 1
  learning_rate: .nan
generation: 7
""",
    )
    found = {(p.where, p.key): p.message for p in problems(path, registry, "train.seed=-1")}
    expected = {
        (f"{path}:2", "modle"): "unknown key 'modle'; did you mean 'model'?",
        (f"{path}:4", "model.language_model.system_promt"): "did you mean 'system_prompt'?",
        (f"{path}:5", "model.vision_encoder.name"): "unknown vision_encoder 'klip'; did you mean 'clip'?",
        (f"{path}:7", "model.condition_projector.bias"): "expected true or false, got 'no' (string)",
        (f"{path}:8", "model.dream_queries"): "expected an integer, got 64.0 (number)",
        (f"{path}:9", "model.adapters.0.target"): "did you mean 'language_model'?",
        (f"{path}:10", "loss.condition_drop"): "expected at least 0 and at most 1, got 1.5",
        (f"{path}:12", "train.trainable.0"): "did you mean 'visual_projector'?",
        (f"{path}:12", "train.trainable.1"): "expected one of language_model, ",
        (f"{path}:13", "train.packing"): "expected true or false, got 1 (integer)",
        (f"{path}:14", "train.learning_rate"): "expected a finite number, got nan",
        (f"{path}:15", "generation"): "expected a section, got 7 (integer)",
        ("command line", "train.seed"): "expected at least 0 and at most 4294967295, got -1",
    }
    assert found.keys() == expected.keys()
    for place, message in expected.items():
        assert message in found[place], place


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", True, "expected an integer, got true (boolean)"),
        ("train.steps", 0, "expected at least 1, got 0"),
        ("train.steps", 2**63, "expected an integer of at most 64 bits"),
        ("train.learning_rate", "fast", "expected a number, got 'fast' (string)"),
        ("train.learning_rate", 0, "expected more than 0 and at most 100, got 0"),
        ("model.vision_encoder", {"name": "clip", "pretrained": "~nosuchuser/x"}, "invalid path"),
        ("model.vision_encoder", {"name": "clip", "pretrained": 300 * "x"}, "File name too long"),
        ("train.learning_rate", math.inf, "expected a finite number"),
        ("train.schedule", "cosin", "did you mean 'cosine'?"),
        ("train.trainable", "dream_queries", "expected a list of one of"),
        ("train.max_length", "long", "expected an integer, got 'long'"),
        ("model.adapters.0.rank", 0, "at least 1"),
        ("model.adapters.0.modules", [1], "expected a string, got 1"),
        ("model.vision_encoder.config", [], "expected a section"),
        ("model.vision_encoder.config.patch_size", math.nan, "expected a finite number"),
        ("model.visual_projector", None, "expected a section, got null"),
        ("model.visual_projector", "linear", "expected a section, got 'linear' (string)"),
        ("model.visual_projector.depth", 2, "unknown key 'depth'"),
        ("model.special_tokens", {"dream_start": 3}, "expected a string, got 3 (integer)"),
        ("data", {}, "expected a list of a section"),
        ("data.0.path", 3, "expected a path"),
        ("data.0.direction", "drow", "did you mean 'draw'?"),
        ("data.0.weight", 0, "more than 0"),
        ("generation.top_p", 0, "more than 0 and at most 1"),
        ("init", 3, "expected a string, got 3 (integer)"),
    ],
)
def test_what_a_key_does_not_take(
    tmp_path: Path, registry: Registry, key: str, value: Any, message: str
) -> None:
    data = whole_recipe()
    *steps, last = (int(step) if step.isdigit() else step for step in key.split("."))
    section: Any = data
    for step in steps:
        section = section.setdefault(step, {}) if isinstance(section, dict) else section[step]
    section[last] = value
    problem = only_problem(write(tmp_path / "bad.yaml", data), registry)
    assert problem.key.startswith(key) and message in problem.message
    assert problem.where.startswith(f"{tmp_path}/bad.yaml:")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("loss: {lm: 0, denoising: 0}", "expected lm or denoising above 0"),
        ("model: {visual_projector: {name: mlp, depth: 0}}", "0 found, but an MLP has at least 1 matrix"),
    ],
)
def test_what_a_section_refuses(base: Path, registry: Registry, section: str, message: str) -> None:
    path = write(base.parent / "bad.yaml", f"extends: base.yaml\n{section}\n")
    problem = only_problem(path, registry)
    assert message in problem.message and problem.where == f"{path}:2"


def test_what_a_component_refuses_is_placed_at_its_keys(base: Path, registry: Registry) -> None:
    projector = "{name: mlp,\n  depth: 0,\n  hidden_dim: -1}"
    data = "[{name: digits,\n  documents: {\n  adding: 1,\n  reading: -1}}]"
    path = write(
        base.parent / "bad.yaml",
        f"extends: base.yaml\nmodel: {{visual_projector: {projector}}}\ndata: {data}\n",
    )
    assert {(p.where, p.key) for p in problems(path, registry)} == {
        (f"{path}:3", "model.visual_projector.depth"),
        (f"{path}:4", "model.visual_projector.hidden_dim"),
        (f"{path}:7", "data.0.documents.adding"),
        (f"{path}:8", "data.0.documents.reading"),
    }


@pytest.mark.parametrize(
    ("key", "around", "expected"),
    [
        ("model", None, "a section with language_model, vision_encoder"),
        ("model.language_model", "model:", "a section with name"),
        ("model.visual_projector", "model:", "a section with name"),
        ("model.visual_projector.name", "visual_projector:", "a string"),
        ("train.steps", "train:", "an integer"),
        ("data.0.path", "- name: pairs", "a path"),
    ],
)
def test_a_missing_key_is_placed_at_its_section(
    tmp_path: Path, registry: Registry, key: str, around: str | None, expected: str
) -> None:
    data = whole_recipe()
    section: Any = data
    *steps, last = key.split(".")
    for step in steps:
        section = section[int(step) if step.isdigit() else step]
    del section[last]
    path = write(tmp_path / "bad.yaml", data)
    problem = only_problem(path, registry)
    assert problem.key == key
    assert problem.message.startswith(f"missing; expected {expected}")
    assert problem.where == (f"{path}:1" if around is None else line_of(path, around))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected sections such as 'model:', got null"),
        ("# nothing\n", 1, "expected sections such as 'model:', got null"),
        ("[model]\n", 1, "got a list of length 1"),
        ("3\n", 1, "got 3 (integer)"),
        ("model: {\n", 2, "invalid YAML"),
        ("model:\n\ttrain: 3\n", 2, "invalid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "invalid YAML"),
        ("a: \0\n", 1, "invalid YAML"),
        ("init: a\ninit: b\n", 2, "duplicate key, first set at {path}:1"),
        ("3: a\n", 1, "expected a string as key, got '3'"),
        ("? [a]\n: b\n", 1, "expected a string as key, got 'a section or list'"),
        ("init: !!python/object:os.system {}\n", 1, "cannot read '"),
        ("init: !!int abc\n", 1, "cannot read '"),
        ("init: &a [*a]\n", 1, "this alias refers to a value that contains it"),
        ("init: " + 60 * "[" + 60 * "]" + "\n", 1, "expected at most 50 levels of nesting"),
        ("init: " + 3000 * "[" + "\n", 1, "nested too deeply"),
        ("init: *a\n", 1, "invalid YAML"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, registry: Registry, text: str, line: int, message: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    first = problems(path, registry)[0]
    assert first.where == f"{path}:{line}"
    assert message.format(path=path) in first.message


def test_bytes_that_are_no_text(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot read the file" in problems(path, registry)[0].message


def test_aliases_that_stand_for_too_much(tmp_path: Path, registry: Registry) -> None:
    doubling = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    path = write(tmp_path / "bad.yaml", f"a0: &a0 [1]\n{doubling}")
    assert any("expected at most 10000 values" in problem.message for problem in problems(path, registry))


def test_a_folder_is_no_recipe(base: Path, registry: Registry) -> None:
    folder = base.parent / "folder.yaml"
    folder.mkdir()
    for name in (str(folder), str(folder)[:-2]):
        (problem,) = problems(name, registry)
        assert f"did you mean '{folder}'" not in problem.message
    assert f"'{folder}' is a folder" in problems(folder, registry)[0].message


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("~", "expected the name of a recipe, got null"),
        ("~nosuchuser/x.yaml", "invalid path '~nosuchuser/x.yaml'"),
        (300 * "x", "File name too long"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, registry: Registry, extends: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", f"# first\nextends: {extends}\n")
    (problem,) = (p for p in problems(path, registry) if p.key == "extends")
    assert problem.where == f"{path}:2" and message in problem.message


@pytest.mark.parametrize("name", [300 * "x", "~nosuchuser/x.yaml", "x\0.yaml"])
def test_a_name_that_can_be_no_file(registry: Registry, name: str) -> None:
    (problem,) = problems(name, registry)
    assert (problem.where, problem.key) == ("command line", "recipe")
    assert "invalid path" in problem.message and len(problem.message) < 400


def test_a_recipe_at_home_can_be_extended(
    base: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "elsewhere" / "more.yaml", "extends: ~/base.yaml\nloss: {denoising: 3}\n")
    assert load_recipe(str(path), (), registry).loss.denoising == 3


def test_a_file_that_is_not_there(base: Path, registry: Registry) -> None:
    (problem,) = problems(base.parent / "bsae.yaml", registry)
    assert problem.where == "command line" and f"did you mean '{base}'?" in problem.message


# -- any mutation -------------------------------------------------------------------------------------------

VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        2.5,
        math.nan,
        math.inf,
        10**30,
        int(5000 * "f", 16),
        "",
        "~",
        "~nosuchuser/x",
        "./x",
        "pkg:x/y",
        "../" + 300 * "x",
        5000 * "x/",
        "x",
        "linear",
        "clip",
        "3",
        "${nowhere}",
        "${model.dream_queries}",
        [],
        [1],
        ["x"],
        {},
        {"name": "linear"},
        {"x": 1},
        [{"name": "pairs"}],
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid recipe with one to three values dropped, renamed, retyped, nested or swapped."""
    data: Any = {"": whole_recipe()}
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path, _ in leaves(data) if len(path) > 1]
        if not places:
            break
        (*steps, last), (*other_steps, other_last) = (
            draw(st.sampled_from(places)),
            draw(st.sampled_from(places)),
        )
        section, other = at(data, steps), at(data, other_steps)
        match draw(st.sampled_from(["drop", "rename", "retype", "nest", "wrap", "swap"])):
            case "drop":
                del section[last]
            case "rename" if isinstance(section, dict):
                new = draw(
                    st.sampled_from(
                        [f"{last}s", last[1:], last.upper(), "name", "config", "pretrained", "depth"]
                    )
                )
                section[new] = section.pop(last)
            case "nest":
                section[last] = {draw(st.sampled_from([str(last), "x"])): section[last]}
            case "wrap":
                section[last] = [section[last]]
            case "swap" if [*steps, last] != [*other_steps, other_last][: len(steps) + 1] and [
                *other_steps,
                other_last,
            ] != [*steps, last][: len(other_steps) + 1]:
                section[last], other[other_last] = other[other_last], section[last]
            case _:
                section[last] = draw(VALUES)
    return data[""] if isinstance(data.get(""), dict) else {"": data.get("")}


def at(data: Any, steps: list[Any]) -> Any:
    for step in steps:
        data = data[step]
    return data


def written(value: Any) -> str:
    """YAML of a tree, with whole numbers in hexadecimal where they are too long to be written otherwise."""
    long = {value for _, value in leaves(value) if isinstance(value, int) and abs(value) >= 10**100}
    names = {number: f"long{index}" for index, number in enumerate(long)}

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: marked(item) for key, item in value.items()}
        if isinstance(value, list):
            return [marked(item) for item in value]
        return names.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    text = yaml.safe_dump(marked(value), sort_keys=False)
    for number, name in names.items():
        text = text.replace(name, hex(number))
    return text


@st.composite
def overridden(draw: st.DrawFn) -> list[str]:
    """Up to two overrides of keys that the recipe has, or nearly has."""
    keys = [".".join(map(str, path)) for path, _ in leaves(whole_recipe()) if path]
    texts = []
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(keys)) + draw(st.sampled_from(["", "", "", ".0", ".x", ".name"]))
        value = draw(VALUES)
        long = isinstance(value, int) and abs(value) > 10**100
        texts.append(f"{key}={hex(value) if long else json.dumps(value)}")
    return texts


@given(mutated(), overridden(), st.sampled_from(["whole", "extending", "extended"]))
@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_mutation_is_accepted_and_builds_or_is_an_error(
    tmp_path: Path, registry: Registry, data: dict[str, Any], overrides: list[str], split: str
) -> None:
    path, other = tmp_path / "mutated.yaml", tmp_path / "other.yaml"
    base, own = {"whole": ({}, data), "extending": (whole_recipe(), data), "extended": (data, {})}[split]
    other.write_text(written(base))
    path.write_text("extends: other.yaml\n" + (written(own) if own else ""))
    lines = {str(file): len(file.read_text().splitlines()) for file in (path, other)}
    draft, reading = draft_recipe(str(path), overrides, registry)
    found = [*reading, *(fit(draft, registry).problems if draft is not None else [])]
    try:
        recipe = load_recipe(str(path), overrides, registry)
        model = build(fit(recipe, registry))
    except RecipeError as error:
        assert found and set(error.problems) <= set(found), "check finds all that building does"
        for problem in found:
            file, _, line = problem.where.rpartition(":")
            assert problem.where == "command line" or 1 <= int(line) <= lines[file], problem
            assert problem.key and problem.message and str(problem).encode(), problem
        return
    assert isinstance(model, DreamModel) and found == []
    if overrides or split != "whole":
        return
    # Nothing was passed over in silence: every value that was written is in the recipe.
    resolved = recipe.to_dict()
    for steps, value in leaves(data):
        if not isinstance(value, dict | list) and "${" not in str(value):
            read = at(resolved, list(steps))
            assert read == value or str(read).endswith(f"/{str(value).removeprefix('./')}"), (
                steps,
                value,
                read,
            )


@pytest.mark.parametrize(
    ("written", "overrides"),
    [
        ("loss: {vm: 3}", []),
        ("loss: {denoising: 2}", ["loss.vm=3"]),
        ("loss: {denoising: 2}", ["loss={vm: 3}"]),
        ("loss: {vm: 2}", ["loss.denoising=3"]),
    ],
)
def test_an_earlier_key_is_read_as_todays(
    written: str, overrides: list[str], base: Path, registry: Registry
) -> None:
    path = write(base.parent / "earlier.yaml", f"extends: base.yaml\n{written}\n")
    assert load_recipe(str(path), overrides, registry).loss.denoising == 3


def test_a_key_by_its_earlier_and_todays_name_is_refused(base: Path, registry: Registry) -> None:
    path = write(base.parent / "both.yaml", "extends: base.yaml\nloss: {vm: 3, denoising: 3}\n")
    (problem,) = problems(path, registry)
    assert (problem.key, problem.message.split(";")[0]) == ("loss.vm", "unknown key 'vm'")


def test_a_dictionary_may_hold_an_earlier_key(registry: Registry) -> None:
    recipe = recipe_from_dict({**whole_recipe(), "loss": {"lm": 1, "vm": 4}}, registry)
    assert recipe.loss.denoising == 4
