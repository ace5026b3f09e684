"""Banks joined, gained and rounded in one go, against plain torch in float64, both ways and under torch.compile."""

import pytest
import torch

from fairway.kernels.fold import RoundedFold, fold, reference_fold


def banks_and_gain(rows=(5, 3, 3), layers=4, columns=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    banks = [torch.randn(layers, count, columns, generator=generator).requires_grad_() for count in rows]
    return banks, torch.randn(layers, sum(rows), generator=generator).requires_grad_()


@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("rows", [(5,), (5, 3, 3), (1, 8)])
def test_one_rounding_and_the_gradients_of_plain_torch(rows, gained):
    banks, gain = banks_and_gain(rows)
    gain = gain if gained else None
    leaves = [*banks, *([gain] if gained else [])]
    whole = RoundedFold.apply(torch.bfloat16, gain, *banks)
    assert torch.equal(whole, reference_fold(banks, torch.bfloat16, gain))
    upstream = torch.randn(whole.shape).bfloat16()
    exact = reference_fold([bank.double() for bank in banks], torch.float64, gain.double() if gained else None)
    torch.testing.assert_close(whole.double(), exact, rtol=2**-8, atol=1e-30)
    wanted = torch.autograd.grad(exact, leaves, upstream.double())
    for got, want in zip(torch.autograd.grad(whole, leaves, upstream), wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want.float(), rtol=1e-6, atol=1e-6)


def test_slices_of_one_parameter_get_their_parts_of_its_gradient():
    bank = torch.randn(6, 4, 5, requires_grad=True)
    first, second = bank.split(3)
    fold((first, second), torch.bfloat16).float().sum().backward()
    assert torch.equal(bank.grad, torch.ones_like(bank))


def test_without_a_rounding_it_is_plain_torch():
    banks, gain = banks_and_gain()
    assert fold(banks[:1], torch.float32) is banks[0]
    assert torch.equal(fold(banks, torch.float32, gain), torch.cat(banks, 1) * gain.unsqueeze(-1))


def test_compiled_it_stays_one_operation_and_gives_the_same():
    banks, gain = banks_and_gain()
    graphs = []

    def watch(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def product(*leaves):
        return fold(leaves[1:], torch.bfloat16, leaves[0]).unbind(0)[2].float().square().sum()

    want = torch.autograd.grad(product(gain, *banks), [gain, *banks])
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(product, fullgraph=True, backend=aot_autograd(fw_compiler=watch))
    for got, wanted in zip(torch.autograd.grad(compiled(gain, *banks), [gain, *banks]), want, strict=True):
        assert torch.equal(got, wanted)
    assert sum("fold_rows" in str(node.target) for node in graphs[0].graph.nodes) == 1
