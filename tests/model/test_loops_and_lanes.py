"""Looped plans, parallel blocks and two lanes against literal loops; little versions of the public systems in float64.

B batch, T positions, D width, S skips, P passes.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance.table import BASE, random_ids, randomise
from fairway.model.context import Carry, Initialiser, ModelContext
from fairway.model.head import FinalNorm, Softcap
from fairway.model.inputs import EngramLite, TokenEmbedding
from fairway.model.join import Parallel, Sequential, TwoLane
from fairway.model.mlp import LeakyReluSquared
from fairway.model.plan import AddSkip, LerpSkip, Loop, Order, Straight, UNet
from fairway.model.positions import QKGain, QKNorm, Rotary
from fairway.model.residual import LayerScale, LNScale, LoopEmbedding, ResidualMix
from fairway.model.roles import leaf_views, load_leaves
from fairway.model.stream import InputNorm, SmearGate
from fairway.model.taps import ExclusiveSelfAttention, HeadGate
from fairway.model.values import ValueEmbedding, ValueResidual
from fairway.problem import Problem

PLAIN = Order((0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
THRICE = Order((0, 1, 2, 3, 4, 5, 3, 4), (5, 3, 4, 5, 6, 7, 8, 9, 10))


def context(*orders, layers=11):
    return ModelContext(64, 8, layers, 4, 2, 2, 16, orders, None, Initialiser(0))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def float64_weights(module):
    return {leaf.name: view.double().numpy() for leaf, view in leaf_views(module)}


# --- the looped plan


def test_eleven_layers_with_three_passes_of_the_middle_have_the_published_orders():
    plan = Loop(3, 5, 3, 0.35, LerpSkip())
    assert plan.orders(11) == (PLAIN, THRICE) and plan.orders(11)[0] == UNet(LerpSkip()).orders(11)[0]
    assert [order.skips() for order in plan.orders(11)] == [5, 8]
    assert [plan.phase(progress) for progress in (0.0, 0.349, 0.35, 0.5, 1.0)] == [0, 0, 1, 1, 1]
    always = replace(plan, starts_at=0.0)
    assert always.orders(11) == (THRICE,) and [always.phase(progress) for progress in (0.0, 0.5, 1.0)] == [0, 0, 0]


def test_a_loop_may_begin_with_the_first_layer_and_end_with_the_last():
    assert Loop(0, 0, 3, 0.0, AddSkip()).orders(2) == (Order((0, 0), (0, 1)),)
    assert Loop(1, 2, 2, 0.0, AddSkip()).orders(3) == (Order((0, 1), (2, 1, 2)),)


@pytest.mark.parametrize(
    "fields, said",
    [
        ((-1, 2, 2, 0.5), r"Loop from layer -1 to 2: take 0 <= first <= last"),
        ((3, 2, 2, 0.5), r"Loop from layer 3 to 2"),
        ((1, 2, 1, 0.5), r"Loop\.passes is 1; take 2 or more"),
        ((1, 2, 2, 1.0), r"Loop\.starts_at is 1\.0"),
        ((1, 2, 2, -0.1), r"Loop\.starts_at is -0\.1"),
        ((1, 4, 2, 0.5), r"Loop\.last is 4, model\.layers is 4: take at most 3"),
    ],
)
def test_loops_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(Problem, match=said):
        replace(BASE, plan=Loop(*fields, AddSkip())).build(0)


def test_a_lerp_skip_blends_the_weighted_skip_and_the_stream():
    module = LerpSkip().build(context(PLAIN, THRICE))
    skip_BTD, x_BTD = normal(1, 2, 8), normal(1, 2, 8, seed=1)
    torch.testing.assert_close(module(skip_BTD, x_BTD, step=3, carry=None), (skip_BTD + x_BTD) / 2)
    assert {leaf.name: leaf.shape for leaf, _ in leaf_views(module)} == {"skip.weight": (8, 8), "skip.gate": (8, 8)}
    w = float64_weights(randomise(module))
    got_BTD, skip, x = module(skip_BTD, x_BTD, step=3, carry=None), skip_BTD.double().numpy(), x_BTD.double().numpy()
    s, g = w["skip.weight"][3] * skip, 1 / (1 + np.exp(-w["skip.gate"][3]))
    assert np.abs(got_BTD.detach().double().numpy() - (s + g * (x - s))).max() < 1e-6


# --- loop embeddings


def test_each_pass_of_a_loop_begins_with_its_vector():
    module = LoopEmbedding().build(context(PLAIN, THRICE))
    assert [(leaf.name, leaf.role, leaf.shape) for leaf, _ in leaf_views(module)] == [("loop.embedding", "scalar", (3, 8))]
    assert not module.embedding_PD.any()
    randomise(module)
    carry, x_BTD, visits, added = Carry(None, torch.float32), normal(1, 2, 8), [0] * 11, []
    for layer in THRICE.encoder + THRICE.decoder:
        carry.visit = visits[layer]
        visits[layer] += 1
        if not torch.equal(u_BTD := module.enter(x_BTD, layer, carry), x_BTD):
            torch.testing.assert_close(u_BTD, x_BTD + module.embedding_PD[carry.visit], rtol=0, atol=0)
            added.append((layer, carry.visit))
    assert added == [(3, 0), (3, 1), (3, 2)]


def test_loop_embeddings_start_as_the_identity():
    looped = replace(BASE, plan=Loop(1, 2, 3, 0.5, AddSkip()))
    base, module = randomise(looped.build(0)), replace(looped, residual=(LoopEmbedding(),)).build(0)
    views = {leaf.name: view.clone() for leaf, view in leaf_views(module)}
    load_leaves(module, views | {leaf.name: view for leaf, view in leaf_views(base)})
    ids_BT = random_ids(BASE)
    with torch.no_grad():
        for phase in (0, 1):
            assert torch.equal(module(ids_BT, phase), base(ids_BT, phase))


def test_loop_embeddings_without_a_loop_are_refused():
    with pytest.raises(Problem, match="LoopEmbedding needs a layer that runs more than once, UNet has none"):
        replace(BASE, plan=UNet(AddSkip()), residual=(LoopEmbedding(),)).build(0)
    with pytest.raises(Problem, match="this plan has none"):
        LoopEmbedding().build(context(PLAIN))


# --- joins


class FakeBlock:
    """Halves of blocks that depend on the layer and do not commute."""

    def __init__(self):
        self.fed = []

    def enter(self, x, layer):
        return 0.9 * x + 0.1 * (layer + 1)

    def attend(self, u, layer):
        return torch.sin((layer + 2) * u)

    def feed(self, u, layer):
        self.fed.append(layer)
        return torch.cos((layer + 3) * u)


def run(join, order, skips, x, layers=11):
    """An order's stream through a join; encoder outputs are added, scaled by the decoder step."""
    module, block, kept = join.build(context(order, layers=layers)), FakeBlock(), []
    for layer in order.encoder:
        x = module(x, block, layer)
        kept.append(x)
    for step, layer in enumerate(order.decoder):
        if kept and skips:
            skip = kept.pop()
            x = module.skip(x, lambda x, skip=skip, step=step: x + (step + 1) / 8 * skip)
        x = module(x, block, layer)
    return module.leave(x).detach()


def literal_half(u, layer, attention=True):
    return torch.sin((layer + 2) * u) if attention else torch.cos((layer + 3) * u)


def test_parallel_blocks_read_the_same_stream():
    x = normal(2, 3, 8).double()
    exact = x
    for layer in range(11):
        u = 0.9 * exact + 0.1 * (layer + 1)
        a = literal_half(u, layer)
        exact = u + a + literal_half(u if layer >= 7 else u + a, layer, attention=False)
    torch.testing.assert_close(run(Parallel(7), Order((), tuple(range(11))), False, x), exact)


def test_parallel_goes_from_all_layers_to_none():
    x, order = normal(2, 3, 8).double(), Order((), (0, 1))
    assert torch.equal(run(Parallel(2), order, False, x, layers=2), run(Sequential(), order, False, x, layers=2))
    assert not torch.isclose(run(Parallel(0), order, False, x, layers=2), run(Parallel(1), order, False, x, layers=2)).all()
    for first in (-1, 3):
        with pytest.raises(Problem, match=rf"Parallel\.first is {first}; take 0 to the model's 2 layers"):
            run(Parallel(first), order, False, x, layers=2)


@pytest.mark.parametrize("order, first", [(THRICE, 7), (THRICE, 6), (PLAIN, 7), (PLAIN, 5), (Order((), (0, 1)), 0)])
def test_two_lanes_go_their_own_ways_from_the_first_such_layer_on(order, first):
    start = normal(2, 3, 8).double()
    stack, lane0, lane1, step = [], start, None, 0
    for at, layer in enumerate(order.encoder + order.decoder):
        if at >= len(order.encoder) and stack:
            lane0, step = lane0 + (step + 1) / 8 * stack.pop(), step + 1
        if layer >= first and lane1 is None:
            lane1 = lane0
        u = 0.9 * lane0 + 0.1 * (layer + 1)
        lane0 = u + literal_half(u, layer)
        if lane1 is None:
            lane0 = lane0 + literal_half(lane0, layer, attention=False)
        else:
            lane1 = lane1 + literal_half(lane1, layer, attention=False)
        if at < len(order.encoder):
            stack.append(lane0)
    got = run(TwoLane(first, merge=0.3), order, True, start)
    # The weight is a float32 parameter.
    torch.testing.assert_close(got, 0.3 * lane0 + 0.7 * lane1, rtol=1e-6, atol=1e-6)


def test_the_lanes_meet_with_a_learned_weight():
    module = TwoLane(7, merge=0.25).build(context(PLAIN))
    assert [(leaf.name, leaf.role, view.tolist()) for leaf, view in leaf_views(module)] == [("lane.merge", "scalar", [0.25])]
    module.leave((torch.ones(3), torch.zeros(3))).sum().backward()
    assert module.merge.grad.tolist() == [3]


@pytest.mark.parametrize(
    "first, plan, said",
    [
        (1, UNet(AddSkip()), r"TwoLane\.first is 1, UNet has layer 1 in its encoder"),
        (2, Loop(1, 2, 2, 0.5, AddSkip()), r"TwoLane\.first is 2, Loop has layer 2 in its encoder"),
        (4, Straight(), r"TwoLane\.first is 4, Straight has no such decoder layer"),
        (-1, Straight(), r"TwoLane\.first is -1, Straight has no such decoder layer; take .* from 0 on"),
    ],
)
def test_two_lanes_that_do_not_go_with_the_plan_are_refused(first, plan, said):
    with pytest.raises(Problem, match=said):
        replace(BASE, join=TwoLane(first), plan=plan).build(0)


def test_two_lanes_refuse_an_order_that_goes_back_below_them_in_any_phase():
    with pytest.raises(Problem, match=r"TwoLane\.first is 4, this plan goes back to a layer below it"):
        TwoLane(4).build(context(Order((0, 1), (2, 3, 4, 3, 4)), Order((0, 1), (2, 3, 4))))
    TwoLane(4).build(context(Order((0, 1), (2, 3, 2, 3, 4, 4)), Order((0, 1), (2, 3, 4))))


# --- whole systems, as the public scripts compute them

WIDTH, HEADS, CAP = 32, 4, 5.0
SIZE = WIDTH // HEADS
SLOPES = (-0.2, 0.5, 0.3, 0.7, 0.4)
LITTLE = replace(
    BASE,
    vocab=50,
    width=WIDTH,
    layers=5,
    sequence=12,
    inputs=(TokenEmbedding(),),
    stream=(InputNorm(),),
    positions=(QKNorm(), Rotary(dims=4), QKGain()),
    taps=(ExclusiveSelfAttention(),),
    mlp=LeakyReluSquared(2.0),
    residual=(ResidualMix(), LNScale(), LayerScale()),
    head=(FinalNorm(), *BASE.head, Softcap(cap=CAP)),
)
LITTLE_1514 = replace(LITTLE, join=Parallel(3), plan=Loop(1, 2, 3, 0.5, LerpSkip()))
LITTLE_1523 = replace(LITTLE_1514, join=TwoLane(3))
LITTLE_1205 = replace(
    LITTLE,
    inputs=(TokenEmbedding(), EngramLite(buckets=16, dim=3)),
    stream=(InputNorm(), SmearGate(stop_at_bos=False)),
    values=(ValueEmbedding(layers=(-2, -1), dim=6),),
    mlp=LeakyReluSquared(2.0, SLOPES),
    plan=UNet(LerpSkip()),
)
LITTLE_864 = replace(
    LITTLE,
    values=(ValueResidual(),),
    taps=(ExclusiveSelfAttention(layers=(-2, -1)), HeadGate()),
    residual=(ResidualMix(), LayerScale()),
    plan=UNet(AddSkip()),
)


def norm(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 2.0**-23)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotate(x, position):
    angle = position * 10_000.0 ** np.array([0, -0.5])
    one, two = x[:2], x[2:4]
    turned = one * np.cos(angle) + two * np.sin(angle), -one * np.sin(angle) + two * np.cos(angle)
    return np.concatenate((*turned, x[4:]))


class Literal:
    """One sequence through one little system."""

    def __init__(self, name, w, ids):
        self.name, self.w, self.ids, self.values = name, w, ids, None

    def attend(self, layer, u):
        w, block = self.w, f"blocks.{layer}.attn"
        n = norm(u) if self.name == "864" else norm(u) / math.sqrt(layer + 1)
        q, k, v = (n @ w[f"{block}.{kind}"].T for kind in ("query", "key", "value"))
        if self.name == "864":
            if self.values is None:
                self.values = v
            else:
                v = w[f"{block}.value_mix"][0] * self.values + w[f"{block}.value_mix"][1] * v
        if self.name == "1205" and layer >= 3:
            rows = w["value_embedding.table"][self.ids] @ w["value_embedding.proj"].T
            v = v + rows * w["value_embedding.scale"] * w[f"{block}.value_embedding"]
        y = np.zeros_like(n)
        for head in range(HEADS):
            mine, theirs = slice(head * SIZE, head * SIZE + SIZE), slice(head // 2 * SIZE, head // 2 * SIZE + SIZE)
            keys = [rotate(norm(row[theirs]), j) for j, row in enumerate(k)]
            for i, row in enumerate(q):
                query = w[f"{block}.gain"][head] * rotate(norm(row[mine]), i)
                weights = np.exp([query @ key / math.sqrt(SIZE) for key in keys[: i + 1]])
                out = weights / weights.sum() @ v[: i + 1, theirs]
                if self.name != "864" or layer >= 3:
                    unit = v[i, theirs] / np.sqrt(v[i, theirs] @ v[i, theirs])
                    out = out - (out @ unit) * unit
                if self.name == "864":
                    out = out * sigmoid(w[f"{block}.gate"][head] @ n[i] + w[f"{block}.gate_bias"][head])
                y[i, mine] = out
        return w[f"{block}.scale"] * (y @ w[f"{block}.output"].T)

    def feed(self, layer, u):
        block = f"blocks.{layer}.mlp"
        z = (norm(u) if self.name == "864" else norm(u) / math.sqrt(layer + 1)) @ self.w[f"{block}.up"].T
        slope = SLOPES[layer] if self.name == "1205" else 0.5
        return self.w[f"{block}.scale"] * (np.where(z > 0, z * z, slope * slope * z * z) @ self.w[f"{block}.down"].T)

    def inputs(self):
        w, x = self.w, self.w["token.table"][self.ids]
        if self.name != "1205":
            return norm(x)
        for t, i in enumerate(self.ids):
            p, o = self.ids[t - 1] if t >= 1 else 0, self.ids[t - 2] if t >= 2 else 0
            keys = 1009 * p + i, (2719 * p + 314159) ^ (3137 * i)
            keys += (36313 * o) ^ (27191 * p) ^ (4903 * i), (7919 * o) ^ (4391 * p) ^ (6151 * i)
            row = np.concatenate([w["engram.table"][16 * slot + key % 16] for slot, key in enumerate(keys)])
            x[t] += sigmoid(w["engram.gate"]) * (w["engram.proj"] @ row)
        x, g = norm(x), sigmoid(w["smear.gate"])
        return (1 - g) * x + g * np.concatenate((np.zeros((1, WIDTH)), x[:-1]))

    def logits(self, encoder, decoder):
        w, x, stack = self.w, self.inputs(), []
        x0, lane1 = x, None
        for at, layer in enumerate(encoder + decoder):
            if at >= len(encoder) and stack:
                skip = w["skip.weight"][at - len(encoder)] * stack.pop()
                gate = None if self.name == "864" else sigmoid(w["skip.gate"][at - len(encoder)])
                x = x + skip if gate is None else skip + gate * (x - skip)
            if self.name == "1523" and layer == 3:
                lane1 = x
            mix = w[f"blocks.{layer}.residual_mix"]
            u = mix[0] * x + mix[1] * x0
            a = self.attend(layer, u)
            if lane1 is not None:
                x, lane1 = u + a, lane1 + self.feed(layer, lane1)
            elif self.name == "1514" and layer >= 3:
                x = u + a + self.feed(layer, u)
            else:
                x = u + a + self.feed(layer, u + a)
            if at < len(encoder):
                stack.append(x)
        if lane1 is not None:
            x = w["lane.merge"] * x + (1 - w["lane.merge"]) * lane1
        return CAP * np.tanh(norm(x) @ w["token.table"].T / CAP)


SYSTEMS = {"864": LITTLE_864, "1205": LITTLE_1205, "1514": LITTLE_1514, "1523": LITTLE_1523}
LITTLE_LOOP = ([0, 1, 2, 1], [2, 1, 2, 3, 4])


@pytest.mark.parametrize(
    "name, phase, order",
    [
        ("864", 0, ([0, 1], [2, 3, 4])),
        ("1205", 0, ([0, 1], [2, 3, 4])),
        ("1514", 0, ([0, 1], [2, 3, 4])),
        ("1514", 1, LITTLE_LOOP),
        ("1523", 0, ([0, 1], [2, 3, 4])),
        ("1523", 1, LITTLE_LOOP),
    ],
)
def test_the_forward_pass_is_that_of_the_public_system(name, phase, order):
    module, ids_BT = randomise(SYSTEMS[name].build(0)), random_ids(SYSTEMS[name])
    with torch.no_grad():
        z_BTV = module(ids_BT, phase).double().numpy()
    exact = np.stack([Literal(name, float64_weights(module), ids.tolist()).logits(*order) for ids in ids_BT])
    assert np.abs(exact).max() > CAP / 2, "the softcap should matter here"
    assert np.abs(z_BTV - exact).max() < 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_leaf_matters_to_the_comparison(name):
    """The literal version reads every leaf: moving one moves its logits."""
    w, ids = float64_weights(randomise(SYSTEMS[name].build(0))), random_ids(SYSTEMS[name])[0, :6].tolist()
    order = LITTLE_LOOP if name in ("1514", "1523") else ([0, 1], [2, 3, 4])
    logits = Literal(name, w, ids).logits(*order)
    for leaf in [leaf for leaf in w if not leaf.startswith("blocks.") or leaf.startswith("blocks.3.")]:
        moved = Literal(name, w | {leaf: w[leaf] * 1.1}, ids).logits(*order)
        # Queries and keys are normed per head, and a row's scale is then lost: their gain has its own leaf.
        assert leaf.endswith((".query", ".key")) or np.abs(moved - logits).max() > 1e-4, leaf


@pytest.mark.parametrize("name", SYSTEMS)
def test_bfloat16_activations_stay_near(name):
    half, exact = (randomise(SYSTEMS[name].build(0, dtype)) for dtype in (torch.bfloat16, torch.float32))
    seen = []

    def linear(x, weight, _):
        seen.append((x.dtype, weight.dtype))
        return torch.nn.functional.linear(x, weight)

    with torch.no_grad():
        z_BTV, exact_BTV = half(random_ids(LITTLE), linear=linear), exact(random_ids(LITTLE))
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}, "nothing falls back to float32 on the way"
    assert (z_BTV - exact_BTV).square().mean() < 0.02 * exact_BTV.square().mean()
