"""The checks that every row of the table of updates goes through, and made-up nodes that each fail one.

N slices, R rows, C columns.
"""

import importlib
import io
import pkgutil
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

import fairway.optim
from conformance.updates_table import AVERAGES, GROUPS, ORTHOGONALISERS, ROLES, ROWS, SCHEDULES
from fairway.model.roles import Part
from fairway.node import digest, node_kinds, parse_node, show
from fairway.optim.average import EMA
from fairway.optim.optimizer import Optimizer
from fairway.optim.orthogonal import Quintic
from fairway.optim.schedule import Budget, Moment
from fairway.sites import AverageSite, OrthogonaliserSite, ScheduleSite
from fairway.train.dist import World

STEPS = 8


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moment(step):
    return Moment(step, step / STEPS, 1 - step / STEPS)


class Matrices(Part):
    """A bank of three tall matrices and two plain ones."""

    def __init__(self, seed=0):
        super().__init__()
        leaves = [(f"blocks.{i}.up", "matrix.up", i) for i in range(3)]
        self.own_bank("bank_NRC", normal(3, 6, 4, seed=seed), "matrix", leaves)
        self.own("one_RC", "one", normal(3, 5, seed=seed + 1), "projection")
        self.own("two_RC", "two", normal(3, 5, seed=seed + 2), "projection")

    @property
    def floats(self):
        return sum(parameter.numel() for parameter in self.parameters())


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def floats_of(state):
    """Numbers in the tensors of a state, single ones (counters) aside."""
    if isinstance(state, torch.Tensor):
        return state.numel() if state.numel() > 1 else 0
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(floats_of, values))


# --- groups and averages as something that runs


class GroupRun:
    """A group that trains the matrices by gradients of each step's own."""

    def __init__(self, node, seed=0):
        self.model = Matrices(seed)
        self.optimizer = Optimizer(self.model, (node,), World(0, 1, torch.device("cpu")), torch.float32, 0.0)

    def go(self, steps):
        for step in steps:
            for index, parameter in enumerate(self.model.parameters()):
                parameter.grad = normal(*parameter.shape, seed=100 * step + index)
            self.optimizer.step(moment(step))
        return self

    def result(self):
        return weights(self.model)

    def state(self):
        return {"weights": weights(self.model), "own": self.optimizer.state()}

    def restore(self, state):
        self.model.load_state_dict(state["weights"])
        self.optimizer.restore(state["own"])


class AverageRun:
    """An average of matrices that are put to values of each step's own."""

    def __init__(self, node, seed=0):
        self.model = Matrices(seed)
        self.average, self.seen = node.build(self.model), []

    def go(self, steps):
        for step in steps:
            self.model.load_state_dict(Matrices(10 * step + 7).state_dict())
            self.seen.append(weights(self.model))
            self.average.after_step(moment(step))
        return self

    def result(self):
        return {name: tensor.clone() for name, tensor in self.average.tensors().items()}

    def state(self):
        return {"weights": weights(self.model), "own": self.average.state()}

    def restore(self, state):
        self.model.load_state_dict(state["weights"])
        self.average.restore(state["own"])


def run_of(node):
    return AverageRun if isinstance(node, AverageSite) else GroupRun


# --- the checks


def check_round_trip(node):
    assert parse_node(repr(node)) == parse_node(show(node)) == node
    assert digest(parse_node(show(node))) == digest(node)


def check_deterministic_run(node):
    """Twice the same from the start; another start, or one step less, is seen."""
    kind = run_of(node)
    whole = kind(node).go(range(STEPS)).result()
    assert equal(whole, kind(node).go(range(STEPS)).result())
    assert not equal(whole, kind(node).go(range(STEPS - 1)).result())


def check_state(node):
    """A run that is cut and goes on from a file, in objects of its own, ends with the same bits."""
    kind = run_of(node)
    whole = kind(node).go(range(STEPS))
    for stop in (0, 1, 5):
        state = through_a_file(kind(node).go(range(stop)).state())
        other = kind(node, seed=50)
        other.restore(state)
        assert equal(other.go(range(stop, STEPS)).result(), whole.result())


def check_size(node):
    """The state is as large as the node says: `moments` or `copies` floats for each of the model's."""
    run = run_of(node)(node).go(range(STEPS))
    promised = node.copies if isinstance(node, AverageSite) else node.moments
    assert floats_of(run.state()["own"]) == promised * run.model.floats


def check_hull(node):
    """Every element of an average lies between the smallest and the largest that was seen, in float32."""
    run = AverageRun(node).go(range(STEPS))
    found = run.result()
    assert list(found) == [name for name, _ in run.model.named_parameters()]
    for name, tensor in found.items():
        seen = torch.stack([one[name] for one in run.seen])
        assert tensor.dtype == torch.float32 and tensor.shape == seen.shape[1:]
        assert (tensor >= seen.amin(0) - 1e-6).all() and (tensor <= seen.amax(0) + 1e-6).all()


def check_orthogonaliser(node):
    """Deterministic, leaves its input alone, keeps shapes and zero slices, gives the dtype that it was asked for."""
    for shape in ((3, 4, 7), (3, 7, 4), (1, 5, 5)):
        gradient_NRC = normal(*shape)
        gradient_NRC[-1] = 0
        before = gradient_NRC.clone()
        for dtype in (torch.float32, torch.bfloat16):
            got_NRC = node.apply(gradient_NRC, dtype)
            assert torch.equal(got_NRC, node.apply(gradient_NRC, dtype)) and torch.equal(gradient_NRC, before)
            assert got_NRC.shape == shape and got_NRC.dtype == dtype
            assert not got_NRC[-1].any() and got_NRC.isfinite().all()
            # Downhill: no update has a part against the gradient's singular vectors.
            assert (got_NRC.double() * gradient_NRC).sum() >= 0


def check_schedule(node):
    """Within 0 to 1 and never rising over a run by steps and one by the clock, at a pace that stays."""
    by_steps = [(Budget(60, 0.0), step, 0.0) for step in range(62)]
    by_clock = [(Budget(20_000, 60.0, reserve=5.0), step, 0.5 * step) for step in range(122)]
    for run in (by_steps, by_clock):
        factors = [node.multiplier(step, elapsed, budget) for budget, step, elapsed in run]
        assert factors == [node.multiplier(step, elapsed, budget) for budget, step, elapsed in run]
        assert factors[0] == 1.0 and all(0 <= factor <= 1 for factor in factors)
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(factors))
        assert factors[-1] == getattr(node, "floor", 0.0)


def cases(nodes):
    return pytest.mark.parametrize("node", nodes, ids=[f"{i}-{type(node).__name__}" for i, node in enumerate(nodes)])


@cases(ROWS)
def test_a_node_is_written_and_read_back(node):
    check_round_trip(node)


@cases((*GROUPS, *AVERAGES))
def test_a_run_is_deterministic(node):
    check_deterministic_run(node)


@cases((*GROUPS, *AVERAGES))
def test_a_state_goes_on_where_it_was_cut(node):
    check_state(node)


@cases((*GROUPS, *AVERAGES))
def test_a_state_is_as_large_as_its_node_says(node):
    check_size(node)


@cases(AVERAGES)
def test_an_average_lies_within_what_it_saw(node):
    check_hull(node)


@cases(ORTHOGONALISERS)
def test_an_orthogonaliser_is_deterministic_and_keeps_zeros(node):
    check_orthogonaliser(node)


@cases(SCHEDULES)
def test_a_schedule_falls_within_zero_and_one(node):
    check_schedule(node)


# --- the table


def kinds_of_the_room():
    """Every node type that a module of fairway.optim defines."""
    for found in pkgutil.iter_modules(fairway.optim.__path__):
        importlib.import_module(f"fairway.optim.{found.name}")
    return {kind for kind in node_kinds().values() if kind.__module__.startswith("fairway.optim.")}


def test_no_node_of_the_room_is_missing():
    assert {kind.__name__ for kind in kinds_of_the_room()} == {type(row).__name__ for row in ROWS}


def test_no_row_stands_twice():
    assert len({repr(row) for row in ROWS}) == len(ROWS)


# --- made-up nodes that fail


@dataclass(frozen=True)
class RisingAgain(ScheduleSite):
    def multiplier(self, step, elapsed, budget):
        return 1 - abs(budget.progress(step, elapsed) - 0.5) if step else 1.0


@dataclass(frozen=True)
class DividesByNothing(OrthogonaliserSite):
    def apply(self, gradient_NRC, dtype):
        return (gradient_NRC / torch.linalg.matrix_norm(gradient_NRC, keepdim=True)).to(dtype)


@dataclass(frozen=True)
class Uphill(OrthogonaliserSite):
    def apply(self, gradient_NRC, dtype):
        return -Quintic().apply(gradient_NRC, dtype)


@dataclass(frozen=True)
class FarOffEMA(EMA):
    """Begins far from all that it will see, and counts it; says that it keeps twice what it does."""

    copies = 2

    def build(self, model):
        state = super().build(model)
        state.steps = 10**6
        for tensor in state.averages.values():
            tensor.add_(100.0)
        return state


@dataclass(frozen=True)
class ForgetfulEMA(EMA):
    """Takes nothing from a state that it is to go on from."""

    def build(self, model):
        state = super().build(model)
        state.restore = lambda saved: None
        return state


@dataclass(frozen=True)
class DicingEMA(EMA):
    """Begins anywhere, and counts it."""

    def build(self, model):
        state = super().build(model)
        state.steps = 10**6
        for tensor in state.averages.values():
            tensor.normal_()
        return state


@pytest.mark.parametrize(
    "check, node",
    [
        (check_schedule, RisingAgain()),
        (check_orthogonaliser, DividesByNothing()),
        (check_orthogonaliser, Uphill()),
        (check_hull, FarOffEMA()),
        (check_size, FarOffEMA()),
        (check_state, ForgetfulEMA(decay=0.5)),
        (check_deterministic_run, DicingEMA()),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_the_checks_see_what_breaks_a_promise(check, node):
    with pytest.raises(AssertionError):
        check(node)


def test_groups_of_the_table_take_what_they_are_given():
    assert {row.roles for row in GROUPS} == {ROLES}
