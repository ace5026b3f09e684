"""Hessians: every input of every matrix counts, on every rank. M inputs, C columns."""

from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from conformance.table import BASE, random_ids, randomise
from fairway.model.inputs import BigramHash
from fairway.model.plan import AddSkip, Loop
from fairway.problem import Problem
from fairway.quantize import hessian
from fairway.quantize.hessian import Calibration, CalibrationContext, collect_hessians, output_error
from fairway.train.dist import World

MODEL = replace(BASE, inputs=(*BASE.inputs, BigramHash(buckets=32, dim=8)), plan=Loop(1, 2, 3, 0.5, AddSkip()))
NAMES = (
    "blocks.0.attn.query", "blocks.1.attn.key", "blocks.1.attn.value", "blocks.1.attn.output", "blocks.2.mlp.up",
    "blocks.2.mlp.down", "bigram.proj", "token.table",
)  # fmt: skip
ALONE = World(0, 1, torch.device("cpu"))


def batches(count=3):
    return [random_ids(MODEL, seed=seed) for seed in range(count)]


def literal(model, some):
    """Mean over tokens of the sum of x x^T over a matrix's inputs, in float64, one position after the other."""
    sums, visits, tokens = {}, {}, 0

    def linear(x, weight, name):
        visits[name] = visits.get(name, 0) + 1
        for row_C in x.detach().double().flatten(0, -2):
            sums[name] = sums.get(name, 0) + torch.outer(row_C, row_C)
        return F.linear(x, weight)

    for ids_BT in some:
        model(ids_BT, linear=linear)
        tokens += ids_BT.numel()
    return {name: value / tokens for name, value in sums.items()}, visits


@pytest.fixture(scope="module")
def model():
    return randomise(MODEL.build(0))


def test_every_input_of_a_matrix_counts_also_the_second_and_third_pass_of_a_loop(model):
    found = collect_hessians(model, NAMES, batches(), ALONE)
    expected, visits = literal(model, batches())
    assert set(found) == set(NAMES)
    assert visits["blocks.1.attn.key"] == 3 * visits["blocks.0.attn.query"]
    for name, hessian_CC in found.items():
        assert hessian_CC.dtype == torch.float32
        torch.testing.assert_close(hessian_CC.double(), expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].max()))
    assert found["blocks.2.mlp.down"].shape == (32, 32) and found["bigram.proj"].shape == (8, 8)


def test_queries_keys_and_values_take_one_square_and_keep_sums_of_their_own(model, monkeypatch):
    calls, square = [], hessian._second_moment
    monkeypatch.setattr(hessian, "_second_moment", lambda x_MC: calls.append(1) or square(x_MC))
    names = [f"blocks.0.attn.{kind}" for kind in ("query", "key", "value", "output")]
    found = collect_hessians(model, names, batches(2), ALONE)
    assert len(calls) == 2 * 2
    assert torch.equal(found[names[0]], found[names[2]]) and found[names[0]] is not found[names[2]]
    found[names[0]].zero_()
    assert found[names[2]].any()


class Recorder(World):
    """Notes what is summed."""

    def __init__(self):
        super().__init__(0, 1, torch.device("cpu"))
        self.sent = []

    def all_reduce_sum(self, tensor):
        self.sent.append(tensor.clone())
        return tensor


class Partner(World):
    """One of two ranks; the other has sent `sent`, in this order."""

    def __init__(self, sent):
        super().__init__(0, 2, torch.device("cpu"))
        self.sent = list(sent)

    def all_reduce_sum(self, tensor):
        return tensor.add_(self.sent.pop(0))


def test_ranks_add_up_to_one_rank_that_reads_all_of_it_whatever_order_names_come_in(model):
    other = Recorder()
    collect_hessians(model, NAMES, batches()[:1], other)
    world = Partner(other.sent)
    both = collect_hessians(model, set(NAMES[::-1]), batches()[1:], world)
    assert not world.sent
    for name, hessian_CC in collect_hessians(model, NAMES, batches(), ALONE).items():
        torch.testing.assert_close(both[name], hessian_CC, rtol=1e-5, atol=1e-7)


def test_half_precision_activations_are_summed_in_float32():
    model = randomise(MODEL.build(0, torch.bfloat16))
    found = collect_hessians(model, NAMES, batches(), ALONE)
    expected, _ = literal(model, batches())
    for name, hessian_CC in found.items():
        assert hessian_CC.dtype == torch.float32
        torch.testing.assert_close(hessian_CC.double(), expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].max()))


@pytest.mark.parametrize(
    ("tokens", "size", "expected"), [(1, 1, 1), (95, 1, 3), (96, 1, 3), (81, 1, 3), (79, 1, 2), (128, 2, 2)]
)
def test_calibration_takes_whole_micro_batches_of_all_ranks(model, tokens, size, expected):
    told, taken = [], []

    def following():
        taken.append(1)
        return random_ids(MODEL), None

    world = SimpleNamespace(size=size, device=torch.device("cpu"), all_reduce_sum=lambda tensor: tensor.mul_(size))
    context = CalibrationContext(SimpleNamespace(next=following), world, None, 32, lambda *one: told.append(one[:2]))
    found = Calibration(tokens=tokens).hessians(model, NAMES[:1], context)
    assert len(taken) == expected and told == [(i + 1, expected) for i in range(expected)]
    torch.testing.assert_close(found, collect_hessians(model, NAMES[:1], [random_ids(MODEL)], ALONE), rtol=1e-5, atol=1e-7)


def test_a_table_that_is_only_looked_up_has_no_hessian_and_is_named(model):
    context = CalibrationContext(SimpleNamespace(next=cycle([(random_ids(MODEL), None)]).__next__), ALONE, None, 32)
    with pytest.raises(Problem, match=r"bigram\.table is looked up and multiplies nothing.*Nearest"):
        Calibration(tokens=32).hessians(model, {*NAMES, "bigram.table"}, context)
    with pytest.raises(Problem, match="tokens is 0"):
        Calibration(tokens=0)


def test_output_error_is_the_mean_squared_error_that_the_outputs_have():
    draw = torch.Generator().manual_seed(0)
    x_MC, error_RC = torch.randn(50, 6, generator=draw, dtype=torch.float64), torch.randn(4, 6, generator=draw).double()
    expected = (x_MC @ error_RC.T).square().sum(1).mean()
    torch.testing.assert_close(output_error(error_RC, x_MC.T @ x_MC / 50), expected)
