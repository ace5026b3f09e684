"""GPTQ against its definition, written out in float64, and what it is for: less error in the outputs. H_CC = mean x x^T."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.node import parse_node
from fairway.problem import Problem
from fairway.quantize.gptq import GPTQ, Nearest, gptq_sweep
from fairway.quantize.hessian import output_error


def problem(rows=24, columns=70, seed=0, correlated=True, count=3):
    """Weights [N, R, C], scales of 4 bits, Hessians of inputs that share a few directions, sizes far apart."""
    draw = torch.Generator().manual_seed(seed)
    w_NRC = torch.randn(count, rows, columns, generator=draw) * 0.1
    x_NMC = torch.randn(count, 600, columns, generator=draw)
    if correlated:
        x_NMC = x_NMC + torch.randn(count, 600, 5, generator=draw) @ torch.randn(count, 5, columns, generator=draw)
        x_NMC = x_NMC * torch.rand(count, 1, columns, generator=draw)
    return w_NRC, w_NRC.abs().amax(-1) / 7, x_NMC.mT @ x_NMC / 600


def literal_gptq(w_RC, scale_R, top, hessian_CC, damp):
    """Column by column with the inverse of what is left of the Hessian taken anew each time; float64."""
    w_RC, scale_R, hessian_CC = w_RC.double().clone(), scale_R.double(), hessian_CC.double().clone()
    diagonal_C = hessian_CC.diagonal()
    dead_C = diagonal_C == 0
    mean = diagonal_C[~dead_C].mean()
    diagonal_C[dead_C] = 1.0
    diagonal_C += damp * mean
    w_RC[:, dead_C] = 0
    codes_RC = torch.zeros_like(w_RC)
    left = diagonal_C.argsort(descending=True, stable=True).tolist()
    while left:
        inverse = hessian_CC[left][:, left].inverse()
        column = left[0]
        codes_RC[:, column] = (w_RC[:, column] / scale_R).round().clamp(-top, top)
        error_R = w_RC[:, column] - codes_RC[:, column] * scale_R
        w_RC[:, left] -= torch.outer(error_R / inverse[0, 0], inverse[0])
        left = left[1:]
    return codes_RC.to(torch.int8)


def errors(w_NRC, codes_NRC, scale_NR, hessian_NCC):
    return torch.stack(list(map(output_error, w_NRC - codes_NRC * scale_NR[..., None], hessian_NCC)))


@pytest.mark.parametrize("columns", [1, 16, 70])
@pytest.mark.parametrize("block", [1, 16, 128])
def test_codes_are_those_of_the_definition(columns, block):
    w_NRC, scale_NR, hessian_NCC = problem(columns=columns)
    if columns > 1:
        hessian_NCC[:, 5] = hessian_NCC[:, :, 5] = 0
    codes_NRC = GPTQ(damp=0.02, block=block).round(w_NRC, scale_NR, 7, hessian_NCC)
    expected = torch.stack([literal_gptq(*one, 7, h, 0.02) for *one, h in zip(w_NRC, scale_NR, hessian_NCC, strict=True)])
    # A value within float32's rounding of a half may go the other way; none of these does.
    assert torch.equal(codes_NRC, expected)
    assert codes_NRC.dtype == torch.int8 and codes_NRC.is_contiguous()


def test_a_batch_is_its_matrices_one_by_one_and_its_inputs_stay_as_they_were():
    given_ = problem(columns=200)
    w_NRC, scale_NR, hessian_NCC = before = [one.clone() for one in given_]
    together = GPTQ(prune=0.5).round(w_NRC, scale_NR, 7, hessian_NCC)
    alone = [GPTQ(prune=0.5).round(w_NRC[i : i + 1], scale_NR[i : i + 1], 7, hessian_NCC[i : i + 1])[0] for i in range(3)]
    assert torch.equal(together, torch.stack(alone))
    assert all(torch.equal(one, old) for one, old in zip(given_, before, strict=True))


def test_correlated_inputs_suffer_far_less_than_from_nearest_and_others_no_more():
    w_NRC, scale_NR, hessian_NCC = problem(rows=64, columns=200)
    nearest = errors(w_NRC, Nearest().round(w_NRC, scale_NR, 7, None), scale_NR, hessian_NCC)
    assert (errors(w_NRC, GPTQ().round(w_NRC, scale_NR, 7, hessian_NCC), scale_NR, hessian_NCC) < 0.5 * nearest).all()
    eye_NCC = torch.eye(200).expand(3, -1, -1)
    assert torch.equal(GPTQ().round(w_NRC, scale_NR, 7, eye_NCC), Nearest().round(w_NRC, scale_NR, 7, None))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 150),
    size=st.floats(-12, 4),
    inputs=st.floats(-9, 9),
    seed=st.integers(0, 2**31),
)
def test_no_weights_and_no_inputs_lead_beyond_the_codes_or_to_more_error_than_half_again_of_nearest(
    rows, columns, size, inputs, seed
):
    w_NRC, _, hessian_NCC = problem(rows, columns, seed, count=1)
    w_NRC, hessian_NCC = w_NRC * 10.0**size, hessian_NCC * 10.0**inputs
    w_NRC[:, 0] = 0
    scale_NR = (w_NRC.abs().amax(-1) / 31).clamp(min=2.0**-24)
    codes_NRC = GPTQ().round(w_NRC, scale_NR, 31, hessian_NCC)
    assert codes_NRC.abs().max() <= 31 and not codes_NRC[:, 0].any()
    found = errors(w_NRC, codes_NRC, scale_NR, hessian_NCC)
    nearest = errors(w_NRC, Nearest().round(w_NRC, scale_NR, 31, None), scale_NR, hessian_NCC)
    assert found.isfinite().all() and (found <= 1.5 * nearest).all()


def test_dead_columns_are_zero_and_change_nothing_else():
    w_NRC, scale_NR, hessian_NCC = problem(columns=40)
    live = [column for column in range(40) if column not in (3, 17, 39)]
    hessian_NCC[:, [3, 17, 39]] = 0
    hessian_NCC[:, :, [3, 17, 39]] = 0
    codes_NRC = GPTQ().round(w_NRC, scale_NR, 7, hessian_NCC)
    assert not codes_NRC[..., [3, 17, 39]].any()
    small_NCC = hessian_NCC[:, live][:, :, live]
    assert torch.equal(codes_NRC[..., live], GPTQ().round(w_NRC[..., live], scale_NR, 7, small_NCC))
    assert not GPTQ().round(w_NRC, scale_NR, 7, torch.zeros_like(hessian_NCC)).any()


def test_a_choice_sees_columns_by_descending_diagonal_and_what_an_error_there_costs():
    w_NRC, _, hessian_NCC = problem(columns=12, count=1)
    seen, weights = [], []

    def choose(x_NR, weight_N):
        seen.append(x_NR.clone())
        weights.append(weight_N)
        return torch.ones_like(x_NR), x_NR  # no error, so nothing is fed forward

    codes_NRC = gptq_sweep(w_NRC, hessian_NCC, choose, damp=0.01, block=5)
    order = hessian_NCC[0].diagonal().argsort(descending=True)
    assert torch.equal(torch.stack(seen, dim=-1), w_NRC[..., order]) and (codes_NRC == 1).all()
    damped = hessian_NCC[0].double() + 0.01 * hessian_NCC[0].diagonal().mean() * torch.eye(12)
    # 1 / d^2 is the inverse of the column's entry in the inverse of what is left.
    costs = [1 / damped[order[i:]][:, order[i:]].inverse()[0, 0] for i in range(12)]
    torch.testing.assert_close(torch.cat(weights).double(), torch.stack(costs), rtol=1e-4, atol=0)


def test_a_hessian_without_a_factor_is_damped_more_and_its_neighbours_are_not():
    w_NRC, scale_NR, hessian_NCC = problem(columns=30)
    hessian_NCC[1] -= 0.05 * hessian_NCC[1].diagonal().mean() * torch.eye(30)
    assert torch.linalg.eigvalsh(hessian_NCC[1])[0] < -0.01 * hessian_NCC[1].diagonal().mean()
    codes_NRC = GPTQ().round(w_NRC, scale_NR, 7, hessian_NCC)
    for i, damp in enumerate((0.01, 0.1, 0.01)):
        one = slice(i, i + 1)
        assert torch.equal(codes_NRC[one], GPTQ(damp=damp).round(w_NRC[one], scale_NR[one], 7, hessian_NCC[one]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -1e9])
def test_a_hessian_that_no_damping_mends_is_a_problem(broken):
    w_NRC, scale_NR, hessian_NCC = problem(columns=30)
    hessian_NCC[2, 4, 4] = broken
    with pytest.raises(Problem, match="a Hessian of 30 columns has no Cholesky factor even with damping 100"):
        GPTQ().round(w_NRC, scale_NR, 7, hessian_NCC)


def test_more_pruning_leaves_more_zeros_and_touches_only_the_cheapest_ones():
    w_NRC, scale_NR, hessian_NCC = problem(rows=64, columns=100)
    zeros, found = [], []
    for prune in (0.0, 0.01, 0.1, 0.3, 1.0, 1e9):
        codes_NRC = GPTQ(prune=prune).round(w_NRC, scale_NR, 7, hessian_NCC)
        zeros.append(int((codes_NRC == 0).sum()))
        found.append(float(errors(w_NRC, codes_NRC, scale_NR, hessian_NCC).sum()))
    assert zeros == sorted(zeros) and len(set(zeros)) == len(zeros)
    assert found == sorted(found)
    assert not (codes_NRC.abs() == 1).any()
    # As much pruned afterwards, by the scale alone, without anything to make up for it.
    plain_NRC = GPTQ().round(w_NRC, scale_NR, 7, hessian_NCC)
    cost = torch.where(plain_NRC.abs() == 1, scale_NR[..., None].expand_as(w_NRC), torch.inf).flatten()
    plain_NRC.view(-1)[cost.argsort(stable=True)[: zeros[3] - zeros[0]]] = 0
    assert found[3] < 0.8 * float(errors(w_NRC, plain_NRC, scale_NR, hessian_NCC).sum())


def test_pruning_does_not_depend_on_the_size_of_weights_or_inputs():
    w_NRC, scale_NR, hessian_NCC = problem(columns=50)
    expected = GPTQ(prune=0.2).round(w_NRC, scale_NR, 7, hessian_NCC)
    assert torch.equal(GPTQ(prune=0.2).round(w_NRC * 64, scale_NR * 64, 7, hessian_NCC / 1024), expected)


@pytest.mark.parametrize("fields", [{"damp": 0.0}, {"block": 0}, {"prune": -0.1}])
def test_a_gptq_that_means_nothing_is_refused_when_written(fields):
    with pytest.raises(Problem, match=f"{next(iter(fields))} {next(iter(fields.values()))}"):
        GPTQ(**fields)
    assert parse_node(repr(GPTQ(prune=0.5))) == GPTQ(prune=0.5)
