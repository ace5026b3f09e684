import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.kernels.trellis import trellis_values
from fairway.model.roles import Leaf
from fairway.problem import Problem
from fairway.quantize.gptq import GPTQ
from fairway.quantize.hessian import output_error
from fairway.quantize.schemes import RowInt, decode_coded, part_layout, scale_values
from fairway.quantize.trellis import Trellis


def trellis(rate=0.3, sigmas=12.85, bits=6):
    return RowInt(bits=bits, sigmas=sigmas, log_scales=True, rounding=Trellis(rate=rate))


def leaf_of(weight, name="blocks.0.up"):
    return Leaf(name, "matrix.up", 0, tuple(weight.shape))


def identity(weight):
    return torch.eye(weight.shape[-1] if weight.dim() else 1)


def coded(rule, *weights, hessians=None):
    hessians = hessians or [identity(weight) for weight in weights]
    return rule.encode(list(weights), [leaf_of(weight) for weight in weights], hessians)


def inputs(columns, correlated, seed=0):
    """A Hessian of Gaussian inputs: independent ones, or with a falling spectrum and columns of different size."""
    if not correlated:
        return torch.eye(columns)
    generator = torch.Generator().manual_seed(seed)
    mix_CC = torch.randn(columns, columns, generator=generator) / torch.arange(1, columns + 1).sqrt()
    turn_CC = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    size_C = torch.exp(0.3 * torch.randn(columns, generator=generator))
    x_MC = torch.randn(4 * columns, columns, generator=generator) @ (mix_CC @ turn_CC).T * size_C
    return x_MC.T @ x_MC / len(x_MC)


def entropy(codes, group):
    """Bits a code, of an order-0 coder with tables of its own for each group."""
    bits = 0.0
    for which in group.unique():
        count = torch.bincount(codes[group == which].long() + 128)
        count = count[count > 0].double()
        bits -= float((count * (count / count.sum()).log2()).sum())
    return bits / codes.numel()


def gaussian(rows, columns, seed=1):
    generator = torch.Generator().manual_seed(seed)
    spread_R1 = torch.exp(0.1 * torch.randn(rows, 1, generator=generator))
    return 0.05 * torch.randn(rows, columns, generator=generator) * spread_R1


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_outputs_err_a_decibel_less_than_those_of_scalar_gptq_at_the_same_entropy(correlated, rate):
    w_RC = gaussian(384, 96)
    hessian_CC = inputs(96, correlated)
    scalar = RowInt(bits=6, sigmas=12.85, log_scales=True, rounding=GPTQ())
    (one,) = coded(trellis(rate), w_RC, hessians=[hessian_CC])
    (other,) = coded(scalar, w_RC, hessians=[hessian_CC])
    path_RC, q_RC = one.parts["path"], other.parts["q"]
    set_RC = trellis_values(path_RC) - 2 * path_RC.short()
    bits, scalar_bits = entropy(path_RC, set_RC), entropy(q_RC, torch.zeros_like(q_RC))
    gain = 10 * math.log10(
        output_error(w_RC - decode_coded(other), hessian_CC) / output_error(w_RC - decode_coded(one), hessian_CC)
    )
    assert 3.1 < bits < scalar_bits + 0.02
    assert 0.9 < gain < 1.5
    # 6.02 dB a bit turns one into the other.
    assert 0.15 < gain / 6.02 + scalar_bits - bits < 0.25


def test_a_price_on_bits_saves_more_than_its_error_costs():
    w_RC = gaussian(384, 96)
    results = []
    for rate in (0.0, 0.3):
        (one,) = coded(trellis(rate, sigmas=20.0), w_RC)
        path_RC = one.parts["path"]
        bits = entropy(path_RC, trellis_values(path_RC) - 2 * path_RC.short())
        results.append((bits, 10 * math.log10((w_RC - decode_coded(one)).square().mean())))
    (plain_bits, plain_error), (bits, error) = results
    assert bits < plain_bits and plain_error < error
    assert plain_bits - bits > (error - plain_error) / 6.02 + 0.005


def test_a_price_on_bits_leans_to_neither_sign():
    w_RC = gaussian(384, 96)
    (one,) = coded(trellis(0.6, sigmas=25.0), w_RC)
    error_RC = (decode_coded(one) - w_RC) / scale_values(one.parts)[:, None] / 2
    assert abs(float(error_RC.mean())) < 0.015


def test_rows_of_a_large_step_are_favoured_since_errors_add_up_in_the_weights_own_unit():
    w_RC = gaussian(240, 64)
    w_RC[::6] *= 10
    (one,) = coded(trellis(0.0), w_RC)
    error_RC = ((decode_coded(one) - w_RC) / scale_values(one.parts)[:, None] / 2).square()
    assert error_RC[::6].mean() < 0.6 * error_RC.mean()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 20),
    magnitude=st.sampled_from([1e-30, 1e-7, 6e-5, 1.0, 200.0]),
    seed=st.integers(0, 2**16),
)
def test_every_weight_comes_back_within_two_steps_where_inputs_are_independent(rows, columns, magnitude, seed):
    w_RC = magnitude * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    (one,) = coded(trellis(0.0), w_RC)
    step_R1 = scale_values(one.parts)[:, None] / 2
    # A path may pass by the nearest of its row for the sake of others, yet within its set and parity stays within 2 steps;
    # a column of weight zero is free to be anything.
    assert bool(((w_RC - decode_coded(one)).abs() <= 2 * step_R1 * (1 + 1e-5)).all())


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1), (5, 1), (1, 300), (3, 4, 5)])
def test_leaves_of_any_shape_come_back_in_it(shape):
    weight = torch.full(shape, 0.25) + 0.01 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    (one,) = coded(trellis(), weight)
    assert one.shape == shape and one.scheme == "path6.log" and one.role == "matrix.up"
    assert {name: (part.dtype, tuple(part.shape)) for name, part in one.parts.items()} == part_layout("path6.log", shape)
    torch.testing.assert_close(decode_coded(one), weight, rtol=0, atol=0.12)


def test_zero_and_constant_rows_and_the_extremes_of_float16_come_back():
    w_RC = gaussian(8, 64)
    w_RC[0] = 0
    w_RC[1] = 0.5
    w_RC[2] = 2.0**-24
    w_RC[3, 5] = 0.5  # far out, as seen from its row
    back_RC = decode_coded(coded(trellis(), w_RC)[0])
    assert back_RC[0].abs().max() <= 2.0**-23
    torch.testing.assert_close(back_RC[1], w_RC[1], rtol=0.45, atol=0)
    assert (back_RC[2] - w_RC[2]).abs().max() <= 2.0**-22
    assert back_RC[3, 5] == pytest.approx(0.5, rel=0.1)
    with pytest.raises(Problem, match=r"^blocks\.0\.up holds 1e\+06, whose scale is beyond float16"):
        coded(trellis(), torch.full((4, 4), 1e6))


def test_a_batch_is_coded_as_each_of_it_alone_in_the_order_of_the_leaves():
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(shape, generator=generator) for shape in [(30, 16), (16, 30), (30, 16), (9, 16)]]
    hessians = [inputs(weight.shape[1], True, seed) for seed, weight in enumerate(weights)]
    rule = trellis(0.0)  # the statistics that a rate goes by are those of the batch
    for one, weight, hessian_CC in zip(coded(rule, *weights, hessians=hessians), weights, hessians, strict=True):
        (alone,) = coded(rule, weight, hessians=[hessian_CC])
        assert one.shape == tuple(weight.shape)
        torch.testing.assert_close(decode_coded(one), decode_coded(alone))


def test_dead_inputs_cost_nothing_and_break_nothing():
    w_RC = gaussian(32, 24)
    hessian_CC = inputs(24, True)
    hessian_CC[:, 7] = hessian_CC[7] = 0
    back_RC = decode_coded(coded(trellis(), w_RC, hessians=[hessian_CC])[0])
    live_C = torch.arange(24) != 7
    scalar_RC = decode_coded(coded(RowInt(sigmas=12.85, log_scales=True, rounding=GPTQ()), w_RC, hessians=[hessian_CC])[0])
    assert output_error((w_RC - back_RC)[:, live_C], hessian_CC[live_C][:, live_C]) < output_error(
        (w_RC - scalar_RC)[:, live_C], hessian_CC[live_C][:, live_C]
    )


@pytest.mark.parametrize(
    "settings_of, message",
    [
        ({"rate": -0.1}, "rate -0.1"),
        ({"damp": 0.0}, "damp 0.0"),
        ({"block": 0}, "block 0"),
    ],
)
def test_senseless_settings_are_refused(settings_of, message):
    with pytest.raises(Problem, match=message):
        Trellis(**settings_of)


def test_a_rule_without_hessians_says_what_the_recipe_lacks():
    weight = torch.ones(2, 3)
    with pytest.raises(Problem, match=r"give the recipe calibrate=\(Calibration\(\),\)"):
        trellis().encode([weight], [leaf_of(weight)], [None])
