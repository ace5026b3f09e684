"""The checks that every row of the table goes through, and made-up techniques: one that passes, one that fails each."""

import importlib
import pkgutil
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

import fairway.model
from conformance.table import BASE, BOS, ROWS, Row, check_windows_apart, last, random_ids, random_values, randomise
from fairway.artifact.container import read_container, write_container
from fairway.codec.columns import ColumnRans
from fairway.model.roles import Part, leaf_views, load_leaves
from fairway.model.stream import SmearGate, predecessors
from fairway.node import Node, digest, parse_node, show, walk
from fairway.problem import Problem
from fairway.quantize.policy import assign_rules, dequantise, quantise
from fairway.quantize.schemes import KeepFloat16, RowInt
from fairway.sites import StreamSite

POLICY = (KeepFloat16(role="embedding"), RowInt(role="matrix"), RowInt(role="table", bits=8, quantile=0.99), KeepFloat16())


def weights(module):
    return {leaf.name: view.clone() for leaf, view in leaf_views(module)}


def reaches_back(row):
    """Whether a token changes the logits of an earlier position; it must change those of its own."""
    module, ids_BT = randomise(row.model.build(0)), random_ids(row.model)
    found = False
    with torch.no_grad():
        z_BTV = module(ids_BT)
        for at in (1, 7, row.model.sequence - 1):
            flipped_BT = ids_BT.clone()
            flipped_BT[:, at] = (ids_BT[:, at] - BOS) % (row.model.vocab - BOS - 1) + BOS + 1
            other_BTV = module(flipped_BT)
            assert not torch.equal(other_BTV[:, at], z_BTV[:, at])
            found |= not torch.equal(other_BTV[:, :at], z_BTV[:, :at])
    return found


def check_causal(row):
    assert reaches_back(row) is not row.causal


def crosses_documents(row):
    """Whether, with attention silenced, a token before a document start changes a logit from it on."""
    module, ids_BT = randomise(row.model.build(0)), random_ids(row.model)
    for leaf, view in leaf_views(module):
        if leaf.role == "matrix.output":
            view.zero_()
    ids_BT[:, 6] = BOS
    other_BT = ids_BT.clone()
    other_BT[:, :6] = random_ids(row.model, seed=1)[:, :6]
    with torch.no_grad():
        before_BTV, after_BTV = module(ids_BT), module(other_BT)
    assert not torch.equal(before_BTV[:, 5], after_BTV[:, 5])
    return not torch.equal(before_BTV[:, 6:], after_BTV[:, 6:])


def check_stops_at_bos(row):
    assert crosses_documents(row) is not row.stops_at_bos


def check_packed_rows(row):
    """A packed row gives each window what it gets alone."""
    ids_BT = random_ids(row.model)
    ids_BT[:, 9] = BOS
    check_windows_apart(randomise(row.model.build(0)), ids_BT, [[5, 1, 10], [7, 9]], 1e-4)


def check_identity_at_init(row):
    """With everything else at random values, a technique that promises it changes no bit; another one is seen."""
    base, module, ids_BT = randomise(BASE.build(0)), row.model.build(0), random_ids(BASE)
    if not row.identity_at_init:
        return
    load_leaves(module, weights(module) | weights(base))
    with torch.no_grad():
        assert torch.equal(module(ids_BT), base(ids_BT)), "not the identity at init"


def check_one_graph(row):
    """The loss of every phase compiles whole, and the graph computes what the module does."""
    module, ids_BT = randomise(row.model.build(0)), random_ids(row.model)
    torch._dynamo.reset()
    compiled = torch.compile(module.loss, backend="eager", fullgraph=True, dynamic=False)
    for phase in range(len(module.orders)):
        assert torch.equal(compiled(ids_BT, ids_BT, phase), module.loss(ids_BT, ids_BT, phase))


def check_deterministic(row):
    """The same seed gives the same weights, the same input the same logits, from a module of its own."""
    one, two, ids_BT = row.model.build(3), row.model.build(3), random_ids(row.model)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    randomise(one), randomise(two)
    with torch.no_grad():
        assert torch.equal(one(ids_BT), one(ids_BT)) and torch.equal(one(ids_BT), two(ids_BT))


def check_gradients(row):
    """The gradient is finite everywhere and not zero in any leaf, but in those that are known to be unused."""
    module, ids_BT = randomise(row.model.build(0)), random_ids(row.model)
    module.loss(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    for parameter in module.parameters():
        assert parameter.grad is not None, "a parameter outside of the graph"
        assert parameter.grad.isfinite().all()
        parameter.data.copy_(parameter.grad)
    assert tuple(leaf.name for leaf, view in leaf_views(module) if not view.any()) == row.unused


def check_paired_init(row):
    """What both models draw has the same values with and without the technique, but for what it is there to change."""
    if any(type(node) is type(row.technique) for _, node in walk(BASE)):
        return  # it takes the place of another one of its kind
    mine, base = weights(row.model.build(0)), weights(BASE.build(0))
    assert base.keys() <= mine.keys()
    changed = [leaf.name for leaf, _ in leaf_views(BASE.build(0)) if leaf.role == row.restarts]
    assert [name for name in base if not torch.equal(base[name], mine[name])] == changed


def check_packing(row):
    """Quantised, written, read and loaded into a fresh module, the logits are those of the dequantised weights."""
    module, ids_BT = randomise(row.model.build(0)), random_ids(row.model)
    leaves = [leaf for leaf, _ in leaf_views(module)]
    codes = quantise(weights(module), leaves, assign_rules(leaves, POLICY), {})
    data, _ = write_container(codes, ColumnRans(), digest(row.model))
    back, packed_for = read_container(data, ColumnRans())
    assert packed_for == digest(row.model)
    load_leaves(module, dequantise(codes))
    fresh = row.model.build(None)
    load_leaves(fresh, dequantise(back))
    with torch.no_grad():
        assert torch.equal(fresh(ids_BT), module(ids_BT))


def check_repr(row):
    """The node and the model read back from their text."""
    kinds = {type(node).__name__: type(node) for _, node in walk(row.model)}
    assert type(row.technique) in kinds.values()
    for tree in (row.technique, row.model):
        assert parse_node(repr(tree), kinds) == parse_node(show(tree), kinds) == tree
        assert digest(parse_node(show(tree), kinds)) == digest(tree)


CHECKS = (
    check_causal,
    check_stops_at_bos,
    check_packed_rows,
    check_identity_at_init,
    check_one_graph,
    check_deterministic,
    check_gradients,
    check_paired_init,
    check_packing,
    check_repr,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: repr(row.technique))
def test_every_technique_keeps_its_promises(row, check):
    check(row)


def techniques(kind=Node):
    """Every concrete node of the model's families; the spine is what they stand in."""
    for child in kind.__subclasses__():
        yield from techniques(child)
        room, _, family = child.__module__.rpartition(".")
        if room == "fairway.model" and family != "spine" and child.build is not Node.build:
            yield child


def test_no_technique_is_missing_in_the_table():
    for module in pkgutil.iter_modules(fairway.model.__path__):
        importlib.import_module(f"fairway.model.{module.name}")
    found = set(techniques())
    assert SmearGate in found and len(found) > 10
    assert sorted(kind.__name__ for kind in found - {type(row.technique) for row in ROWS}) == []


def test_rows_are_told_apart_and_random_values_are_not_the_initial_ones():
    assert len({repr(row.technique) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        for leaf, view in leaf_views(row.model.build(0)):
            assert torch.isclose(view, random_values(leaf)).float().mean() < 0.01


@dataclass(frozen=True)
class MadeUpShift(StreamSite):
    """Adds a learned part of the predecessor, as nobody needs it."""

    strength: float = 0.0

    def build(self, context):
        return MadeUpShiftModule(context, self.strength)


class MadeUpShiftModule(Part):
    def __init__(self, context, strength):
        super().__init__()
        self.own("strength_D", "madeup.strength", torch.full((context.width,), strength), "scalar")

    def before(self, x_BTD, carry):
        return predecessors(x_BTD, carry, BOS)

    def forward(self, x_BTD, carry):
        return x_BTD + self.strength_D.to(x_BTD.dtype) * self.before(x_BTD, carry)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_made_up_technique_needs_nothing_but_a_row(check):
    check(Row(MadeUpShift(), partial(last, "stream"), identity_at_init=True))


class Leaking(MadeUpShiftModule):
    def before(self, x_BTD, carry):
        return nn.functional.pad(x_BTD[:, :-1], (0, 0, 1, 0))


class Peering(MadeUpShiftModule):
    """Knows documents, but not the other windows of its row."""

    def before(self, x_BTD, carry):
        same_BT = (carry.ids_BT != BOS).unsqueeze(-1)
        return nn.functional.pad(x_BTD[:, :-1], (0, 0, 1, 0)) * same_BT


class Foreseeing(MadeUpShiftModule):
    def before(self, x_BTD, carry):
        return nn.functional.pad(x_BTD[:, 1:], (0, 0, 0, 1))


class Breaking(MadeUpShiftModule):
    def before(self, x_BTD, carry):
        return x_BTD if x_BTD.sum() > 0 else 2 * x_BTD


class Dicing(MadeUpShiftModule):
    def before(self, x_BTD, carry):
        return torch.rand_like(x_BTD)


class Idle(MadeUpShiftModule):
    def before(self, x_BTD, carry):
        return x_BTD * 0


class Stray(MadeUpShiftModule):
    """Owns what its forward pass does not use."""

    def forward(self, x_BTD, carry):
        return x_BTD


class Meddling(MadeUpShiftModule):
    """Changes what others draw."""

    def __init__(self, context, strength):
        super().__init__(context, strength)
        context.init.seed += 1


class Forgetful(MadeUpShiftModule):
    """Draws what it does not own, so that a loaded model has another one."""

    def __init__(self, context, strength):
        super().__init__(context, strength)
        self.register_buffer("hidden_D", context.init.normal("madeup.hidden", context.width, std=1.0))

    def before(self, x_BTD, carry):
        return x_BTD * self.hidden_D


@dataclass(frozen=True)
class MadeUpFault(StreamSite):
    """Builds a faulty module; one of its fields is no plain value where `fault` is a class."""

    fault: type
    strength: float = 0.0

    def build(self, context):
        return self.fault(context, self.strength)


@pytest.mark.parametrize(
    "check, fault, strength, found",
    [
        (check_causal, Foreseeing, 0.0, AssertionError),
        (check_stops_at_bos, Leaking, 0.0, AssertionError),
        (check_packed_rows, Peering, 0.0, AssertionError),
        (check_identity_at_init, MadeUpShiftModule, 0.5, AssertionError),
        (check_one_graph, Breaking, 0.0, Unsupported),
        (check_deterministic, Dicing, 0.0, AssertionError),
        (check_gradients, Idle, 0.0, AssertionError),
        (check_gradients, Stray, 0.0, AssertionError),
        (check_paired_init, Meddling, 0.0, AssertionError),
        (check_packing, Forgetful, 0.0, AssertionError),
        (check_repr, MadeUpShiftModule, 0.0, Problem),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_check_finds_a_technique_that_breaks_it(check, fault, strength, found):
    row = Row(MadeUpFault(fault, strength), partial(last, "stream"), identity_at_init=True)
    with pytest.raises(found):
        check(row)


def test_a_promise_not_made_is_not_tested_but_a_leak_that_is_denied_is_found():
    honest = Row(SmearGate(stop_at_bos=False), partial(last, "stream"), stops_at_bos=False)
    check_stops_at_bos(honest)
    with pytest.raises(AssertionError):
        check_stops_at_bos(replace(honest, stops_at_bos=True))


def test_an_unused_leaf_and_a_changed_initial_value_are_found_unless_the_row_names_them():
    residual = next(row for row in ROWS if row.unused)
    mimetic = next(row for row in ROWS if row.restarts)
    honest = Row(MadeUpShift(), partial(last, "stream"))
    for check, row in (
        (check_gradients, replace(residual, unused=())),
        (check_gradients, replace(honest, unused=("madeup.strength",))),
        (check_paired_init, replace(mimetic, restarts=None)),
        (check_paired_init, replace(honest, restarts="matrix.output")),
    ):
        with pytest.raises(AssertionError):
            check(row)
