"""Symmetric products in Triton's interpreter (on a card with --gpu) against float64. N slices, R rows, C columns."""

from importlib.util import find_spec

import pytest
import torch

from fairway.kernels.symmetric import (
    gram_polynomial,
    launch_gram_polynomial,
    launch_row_products,
    multiplies_symmetrically,
    reference_gram_polynomial,
    row_products,
)
from optim.ahead import compile_ahead
from optim.interpreted import multiply_bfloat16

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDING = 2**-7 if DEVICE.type == "cpu" else 2**-8  # bfloat16 keeps 8 bits; the interpreter cuts off, a card rounds
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = [(1, 64, 64, 64), (2, 64, 192, 64), (3, 192, 64, 64), (2, 128, 64, 64), (1, 128, 128, 128), (1, 384, 64, 128)]


def fresh(*shape):
    return (torch.randn(shape, device=DEVICE) * torch.rand(shape[0], 1, 1, device=DEVICE)).bfloat16()


@pytest.fixture(autouse=DEVICE.type == "cpu" and find_spec("triton") is not None)
def interpreted(monkeypatch):
    multiply_bfloat16(monkeypatch)


@pytest.fixture
def poisoned(monkeypatch):
    """What is allocated and not written stays NaN."""
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, float("nan"), **options))


@needs_triton
@pytest.mark.parametrize("slices, rows, columns, tile", SHAPES)
def test_products_of_rows_are_symmetric_and_rounded_once(slices, rows, columns, tile, poisoned):
    x_NRC = fresh(slices, rows, columns)
    got_NRR = launch_row_products(x_NRC, tile)
    exact_NRR = x_NRC.double() @ x_NRC.double().mT
    # Sums in float32 are off by far less than 1e-5 of the largest element.
    torch.testing.assert_close(got_NRR.double(), exact_NRR, rtol=ROUNDING, atol=1e-5 * exact_NRR.abs().max().item())
    assert torch.equal(got_NRR, got_NRR.mT)


@needs_triton
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("slices, rows, columns, tile", SHAPES)
def test_the_polynomial_is_that_of_the_scaled_matrix(slices, rows, columns, tile, scaled, poisoned):
    x_NRC = fresh(slices, rows, columns) * (100.0 if scaled else rows**-0.5)
    gram_NRR = (x_NRC.double() @ x_NRC.double().mT).bfloat16()
    squares_N = gram_NRR.double().diagonal(dim1=-2, dim2=-1).sum(-1)
    got_NRR = launch_gram_polynomial(gram_NRR, COEFFICIENTS, squares_N.float() if scaled else None, 1.02, tile)
    s = 1 / (1.02 * squares_N.sqrt() + 1e-7) if scaled else torch.ones_like(squares_N)
    s, (a, b, c), gram = s.view(-1, 1, 1), COEFFICIENTS, gram_NRR.double()
    eye = torch.eye(rows, dtype=torch.float64, device=DEVICE)
    exact_NRR = s * (a * eye + b * s**2 * gram + c * s**4 * (gram @ gram))
    slack = 1e-5 * (s * (abs(b) * s**2 * gram.abs() + c * s**4 * (gram @ gram).abs())).amax().item()
    torch.testing.assert_close(got_NRR.double(), exact_NRR, rtol=ROUNDING, atol=slack)
    assert torch.equal(got_NRR, got_NRR.mT)
    by_reference = reference_gram_polynomial(gram, COEFFICIENTS, squares_N if scaled else None, 1.02)
    torch.testing.assert_close(by_reference, exact_NRR, rtol=1e-12, atol=1e-12)


@needs_triton
def test_a_slice_of_zeros_is_a_finite_multiple_of_the_identity():
    gram_NRR = torch.zeros(1, 64, 64, dtype=torch.bfloat16, device=DEVICE)
    got_NRR = launch_gram_polynomial(gram_NRR, COEFFICIENTS, torch.zeros(1, device=DEVICE))
    assert got_NRR.isfinite().all() and torch.equal(got_NRR[0], got_NRR[0].diagonal().diag())


def test_a_cpu_takes_the_reference():
    x_NRC = torch.randn(2, 64, 64).bfloat16()
    assert not multiplies_symmetrically(x_NRC)
    assert torch.equal(row_products(x_NRC), x_NRC @ x_NRC.mT)
    assert torch.equal(gram_polynomial(x_NRC, COEFFICIENTS), reference_gram_polynomial(x_NRC, COEFFICIENTS))


@pytest.mark.parametrize(
    "x_NRC, fits",
    [
        (torch.zeros(1, 64, 128).bfloat16(), True),
        (torch.zeros(1, 64, 128), False),
        (torch.zeros(1, 32, 128).bfloat16(), False),
        (torch.zeros(1, 64, 96).bfloat16(), False),
        (torch.zeros(1, 128, 64).bfloat16().mT, False),
    ],
)
def test_the_kernel_takes_contiguous_bfloat16_in_multiples_of_64(x_NRC, fits, monkeypatch):
    monkeypatch.setattr("fairway.kernels.symmetric.runs_triton", lambda device: True)
    assert multiplies_symmetrically(x_NRC) == fits


AHEAD = """
from fairway.kernels.symmetric_triton import symmetric_kernel
from optim.ahead import compiled

types = dict(x="*bf16", squares="*fp32", out="*bf16", R="i32", C="i32", a="fp32", b="fp32", c="fp32", margin="fp32")
aligned = ["x", "squares", "out", "R", "C"]
for card in (80, 90):
    for polynomial in (False, True):
        for tile in (64, 128):
            constants = dict(POLYNOMIAL=polynomial, SCALED=polynomial, BM=tile, BK=64)
            ptx, registers, stack, shared = compiled(
                symmetric_kernel, types, constants, aligned, card, num_warps=tile // 16, num_stages=3
            )
            assert stack == 0 and shared <= 98304, (card, constants, stack, shared)
            assert card < 90 or registers <= 128, "two programs share a multiprocessor"
            assert "cp.async.cg" in ptx and "st.global.v4" in ptx and ("wgmma" in ptx) == (card == 90)
"""


@needs_triton
def test_it_compiles_ahead_of_time_for_ampere_and_hopper_without_spills(tmp_path):
    code, errors = compile_ahead(AHEAD, tmp_path)
    assert code == 0, errors
