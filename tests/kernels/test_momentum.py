"""Momentum and the update in Triton's interpreter (on a card with --gpu) against float64. N slices, R rows, C columns."""

from importlib.util import find_spec

import pytest
import torch

from fairway.kernels.momentum import (
    decayed_add_,
    launch_decayed_add_,
    launch_nesterov_,
    nesterov_,
    reference_decayed_add_,
    reference_nesterov_,
)
from optim.ahead import compile_ahead

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDING = 2**-7 if DEVICE.type == "cpu" else 2**-8  # bfloat16 keeps 8 bits; the interpreter cuts off, a card rounds
SHAPES = [(2, 32, 512), (1, 48, 16), (3, 7, 5), (1, 1, 1), (2, 3, 100), (1, 70, 65), (2, 5, 2048), (1, 1, 8192)]


def fresh(*shape):
    return torch.randn(shape, device=DEVICE)


def poisoned(slices, rows, columns, dtype, transposed):
    """A NaN in every place of a matrix's batch that lies within a larger one."""
    shape = (slices + 2, columns, rows) if transposed else (slices + 2, rows, columns)
    whole = torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)
    return whole, whole[1:-1].mT if transposed else whole[1:-1]


@needs_triton
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("equal_rows", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_momentum_and_the_direction_are_those_of_float64(shape, scaled, equal_rows, transposed):
    g, buffer = fresh(*shape), fresh(*shape)
    scale = torch.rand((), device=DEVICE) if scaled else None
    whole, out = poisoned(*shape, torch.bfloat16, transposed)
    exact_buffer, exact = buffer.double(), torch.empty(shape, dtype=torch.float64, device=DEVICE)
    reference_nesterov_(g.double(), exact_buffer, scale.double() if scaled else None, 0.95, exact, equal_rows)
    given = g.clone()
    launch_nesterov_(g, buffer, scale, 0.95, out, equal_rows)
    assert torch.equal(g, given)
    torch.testing.assert_close(buffer.double(), exact_buffer, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.double(), exact, rtol=ROUNDING, atol=1e-6)
    assert whole[0].isnan().all() and whole[-1].isnan().all(), "the neighbours' slices are not written to"


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_and_directions_of_both_precisions(dtype):
    g, buffer = fresh(2, 6, 40).to(dtype), fresh(2, 6, 40)
    kept = 0.9 * buffer.double() + g.double()
    out = torch.full((2, 6, 40), float("nan"), dtype=dtype, device=DEVICE)
    launch_nesterov_(g, buffer, None, 0.9, out, False)
    torch.testing.assert_close(buffer.double(), kept, rtol=1e-5, atol=1e-6)
    tolerance = ROUNDING if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), g.double() + 0.9 * kept, rtol=tolerance, atol=1e-6)


@needs_triton
def test_rows_of_zeros_stay_zero_and_tiny_ones_are_not_divided_by_less_than_1e_7():
    g = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [6e-9, 8e-9], [3e10, 4e10]]], device=DEVICE)
    out = torch.full_like(g, float("nan"), dtype=torch.bfloat16)
    launch_nesterov_(g, torch.zeros_like(g), None, 0.0, out, True)
    by_hand = torch.tensor([[[0.6, 0.8], [0.0, 0.0], [0.06, 0.08], [0.6, 0.8]]], device=DEVICE)
    torch.testing.assert_close(out.float(), by_hand, rtol=ROUNDING, atol=0)


@needs_triton
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 64, 128), (3, 7, 5), (1, 1, 1), (1, 70, 65), (2, 3, 130)])
def test_the_update_is_that_of_float64(shape, dtype, transposed, last):
    weight = fresh(*shape)
    _, update = poisoned(*shape, dtype, transposed)
    update.copy_(fresh(*shape))
    exact = weight.double()
    reference_decayed_add_(exact, update.double(), 0.9, -0.3, last)
    launch_decayed_add_(weight, update, 0.9, -0.3, last)
    torch.testing.assert_close(weight.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_cpu_takes_the_reference():
    g, buffer, out = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.zeros(2, 3, 4).bfloat16()
    kept, expected = buffer * 0.9 + g, torch.zeros(2, 3, 4).bfloat16()
    reference_nesterov_(g, buffer.clone(), None, 0.9, expected, True)
    nesterov_(g, buffer, None, 0.9, out, True)
    assert torch.equal(out, expected)
    torch.testing.assert_close(buffer, kept)
    weight = g.clone()
    decayed_add_(weight, out, 0.5, 2.0)
    torch.testing.assert_close(weight, g * 0.5 + 2 * out.float())


AHEAD = """
from fairway.kernels.momentum_triton import decayed_add_kernel, nesterov_kernel
from optim.ahead import compiled

momentum = dict(gradient="*fp32", buffer="*fp32", scale="*fp32", out="*bf16", R="i32", C="i32", momentum="fp32")
update = dict(weight="*fp32", update="*bf16", R="i32", C="i32", keep="fp32", alpha="fp32")
momentum |= dict(out_n="i32", out_r="i32", out_c="i32")
update |= dict(update_n="i32", update_r="i32", update_c="i32")


def check(ptx, registers, stack, shared):
    assert stack == 0 and registers <= 128, (registers, stack)
    assert "ld.global.v4" in ptx and "st.global.v4" in ptx


for card in (80, 90):
    for unit, columns in (("out_c", 512), ("out_r", 512), ("out_c", 2048)):
        constants = dict(SCALED=True, EQUAL=True, BR=8192 // columns, BC=columns) | {unit: 1}
        check(*compiled(nesterov_kernel, momentum, constants, momentum.keys() - {unit, "momentum"}, card, num_warps=8))
    for unit in ("update_c", "update_r"):
        aligned = update.keys() - {unit, "keep", "alpha"}
        check(*compiled(decayed_add_kernel, update, dict(BR=64, BC=64) | {unit: 1}, aligned, card, num_warps=4))
"""


@needs_triton
def test_they_compile_ahead_of_time_for_ampere_and_hopper_without_spills(tmp_path):
    code, errors = compile_ahead(AHEAD, tmp_path)
    assert code == 0, errors


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA card, and --gpu")
@pytest.mark.parametrize("shape", [(22, 512, 512), (22, 256, 512), (11, 2048, 512), (11, 512, 2048)])
def test_banks_of_their_real_size_on_the_card(shape):
    g, buffer, weight, scale = fresh(*shape), fresh(*shape), fresh(*shape), torch.rand((), device=DEVICE)
    _, out = poisoned(*shape, torch.bfloat16, shape[1] > shape[2])
    exact_buffer, exact, exact_weight = buffer.double(), torch.empty_like(g), weight.clone()
    reference_nesterov_(g.double(), exact_buffer, scale, 0.95, exact, True)
    nesterov_(g, buffer, scale, 0.95, out, True)
    torch.testing.assert_close(buffer.double(), exact_buffer, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.float(), exact, rtol=ROUNDING, atol=1e-6)
    decayed_add_(weight, out, 0.9, -0.3)
    reference_decayed_add_(exact_weight, out, 0.9, -0.3)
    torch.testing.assert_close(weight, exact_weight, rtol=1e-5, atol=1e-6)
