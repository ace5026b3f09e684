"""Quantisation on a CUDA card against the CPU; run with --gpu."""

import pytest
import torch

from conformance.table import random_ids, randomise
from fairway.kernels.capability import capability
from fairway.model.roles import Leaf
from fairway.quantize.gptq import GPTQ
from fairway.quantize.hessian import collect_hessians, output_error
from fairway.quantize.lowrank import LowRank
from fairway.quantize.schemes import RowInt, decode_coded
from fairway.train.dist import World
from quantize.test_hessian import MODEL, NAMES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
CUDA = torch.device("cuda", 0)


def problem():
    """Weights [R, C] of two shapes, their leaves and Hessians."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) * 0.05 for shape in [(256, 300), (300, 256), (256, 300)]]
    leaves = [Leaf(f"blocks.{i}.mlp.up", "matrix.up", i, tuple(weight.shape)) for i, weight in enumerate(weights)]
    inputs = [
        torch.randn(900, weight.shape[1], generator=draw) * torch.linspace(0.1, 2, weight.shape[1]) for weight in weights
    ]
    return weights, leaves, [x_MC.T @ x_MC / 900 for x_MC in inputs]


@pytest.mark.parametrize(
    "rule", [RowInt(sigmas=12.85), RowInt(bits=5, search=(0.99, 0.999, 1.0)), RowInt(bits=8, sigmas=20.0, log_scales=True)]
)
def test_codes_to_the_nearest_and_the_grid_are_those_of_the_cpu(rule):
    weights, leaves, _ = problem()
    there = rule.encode([weight.to(CUDA) for weight in weights], leaves, [None] * 3)
    for weight, one, other in zip(weights, rule.encode(weights, leaves, [None] * 3), there, strict=True):
        assert other.parts["q"].device.type == "cpu"
        # Standard deviations are summed in another order, so single scales may be one float16 apart.
        assert (one.parts["scale"] == other.parts["scale"]).double().mean() > 0.98
        assert (one.parts["q"] == other.parts["q"]).double().mean() > 0.999
        torch.testing.assert_close(rule.grid(weight[None].to(CUDA))[0].cpu(), decode_coded(other), rtol=0, atol=0)


def test_gptq_and_corrections_do_as_well_as_on_the_cpu():
    weights, leaves, hessians = problem()
    rule = RowInt(bits=5, sigmas=8.0, rounding=GPTQ(prune=0.1), correct=(LowRank(rank=2, count=1),))
    there = rule.encode([weight.to(CUDA) for weight in weights], leaves, [hessian_CC.to(CUDA) for hessian_CC in hessians])
    here = rule.encode(weights, leaves, hessians)
    for weight, hessian_CC, one, other in zip(weights, hessians, here, there, strict=True):
        assert one.scheme == other.scheme
        # A value next to a half goes the other way now and then, and the columns after it follow.
        assert (one.parts["q"] == other.parts["q"]).double().mean() > 0.95
        errors = [output_error(weight - decode_coded(some), hessian_CC) for some in (one, other)]
        torch.testing.assert_close(*errors, rtol=0.01, atol=0)


def test_hessians_of_half_precision_products_are_those_of_the_cpu():
    machine, ids_BT = capability(CUDA), random_ids(MODEL)
    there = randomise(MODEL.build(0, machine.activations)).to(CUDA)
    found = collect_hessians(there, NAMES, [ids_BT], World(0, 1, CUDA))
    expected = collect_hessians(randomise(MODEL.build(0)), NAMES, [ids_BT], World(0, 1, torch.device("cpu")))
    for name, hessian_CC in found.items():
        assert hessian_CC.dtype == torch.float32 and hessian_CC.device == CUDA
        assert (hessian_CC.cpu() - expected[name]).norm() < 0.05 * expected[name].norm(), name
