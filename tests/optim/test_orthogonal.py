"""Orthogonalisers against literal versions of their formulas, and what the sources measured of them."""

import pytest
import torch

from fairway.optim.orthogonal import MuonEqR, PolarExpress, Quintic, Turbo
from fairway.problem import Problem
from optim.literal import (
    literal_equal_rows,
    literal_polar_express,
    literal_quintic,
    literal_turbo,
    literal_turbo_without_post_norm,
)

LITERAL = {
    Quintic(): literal_quintic,
    Quintic(steps=2): lambda x: literal_quintic(x, 2),
    PolarExpress(): literal_polar_express,
    Turbo(): literal_turbo,
    Turbo(post_norm=False): literal_turbo_without_post_norm,
    MuonEqR(): literal_equal_rows,
    MuonEqR(then=PolarExpress()): lambda x: literal_equal_rows(x, literal_polar_express),
}
ALL = pytest.mark.parametrize("node", LITERAL, ids=repr)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@ALL
@pytest.mark.parametrize("shape", [(1, 5, 5), (4, 8, 3), (3, 4, 9), (2, 1, 6), (2, 6, 1)])
def test_it_is_the_float64_formula_slice_by_slice(node, shape):
    gradient_NRC = normal(*shape) * 10
    got_NRC = node.apply(gradient_NRC, torch.float32)
    exact_NRC = torch.stack([LITERAL[node](matrix) for matrix in gradient_NRC])
    torch.testing.assert_close(got_NRC.double(), exact_NRC, rtol=1e-3, atol=1e-4)


@ALL
def test_a_batch_is_its_slices_one_by_one(node):
    gradient_NRC = normal(5, 12, 8) * torch.tensor([1.0, 1e-3, 30.0, 1e-5, 0.2]).view(5, 1, 1)
    alone_NRC = torch.cat([node.apply(matrix[None], torch.float32) for matrix in gradient_NRC])
    torch.testing.assert_close(node.apply(gradient_NRC, torch.float32), alone_NRC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("node", [Quintic(), PolarExpress(), Turbo(post_norm=False)], ids=repr)
def test_a_tall_matrix_is_a_wide_one_transposed(node):
    wide_NRC = normal(3, 6, 14)
    tall = node.apply(wide_NRC.mT.contiguous(), torch.float32).mT
    torch.testing.assert_close(tall, node.apply(wide_NRC, torch.float32), rtol=1e-4, atol=1e-5)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_slices_and_rows_stay_zero_beside_others(node, dtype):
    for shape in ((3, 4, 6), (3, 6, 4)):
        gradient_NRC = normal(*shape)
        gradient_NRC[1] = 0
        gradient_NRC[2, 1] = 0
        got_NRC = node.apply(gradient_NRC, dtype)
        assert got_NRC.dtype == dtype and got_NRC.isfinite().all() and got_NRC[0].all()
        assert not got_NRC[1].any() and not got_NRC[2, 1].any()
        torch.testing.assert_close(got_NRC[:1], node.apply(gradient_NRC[:1], dtype))


@ALL
def test_products_in_bfloat16_stay_near(node):
    got = node.apply(normal(2, 16, 24), torch.bfloat16)
    assert got.dtype == torch.bfloat16
    exact = node.apply(normal(2, 16, 24), torch.float32)
    assert (got.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("node, low, high", [(Quintic(), 0.65, 1.25), (PolarExpress(), 0.85, 1.15)], ids=repr)
def test_singular_vectors_are_kept_and_values_come_near_one(node, low, high):
    u, _, v = torch.linalg.svd(normal(12, 12).double())
    values = torch.linspace(1.0, 0.02, 12, dtype=torch.float64)
    got = node.apply((u * values @ v)[None].float(), torch.float32)[0].double()
    rotated = u.T @ got @ v.T
    assert (rotated - rotated.diag().diag()).abs().max() < 1e-3
    assert low < rotated.diag().min() and rotated.diag().max() < high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 512), (128, 448), (448, 128)])
def test_turbo_brings_the_singular_values_of_noise_to_where_they_were_measured(shape, dtype):
    """PR #1205 on Gaussian input: 0.87 to 1.21 where rows and columns differ."""
    values = torch.linalg.svdvals(Turbo(post_norm=False).apply(normal(1, *shape), dtype)[0].double())
    assert values.min() > 0.86 and values.max() < 1.22


@pytest.mark.parametrize(
    "shape, measured", [((512, 512), 0.0442), ((256, 512), 0.0625), ((1792, 512), 0.0236), ((512, 1792), 0.0442)]
)
def test_after_turbo_s_post_norm_elements_have_the_measured_size_and_columns_norm_one(shape, measured):
    got = Turbo().apply(normal(1, *shape) * 1e-3, torch.float32)[0]
    assert got.square().mean().sqrt().item() == pytest.approx(measured, abs=5e-5)
    torch.testing.assert_close(got.norm(dim=0), torch.ones(shape[1]), rtol=1e-5, atol=1e-5)


def test_turbo_s_norms_are_float32_whatever_the_products_are():
    """In bfloat16 the columns' norms would be off by more than what rounding the result once does."""
    raw = Turbo(post_norm=False).apply(normal(1, 64, 96), torch.bfloat16)[0].double()
    rows = raw / raw.norm(dim=1, keepdim=True)
    exact = (rows / rows.norm(dim=0, keepdim=True)).to(torch.bfloat16)
    got = Turbo().apply(normal(1, 64, 96), torch.bfloat16)[0]
    assert (got != exact).float().mean() < 0.01  # a tie here and there


def test_equal_rows_are_divided_by_hand_and_passed_on_in_float32():
    gradient_NRC = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [6e-9, 8e-9]]])
    by_hand_NRC = torch.tensor([[[0.6, 0.8], [0.0, 0.0], [0.06, 0.08]]])
    got = MuonEqR().apply(gradient_NRC, torch.float32)
    torch.testing.assert_close(got, Quintic().apply(by_hand_NRC, torch.float32))
    # Rows of sizes that bfloat16's squares would lose.
    wide_NRC = normal(1, 4, 8) * torch.tensor([1e-25, 1.0, 1e5, 1e10]).view(4, 1)
    wide_NRC[0, 0] = 0
    rows_NRC = torch.nn.functional.normalize(wide_NRC.double(), dim=-1).float()
    assert torch.equal(MuonEqR().apply(wide_NRC, torch.bfloat16), Quintic().apply(rows_NRC, torch.bfloat16))


def test_equal_rows_twice_is_refused():
    with pytest.raises(Problem, match=r"MuonEqR\.then is MuonEqR"):
        MuonEqR(then=MuonEqR())
