"""Recipes: whatever is wrong is named by its key, with the nearest known one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medley.collections import BUNDLED
from medley.errors import RecipeError
from medley.recipe import load_recipe, parse_recipe, write_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
DEMO = BUNDLED / "demo" / "recipe.yaml"


@pytest.mark.parametrize(
    "path",
    [DEMO, *sorted(path for path in RECIPES.rglob("*.yaml") if not path.stem.endswith("-ties"))],
    ids=lambda path: str(path.relative_to(path.parents[1])),
)
def test_every_recipe_survives_being_written_out(path, monkeypatch):
    """A run folder keeps its recipe with every default written, and that file is a recipe again."""
    monkeypatch.setenv("MEDLEY_DATA", "/data")
    for overrides in (
        [],
        ["llm={base_url: http://127.0.0.1:9/v1, model: m}", "negatives.generated={per_query: 2}"],
    ):
        recipe = load_recipe(path, overrides)
        assert parse_recipe(yaml.safe_load(write_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=3", r"sede: unknown key; did you mean 'seed'\?"),
        ("train.learning_rat=3", r"train.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("train.lora.rnak=3", r"train.lora.rnak: unknown key; did you mean 'rank'\?"),
        ("experts.care.sorces=[care]", r"experts.care.sorces: unknown key; did you mean 'sources'\?"),
        ("train.batch_size=many", r"train.batch_size: input should be a valid integer.*found 'many'"),
        ("train.batch_size=0", r"train.batch_size: input should be greater than or equal to 2"),
        ("experts.care.sources=[cares]", r"no source is called 'cares'; did you mean 'care'\?"),
        ("experts.all={sources: [care]}", r"the name `all` stands for"),
        ("retriever.template=e6", r"retriever.template"),
        ("merge.methods=[tise]", r"merge.methods.0: input should be 'linear', 'task_arithmetic', 'ties'"),
        ("sources.x={}", r"sources.x: give one of `pairs`, `collection` and `corpus`"),
        ("evaluate={baselines: [bm25]}", r"evaluate.groups"),
        ("merge={}", r"merge.dev: this key is required"),
        (
            "evaluate.demands=[{group: genral}]",
            r"demands.0.group: no group 'genral'; did you mean 'general'\?",
        ),
        ("evaluate.demands=[{group: general, than: bas}]", r"demands.0.than: 'bas' is not evaluated"),
        (
            "evaluate.demands=[{group: general, than: expert:cares}]",
            r"no expert is called 'cares'; did you mean",
        ),
        ("seed", r"--set seed: write key.sub=value"),
        ("name.x=1", r"name is not a mapping"),
    ],
)
def test_names_the_key_and_the_remedy(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override])


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "", " ", ".", "..", ".x", "a/b", "a\\b", "a\nb", "x" * 300]
)
def test_a_name_leads_out_of_no_folder(name):
    values = yaml.safe_load(DEMO.read_text())
    for key, changed in (
        ("name", values | {"name": name}),
        ("sources", values | {"sources": values["sources"] | {name: next(iter(values["sources"].values()))}}),
        ("experts", values | {"experts": values["experts"] | {name: next(iter(values["experts"].values()))}}),
        ("systems", values | {"evaluate": values["evaluate"] | {"systems": {name: "bm25+tiny"}}}),
    ):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(changed)
        assert f"{key}: {name!r} cannot name a folder; take letters" in str(caught.value)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    for content, message in (
        (b"a: [1", r"x.yaml:1: not valid YAML"),
        (b"- 1", "a recipe is a mapping"),
        (b"name: \xff", "not UTF-8"),
        (b"name: x", "base: this key is required"),
    ):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "x.yaml")


def test_overrides_reach_any_depth():
    recipe = load_recipe(DEMO, ["train.lora.rank=3", "seed=5", "merge.search.grid=[0, 1]"])
    assert (recipe.train.lora.rank, recipe.seed, recipe.merge.search.grid) == (3, 5, (0.0, 1.0))


@pytest.mark.parametrize(
    ("override", "home"),
    [
        ("negatives.mined.margin=0.5", "negatives.guard.margin"),
        ("negatives.generated.llm.temperature=0.1", "llm.temperature"),
        ("negatives.generated.perturbation.per_query=2", "negatives.generated.per_query"),
        ("merge.search.seed=1", "seed"),
    ],
)
def test_a_value_that_belongs_elsewhere_is_never_silently_ignored(override, home):
    with pytest.raises(RecipeError, match=f"a recipe says this once, at `{home}`"):
        load_recipe(DEMO, [override])


def test_a_collection_without_a_split_is_read_for_what_it_is_there_for():
    recipe = load_recipe(DEMO, ["merge.dev=[demo/medicine]", "evaluate={medical: [demo/medicine]}"])
    assert recipe.merge.dev == ["demo/medicine:dev"], "never chosen on test by accident"
    assert recipe.evaluate.tasks == ["demo/medicine:test"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("merge.parameters={density: 0.5}", "neither linear nor task_arithmetic has it"),
        ("merge={methods: [ties], dev: [demo/medicine], search: {strategy: learned}}", "only sums have"),
        ("merge.methods=[slerp]", "merge.methods.0"),
        ("merge.parameters={seed: 4}", "a recipe says this once, at `seed`"),
    ],
)
def test_methods_parameters_and_search_have_to_fit(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override])


def test_a_sum_takes_only_its_own_parameters():
    merge = load_recipe(
        DEMO, ["merge.methods=[linear, ties]", "merge.parameters={density: 0.4, lambda: 0.9}"]
    ).merge
    assert merge.parameters_of("ties", 3).given() == {"density": 0.4, "lambda": 0.9}
    assert merge.parameters_of("linear", 3).given() == {} and merge.parameters_of("ties", 3).seed == 3
