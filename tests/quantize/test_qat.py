"""Late QAT: the very grid that is packed, on the very weights that are trained, and the masters back afterwards."""

from dataclasses import replace

import pytest
import torch

from conformance.table import BASE, random_ids, randomise
from fairway.data.dataset import open_dataset
from fairway.model.inputs import BigramHash
from fairway.model.roles import Leaf, leaf_views
from fairway.optim.schedule import Moment
from fairway.problem import Problem
from fairway.quantize.policy import assign_rules, dequantise, quantise
from fairway.quantize.qat import LateQAT
from fairway.quantize.schemes import KeepFloat16, RowInt, decode_coded
from fairway.stages import check_recipe
from train.tiny import rows, tiny, train_arguments

EARLY, LATE = Moment(3, 0.5, 0.6), Moment(9, 0.9, 0.1)
MODEL = replace(BASE, inputs=(*BASE.inputs, BigramHash(buckets=32, dim=8)))
POLICY = (
    RowInt(role="matrix.key", layers=(1,), bits=3),
    KeepFloat16(role="matrix.value", layers=(-1,)),
    RowInt(role="matrix", bits=5),
    RowInt(role="projection", bits=6, sigmas=3.0),
    RowInt(role="table", bits=4),
    KeepFloat16(),
)


def snapshot(model):
    return {leaf.name: view.clone() for leaf, view in leaf_views(model)}


AT_85 = LateQAT(after=0.85)


def qat(model, node=AT_85, policy=POLICY):
    return node.build(model, policy)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 8), (6, 1), (9,)])
@pytest.mark.parametrize("clip", [{}, {"quantile": 0.9}, {"sigmas": 2.5}, {"search": (0.9, 1.0)}, {"log_scales": True}])
def test_the_grid_is_what_comes_back_from_the_codes_to_the_bit(bits, shape, clip):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits)) * 0.1
    weight.reshape(-1)[0] = 0.9
    rule = RowInt(bits=bits, **clip)
    (coded,) = rule.encode([weight], [Leaf("w", "matrix", 0, shape)], None)
    assert torch.equal(rule.grid(weight[None])[0], decode_coded(coded))
    assert torch.equal(rule.grid(weight[None]), rule.grid(rule.grid(weight[None]))) or clip


def test_sigmas_clip_at_so_many_root_mean_squares():
    weight = torch.randn(4, 400, generator=torch.Generator().manual_seed(1))
    (coded,) = RowInt(bits=6, sigmas=12.85).encode([weight], [Leaf("w", "matrix", 0, (4, 400))], None)
    scale = (12.85 * weight.double().square().mean(dim=1).sqrt() / 31).half()
    assert torch.equal(coded.parts["scale"], scale)
    assert torch.equal(coded.parts["q"].double(), (weight.double() / scale.double()[:, None]).round())
    with pytest.raises(Problem, match=r"sigmas is 2\.0 beside quantile 0\.9"):
        RowInt(sigmas=2.0, quantile=0.9)


def test_inside_every_matrix_is_what_the_packed_file_would_hold_and_all_else_is_untouched():
    model = randomise(MODEL.build(0))
    before, leaves = snapshot(model), [leaf for leaf, _ in leaf_views(model)]
    packed = dequantise(quantise(before, leaves, assign_rules(leaves, POLICY), {}))
    with qat(model).bent(LATE):
        inside = snapshot(model)
    kept = ("blocks.3.attn.value",)
    for leaf in leaves:
        bent = leaf.role.split(".")[0] in ("matrix", "projection") and leaf.name not in kept
        assert torch.equal(inside[leaf.name], packed[leaf.name] if bent else before[leaf.name]), leaf.name
        assert torch.equal(inside[leaf.name], before[leaf.name]) is not bent
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


def test_the_gradient_is_that_at_the_rounded_weights_and_is_the_masters():
    model, ids_BT = randomise(MODEL.build(0)), random_ids(MODEL)
    rounded = randomise(MODEL.build(0))
    leaves = [leaf for leaf, _ in leaf_views(rounded)]
    packed = dequantise(quantise(snapshot(rounded), leaves, assign_rules(leaves, POLICY), {}))
    for leaf, view in leaf_views(rounded):
        if leaf.role.split(".")[0] in ("matrix", "projection") and leaf.name != "blocks.3.attn.value":
            view.copy_(packed[leaf.name])
    with qat(model).bent(LATE):
        loss = model.loss(ids_BT, ids_BT)
        loss.backward()
    expected = rounded.loss(ids_BT, ids_BT)
    expected.backward()
    assert torch.equal(loss, expected)
    for one, other in zip(model.parameters(), rounded.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    "node, on",
    [
        (LateQAT(after=0.85), (False, True)),
        (LateQAT(after=0.5), (True, True)),
        (LateQAT(after=1.0, below=0.15), (False, True)),
        (LateQAT(after=1.0, below=0.05), (False, False)),
        (LateQAT(after=1.0, below=0.6), (False, True)),
        (LateQAT(after=0.0), (True, True)),
    ],
)
def test_it_begins_at_a_fraction_of_the_budget_or_under_a_rate(node, on):
    model = randomise(MODEL.build(0))
    before, state = snapshot(model), qat(model, node)
    for moment, wanted in zip((EARLY, LATE), on, strict=True):
        with state.bent(moment):
            name = "blocks.0.attn.query"
            assert torch.equal(snapshot(model)[name], before[name]) is not wanted


def test_a_fault_inside_leaves_the_masters():
    model = randomise(MODEL.build(0))
    before = snapshot(model)
    with pytest.raises(KeyError), qat(model).bent(LATE):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


def test_a_run_that_trains_with_it_differs_from_the_step_on_that_it_begins(fairway_here, tiny_data, tmp_path):
    for name, setting in (("with", "qat=(LateQAT(after=0.5),)"), ("without", "qat=()")):
        code, _, errors = fairway_here(*train_arguments(tiny_data, tmp_path / name, setting, "quantize.RowInt:2.bits=2"))
        assert (code, errors) == (0, [])
    one, other = rows(tmp_path / "with"), rows(tmp_path / "without")
    assert [a["loss"] == b["loss"] for a, b in zip(one, other, strict=True)] == [True] * 6 + [False] * 6


@pytest.mark.parametrize(
    "policy, roles, says",
    [
        ((KeepFloat16(),), ("matrix",), "finds no parameter of roles"),
        (POLICY, ("scalar",), "finds no parameter of roles"),
    ],
)
def test_nothing_to_round_is_said(policy, roles, says):
    with pytest.raises(Problem, match=says):
        qat(MODEL.build(0), LateQAT(roles=roles), policy)


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"after": 1.5}, "both are fractions"),
        ({"after": -0.1}, "both are fractions"),
        ({"below": 2.0}, "both are fractions"),
        ({"after": 1.0}, "never begins"),
        ({"roles": ("matrix", "projectoin")}, "names 'projectoin', no role"),
    ],
)
def test_what_is_no_fraction_never_begins_or_names_no_role_is_refused(fields, says):
    with pytest.raises(Problem, match=says):
        LateQAT(**fields)


def test_it_says_since_when_and_remembers_it():
    state = qat(randomise(MODEL.build(0)))
    assert state.summary() == "late QAT never began" and state.floats == sum(p.numel() for p, _ in state.bends)
    for moment in (EARLY, LATE, Moment(10, 0.95, 0.05)):
        with state.bent(moment):
            pass
    assert state.summary() == "late QAT from step 10 on"
    other = qat(randomise(MODEL.build(0)))
    other.restore(state.state())
    assert other.summary() == state.summary()


def test_two_of_them_are_refused(tiny_data):
    with pytest.raises(Problem, match="2 nodes stand in `qat`"):
        check_recipe(tiny("qat=(LateQAT(after=0.2), LateQAT())"), open_dataset(tiny_data))
