import math
from collections import Counter
from dataclasses import replace

import pytest

from conformance.table import random_ids, randomise
from fairway.codec.columns import ColumnRans
from fairway.model.plan import AddSkip, Order
from fairway.model.positions import Rotary
from fairway.model.roles import leaf_views, parameter_roles
from fairway.model.stream import SmearGate
from fairway.node import Node, digest, drop, override, parse_node, show, walk
from fairway.optim.optimizer import assign_groups
from fairway.problem import Problem
from fairway.quantize.fit import MixedBits
from fairway.quantize.policy import assign_rules
from fairway.quantize.schemes import KeepFloat16, RowInt
from fairway.recipe import Recipe
from fairway.recipes.catalogue import RECIPES
from fairway.recipes.demo import demo
from fairway.recipes.pr162 import pr162
from fairway.recipes.pr1514 import pr1514
from fairway.stages import check_recipe


@pytest.fixture(scope="module", params=RECIPES, ids=lambda function: function.__name__)
def built(request):
    """A recipe and its model, with nothing drawn."""
    recipe = request.param()
    return request.param.__name__, recipe, recipe.model.build(None)


def test_a_recipe_is_called_as_its_function_and_is_the_same_each_time(built):
    name, recipe, _ = built
    assert isinstance(recipe, Recipe) and recipe.name == name
    assert {function.__name__: function for function in RECIPES}[name]() == recipe


def test_names_are_told_apart():
    assert (
        len({function.__name__ for function in RECIPES}) == len({digest(function()) for function in RECIPES}) == len(RECIPES)
    )


def test_a_recipe_reads_back_with_the_same_digest(built):
    _, recipe, _ = built
    for text in (repr(recipe), show(recipe)):
        back = parse_node(text)
        assert back == recipe and digest(back) == digest(recipe)
        assert show(back) == show(recipe)


def test_every_field_of_a_recipe_holds_the_type_it_states(built):
    """`override` with a field's own value goes through the type checks of every field."""
    _, recipe, _ = built
    for path, node in walk(recipe):
        for name in type(node).__dataclass_fields__:
            value = getattr(node, name)
            text = value if isinstance(value, str) else repr(value)
            assert override(recipe, [f"{path}.{name}={text}" if path else f"{name}={text}"]) == recipe


def test_roles_are_covered_by_the_optimiser_and_by_the_quantisation(built):
    _, recipe, model = built
    groups = assign_groups(model, recipe.optim)
    assert sum(map(len, groups)) == len(list(model.parameters())) == len(parameter_roles(model))
    leaves = [leaf for leaf, _ in leaf_views(model)]
    rules = assign_rules(leaves, recipe.quantize)
    assert rules.keys() == {leaf.name for leaf in leaves}
    # A rule that takes nothing is a mistake in the recipe.
    assert set(map(repr, rules.values())) == set(map(repr, recipe.quantize))


def test_leaves_hold_every_number_of_the_parameters(built):
    _, _, model = built
    assert sum(math.prod(leaf.shape) for leaf, _ in leaf_views(model)) == sum(p.numel() for p in model.parameters())


def test_plans_run_layers_that_exist_and_every_one_of_them(built):
    _, recipe, _ = built
    for order in recipe.model.plan.orders(recipe.model.layers):
        assert set(order.encoder) | set(order.decoder) == set(range(recipe.model.layers))


def test_a_recipe_trains_and_scores_in_whole_sequences(built):
    _, recipe, _ = built
    assert recipe.train.micro_steps(1, recipe.model.sequence) >= 1
    assert recipe.evaluate.windows.length <= recipe.model.sequence
    assert recipe.cap == 16_000_000


# The public model has them without using them: the first block's own share of what it would mix with itself.
UNUSED = {"pr864": {"blocks.0.attn.value_mix"}}


def test_a_gradient_reaches_every_leaf_in_the_last_phase(built):
    """Made small by sizes alone: what stands at each site is the recipe's own."""
    name, recipe, _ = built
    sizes = {"vocab": 64, "width": 16 * recipe.model.heads, "sequence": 32}
    node = replace(recipe.model, **sizes)
    model, ids_BT = randomise(node.build(0)), random_ids(node)
    model.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad)
    assert all(view.isfinite().all() for _, view in leaf_views(model))
    assert {leaf.name for leaf, view in leaf_views(model) if not view.any()} == UNUSED.get(name, set())


# --- #162


@pytest.fixture(scope="module")
def leaves_162():
    return [leaf for leaf, _ in leaf_views(pr162().model.build(None))]


def count(leaves, wanted=lambda leaf: True):
    return sum(math.prod(leaf.shape) for leaf in leaves if wanted(leaf))


def test_162_has_the_parameters_of_its_table(leaves_162):
    assert count(leaves_162) == 22_368_841
    assert count(leaves_162, lambda leaf: leaf.role.startswith("matrix")) == 21_233_664
    by_role = Counter()
    for leaf in leaves_162:
        by_role[leaf.role] += math.prod(leaf.shape)
    assert by_role == {
        "matrix.query": 9 * 512 * 512,
        "matrix.key": 9 * 256 * 512,
        "matrix.value": 9 * 256 * 512,
        "matrix.output": 9 * 512 * 512,
        "matrix.up": 9 * 1536 * 512,
        "matrix.down": 9 * 512 * 1536,
        "embedding": 524_288,
        "table": 524_288,
        "projection": 65_536,
        "scalar": 1 + 512 + 2_048 + 18_504,
    }


def test_162_has_the_leaves_of_its_table(leaves_162):
    shapes = {leaf.name: leaf.shape for leaf in leaves_162}
    assert {name: shape for name, shape in shapes.items() if not name.startswith("blocks.")} == {
        "token.table": (1024, 512),
        "bigram.table": (4096, 128),
        "bigram.proj": (512, 128),
        "bigram.scale": (1,),
        "smear.gate": (512,),
        "skip.weight": (4, 512),
    }
    block = {
        "attn.query": (512, 512),
        "attn.key": (256, 512),
        "attn.value": (256, 512),
        "attn.output": (512, 512),
        "attn.gain": (8,),
        "attn.scale": (512,),
        "mlp.up": (1536, 512),
        "mlp.down": (512, 1536),
        "mlp.scale": (512,),
        "residual_mix": (2, 512),
    }
    assert len(shapes) == 6 + 9 * len(block)
    for leaf in leaves_162:
        if leaf.name.startswith("blocks."):
            _, layer, name = leaf.name.split(".", 2)
            assert leaf.shape == block[name] and leaf.layer == int(layer)


def test_162_is_stored_as_its_sheet_says(leaves_162):
    recipe = pr162()
    rules = assign_rules(leaves_162, recipe.quantize)
    classes = Counter()
    for leaf in leaves_162:
        classes[repr(rules[leaf.name])] += math.prod(leaf.shape)
    assert classes == {
        repr(KeepFloat16(largest=65_536)): 65_536 + 1 + 512 + 2_048 + 18_504,
        repr(KeepFloat16(role="embedding")): 524_288,
        repr(KeepFloat16(role="matrix.key", layers=(-1,))): 131_072,
        repr(RowInt(role="matrix", bits=6)): 21_102_592,
        repr(RowInt(role="table", bits=8, quantile=0.9999984)): 524_288,
    }
    assert [name for name, rule in rules.items() if rule.layers] == ["blocks.8.attn.key"]


def test_162_runs_its_blocks_and_skips_in_the_published_order():
    model = pr162().model
    assert model.plan.orders(model.layers) == (Order((0, 1, 2, 3), (4, 5, 6, 7, 8)),)


def test_162_trains_with_the_constants_of_its_sheet():
    recipe = pr162()
    tables, muon, scalars = recipe.optim
    assert (tables.roles, tables.rate, scalars.roles, scalars.rate) == (("embedding", "table"), 0.03, ("scalar",), 0.02)
    for group in (tables, scalars):
        assert (group.betas, group.epsilon, group.weight_decay) == ((0.9, 0.95), 1e-8, 0.01)
    assert (muon.rate, muon.weight_decay, muon.orthogonaliser.steps) == (0.02, 0.04, 5)
    assert [muon.momentum.at(step) for step in (0, 750, 1500)] == pytest.approx([0.92, 0.955, 0.99])
    assert (recipe.train.batch_tokens, recipe.train.micro_tokens, recipe.train.clip) == (786_432, 98_304, 0.3)
    assert [recipe.train.micro_steps(ranks, 2048) for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]
    budget = recipe.train.budget
    assert (budget.steps, budget.seconds, recipe.train.schedule.steps, recipe.train.warmup_steps) == (
        20_000,
        600.0,
        3000,
        20,
    )
    (average,) = recipe.average
    assert (average.below, average.every) == (0.5, 50)
    assert (recipe.evaluate.windows.length, recipe.evaluate.windows.stride, recipe.evaluate.multiple_of) == (2048, 64, 2048)
    assert {recipe.evaluate.scored_targets(62_021_632 + more) for more in (1, 215, 2048)} == {62_021_632}
    assert recipe.codec == ColumnRans() and recipe.fit == (MixedBits(bits=(5, 6, 7)),)


# --- changing a recipe


@pytest.mark.parametrize(
    "setting, read",
    [
        ("model.stream.SmearGate.stop_at_bos=true", lambda recipe: recipe.model.stream[1].stop_at_bos is True),
        ("model.positions.Rotary.dims=16", lambda recipe: recipe.model.positions[1] == Rotary(dims=16)),
        ("train.budget.steps=0", lambda recipe: recipe.train.budget.steps == 0),
        ("train.budget.seconds=30", lambda recipe: recipe.train.budget.seconds == 30.0),
        ("optim.AdamW:2.rate=0.01", lambda recipe: [group.rate for group in recipe.optim] == [0.03, 0.02, 0.01]),
        ("optim.Muon.momentum.end=0.95", lambda recipe: recipe.optim[1].momentum.end == 0.95),
        ("quantize.RowInt:3.bits=5", lambda recipe: recipe.quantize[3].bits == 5),
        ("average=()", lambda recipe: recipe.average == ()),
        ("model.plan=Straight()", lambda recipe: recipe.model.plan.orders(2) == (Order((), (0, 1)),)),
        ("name=mine", lambda recipe: recipe.name == "mine"),
    ],
)
def test_a_setting_changes_what_it_names_and_nothing_else(setting, read):
    recipe = pr162()
    changed = override(recipe, [setting])
    assert read(changed) and not read(recipe)
    path = setting.partition("=")[0]
    before, after = ([line for line in _fields(tree) if not line.startswith(path)] for tree in (recipe, changed))
    assert before == after
    assert digest(changed) != digest(recipe) and parse_node(show(changed)) == changed


def _fields(tree):
    """`path=value` of every plain field."""
    for path, node in walk(tree):
        for name in type(node).__dataclass_fields__:
            value = getattr(node, name)
            plain = not isinstance(value, Node) and not (
                isinstance(value, tuple) and any(isinstance(v, Node) for v in value)
            )
            if plain and value != ():
                yield f"{path}.{name}={value!r}" if path else f"{name}={value!r}"


def test_what_packing_would_refuse_is_refused_before_training():
    with pytest.raises(Problem, match=r"wants Hessians and `calibrate` holds 0 nodes"):
        check_recipe(override(pr1514(), ["calibrate=()"]))
    with pytest.raises(Problem, match="clips by sigmas"):
        check_recipe(override(pr162(), ["fit=(StepDial(),)"]))


@pytest.mark.parametrize(
    "setting, says",
    [
        ("model.stream.SmearGat.stop_at_bos=true", "nearest is model.stream.SmearGate.stop_at_bos"),
        ("optim.AdamW.rate=0.01", "nearest is optim.AdamW:[02].rate"),
        ("model.heads=7", "each must divide the one before it"),
        ("train.budget=Budget(steps=0, seconds=0.0)", "a budget of 0 steps, 0 s"),
        ("quantize.RowInt:3.bits=9", "RowInt.bits is 9"),
        ("codec=Zstd(level=23)", "Zstd.level is 23"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(setting, says):
    with pytest.raises(Problem, match=says):
        override(pr162(), [setting])


def test_leaving_out_a_technique_is_one_call():
    without = drop(demo(), SmearGate)
    before, after = ({leaf.name for leaf, _ in leaf_views(recipe.model.build(None))} for recipe in (demo(), without))
    assert before - after == {"smear.gate"}
    with pytest.raises(Problem, match=r"AddSkip stands alone at UNet\.skip"):
        drop(pr162(), AddSkip)


def test_the_demo_has_162_s_techniques_at_a_small_size():
    small = demo().model
    assert [(path, type(node)) for path, node in walk(small)] == [(path, type(node)) for path, node in walk(pr162().model)]
    assert sum(parameter.numel() for parameter in small.build(None).parameters()) < 3_000_000
