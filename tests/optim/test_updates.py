"""Muon, AdamW and the optimiser of groups, on one rank and on two. N slices, R rows, C columns."""

import io
import math
import threading
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fairway.model.roles import Part
from fairway.optim.adamw import AdamW
from fairway.optim.average import SWA
from fairway.optim.muon import Muon
from fairway.optim.optimizer import GroupContext, Optimizer, assign_groups
from fairway.optim.orthogonal import MuonEqR, Quintic, Turbo
from fairway.optim.schedule import DecaySchedule, Moment, Ramp
from fairway.problem import Problem
from fairway.sites import GroupSite
from fairway.train.dist import Done, World
from optim.literal import literal_equal_rows, literal_quintic, literal_turbo

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
GROUPS = (
    AdamW(roles=("embedding", "table"), rate=0.03),
    Muon(roles=("matrix", "projection"), momentum=Ramp(0.5, 0.9, 4)),
    AdamW(roles=("scalar",), rate=0.02),
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at(step):
    return Moment(step, step / 10, 0.4)


class Toy(Part):
    """A bank of three tall matrices, plain ones of two shapes, a table and a scalar: every path of the optimiser."""

    def __init__(self, seed=0):
        super().__init__()
        self.own_bank(
            "bank_NRC", normal(3, 6, 4, seed=seed), "matrix", [(f"blocks.{i}.up", "matrix.up", i) for i in range(3)]
        )
        self.own("plain_RC", "plain", normal(3, 5, seed=seed + 1), "projection")
        self.own("table_RC", "table", normal(7, 2, seed=seed + 2), "embedding")
        self.own("gain", "gain", normal(5, seed=seed + 3), "scalar")
        self.own("twin_RC", "twin", normal(3, 5, seed=seed + 4), "projection")
        self.own("tall_RC", "tall", normal(4, 2, seed=seed + 5), "projection")

    def set_gradients(self, seed, scale=1.0):
        for index, parameter in enumerate(self.parameters()):
            parameter.grad = normal(*parameter.shape, seed=100 * seed + index) * scale


# --- Muon

# Progress and the schedule's factor at four steps, and what tapering from 1 at 0.5 to 0.2 at 1 gives there.
MOMENTS = [Moment(0, 0.0, 1.0), Moment(1, 0.5, 0.5), Moment(2, 0.75, 0.25), Moment(3, 1.0, 0.0)]
TAPER, TAPERED = ((0.0, 1.0), (0.5, 1.0), (1.0, 0.2)), (1.0, 1.0, 0.6, 0.2)
SCHEDULES = {
    DecaySchedule(): (1.0, 0.5, 0.25, 0.0),
    DecaySchedule(TAPER): (1.0, 0.5, 0.15, 0.0),
    DecaySchedule(TAPER, follows_rate=False): TAPERED,
}
DECAYS = pytest.mark.parametrize("decay", SCHEDULES, ids=["rate", "taper", "decoupled"])
SHAPES = [((2, 6, 2), math.sqrt(3)), ((2, 2, 6), 1.0), ((4, 4), 1.0), ((8, 2), 2.0)]


@DECAYS
@pytest.mark.parametrize("decay_last", [False, True])
@pytest.mark.parametrize(
    "orthogonaliser, literal",
    [(Quintic(), literal_quintic), (Turbo(), literal_turbo), (MuonEqR(), literal_equal_rows)],
    ids=["quintic", "turbo", "equal rows"],
)
def test_muon_takes_the_steps_worked_out_by_hand(orthogonaliser, literal, decay_last, decay):
    """Banks and plain matrices, tall and wide, in one group."""
    node = Muon(
        rate=0.2, weight_decay=0.5, momentum=Ramp(0.92, 0.99, 2), orthogonaliser=orthogonaliser, decay_last=decay_last,
        decay=decay,
    )  # fmt: skip
    parameters = {str(shape): nn.Parameter(normal(*shape)) for shape, _ in SHAPES}
    update = node.build(GroupContext(parameters, ALONE, torch.float32))
    weights = {name: parameter.detach().double() for name, parameter in parameters.items()}
    buffers = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for moment, momentum, factor in zip(MOMENTS, (0.92, 0.955, 0.99, 0.99), SCHEDULES[decay], strict=True):
        for index, parameter in enumerate(parameters.values()):
            parameter.grad = normal(*parameter.shape, seed=10 * moment.step + index + 5)
        update.reduce()
        update.sharded_gradients()
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        finish = update.step(moment)
        assert all(torch.equal(parameters[name], before[name]) for name in before), "others' parts are on their way"
        finish()
        for (shape, scale), (name, parameter) in zip(SHAPES, parameters.items(), strict=True):
            gradient = parameter.grad.double()
            buffers[name] = momentum * buffers[name] + gradient
            nesterov = gradient + momentum * buffers[name]
            turned = torch.stack([literal(m) for m in nesterov.reshape(-1, *shape[-2:])]).reshape(shape)
            stride, kept = 0.2 * moment.multiplier * scale * turned, 1 - 0.2 * 0.5 * factor
            weights[name] = (weights[name] - stride) * kept if decay_last else weights[name] * kept - stride
            torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-4, atol=1e-5)


def test_muon_shards_banks_and_replicates_plain_matrices():
    toy, world = Toy(), ThreadWorld(0, None, None)
    update = Optimizer(toy, GROUPS, world, torch.float32, 0.3).updates[1]
    assert [shard.parameter is toy.bank_NRC for shard in update.shards] == [True]
    assert {id(p) for p in update.replicated} == {id(toy.plain_RC), id(toy.twin_RC), id(toy.tall_RC)}
    assert sorted(tuple(buffer.shape) for buffer in update.buffers) == [(2, 6, 4), (3, 5), (3, 5), (4, 2)]


def test_muon_refuses_what_has_no_matrices():
    with pytest.raises(Problem, match=r"Muon takes matrices and banks of them; gain is \(5,\): leave it to AdamW"):
        Optimizer(Toy(), (*GROUPS[:1], Muon(roles=("matrix", "projection", "scalar"))), ALONE, torch.float32, 0.3)


def test_floats_of_state_for_each_parameter_are_said():
    assert (Muon().moments, AdamW(roles=(), rate=0.1).moments) == (1, 2)


def test_the_ramp_goes_from_start_to_end_in_162_s_1500_steps():
    assert [Ramp().at(step) for step in (0, 750, 1500, 9000)] == pytest.approx([0.92, 0.955, 0.99, 0.99], abs=1e-15)


# --- AdamW


@DECAYS
def test_adamw_decays_then_takes_adam_s_step(decay):
    parameter = nn.Parameter(normal(3, 4))
    node = AdamW(roles=("scalar",), rate=0.02, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.7, decay=decay)
    update = node.build(GroupContext({"w": parameter}, ALONE, torch.float32))
    assert [p is parameter for p in update.replicated] == [True] and update.sharded_gradients() == []
    weight, one, two = parameter.detach().double(), 0, 0
    for moment, factor in zip(MOMENTS, SCHEDULES[decay], strict=True):
        gradient = normal(3, 4, seed=moment.step + 5)
        parameter.grad = gradient.clone()
        update.reduce()
        update.step(moment)()
        gradient, powers = gradient.double(), moment.step + 1
        one, two = 0.9 * one + 0.1 * gradient, 0.95 * two + 0.05 * gradient**2
        weight = weight * (1 - 0.02 * 0.7 * factor)
        weight -= 0.02 * moment.multiplier * (one / (1 - 0.9**powers)) / ((two / (1 - 0.95**powers)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-5, atol=1e-6)


# --- groups


def test_groups_take_the_parameters_of_their_roles():
    assert [list(group) for group in assign_groups(Toy(), GROUPS)] == [
        ["table_RC"],
        ["bank_NRC", "plain_RC", "twin_RC", "tall_RC"],
        ["gain"],
    ]


@pytest.mark.parametrize(
    "groups, says",
    [
        (GROUPS[:2], r"0 optimiser groups take gain \(role scalar\)"),
        ((*GROUPS, AdamW(roles=("embedding",), rate=0.1)), r"2 optimiser groups take table_RC \(role embedding\)"),
        ((GROUPS[0], AdamW(roles=("matrix",), rate=1.0), *GROUPS[1:]), r"2 optimiser groups take bank_NRC \(role matrix\)"),
        ((*GROUPS, AdamW(roles=("table",), rate=0.1)), r"AdamW for roles \('table',\) has no parameters"),
        ((), "0 optimiser groups take bank_NRC"),
    ],
)
def test_groups_that_do_not_cover_the_model_exactly_are_named(groups, says):
    with pytest.raises(Problem, match=says):
        assign_groups(Toy(), groups)


@dataclass(frozen=True)
class PlainDescent(GroupSite):
    """W <- W - g: shows the gradient that a group was given."""

    roles: tuple[str, ...] = ("matrix", "projection", "embedding", "scalar")

    def build(self, context):
        return PlainDescentUpdate(context)


class PlainDescentUpdate:
    def __init__(self, context):
        self.replicated = list(context.parameters.values())

    def reduce(self):
        pass

    def sharded_gradients(self):
        return []

    def step(self, moment):
        for parameter in self.replicated:
            parameter.data.sub_(parameter.grad, alpha=moment.multiplier)
        return lambda: None


@pytest.mark.parametrize("clip, scale, kept", [(0.3, 1.0, None), (0.3, 1e-3, 1.0), (0.0, 1.0, 1.0)])
def test_the_global_norm_is_clipped_and_returned_as_it_was(clip, scale, kept):
    toy = Toy()
    before = [parameter.detach().clone() for parameter in toy.parameters()]
    toy.set_gradients(1, scale)
    gradients = [parameter.grad.clone() for parameter in toy.parameters()]
    exact = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    norm = Optimizer(toy, (PlainDescent(),), ALONE, torch.float32, clip).step(Moment(0, 0.0, 1.0))
    assert norm.item() == pytest.approx(exact, rel=1e-6)
    factor = clip / exact if kept is None else kept
    for old, gradient, parameter in zip(before, gradients, toy.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), old - factor * gradient, rtol=1e-4, atol=1e-6)
        assert parameter.grad is None


@pytest.mark.parametrize("idle", ["bank_NRC", "plain_RC", "table_RC", "gain"])
def test_a_parameter_without_a_gradient_gets_zeros(idle):
    """It only decays, whichever group it is in, and the others' norm is what it would be with zeros given."""
    toy, twin = Toy(), Toy()
    for one in (toy, twin):
        one.set_gradients(1)
    getattr(toy, idle).grad = None
    getattr(twin, idle).grad.zero_()
    before, decays = getattr(toy, idle).detach().clone(), {"bank_NRC": (0.02, 0.04), "plain_RC": (0.02, 0.04)}
    rate, decay = decays.get(idle, (0.03 if idle == "table_RC" else 0.02, 0.01))
    norms = [Optimizer(one, GROUPS, ALONE, torch.float32, 0.3).step(at(0)) for one in (toy, twin)]
    assert norms[0] == norms[1] > 1
    torch.testing.assert_close(getattr(toy, idle).detach(), before * (1 - 0.4 * rate * decay), rtol=1e-6, atol=0)
    for parameter, other in zip(toy.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other) and parameter.grad is None


@dataclass
class Noted:
    """Notes when a group's step begins and when it is finished."""

    update: object
    number: int
    notes: list

    def __getattr__(self, name):
        return getattr(self.update, name)

    def step(self, moment):
        self.notes.append(("step", self.number, moment))
        finish = self.update.step(moment)
        return lambda: self.notes.append(("finish", self.number)) or finish()


def test_groups_with_shards_begin_first_and_all_have_begun_before_the_first_is_finished():
    toy, notes = Toy(), []
    optimizer = Optimizer(toy, GROUPS, ALONE, torch.float32, 0.3)
    optimizer.updates = [Noted(update, number, notes) for number, update in enumerate(optimizer.updates)]
    toy.set_gradients(1)
    optimizer.step(at(4))
    # The second of the three is Muon.
    assert notes == [("step", number, at(4)) for number in (1, 0, 2)] + [("finish", number) for number in (1, 0, 2)]


# --- state


def saved(thing):
    """Through a file's bytes and back, as a checkpoint goes."""
    out = io.BytesIO()
    torch.save(thing, out)
    out.seek(0)
    return torch.load(out, weights_only=True)


def run(toy, optimizer, average, steps):
    for step in steps:
        toy.set_gradients(step)
        optimizer.step(at(step))
        average.after_step(at(step))


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_going_on_from_a_saved_state_is_the_same_to_the_bit(stop):
    def fresh(toy):
        return toy, Optimizer(toy, GROUPS, ALONE, torch.float32, 0.3), SWA(below=0.5, every=2).build(toy)

    whole = fresh(Toy())
    run(*whole, range(6))
    first = fresh(Toy())
    run(*first, range(stop))
    state = saved([first[0].state_dict(), first[1].state(), first[2].state()])
    second = fresh(Toy(seed=50))
    second[0].load_state_dict(state[0])
    second[1].restore(state[1])
    second[2].restore(state[2])
    run(*second, range(stop, 6))
    assert first[0].bank_NRC.ne(whole[0].bank_NRC).any()
    assert second[2].summary() == whole[2].summary() == "SWA of 3 snapshots"
    assert all(torch.equal(one, whole[2].tensors()[name]) for name, one in second[2].tensors().items())
    for one, two in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, two)


# --- two ranks in one process


class ThreadWorld(World):
    """One of two ranks that meet at a barrier and add up by hand."""

    def __init__(self, rank, board, barrier):
        super().__init__(rank, 2, CPU)
        self.board, self.barrier = board, barrier

    def meet(self, tensor):
        self.board[self.rank] = tensor.clone()
        self.barrier.wait(timeout=20)
        parts = [part.clone() for part in self.board]
        self.barrier.wait(timeout=20)
        return parts

    def all_reduce_sum(self, tensor):
        return tensor.copy_(sum(self.meet(tensor)))

    def all_reduce_mean(self, tensor):
        tensor.copy_(sum(self.meet(tensor)) / 2)
        return Done()

    def reduce_scatter_mean(self, whole_PRC):
        return (sum(self.meet(whole_PRC)) / 2).chunk(2)[self.rank].clone(), Done()

    def all_gather(self, part_SRC):
        return torch.cat(self.meet(part_SRC)), Done()


def train_two_ranks(states, steps, begin=None):
    """Both ranks' (toy, optimiser, norms, state), each with gradients of its own: rank r takes seeds 2 s + r."""
    board, barrier, results = [None, None], threading.Barrier(2), [None, None]

    def work(rank):
        try:
            toy = Toy()
            optimizer = Optimizer(toy, GROUPS, ThreadWorld(rank, board, barrier), torch.float32, 0.3)
            if begin is not None:
                toy.load_state_dict(begin[0])
                optimizer.restore(deepcopy(begin[1]))  # ranks read a file each; here they would share its tensors
            norms = []
            for step in steps:
                toy.set_gradients(2 * step + rank)
                norms.append(optimizer.step(at(step)).item())
            results[rank] = toy, norms, saved([toy.state_dict(), optimizer.state()]) if states else None
        finally:
            if results[rank] is None:
                barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def train_alone_on_means(steps, begin=None):
    toy = Toy()
    optimizer, norms = Optimizer(toy, GROUPS, ALONE, torch.float32, 0.3), []
    if begin is not None:
        toy.load_state_dict(begin[0])
        optimizer.restore(begin[1])
    for step in steps:
        toy.set_gradients(2 * step)
        means = [parameter.grad for parameter in toy.parameters()]
        toy.set_gradients(2 * step + 1)
        for parameter, other in zip(toy.parameters(), means, strict=True):
            parameter.grad.add_(other).div_(2)
        norms.append(optimizer.step(at(step)).item())
    return toy, norms, saved([toy.state_dict(), optimizer.state()])


def assert_same(one, two):
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_two_ranks_step_as_one_on_the_averaged_gradients():
    """Three slices and one matrix over two ranks, so both banks are padded; clipping sees the averages."""
    zero, one = train_two_ranks(False, range(4))
    alone, norms, _ = train_alone_on_means(range(4))
    assert all(torch.equal(a, b) for a, b in zip(zero[0].parameters(), one[0].parameters(), strict=True))
    assert zero[1] == one[1] == pytest.approx(norms, rel=1e-5)
    assert_same(zero[0], alone)


def test_a_state_is_whole_and_goes_on_with_another_number_of_ranks():
    together, alone = train_two_ranks(True, range(2))[0], train_alone_on_means(range(2))
    # A list with one state a group; the second is Muon's momentum by name.
    torch.testing.assert_close(together[2][1], alone[2][1], rtol=1e-5, atol=1e-6)
    whole = train_alone_on_means(range(4))[0]
    assert_same(train_alone_on_means(range(2, 4), begin=together[2])[0], whole)
    assert_same(train_two_ranks(False, range(2, 4), begin=alone[2])[0][0], whole)
