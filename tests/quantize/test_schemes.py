"""Schemes on many leaves at once: scales, bounds and batches. R rows, C columns."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairway.model.roles import Leaf
from fairway.node import parse_node
from fairway.problem import Problem
from fairway.quantize import schemes
from fairway.quantize.gptq import GPTQ
from fairway.quantize.lowrank import LowRank
from fairway.quantize.schemes import (
    LEAST_SCALE,
    KeepFloat16,
    RowInt,
    decode_coded,
    log_scales,
    part_layout,
    row_quantiles,
    scale_values,
)

LITE = (0.999, 0.9995, 0.9999, 0.99999, 1.0)


def encode(rule, weights, hessians=None):
    leaves = [Leaf(f"blocks.{i}.mlp.up", "matrix.up", i, tuple(weight.shape)) for i, weight in enumerate(weights)]
    return rule.encode(weights, leaves, hessians or [None] * len(weights))


def rows(count, columns, seed=0):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(2, 8),
    log_scales=st.booleans(),
    kind=st.sampled_from(["noise", "zero", "constant", "spike"]),
    count=st.integers(1, 4),
    columns=st.sampled_from([1, 2, 7, 127, 128, 129, 300]),
    exponents=st.lists(st.floats(-12, 2), min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
@example(8, True, "spike", 1, 1, [2.0] * 4, 0)
def test_unclipped_weights_come_back_within_the_stated_bound(bits, log_scales, kind, count, columns, exponents, seed):
    top = 2 ** (bits - 1) - 1
    weight = {
        "noise": rows(count, columns, seed),
        "zero": torch.zeros(count, columns),
        "constant": torch.ones(count, columns),
        "spike": torch.eye(count, columns),
    }[kind] * 10.0 ** torch.tensor(exponents[:count])[:, None]
    rule = RowInt(bits=bits, log_scales=log_scales)
    (coded,) = encode(rule, [weight])
    layout = part_layout(coded.scheme, coded.shape)
    assert {name: (part.dtype, tuple(part.shape)) for name, part in coded.parts.items()} == layout
    scale = scale_values(coded.parts).double()[:, None]
    bound = scale / 2 + top * 2.0**-25 + top * 2.0**-20 * scale
    restored = decode_coded(coded)
    assert ((restored.double() - weight.double()).abs() <= bound).all()
    assert coded.parts["q"].abs().max() <= top
    assert torch.equal(rule.grid(weight[None])[0], restored)
    # No scale is coarser than it must be: half a last digit of float16, or a step of the grid.
    most = 2 ** (1 / 8) if log_scales else 1 + 2.0**-11
    asked = (weight.double().abs().amax(1, keepdim=True) / top).clamp(min=2.0**-14 * (not log_scales) + LEAST_SCALE)
    assert (scale <= asked * most * (1 + 1e-6)).all()


@pytest.mark.parametrize("bits", [3, 5, 8])
@pytest.mark.parametrize("log_scales", [False, True])
def test_the_search_takes_for_each_row_the_quantile_of_least_squared_error(bits, log_scales):
    weight = rows(40, 3000) ** 3  # tails of every length
    fractions = (0.98, *LITE)
    # A row that has the largest clip of all, so that every candidate's logarithmic scales have the same base.
    weight[0] = weight.abs().max()
    (found,) = encode(RowInt(bits=bits, search=fractions, log_scales=log_scales), [weight])
    candidates = [encode(RowInt(bits=bits, quantile=one, log_scales=log_scales), [weight])[0] for one in fractions]
    errors_KR = torch.stack([(decode_coded(one) - weight).square().sum(1) for one in candidates])
    best_R = errors_KR.argmin(0)
    assert len(set(best_R.tolist())) > 1, "these rows are too much alike to try the choice"
    for row, best in enumerate(best_R.tolist()):
        assert found.parts["scale"][row] == candidates[best].parts["scale"][row]
        assert torch.equal(found.parts["q"][row], candidates[best].parts["q"][row])


def test_of_quantiles_that_do_equally_well_the_search_takes_the_first():
    weight = torch.tensor([[3.0, -3.0, 0.0, 3.0] * 10])
    one, other = (encode(RowInt(bits=3, search=some), [weight])[0].parts["scale"] for some in ((0.9, 1.0), (1.0, 0.9)))
    assert torch.equal(one, other) and one == 1


@pytest.mark.parametrize("columns", [1, 2, 5, 128, 1000])
def test_quantiles_are_those_of_the_whole_sort(columns):
    x_NRC = rows(6, columns).abs().reshape(2, 3, columns)
    fractions = (0.001, 0.25, 0.5, 0.9, 0.9999984, 1.0)
    expected = x_NRC.double().quantile(torch.tensor(fractions, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(torch.stack(row_quantiles(x_NRC, fractions)).double(), expected, rtol=1e-6, atol=1e-7)


def test_a_logarithmic_scale_is_the_next_of_its_grid_and_keeps_its_code():
    stored = {"scale": torch.arange(256).to(torch.uint8)[None, None], "base": torch.tensor([[2.0]]).half()}
    grid = scale_values(stored)
    assert torch.equal(grid.double(), torch.tensor([[[2.0 ** (1 - code / 8) for code in range(256)]]]).float().double())
    # The base is a little over the largest scale that was asked for.
    assert log_scales(grid * 1.01)["base"].item() == pytest.approx(2.02, rel=2e-3)
    # Scales of a grid keep their codes, whatever is a little above them.
    base = log_scales(grid)["base"].float().item()
    again = log_scales(torch.cat([grid * (base / 2), grid[..., :1]], dim=2))
    assert again["scale"][0, 0, 1:256].tolist() == list(range(1, 256))
    zero = log_scales(torch.tensor([[[0.0, 1e-30, 1.0]]]))
    assert zero["scale"].flatten().tolist() == [255, 255, 0]
    assert scale_values(zero).flatten()[0] > 0


def test_rows_that_are_alike_share_one_scale_and_it_follows_what_is_asked_without_steps():
    w_RC = rows(64, 512) * (1 + 0.02 * torch.rand(64, 1))
    found = []
    for sigmas in torch.linspace(12, 13, 11).tolist():
        (coded,) = encode(RowInt(sigmas=sigmas, log_scales=True), [w_RC])
        found.append(float(scale_values(coded.parts).mean()))
    steps = [later / earlier - 1 for earlier, later in pairwise(found)]
    assert max(steps) < 0.02 and min(steps) > 0


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        (RowInt(bits=8, log_scales=True), 9e6, "blocks.1.mlp.up holds 9e.06, whose scale is beyond float16"),
        (RowInt(bits=8), 9e6, "blocks.1.mlp.up holds 9e.06, whose scale is beyond float16"),
        (KeepFloat16(), 7e4, "blocks.1.mlp.up holds 70000, beyond float16"),
    ],
)
def test_a_weight_beyond_the_scales_is_named(rule, value, words):
    encode(rule, [torch.ones(2, 3), torch.full((2, 3), value / 3)])
    with pytest.raises(Problem, match=words):
        encode(rule, [torch.ones(2, 3), torch.full((2, 3), value)])


@pytest.mark.parametrize("rounding", [RowInt().rounding, GPTQ()])
@pytest.mark.parametrize("elements", [1, 500, 2**26])
def test_leaves_of_many_shapes_are_coded_together_as_each_alone(rounding, elements, monkeypatch):
    monkeypatch.setattr(schemes, "BATCH_ELEMENTS", elements)
    shapes = [(8, 12), (4, 30), (8, 12), (12, 8), (30,), (), (2, 3, 5), (8, 12), (4, 30)]
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    inputs = [rows(100, shape[-1] if shape else 1, i) for i, shape in enumerate(shapes)]
    hessians = [x_MC.T @ x_MC / 100 for x_MC in inputs]
    rule = RowInt(bits=4, rounding=rounding)
    seen, round_ = [], type(rounding).round
    monkeypatch.setattr(type(rounding), "round", lambda self, w, *rest: seen.append(w.numel()) or round_(self, w, *rest))
    together = encode(rule, weights, hessians)
    # 500 elements hold two weights of (4, 30), but only one of their Hessians.
    assert max(seen) <= max(elements, 120) and len(seen) == {1: 9, 500: 6 + rounding.calibrated, 2**26: 6}[elements]
    for i, coded in enumerate(together):
        leaf = Leaf(f"blocks.{i}.mlp.up", "matrix.up", i, shapes[i])
        (alone,) = rule.encode([weights[i]], [leaf], [hessians[i]])
        assert (coded.scheme, coded.role, coded.shape) == ("int4", "matrix.up", shapes[i])
        assert all(torch.equal(part, alone.parts[name]) for name, part in coded.parts.items())
        assert coded.parts["q"].device.type == "cpu"


def test_a_rule_that_takes_hessians_says_so_and_says_how_to_get_them():
    assert not RowInt().calibrated and not KeepFloat16().calibrated
    assert RowInt(rounding=GPTQ()).calibrated and RowInt(correct=(LowRank(),)).calibrated
    for rule in (RowInt(rounding=GPTQ()), RowInt(correct=(LowRank(),))):
        with pytest.raises(Problem, match=r"blocks\.0\.mlp\.up .* calibrate=\(Calibration\(\),\)"):
            encode(rule, [torch.ones(2, 3)])
        assert parse_node(repr(rule)) == rule


@pytest.mark.parametrize("scheme", ["int9", "int1", "int6.lin", "int6+lr0", "int6+lr100", "int6+lr", "xint6", "float16.log"])
def test_a_scheme_that_nobody_wrote_is_refused(scheme):
    with pytest.raises(Problem, match="unknown weight scheme"):
        part_layout(scheme, (2, 3))
    with pytest.raises(Problem, match="unknown weight scheme"):
        decode_coded(schemes.Coded(scheme, "matrix", (2, 3), {}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"search": (0.9, 0.0)}, "a quantile is 0.0"),
        ({"search": (0.9,), "sigmas": 3.0}, "sigmas is 3.0 beside"),
        ({"search": (0.9,), "quantile": 0.5}, "quantile 0.5 and search"),
        ({"sigmas": -1.0}, "sigmas is -1.0"),
        ({"correct": (LowRank(), LowRank())}, "correct has 2 entries"),
    ],
)
def test_a_clip_that_means_nothing_is_refused_when_written(fields, words):
    with pytest.raises(Problem, match=words):
        RowInt(**fields)
