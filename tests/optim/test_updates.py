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
from fairway.optim.orthogonal import QUINTIC, Quintic
from fairway.optim.schedule import Moment, Ramp
from fairway.problem import Problem
from fairway.sites import GroupSite
from fairway.train.dist import Done, World

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
    """A bank of three tall matrices, a wide plain one, a table and a scalar: every path of the optimiser."""

    def __init__(self, seed=0):
        super().__init__()
        self.own_bank(
            "bank_NRC", normal(3, 6, 4, seed=seed), "matrix", [(f"blocks.{i}.up", "matrix.up", i) for i in range(3)]
        )
        self.own("plain_RC", "plain", normal(3, 5, seed=seed + 1), "projection")
        self.own("table_RC", "table", normal(7, 2, seed=seed + 2), "embedding")
        self.own("gain", "gain", normal(5, seed=seed + 3), "scalar")

    def set_gradients(self, seed, scale=1.0):
        for index, parameter in enumerate(self.parameters()):
            parameter.grad = normal(*parameter.shape, seed=100 * seed + index) * scale


# --- orthogonalisation


def literal_quintic(matrix_RC, steps=5):
    a, b, c = QUINTIC
    x = matrix_RC.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (x.square().sum().sqrt() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix_RC.shape[0] > matrix_RC.shape[1] else x


@pytest.mark.parametrize("shape", [(1, 5, 5), (4, 8, 3), (3, 4, 9), (2, 1, 6), (2, 6, 1)])
def test_newton_schulz_is_the_float64_formula_slice_by_slice(shape):
    gradient_NRC = normal(*shape) * 10
    got_NRC = Quintic().apply(gradient_NRC, torch.float32)
    exact_NRC = torch.stack([literal_quintic(matrix) for matrix in gradient_NRC])
    torch.testing.assert_close(got_NRC.double(), exact_NRC, rtol=1e-3, atol=1e-4)


def test_newton_schulz_keeps_singular_vectors_and_brings_values_near_one():
    u, _, v = torch.linalg.svd(normal(12, 12).double())
    values = torch.linspace(1.0, 0.02, 12, dtype=torch.float64)
    got = Quintic().apply((u * values @ v)[None].float(), torch.float32)[0].double()
    rotated = u.T @ got @ v.T
    assert (rotated - rotated.diag().diag()).abs().max() < 1e-3
    assert rotated.diag().min() > 0.65 and rotated.diag().max() < 1.25


def test_zero_slices_stay_zero_beside_others():
    gradient_NRC = normal(3, 4, 6)
    gradient_NRC[1] = 0
    got_NRC = Quintic().apply(gradient_NRC, torch.float32)
    assert not got_NRC[1].any()
    torch.testing.assert_close(got_NRC[2:], Quintic().apply(gradient_NRC[2:], torch.float32))


def test_newton_schulz_in_bfloat16_stays_near():
    got = Quintic().apply(normal(2, 16, 24), torch.bfloat16)
    assert got.dtype == torch.bfloat16
    exact = Quintic().apply(normal(2, 16, 24), torch.float32)
    assert (got.float() - exact).norm() < 0.05 * exact.norm()


# --- Muon


@pytest.mark.parametrize("shape, scale", [((2, 6, 2), math.sqrt(3)), ((2, 2, 6), 1.0), ((4, 4), 1.0), ((8, 2), 2.0)])
def test_muon_takes_the_steps_worked_out_by_hand(shape, scale):
    node = Muon(rate=0.2, weight_decay=0.5, momentum=Ramp(0.92, 0.99, 2))
    parameter = nn.Parameter(normal(*shape))
    update = node.build(GroupContext({"w": parameter}, ALONE, torch.float32))
    weight, buffer = parameter.detach().double(), torch.zeros(shape, dtype=torch.float64)
    for step, (momentum, multiplier) in enumerate([(0.92, 1.0), (0.955, 0.5), (0.99, 0.25), (0.99, 0.0)]):
        gradient = normal(*shape, seed=step + 5)
        parameter.grad = gradient.clone()
        update.reduce()
        update.sharded_gradients()
        before = parameter.detach().clone()
        finish = update.step(Moment(step, 0.0, multiplier))
        assert torch.equal(parameter, before), "others' parts are on their way until it is finished"
        finish()
        buffer = momentum * buffer + gradient.double()
        nesterov = gradient.double() + momentum * buffer
        turned = torch.stack([literal_quintic(m) for m in nesterov.reshape(-1, *shape[-2:])]).reshape(shape)
        rate = 0.2 * multiplier
        weight = weight * (1 - rate * 0.5) - rate * scale * turned
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-4, atol=1e-5)


def test_the_ramp_goes_from_start_to_end_in_162_s_1500_steps():
    assert [Ramp().at(step) for step in (0, 750, 1500, 9000)] == pytest.approx([0.92, 0.955, 0.99, 0.99], abs=1e-15)


# --- AdamW


def test_adamw_decays_then_takes_adam_s_step():
    parameter = nn.Parameter(normal(3, 4))
    node = AdamW(roles=("scalar",), rate=0.02, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1)
    update = node.build(GroupContext({"w": parameter}, ALONE, torch.float32))
    weight, one, two = parameter.detach().double(), 0, 0
    for step, multiplier in enumerate([1.0, 0.5, 0.5]):
        gradient = normal(3, 4, seed=step + 5)
        parameter.grad = gradient.clone()
        update.reduce()
        update.replicated_gradients()
        update.step(Moment(step, 0.0, multiplier))()
        gradient, rate = gradient.double(), 0.02 * multiplier
        one, two = 0.9 * one + 0.1 * gradient, 0.95 * two + 0.05 * gradient**2
        weight = weight * (1 - rate * 0.1)
        weight -= rate * (one / (1 - 0.9 ** (step + 1))) / ((two / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-5, atol=1e-6)


# --- groups


def test_groups_take_the_parameters_of_their_roles():
    assert [list(group) for group in assign_groups(Toy(), GROUPS)] == [["table_RC"], ["bank_NRC", "plain_RC"], ["gain"]]


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
        self.parameters = list(context.parameters.values())

    def reduce(self):
        pass

    def sharded_gradients(self):
        return []

    def replicated_gradients(self):
        return [parameter.grad for parameter in self.parameters]

    def step(self, moment):
        for parameter in self.parameters:
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


def test_every_group_s_step_begins_before_the_first_is_finished():
    toy, notes = Toy(), []
    optimizer = Optimizer(toy, GROUPS, ALONE, torch.float32, 0.3)
    optimizer.updates = [Noted(update, number, notes) for number, update in enumerate(optimizer.updates)]
    toy.set_gradients(1)
    optimizer.step(at(4))
    assert notes == [("step", number, at(4)) for number in range(3)] + [("finish", number) for number in range(3)]


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
