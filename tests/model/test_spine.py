"""The whole model against a literal float64 version of #162's forward pass, and the spine's own promises."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from conformance.table import BASE, random_ids, randomise
from fairway.model.context import plain_linear
from fairway.model.head import FinalNorm, Softcap, TiedHead
from fairway.model.inputs import BigramHash, TokenEmbedding
from fairway.model.join import JoinModule, Sequential
from fairway.model.mlp import ReluSquared
from fairway.model.plan import AddSkip, Order, Plan, Straight, UNet
from fairway.model.positions import QKGain, QKNorm, Rotary
from fairway.model.residual import LayerScale, ResidualMix, ResidualPart
from fairway.model.roles import leaf_views, load_leaves, parameter_roles
from fairway.model.spine import GPT
from fairway.model.stream import InputNorm, SmearGate
from fairway.node import drop
from fairway.optim.adamw import AdamW
from fairway.optim.muon import Muon
from fairway.optim.optimizer import Optimizer
from fairway.optim.schedule import Moment
from fairway.problem import Problem
from fairway.sites import JoinSite, ResidualSite, SkipSite
from fairway.train.dist import World

LAYERS, WIDTH, HEADS, KV_HEADS, BUCKETS, CAP = 9, 32, 4, 2, 64, 5.0
LITTLE_162 = GPT(
    vocab=50,
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    sequence=24,
    inputs=(TokenEmbedding(), BigramHash(buckets=BUCKETS, dim=8)),
    stream=(InputNorm(), SmearGate(stop_at_bos=False)),
    positions=(QKNorm(), Rotary(), QKGain()),
    values=(),
    taps=(),
    mlp=ReluSquared(expansion=3.0),
    join=Sequential(),
    residual=(ResidualMix(), LayerScale()),
    plan=UNet(skip=AddSkip()),
    head=(FinalNorm(), TiedHead(), Softcap(cap=CAP)),
)


def norm(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 2.0**-23)


def rotate(x, position):
    half = len(x) // 2
    angle = position * 10_000.0 ** (-2 * np.arange(half) / len(x))
    one, two = x[:half], x[half:]
    return np.concatenate((one * np.cos(angle) + two * np.sin(angle), -one * np.sin(angle) + two * np.cos(angle)))


def literal_attention(w, block, n):
    q, k, v = (n @ w[f"{block}.attn.{kind}"].T for kind in ("query", "key", "value"))
    size = WIDTH // HEADS
    out = np.zeros_like(n)
    for head in range(HEADS):
        mine, theirs = slice(head * size, head * size + size), slice(head // 2 * size, head // 2 * size + size)
        gain = w[f"{block}.attn.gain"][head]
        queries = [gain * rotate(norm(row[mine]), i) for i, row in enumerate(q)]
        keys = [rotate(norm(row[theirs]), i) for i, row in enumerate(k)]
        for i, query in enumerate(queries):
            scores = np.array([query @ key / math.sqrt(size) for key in keys[: i + 1]])
            weights = np.exp(scores - scores.max())
            out[i, mine] = weights / weights.sum() @ v[: i + 1, theirs]
    return out @ w[f"{block}.attn.output"].T


def literal_block(w, layer, x, x0):
    block = f"blocks.{layer}"
    keep, back = w[f"{block}.residual_mix"]
    x = keep * x + back * x0
    x = x + w[f"{block}.attn.scale"] * literal_attention(w, block, norm(x))
    hidden = np.maximum(norm(x) @ w[f"{block}.mlp.up"].T, 0) ** 2
    return x + w[f"{block}.mlp.scale"] * (hidden @ w[f"{block}.mlp.down"].T)


def literal_162(w, ids):
    """Logits [T, V] of one sequence, in float64, as the public script computes them."""
    hashes = [BUCKETS - 1] + [((36313 * a) ^ (27191 * b)) % (BUCKETS - 1) for b, a in pairwise(ids)]
    x = w["token.table"][ids] + w["bigram.scale"] * (w["bigram.table"][hashes] @ w["bigram.proj"].T)
    x = norm(x)
    gate = 1 / (1 + np.exp(-w["smear.gate"]))
    x = (1 - gate) * x + gate * np.concatenate((np.zeros((1, WIDTH)), x[:-1]))
    x0, stack = x, []
    for layer in (0, 1, 2, 3):
        x = literal_block(w, layer, x, x0)
        stack.append(x)
    for layer in (4, 5, 6, 7, 8):
        if stack:
            x = x + w["skip.weight"][layer - 4] * stack.pop()
        x = literal_block(w, layer, x, x0)
    return CAP * np.tanh(norm(x) @ w["token.table"].T / CAP)


@pytest.fixture(scope="module")
def little():
    return randomise(LITTLE_162.build(0))


def float64_weights(module):
    return {leaf.name: view.double().numpy() for leaf, view in leaf_views(module)}


def test_the_forward_pass_is_that_of_162(little):
    ids_BT = random_ids(LITTLE_162)
    with torch.no_grad():
        z_BTV = little(ids_BT).double().numpy()
    exact = np.stack([literal_162(float64_weights(little), ids.tolist()) for ids in ids_BT])
    assert np.abs(exact).max() > CAP / 2, "the softcap should matter here"
    assert np.abs(z_BTV - exact).max() < 1e-4 * np.abs(exact).max()


def test_every_leaf_matters_to_the_comparison(little):
    """The literal version reads every leaf: moving one moves its logits."""
    w, ids = float64_weights(little), random_ids(LITTLE_162)[0, :10].tolist()
    logits = literal_162(w, ids)
    for name in [name for name in w if not name.startswith("blocks.") or name.startswith("blocks.7.")]:
        moved = literal_162(w | {name: w[name] * 1.1}, ids)
        # Queries and keys are normed per head, and a row's scale is then lost: their gain has its own leaf.
        assert name.endswith((".query", ".key")) or np.abs(moved - logits).max() > 1e-4, name


def test_the_loss_is_the_mean_of_the_surprises(little):
    ids_BT, targets_BT = random_ids(LITTLE_162), random_ids(LITTLE_162, seed=1)
    with torch.no_grad():
        loss, z_BTV = little.loss(ids_BT, targets_BT), little(ids_BT).double()
    nats = [
        math.log(z.exp().sum()) - z[y]
        for row, ys in zip(z_BTV, targets_BT, strict=True)
        for z, y in zip(row, ys, strict=True)
    ]
    assert loss.item() == pytest.approx(float(sum(nats) / len(nats)), rel=1e-5)


def test_the_head_can_leave_out_the_positions_that_are_not_scored(little):
    ids_BT = random_ids(LITTLE_162)
    with torch.no_grad():
        torch.testing.assert_close(little(ids_BT, first=15), little(ids_BT)[:, 15:], rtol=1e-5, atol=1e-5)


def test_shorter_inputs_than_the_longest_window_are_its_beginning(little):
    ids_BT = random_ids(LITTLE_162)
    with torch.no_grad():
        torch.testing.assert_close(little(ids_BT[:, :7]), little(ids_BT)[:, :7], rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_stay_near_and_masters_stay_float32(little):
    half = randomise(LITTLE_162.build(0, torch.bfloat16))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    ids_BT = random_ids(LITTLE_162)
    with torch.no_grad():
        z_BTV, exact_BTV = half(ids_BT), little(ids_BT)
    assert z_BTV.dtype == torch.float32
    assert (z_BTV - exact_BTV).square().mean() < 0.01 * exact_BTV.square().mean()


# --- the order of blocks and skips


@dataclass(frozen=True)
class NumberedJoin(JoinSite):
    """Does not compute: a block's output is its layer's number, so that what goes where can be read off."""

    def build(self, context):
        return NumberedJoinModule()


class NumberedJoinModule(JoinModule):
    def forward(self, x, block, layer):
        return torch.full_like(x, layer)


@dataclass(frozen=True)
class WitnessSkip(SkipSite):
    """Notes (decoder step, step of the order, output that comes over, output that is there)."""

    def build(self, context):
        module = nn.Module()
        module.seen, module.skips = [], context.skips

        def note(skip, x, step, carry):
            module.seen.append((step, carry.step, int(skip.max()), int(x.max())))
            return x

        module.forward = note
        return module


def test_encoder_outputs_come_over_last_first():
    model = replace(LITTLE_162, join=NumberedJoin(), plan=UNet(WitnessSkip()), head=()).build(0)
    out_BTD = model(random_ids(LITTLE_162))
    # Block 4 gets block 3's output (on top of itself), 5 gets 2's, 6 gets 1's, 7 gets 0's, 8 none.
    assert model.skip.seen == [(0, 4, 3, 3), (1, 5, 2, 4), (2, 6, 1, 5), (3, 7, 0, 6)]
    assert model.skip.skips == 4 and (out_BTD == 8).all()


@dataclass(frozen=True)
class TwoPhases(Plan):
    """Layers forwards, then backwards."""

    def orders(self, layers):
        forwards = Straight().orders(layers)[0]
        return forwards, replace(forwards, decoder=forwards.decoder[::-1])

    def build(self, context):
        return None


def test_the_phase_chooses_the_order_and_scoring_takes_the_last():
    model = replace(LITTLE_162, join=NumberedJoin(), plan=TwoPhases(), head=()).build(0)
    ids_BT = random_ids(LITTLE_162)
    assert [int(model(ids_BT, *phase).max()) for phase in ((0,), (1,), ())] == [8, 0, 0]


@dataclass(frozen=True)
class ThriceInTheMiddle(Plan):
    """Of three layers the middle one runs three times, with two skips; in the phase before it each once, without."""

    skip: SkipSite

    def orders(self, layers):
        return Order((), (0, 1, 2)), Order((0, 1), (1, 1, 2))

    def phase(self, progress):
        return int(progress >= 0.5)

    def build(self, context):
        return self.skip.build(context)


@dataclass(frozen=True)
class WitnessVisits(ResidualSite):
    """Notes (layer, step, visit) wherever a residual technique may act, and computes with both."""

    def build(self, context):
        return WitnessVisitsModule()


class WitnessVisitsModule(ResidualPart):
    def __init__(self):
        super().__init__()
        self.seen = []

    def note(self, x_BTD, *where):
        *_, layer, carry = where
        self.seen.append((layer, carry.step, carry.visit))
        return x_BTD

    enter = normed = attended = fed = note


@dataclass(frozen=True)
class VisitGain(ResidualSite):
    """Each step and each visit has its own gain, as constants of the graph."""

    def build(self, context):
        return VisitGainModule()


class VisitGainModule(ResidualPart):
    def fed(self, d_BTD, n_BTD, layer, carry):
        return d_BTD * (1 + carry.visit + carry.step / 8)


THRICE = replace(LITTLE_162, layers=3, plan=ThriceInTheMiddle(AddSkip()))
VISITS = [(0, 0, 0), (1, 1, 0), (1, 2, 1), (1, 3, 2), (2, 4, 0)]


def test_sites_see_which_step_is_running_and_which_visit_of_its_layer():
    model = replace(THRICE, residual=(WitnessVisits(),)).build(0)
    (witness,) = model.residual
    for phase, visits in ((1, VISITS), (0, [(0, 0, 0), (1, 1, 0), (2, 2, 0)]), (-1, VISITS)):
        witness.seen.clear()
        model(random_ids(THRICE), phase)
        # Entered, normed for attention, attended, normed for the MLP, fed.
        assert witness.seen == [visit for visit in visits for _ in range(5)]


def test_a_layer_that_runs_three_times_is_three_layers_with_the_same_weights():
    looped, ids_BT = randomise(THRICE.build(0)), random_ids(THRICE)
    views = {leaf.name: view for leaf, view in leaf_views(looped)}
    unrolled = replace(THRICE, layers=5, plan=UNet(AddSkip())).build(None)
    copies = {f"blocks.{step}.": f"blocks.{layer}." for layer, step, _ in VISITS}
    names = [leaf.name for leaf, _ in leaf_views(unrolled)]
    load_leaves(unrolled, {name: views[copies.get(name[:9], name[:9]) + name[9:]] for name in names})
    with torch.no_grad():
        assert torch.equal(looped(ids_BT), unrolled(ids_BT))
        assert not torch.isclose(looped(ids_BT), looped(ids_BT, 0)).all()


@pytest.mark.parametrize("plan", [TwoPhases(), ThriceInTheMiddle(AddSkip())])
def test_each_phase_compiles_to_one_graph(plan):
    node = replace(THRICE, residual=(ResidualMix(), VisitGain()), plan=plan)
    model, ids_BT, graphs = randomise(node.build(0)), random_ids(node), []
    torch._dynamo.reset()
    compiled = torch.compile(
        model.loss, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=False
    )
    losses = [compiled(ids_BT, ids_BT, phase) for phase in (0, 1, 0, 1)]
    assert losses == [model.loss(ids_BT, ids_BT, phase) for phase in (0, 1, 0, 1)]
    assert losses[0] != losses[1] and len(graphs) == 2


def test_a_parameter_that_a_phase_does_not_use_stays_and_the_step_goes_through():
    model, ids_BT = randomise(THRICE.build(0)), random_ids(THRICE)
    groups = AdamW(("embedding", "table", "scalar"), 0.1, weight_decay=0.0), Muon()
    optimizer, idle = Optimizer(model, groups, World(0, 1, torch.device("cpu")), torch.float32, 0.3), model.skip.weight_SD
    for step, phase in enumerate((0, 0, 1)):
        before = [parameter.detach().clone() for parameter in (idle, model.attention.qo)]
        model.loss(ids_BT, ids_BT, phase).backward()
        assert (idle.grad is None) is (phase == 0)
        assert optimizer.step(Moment(step, 0.0, 1.0)).isfinite()
        assert torch.equal(before[0], idle) is (phase == 0) and not torch.equal(before[1], model.attention.qo)


# --- products with matrices

KINDS = ("attn.query", "attn.key", "attn.value", "attn.output", "mlp.up", "mlp.down")


@pytest.mark.parametrize(
    "node, phase, layers", [(LITTLE_162, -1, range(LAYERS)), (THRICE, 0, (0, 1, 2)), (THRICE, 1, (0, 1, 1, 1, 2))]
)
def test_linear_takes_every_product_with_a_matrix_once_a_visit_in_order(node, phase, layers):
    model, ids_BT, seen = randomise(node.build(0)), random_ids(node), []
    views = {leaf.name: view for leaf, view in leaf_views(model)}

    def watching(x, weight, name):
        assert torch.equal(weight, views[name]) and x.shape[:-1] == ids_BT.shape
        seen.append(name)
        return plain_linear(x, weight, name)

    with torch.no_grad():
        z_BTV = model(ids_BT, phase, linear=watching)
        assert seen == ["bigram.proj", *(f"blocks.{layer}.{kind}" for layer in layers for kind in KINDS), "token.table"]
        # Plain products are fewer: queries, keys and values in one, gains within the matrices. So they round otherwise.
        torch.testing.assert_close(z_BTV, model(ids_BT, phase), rtol=1e-4, atol=1e-4)
        assert torch.equal(model(ids_BT, phase), model(ids_BT, phase, linear=plain_linear))
    matrices = {leaf.name for leaf, _ in leaf_views(model) if leaf.role.split(".")[0] in ("matrix", "projection")}
    assert set(seen) == matrices | {"token.table"}


def test_the_loss_goes_through_linear_too_and_what_it_returns_counts(little):
    ids_BT = random_ids(LITTLE_162)

    def headless(x, weight, name):
        return plain_linear(x, weight, name) * (name != "token.table")

    with torch.no_grad():
        assert little.loss(ids_BT, ids_BT, linear=plain_linear) == little.loss(ids_BT, ids_BT)
        assert little.loss(ids_BT, ids_BT, linear=headless).item() == pytest.approx(math.log(50), rel=1e-6)


# --- parameters


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, two, other = (dict(LITTLE_162.build(seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "inputs.0.table_VD", "inputs.1.proj_DE", "attention.qo", "attention.kv", "mlp.up_LMD",
    }  # fmt: skip


def initial(node):
    return {leaf.name: view for leaf, view in leaf_views(node.build(3))}


@pytest.mark.parametrize(
    "technique, owns",
    [
        (BigramHash, {"bigram.table", "bigram.proj", "bigram.scale"}),
        (SmearGate, {"smear.gate"}),
        (QKGain, {f"blocks.{layer}.attn.gain" for layer in range(LAYERS)}),
        (ResidualMix, {f"blocks.{layer}.residual_mix" for layer in range(LAYERS)}),
        (LayerScale, {f"blocks.{layer}.{kind}.scale" for layer in range(LAYERS) for kind in ("attn", "mlp")}),
        (Rotary, set()),
        (TokenEmbedding, {"token.table"}),
    ],
)
def test_leaving_out_a_technique_leaves_all_other_initial_values(technique, owns):
    # A tied head cannot be without the table; it draws nothing.
    node = replace(LITTLE_162, head=()) if technique is TokenEmbedding else LITTLE_162
    whole, without = initial(node), initial(drop(node, technique))
    assert whole.keys() - without.keys() == owns and without.keys() <= whole.keys()
    assert all(torch.equal(without[name], whole[name]) for name in without)


@pytest.mark.parametrize("layers", [2, 5, 12])
def test_another_number_of_layers_leaves_the_initial_values_of_those_that_stay(layers):
    few, many = sorted((initial(LITTLE_162), initial(replace(LITTLE_162, layers=layers))), key=len)
    # One skip a decoder step; and the bigram's projection is the same one, scaled by the depth.
    assert few.keys() <= many.keys()
    assert {name for name in few if not torch.equal(few[name], many[name])} == {"skip.weight", "bigram.proj"}
    ratio = few["bigram.proj"] / many["bigram.proj"]
    depths = sorted((layers, LAYERS))
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(depths[1] / depths[0])))


def test_initial_values_are_those_of_162():
    views = {leaf.name: view.double() for leaf, view in leaf_views(replace(LITTLE_162, vocab=2000).build(0))}
    assert views["token.table"].std().item() == pytest.approx(0.005, rel=0.02)
    for layer in range(LAYERS):
        for kind in ("attn.query", "attn.key", "attn.value", "mlp.up"):
            values = torch.linalg.svdvals(views[f"blocks.{layer}.{kind}"])
            torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-5, atol=0)
        for kind in ("attn.output", "mlp.down"):
            assert not views[f"blocks.{layer}.{kind}"].any()
        assert (views[f"blocks.{layer}.attn.gain"] == 1.5).all()
        assert (views[f"blocks.{layer}.attn.scale"] == 1).all() and (views[f"blocks.{layer}.mlp.scale"] == 1).all()
        assert (views[f"blocks.{layer}.residual_mix"][0] == 1).all() and not views[f"blocks.{layer}.residual_mix"][1].any()
    assert (views["skip.weight"] == 1).all() and not views["smear.gate"].any() and not views["bigram.table"].any()
    assert views["bigram.scale"].item() == pytest.approx(0.05)


def test_without_a_seed_every_drawn_value_is_zero():
    views = {leaf.name: view for leaf, view in leaf_views(LITTLE_162.build(None))}
    assert not any(views[name].any() for name in views if "attn.query" in name or "table" in name or "mlp.up" in name)


def test_banks_hold_queries_then_outputs_and_keys_then_values():
    model = BASE.build(0)
    views = {leaf.name: view for leaf, view in leaf_views(model)}
    for layer in range(4):
        for kind, slice_RC in (("query", model.attention.qo[layer]), ("output", model.attention.qo[4 + layer]),
                               ("key", model.attention.kv[layer]), ("value", model.attention.kv[4 + layer])):  # fmt: skip
            assert views[f"blocks.{layer}.attn.{kind}"].data_ptr() == slice_RC.data_ptr()
    assert parameter_roles(model)["attention.qo"] == "matrix"


@pytest.mark.parametrize("name", ["vocab", "width", "layers", "heads", "kv_heads", "sequence"])
def test_a_size_below_one_is_named(name):
    with pytest.raises(Problem, match=rf"model\.{name} is 0"):
        replace(LITTLE_162, **{name: 0})


@pytest.mark.parametrize("sizes", [{"width": 30}, {"kv_heads": 3}, {"heads": 2, "kv_heads": 4}])
def test_heads_that_do_not_divide_are_named(sizes):
    with pytest.raises(Problem, match="each must divide the one before it"):
        replace(LITTLE_162, **sizes)


def test_gains_of_deltas_are_those_of_the_matrices_rows_however_products_are_taken():
    node = replace(LITTLE_162, residual=(LayerScale(),))
    model, bare, ids_BT = randomise(node.build(0)), replace(node, residual=()).build(0), random_ids(node)
    views = {leaf.name: view for leaf, view in leaf_views(model)}
    with torch.no_grad():
        for leaf, view in leaf_views(bare):
            view.copy_(views[leaf.name])
        attention_LD, mlp_LD = model.residual[0].gains()
        bare.attention.qo[LAYERS:].mul_(attention_LD.unsqueeze(-1))
        bare.mlp.down_LDM.mul_(mlp_LD.unsqueeze(-1))
        for linear in (plain_linear, lambda x, weight, name: plain_linear(x, weight, name)):
            torch.testing.assert_close(model(ids_BT, linear=linear), bare(ids_BT, linear=linear), rtol=1e-4, atol=1e-4)
