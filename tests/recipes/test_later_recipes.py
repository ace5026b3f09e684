"""The four later systems against their fact sheets: parameters by role, orders, constants, first losses, storage."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from conformance.table import random_ids
from fairway.model.plan import Order
from fairway.model.roles import leaf_views
from fairway.model.stream import HashEmbedding
from fairway.model.taps import ExclusiveSelfAttention
from fairway.node import amend, drop, override, swap, walk
from fairway.optim.average import EMA, SWA, LastWeights
from fairway.optim.orthogonal import MuonEqR, Quintic, Turbo
from fairway.optim.schedule import Moment
from fairway.problem import Problem
from fairway.quantize.policy import assign_rules
from fairway.recipes.pr162 import pr162
from fairway.recipes.pr864 import pr864
from fairway.recipes.pr1205 import SLOPES, pr1205
from fairway.recipes.pr1514 import pr1514
from fairway.recipes.pr1523 import pr1523
from fairway.score.tilt import TokenTilt
from fairway.score.windows import Evaluation, Sliding
from fairway.stages import scoring_model

LATER = (pr864, pr1205, pr1514, pr1523)
PLAIN = Order((0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
LOOPED = Order((0, 1, 2, 3, 4, 5, 3, 4), (5, 3, 4, 5, 6, 7, 8, 9, 10))


def by_role(recipe):
    counts = Counter()
    for leaf, _ in leaf_views(recipe.model.build(None)):
        counts[leaf.role] += math.prod(leaf.shape)
    return dict(counts)


def scalars(recipe):
    """Leaf name without its layer -> numbers in all of them."""
    counts = Counter()
    for leaf, _ in leaf_views(recipe.model.build(None)):
        if leaf.role == "scalar":
            counts[leaf.name.split(".", 2)[2] if leaf.layer >= 0 else leaf.name] += math.prod(leaf.shape)
    return dict(counts)


def matrices(hidden):
    square, narrow, wide = 11 * 512 * 512, 11 * 256 * 512, 11 * hidden * 512
    names = ("query", "output", "key", "value", "up", "down")
    return dict(zip((f"matrix.{name}" for name in names), (square, square, narrow, narrow, wide, wide), strict=True))


def test_864_has_the_parameters_of_its_table():
    found = by_role(pr864())
    assert sum(found.values()) == 26_744_007
    block = 512 + 512 + 1024 + 8 + 4096 + 8 + 2
    assert found == matrices(1536) | {
        "embedding": 524_288, "table": 131_072, "projection": 65_536, "scalar": 11 * block + 1 + 512 + 5 * 512
    }  # fmt: skip
    assert sum(by_role(override(pr864(), ["model.inputs.BigramHash.buckets=1536"])).values()) == 26_809_543


def test_1205_has_the_parameters_of_its_table():
    found = by_role(pr1205())
    assert sum(found.values()) == 31_617_116
    assert found == matrices(1792) | {
        "embedding": 524_288, "table": 1_966_080 + 131_072, "projection": 98_304 + 32_768, "scalar": 28_764
    }  # fmt: skip
    assert scalars(pr1205()) == {
        "attn.gain": 88, "attn.scale": 5632, "mlp.scale": 5632, "residual_mix": 11_264, "smear.gate": 512,
        "engram.gate": 512, "skip.weight": 2560, "skip.gate": 2560, "value_embedding.scale": 1, "attn.value_embedding": 3,
    }  # fmt: skip


@pytest.mark.parametrize("recipe, total, lanes", [(pr1514(), 35_944_536, 0), (pr1523(), 35_944_537, 1)])
def test_1514_and_1523_have_the_parameters_of_their_table(recipe, total, lanes):
    found = by_role(recipe)
    assert sum(found.values()) == total
    assert found == matrices(2048) | {"embedding": 4_194_304, "scalar": 22_616 + 8_192 + lanes}
    assert scalars(recipe).get("lane.merge", 0) == lanes


@pytest.mark.parametrize("recipe, starts", [(pr1514, 0.5), (pr1523, 0.35)])
def test_the_loop_runs_the_published_lists_from_its_fraction_on(recipe, starts):
    plan = recipe().model.plan
    assert plan.orders(11) == (PLAIN, LOOPED)
    assert [plan.phase(at) for at in (0.0, starts - 1e-9, starts, 1.0)] == [0, 0, 1, 1]


@pytest.mark.parametrize("recipe", [pr864, pr1205])
def test_the_others_run_every_layer_once(recipe):
    assert recipe().model.plan.orders(11) == (PLAIN,)


@pytest.mark.parametrize("function", LATER)
def test_the_first_loss_is_near_that_of_knowing_nothing(function):
    node = replace(function().model, sequence=64)
    ids_BT = torch.randint(0, node.vocab, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = node.build(42)
        for phase in range(len(model.orders)):
            assert model.loss(ids_BT, ids_BT.roll(-1, 1), phase).item() == pytest.approx(math.log(node.vocab), abs=0.03)


@pytest.mark.parametrize("function", [pr864, pr1205])
def test_the_rotary_of_the_first_two_has_the_stretched_base(function):
    rotary = function().model.positions[1]
    assert rotary.base == pytest.approx(22_081.79, abs=0.005) and rotary.dims == 16
    module = rotary.build(replace_context(function))
    rates = (1, 0.28641, 0.082034, 0.023496, 0.0067295, 0.0019274, 5.5204e-4, 1.5811e-4)
    assert torch.atan2(module.sin_TF[1], module.cos_TF[1]).tolist() == pytest.approx(rates, rel=1e-4)


def replace_context(function):
    """What a position technique is built with."""
    seen = []
    node = function().model
    probe = type("Probe", (type(node.positions[0]),), {"build": lambda self, context: seen.append(context) or NoPart()})
    replace(node, positions=(probe(),), width=512).build(None)
    return seen[0]


class NoPart(torch.nn.Module):
    """Stands in for a part."""


@pytest.mark.parametrize("function", [pr1514, pr1523])
def test_the_rotary_of_the_last_two_turns_16_dimensions_at_the_common_base(function):
    rotary, gain = function().model.positions[1:]
    assert (rotary.base, rotary.dims, gain.init) == (10_000.0, 16, 5.0)


def test_864_trains_with_the_constants_of_its_sheet():
    recipe = pr864()
    tables, muon, scalars = recipe.optim
    assert [group.rate for group in recipe.optim] == [0.035, 0.025, 0.025]
    assert {group.weight_decay for group in recipe.optim} == {0.04}
    assert scalars.roles == ("scalar", "projection") and tables.betas == scalars.betas == (0.9, 0.95)
    assert muon.orthogonaliser == Quintic(5) and [muon.momentum.at(s) for s in (0, 1500)] == [0.92, 0.99]
    assert recipe.train.schedule.steps == 3500 and recipe.train.clip == 0.3
    assert recipe.average == (EMA(0.997), SWA(0.2, 50, EMA(0.997)), LastWeights())
    model = recipe.model
    assert model.taps[0] == ExclusiveSelfAttention(layers=(-4, -3, -2, -1)) and model.taps[1].bias == 4.0
    (qat,) = recipe.qat
    state = qat.build(model.build(None), recipe.quantize)
    assert [state.on(Moment(0, at, 1.0)) for at in (0.84, 0.85)] == [False, True]
    assert sum(parameter.numel() for parameter, _ in state.bends) == 5_767_168 + 2_883_584 + 2 * 8_650_752  # the banks


def test_1205_trains_with_the_constants_of_its_sheet():
    recipe = pr1205()
    tables, muon, scalars = recipe.optim
    assert (tables.rate, tables.betas, scalars.rate, scalars.betas) == (0.035, (0.7, 0.95), 0.03, (0.9, 0.95))
    assert {group.weight_decay for group in recipe.optim} == {0.04}
    assert (muon.rate, muon.orthogonaliser, muon.decay_last) == (0.03, Turbo(), True)
    assert [muon.momentum.at(step) for step in (0, 500, 1000)] == pytest.approx([0.92, 0.955, 0.99])
    assert recipe.train.budget.training_seconds == 591.0
    schedule, budget = recipe.train.schedule, replace(recipe.train.budget, steps=0)
    assert schedule.multiplier(1000, 106.0, budget) == 1.0  # 4,575 steps are left at this pace
    assert schedule.multiplier(2788, 295.5, budget) == pytest.approx(2788 / 4500, rel=1e-3)
    assert schedule.multiplier(5570, 590.9, budget) == 0.05
    assert recipe.model.mlp.slopes == SLOPES and len(SLOPES) == 11
    (qat,) = recipe.qat
    state = qat.build(recipe.model.build(None), recipe.quantize)
    assert [state.on(Moment(0, 0.99, rate)) for rate in (0.15, 0.1499)] == [False, True]
    bits = Counter()
    for parameter, spans in state.bends:
        for first, end, rule in spans:
            bits[rule.bits] += parameter[first:end].numel()
    assert bits == {5: 28_835_840, 6: 98_304}  # the 66 block matrices; engram.proj as it is shipped


@pytest.mark.parametrize("function, rate, decay", [(pr1514, 0.02, 0.085), (pr1523, 0.022, 0.095)])
def test_1514_and_1523_train_with_the_constants_of_their_sheets(function, rate, decay):
    recipe = function()
    table, muon, scalars = recipe.optim
    assert (table.rate, table.weight_decay, muon.rate, muon.weight_decay) == (0.03, decay, rate, decay)
    assert (scalars.rate, scalars.weight_decay) == (0.02, 0.02)
    assert muon.orthogonaliser == MuonEqR(Quintic(5))
    assert [muon.momentum.at(step) for step in (0, 1500)] == pytest.approx([0.92, 0.97])
    assert recipe.average == (EMA(0.997),) and recipe.qat == ()
    budget = recipe.train.budget
    assert budget.training_seconds == 587.0 and budget.progress(0, 587.0) == 1.0
    multipliers = [recipe.train.schedule.multiplier(0, at * 587.0, budget) for at in (0.3, 0.333, 0.6665, 1.0)]
    assert multipliers == pytest.approx([1.0, 1.0, 0.5, 0.0], abs=1e-3)


def test_1523_is_1514_but_for_what_its_sheet_lists():
    one, other = pr1514(), pr1523()
    restored = swap(other, type(other.model.join), one.model.join)
    restored = amend(restored, type(other.model.plan), starts_at=0.5)
    assert replace(restored, name="pr1514", optim=one.optim, adapt=one.adapt, mix=one.mix) == one
    assert (other.model.join.first, other.model.join.merge) == (7, 0.5)


@pytest.mark.parametrize(
    "function, classes",
    [
        (pr864, {"float16": 0, "int6": 66 + 1}),
        (pr1205, {"float16": 0, "int5": 66, "int6": 1, "int8": 2}),
        (pr1514, {"float16": 0, "int6": 66, "int8": 1}),
        (pr1523, {"float16": 0, "int6": 66, "int8": 1}),
    ],
)
def test_as_many_tensors_are_rounded_as_the_sheet_says(function, classes):
    recipe = function()
    leaves = [leaf for leaf, _ in leaf_views(recipe.model.build(None))]
    rules = assign_rules(leaves, recipe.quantize)
    found = Counter("float16" if not hasattr(rule, "bits") else f"int{rule.bits}" for rule in rules.values())
    assert found | Counter(float16=1) == Counter(classes) | Counter(float16=found["float16"])
    assert all(math.prod(leaf.shape) <= 65_536 or leaf.role == "embedding" for leaf in leaves
               if not hasattr(rules[leaf.name], "bits"))  # fmt: skip


@pytest.mark.parametrize("function", LATER)
def test_every_technique_in_a_tuple_of_the_model_but_the_table_and_the_head_can_be_left_out(function):
    model, left = function().model, 0
    for _, node in walk(model):
        try:
            small = replace(drop(model, type(node)), vocab=64, width=128, sequence=16)
        except Problem:
            continue  # stands alone at its site
        if not small.inputs or type(node).__name__ in ("TokenEmbedding", "TiedHead"):
            continue
        left += 1
        ids_BT = random_ids(small)
        assert small.build(0).loss(ids_BT, ids_BT).isfinite()
    assert left >= 8


@pytest.mark.parametrize(
    "setting, names",
    [
        ("model.join=TwoLane(first=4)", ("TwoLane", "Loop")),
        ("model.join=TwoLane(first=11)", ("TwoLane", "Loop")),
        ("model.plan=Loop(first=9, last=12, passes=2, starts_at=0.5, skip=LerpSkip())", ("Loop", "model.layers")),
        ("model.inputs=(EngramLite(),)", ("TiedHead", "TokenEmbedding")),
        ("model.mlp=LeakyReluSquared(expansion=2.0, slopes=(0.1, 0.2))", ("LeakyReluSquared", "11")),
        ("model.taps=(ExclusiveSelfAttention(layers=(11,)),)", ("ExclusiveSelfAttention", "11")),
    ],
)
def test_techniques_that_cannot_live_together_say_so_when_the_model_is_built(setting, names):
    with pytest.raises(Problem) as caught:
        override(pr1523(), [setting]).model.build(None)
    assert all(name in str(caught.value) for name in names) and "\n" not in str(caught.value)


def test_per_pass_embeddings_need_a_loop():
    with pytest.raises(Problem) as caught:
        override(pr1205(), ["model.residual=(ResidualMix(), LoopEmbedding())"]).model.build(None)
    assert "LoopEmbedding" in str(caught.value) and "UNet" in str(caught.value)


def test_recipes_are_scored_as_their_submissions_were():
    (sgd,), (tilt,) = pr1514().adapt, pr1514().mix
    assert (sgd.rate, sgd.chunk, sgd.epochs, sgd.momentum, sgd.clip, sgd.frozen, sgd.fresh) == (
        0.005,
        32_768,
        3,
        0.9,
        1.0,
        0,
        (),
    )
    assert tilt == TokenTilt(
        ((16, 0.5, 2), (14, 0.5, 2), (12, 0.6, 2), (10, 0.7, 3), (8, 0.7, 3)), strength=2.0, by_share=True
    )
    (sgd,), mix = pr1523().adapt, pr1523().mix
    assert (sgd.rate, sgd.fresh, mix) == (0.01, (HashEmbedding(buckets=16_384),), ())
    scored = scoring_model(pr1523()).build(None)
    assert sum(p.numel() for p in scored.parameters()) == 44_333_145
    (cache,) = pr864().mix
    assert (cache.orders, cache.least, cache.every) == (tuple(range(2, 10)), 2, 65_536)
    assert (pr864().adapt, pr1205().adapt, pr1205().mix, pr162().adapt, pr162().mix) == ((), (), (), (), ())
    assert all(function().evaluate == Evaluation(Sliding(2048, 64), multiple_of=2048) for function in (*LATER, pr162))
