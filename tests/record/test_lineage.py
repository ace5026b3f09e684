"""Techniques with their sources, ancestors, changes, trees: of real recipes, and of runs with and without parents."""

import ast
import json

import pytest

from fairway.node import children, override, show, walk
from fairway.recipe import Recipe
from fairway.recipes.catalogue import RECIPES
from fairway.recipes.demo import demo
from fairway.recipes.pr162 import pr162
from fairway.recipes.pr1523 import pr1523
from fairway.record.lineage import ancestors_of, credits_of, first_sentence, lineage_of, named_sources, recipe_tree
from fairway.record.measured import read_measured

SEEN = {"data_hash": "d" * 16, "recipe_hash": "r" * 16, "seed": 42}


def run_of(folder, recipe, **facts):
    folder.mkdir()
    (folder / "recipe.py").write_text(show(recipe))
    (folder / "run.json").write_text(json.dumps({**SEEN, "recipe": recipe.name, **facts}))
    return read_measured(folder)


def test_sources_are_pull_requests_preprints_and_papers_each_once():
    text = "A gate (PR #162, #1523), of arXiv:2405.16712 and\n    Bengio et al. 2013; PR #162 again. #12ab34, 2013: none."
    assert named_sources(text) == ["PR #162", "PR #1523", "arXiv 2405.16712", "Bengio et al. 2013"]
    assert named_sources("RMS norm, without weights.") == []


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One thing\n    on two lines. Another.\n\n    More.", "One thing on two lines."),
        ("Gate w . n of the input (Bengio et al. 2013). `x` is more.", "Gate w . n of the input (Bengio et al. 2013)."),
        ("Ends with the paragraph: x + 1\n\n    Then goes on.", "Ends with the paragraph: x + 1"),
        ("", ""),
    ],
)
def test_the_first_sentence_is_found(text, first):
    assert first_sentence(text) == first


def test_a_technique_has_its_place_its_sentence_and_its_sources():
    found = {one["name"]: one for one in credits_of(pr1523())}
    assert found["HashEmbedding"] == {
        "name": "HashEmbedding",
        "site": "adapt.ScoreFirstSGD.fresh",
        "about": "Adds a hashed table's row of (previous, current): x + H[(2039 t_{i-1} + t_i) mod buckets], t_{-1} = 0"
        " (PR #1523).",
        "credits": ["PR #1523"],
    }
    assert found["LerpSkip"]["site"] == "model.plan.skip"
    assert found["ScoreFirstSGD"]["credits"] == ["PR #1514", "PR #1523"]


@pytest.mark.parametrize("function", RECIPES, ids=lambda function: function.__name__)
def test_all_that_stands_in_a_tuple_or_at_a_site_of_its_own_is_listed_once_and_no_container(function):
    recipe = function()
    names = [one["name"] for one in credits_of(recipe)]
    below = [(child, index) for _, node in walk(recipe) for _, child, _, index in children(node)]
    assert len(set(names)) == len(names)
    assert {type(child).__name__ for child, index in below if index is not None} <= set(names)
    assert {type(recipe.codec).__name__, type(recipe.model.mlp).__name__, type(recipe.loader).__name__} <= set(names)
    assert not {"Recipe", "GPT", "Training", "Evaluation", "Budget", "Ramp", "DecaySchedule"} & set(names)
    assert all(one["about"] and not one["about"].startswith(f"{one['name']}(") for one in credits_of(recipe))


def test_ancestors_go_up_to_the_recipe_that_amends_none():
    assert [one["name"] for one in ancestors_of("pr1523")] == ["pr1523", "pr1514"]
    parent, grand = ancestors_of("demo")
    assert parent["about"] == demo.__doc__.split("\n")[0]
    assert grand["name"], grand["credits"] == ("pr162", ["PR #162"])
    assert grand["source"].startswith("PR #162: ")
    assert ancestors_of("nobody's") == []


def test_a_run_says_its_parent_and_its_changes(tmp_path):
    changes = {"train.clip": ["0.3", "1.0"], "stream.SmearGate": ["SmearGate()", "None"]}
    one = run_of(tmp_path / "run", demo(), parent="demo", changes=changes)
    assert lineage_of(one) == {
        "recipe": "demo",
        "parent": "demo",
        "ancestors": ancestors_of("demo"),
        "changes": [
            {"path": "train.clip", "from": "0.3", "to": "1.0"},
            {"path": "stream.SmearGate", "from": "SmearGate()", "to": "None"},
        ],
    }


def test_of_a_run_from_before_there_were_parents_they_are_worked_out(tmp_path):
    one = run_of(tmp_path / "run", override(pr162(), ["train.clip=0.7", "optim.Muon.rate=0.03"]))
    found = lineage_of(one)
    assert found["parent"] == "pr162"
    before = {path: dict(walk(pr162()))[path] for path in ("train", "optim.Muon")}
    assert found["changes"] == [
        {"path": "train.clip", "from": repr(before["train"].clip), "to": "0.7"},
        {"path": "optim.Muon.rate", "from": repr(before["optim.Muon"].rate), "to": "0.03"},
    ]


def test_a_recipe_of_ones_own_has_no_parent(tmp_path):
    one = run_of(tmp_path / "run", override(demo(), ["name=mine"]))
    assert lineage_of(one) == {"recipe": "mine", "parent": None, "ancestors": [], "changes": []}
    other = run_of(tmp_path / "other", override(demo(), ["name=mine"]), parent=None, changes={})
    assert lineage_of(other) == lineage_of(one)


@pytest.mark.parametrize("function", RECIPES, ids=lambda function: function.__name__)
def test_a_tree_holds_every_node_and_every_value_once(function):
    recipe = function()

    def flat(tree):
        yield tree["label"], tree["fields"]
        for child in tree["children"]:
            yield from flat(child)

    found = list(flat(recipe_tree(recipe)))
    assert [label.split(": ")[-1] for label, _ in found] == [type(node).__name__ for _, node in walk(recipe)]
    for (_, fields), (_, node) in zip(found, walk(recipe), strict=True):
        for name, text in fields:
            assert ast.literal_eval(text) == getattr(node, name)


def test_a_label_says_where_a_node_stands():
    tree = recipe_tree(demo())
    assert tree["label"] == Recipe.__name__
    labels = [child["label"] for child in tree["children"]]
    assert labels[:2] == ["model: GPT", "loader: ShuffledWindows"]
    assert "quantize: RowInt" in labels
    assert ["name", "'demo'"] in tree["fields"]
