"""Low-rank corrections: the worst matrices, weighted by their inputs. E_RC an error, H_CC a Hessian."""

import pytest
import torch

from fairway.model.roles import Leaf
from fairway.problem import Problem
from fairway.quantize.gptq import GPTQ
from fairway.quantize.hessian import output_error
from fairway.quantize.lowrank import LowRank, low_rank_layout, low_rank_weights
from fairway.quantize.schemes import RowInt, decode_coded, part_layout


def inputs(columns, seed=0):
    """A Hessian whose directions differ much."""
    draw = torch.Generator().manual_seed(seed)
    x_MC = torch.randn(400, columns, generator=draw) * torch.linspace(0.05, 3, columns)
    return x_MC.T @ x_MC / 400


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.01


@pytest.mark.parametrize("shape", [(20, 40), (60, 24)])
def test_the_terms_are_the_best_of_their_rank_for_the_outputs_up_to_their_rounding(shape):
    error_RC, hessian_CC = noise(*shape), inputs(shape[1])
    (parts,) = LowRank(rank=3, count=1).parts([error_RC], [hessian_CC]).values()
    left = output_error(error_RC - low_rank_weights(parts), hessian_CC)
    # The least that is possible: by Eckart and Young, of E H^(1/2).
    values, vectors = torch.linalg.eigh(hessian_CC.double())
    root_CC = vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.T)
    spectrum = torch.linalg.svdvals(error_RC.double() @ root_CC).square()
    assert spectrum[3:].sum() <= left * 1.0001 and left < spectrum[3:].sum() + 0.05 * spectrum[:3].sum()
    u, s, v = torch.linalg.svd(error_RC, full_matrices=False)
    unweighted = output_error(error_RC - (u[:, :3] * s[:3]) @ v[:3], hessian_CC)
    assert left < 0.97 * unweighted, "no better than without the Hessian"


def test_only_the_worst_by_weighted_error_are_corrected_and_each_gets_better():
    errors = [noise(16, 24, seed) * size for seed, size in enumerate((1.0, 5.0, 2.0, 4.0))]
    hessians = [inputs(24, seed) * size for seed, size in enumerate((100.0, 1.0, 1.0, 1.0))]
    found = LowRank(rank=2, count=2).parts(errors, hessians)
    assert list(found) == [0, 1]
    for i, parts in found.items():
        before = output_error(errors[i], hessians[i])
        assert output_error(errors[i] - low_rank_weights(parts), hessians[i]) < 0.9 * before


@pytest.mark.parametrize("rounding", [RowInt().rounding, GPTQ()])
def test_a_rule_stores_the_terms_beside_its_codes_and_they_are_decoded(rounding):
    shapes = [(16, 24), (16, 24), (24, 16), (2, 24)]
    weights = [noise(*shape, seed) * 10 for seed, shape in enumerate(shapes)]
    leaves = [Leaf(f"blocks.{i}.mlp.up", "matrix.up", i, shape) for i, shape in enumerate(shapes)]
    hessians = [inputs(shape[1], seed) for seed, shape in enumerate(shapes)]
    plain = RowInt(bits=3, rounding=rounding).encode(weights, leaves, hessians)
    rule = RowInt(bits=3, rounding=rounding, correct=(LowRank(rank=4, count=3),))
    assert rule.calibrated
    coded = rule.encode(weights, leaves, hessians)
    assert [one.scheme for one in coded] == ["int3+lr4", "int3+lr4", "int3+lr4", "int3"]
    for weight, hessian_CC, one, old in zip(weights, hessians, coded, plain, strict=True):
        layout = {name: (part.dtype, tuple(part.shape)) for name, part in one.parts.items()}
        assert layout == part_layout(one.scheme, one.shape)
        assert torch.equal(one.parts["q"], old.parts["q"]) and torch.equal(one.parts["scale"], old.parts["scale"])
        error, before = (output_error(weight - decode_coded(some), hessian_CC) for some in (one, old))
        assert error < 0.9 * before or one.scheme == "int3"


def test_a_rank_beyond_the_matrix_ends_at_the_matrix_and_no_error_needs_no_terms():
    (parts,) = LowRank(rank=9).parts([noise(3, 24)], [inputs(24)]).values()
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == low_rank_layout(3, 3, 24)
    (parts,) = LowRank(rank=2).parts([torch.zeros(3, 24)], [inputs(24)]).values()
    assert not low_rank_weights(parts).any()


@pytest.mark.parametrize("fields", [{"rank": 0}, {"rank": 100}, {"count": 0}])
def test_a_correction_that_means_nothing_is_refused_when_written(fields):
    with pytest.raises(Problem, match=f"{next(iter(fields))} {next(iter(fields.values()))}"):
        LowRank(**fields)
