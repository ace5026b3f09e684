import pytest
import torch

from fairway.kernels.trellis import reference_trellis_path, trellis_path, trellis_values

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and --gpu")


def total_costs(codes_NR, x_NR, weight_NR, price_2K):
    values_NR = trellis_values(codes_NR.T).T
    cost_NR = weight_NR.double() * (x_NR.double() - values_NR).square()
    if price_2K is not None:
        cost_NR += price_2K[(values_NR - 2 * codes_NR.short()).long(), codes_NR.long() + 127]
    return cost_NR.sum(1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 7), (5, 100), (22, 513), (1, 8192), (11, 2048)])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_card_finds_paths_that_cost_what_viterbis_do(shape, rate):
    generator = torch.Generator().manual_seed(sum(shape))
    x_NR, weight_NR = torch.randn(shape, generator=generator) * 5, torch.rand(shape, generator=generator) + 0.1
    price_2K = rate * 8 * torch.rand(2, 255, generator=generator) if rate else None
    codes_NR, values_NR = trellis_path(x_NR.cuda(), weight_NR.cuda(), None if price_2K is None else price_2K.cuda())
    assert codes_NR.is_cuda and values_NR.T.equal(trellis_values(codes_NR.T))
    found_N, best_N = (
        total_costs(codes, x_NR, weight_NR, price_2K)
        for codes in (codes_NR.cpu(), reference_trellis_path(x_NR, weight_NR, price_2K))
    )
    torch.testing.assert_close(found_N, best_N, rtol=1e-5, atol=1e-6)


def test_the_card_waits_for_nothing():
    x_NR = torch.randn(4, 300, device="cuda")
    weight_NR, price_2K = torch.ones_like(x_NR), torch.rand(2, 255, device="cuda")
    trellis_path(x_NR, weight_NR, price_2K)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trellis_path(x_NR, weight_NR, price_2K)
    finally:
        torch.cuda.set_sync_debug_mode("default")
