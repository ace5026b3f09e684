import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.kernels.trellis import reference_trellis_path, reference_trellis_values, trellis_path, trellis_values

# Ungerboeck's trellis as JPEG 2000 part 2 prints it: of each state the next after an even code, and after an odd one.
NEXT = ((0, 1), (2, 3), (5, 4), (7, 6), (1, 0), (3, 2), (4, 5), (6, 7))


def problem(seed, matrices, rows, spread=5.0):
    generator = torch.Generator().manual_seed(seed)
    x_NR = spread * torch.randn(matrices, rows, generator=generator)
    weight_NR = torch.rand(matrices, rows, generator=generator) + 0.1
    return x_NR, weight_NR, torch.rand(2, 255, generator=generator) * 2


def literal_values(codes):
    """One column, one row at a time, by the printed table."""
    state, values = 0, []
    for code in codes:
        values.append(2 * code + (state & 1))
        state = NEXT[state][code & 1]
    return values


def cost(codes, x_R, weight_R, price_2K=None):
    values = literal_values(codes)
    total = sum(float(w) * (float(x) - value) ** 2 for w, x, value in zip(weight_R, x_R, values, strict=True))
    if price_2K is not None:
        total += sum(float(price_2K[value - 2 * code, code + 127]) for code, value in zip(codes, values, strict=True))
    return total


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_values_are_those_of_a_walk_by_the_printed_table(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes_RC = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    values_RC = trellis_values(codes_RC)
    assert values_RC.T.tolist() == [literal_values(column) for column in codes_RC.T.tolist()]
    assert values_RC.equal(reference_trellis_values(codes_RC))
    both = trellis_values(torch.stack([codes_RC, codes_RC.flip(0)]))
    assert both[0].equal(values_RC) and both[1].equal(trellis_values(codes_RC.flip(0)))


def cheapest_of_all(x_R, weight_R, price_2K):
    """The least cost of any sequence of parities, with the nearest code of each."""
    costs = []
    for parities in itertools.product((0, 1), repeat=len(x_R)):
        state, codes = 0, []
        for x, parity in zip(x_R.tolist(), parities, strict=True):
            codes.append(parity + 2 * round((x - (state & 1) - 2 * parity) / 4))
            state = NEXT[state][parity]
        costs.append(cost(codes, x_R, weight_R, price_2K))
    return min(costs)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("priced", [False, True])
def test_a_path_costs_what_the_best_of_all_short_paths_does(rows, priced):
    x_NR, weight_NR, price_2K = problem(rows, 6, rows)
    price_2K = price_2K if priced else None
    codes_NR, _ = trellis_path(x_NR, weight_NR, price_2K)
    for codes_R, x_R, weight_R in zip(codes_NR.tolist(), x_NR, weight_NR, strict=True):
        best = cheapest_of_all(x_R, weight_R, price_2K)
        assert cost(codes_R, x_R, weight_R, price_2K) == pytest.approx(best, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(matrices=st.integers(1, 4), rows=st.integers(1, 100), priced=st.booleans(), seed=st.integers(0, 2**16))
def test_the_tree_of_products_finds_viterbis_path(matrices, rows, priced, seed):
    x_NR, weight_NR, price_2K = problem(seed, matrices, rows)
    price_2K = price_2K if priced else None
    codes_NR, values_NR = trellis_path(x_NR, weight_NR, price_2K)
    expected_NR = reference_trellis_path(x_NR, weight_NR, price_2K)
    assert codes_NR.dtype == torch.int8 and values_NR.T.equal(trellis_values(codes_NR.T))
    for n in range(matrices):  # two paths may cost the same but for rounding
        found, best = (cost(codes[n].tolist(), x_NR[n], weight_NR[n], price_2K) for codes in (codes_NR, expected_NR))
        assert found == pytest.approx(best, rel=1e-5, abs=1e-6)


def decibel(x_NR, values_NR, scalar_step):
    """By how much the error is under that of rounding to multiples of scalar_step."""
    rounded_NR = scalar_step * (x_NR / scalar_step).round()
    return 10 * math.log10((x_NR - rounded_NR).square().mean() / (x_NR - values_NR).square().mean())


@pytest.mark.parametrize("source", ["uniform", "gaussian"])
def test_a_path_errs_a_decibel_less_than_rounding_to_the_same_number_of_codes(source):
    generator = torch.Generator().manual_seed(0)
    x_NR = torch.randn(16, 1024, generator=generator) * 6
    if source == "uniform":
        x_NR = torch.rand(16, 1024, generator=generator) * 100 - 50
    _, values_NR = trellis_path(x_NR, torch.ones_like(x_NR))
    assert 1.0 < decibel(x_NR, values_NR, 2) < 1.2


def test_rows_of_great_weight_come_first():
    x_NR, _, _ = problem(0, 8, 300)
    weight_NR = torch.ones_like(x_NR)
    weight_NR[:, ::10] = 100.0
    error_NR = (x_NR - trellis_path(x_NR, weight_NR)[1]).square()
    assert error_NR[:, ::10].mean() < 0.6 * error_NR.mean()
    # The finest grid that any row can have has step 1.
    assert error_NR[:, ::10].mean() > 1 / 12


def test_dear_codes_are_avoided():
    x_NR, weight_NR, _ = problem(0, 4, 200)
    price_2K = torch.zeros(2, 255)
    price_2K[:, 127 + 2] = 1.0
    price_2K[1, 127 - 1] = 1.0
    plain_NR, _ = trellis_path(x_NR, weight_NR)
    codes_NR, values_NR = trellis_path(x_NR, weight_NR, price_2K)
    below_NR = (values_NR - 2 * codes_NR.short() == 1) & (codes_NR == -1)
    plain_below_NR = (trellis_values(plain_NR.T).T - 2 * plain_NR.short() == 1) & (plain_NR == -1)
    assert int((codes_NR == 2).sum()) < 0.5 * int((plain_NR == 2).sum())
    assert int(below_NR.sum()) < 0.5 * int(plain_below_NR.sum())


def test_values_beyond_the_codes_become_the_outermost_and_do_not_spoil_the_other_rows():
    x_NR, weight_NR, _ = problem(1, 2, 90)
    plain_NR = (x_NR - trellis_path(x_NR, weight_NR)[1]).square()
    x_NR[0, 40], x_NR[1, 40] = 1e9, -1e9
    x_NR[:, 41] = 260.0
    codes_NR, values_NR = trellis_path(x_NR, weight_NR)
    assert int(codes_NR.max()) <= 127 and int(codes_NR.min()) >= -127
    assert values_NR[0, 40] >= 252 and values_NR[1, 40] <= -251 and int(values_NR[:, 41].min()) >= 252
    error_NR = (x_NR - values_NR).square()
    error_NR[:, 40:42] = plain_NR[:, 40:42] = 0
    assert error_NR.mean() < 1.3 * plain_NR.mean()


def test_the_outermost_codes_of_both_signs_are_in_reach():
    x_NR = torch.tensor([[1e4], [-1e4]]).expand(2, 30)
    codes_NR, _ = trellis_path(x_NR, torch.ones_like(x_NR))
    assert int(codes_NR[0].max()) == 127 and int(codes_NR[1].min()) == -127
