"""How two recipes differ, and which one another was made from."""

from dataclasses import replace

from fairway.model.stream import SmearGate
from fairway.node import amend, differences, drop, override
from fairway.optim.muon import Muon
from fairway.recipes.catalogue import RECIPES, parent_of
from fairway.recipes.demo import demo
from fairway.recipes.pr1514 import pr1514
from fairway.recipes.pr1523 import pr1523


def test_fields_are_named_by_path_and_nodes_by_place():
    old = demo()
    assert differences(old, old) == {}
    assert list(differences(old, amend(old, Muon, rate=0.5))) == ["optim.Muon.rate"]
    assert differences(old, replace(old, model=replace(old.model, width=128))) == {"model.width": (160, 128)}
    gone = drop(old, SmearGate)
    gate = next(node for node in old.model.stream if isinstance(node, SmearGate))
    assert differences(old, gone) == {"model.stream.SmearGate": (gate, None)}
    assert differences(gone, old) == {"model.stream.SmearGate": (None, gate)}


def test_the_order_of_a_tuple_and_a_plain_tuple_are_differences():
    old = demo()
    turned = differences(old, replace(old, quantize=old.quantize[::-1]))
    assert turned and all(path.startswith("quantize") for path in turned)
    longer = replace(old.train.budget, steps=9)
    assert differences(old, replace(old, train=replace(old.train, budget=longer))) == {"train.budget.steps": (240, 9)}


def test_differences_set_by_their_paths_make_the_second_recipe_of_the_first():
    old, new = pr1514(), pr1523()
    fields = {path: pair for path, pair in differences(old, new).items() if None not in pair}
    assert {"model.join", "optim.Muon.rate"} <= set(fields)
    made = override(
        old, [f"{path}={after if isinstance(after, str) else repr(after)}" for path, (_, after) in fields.items()]
    )
    assert differences(made, new) and all(None in pair for pair in differences(made, new).values())


def test_a_recipe_that_calls_another_has_it_as_its_parent():
    parents = {recipe.__name__: parent_of(recipe.__name__) for recipe in RECIPES}
    assert parents == {"demo": "pr162", "pr162": None, "pr864": None, "pr1205": None, "pr1514": None, "pr1523": "pr1514"}
    assert parent_of("nobody's") is None
