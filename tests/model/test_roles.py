import pytest
import torch
from torch import nn

from fairway.model.roles import Leaf, Part, leaf_views, load_leaves, parameter_roles, role_matches


class Pair(Part):
    """A bank of three slices with refined roles and a plain matrix."""

    def __init__(self, name="pair.plain"):
        super().__init__()
        leaves = [("blocks.0.key", "matrix.key", 0), ("blocks.1.key", "matrix.key", 1), ("blocks.0.up", "matrix.up", 0)]
        self.own_bank("bank", torch.arange(18.0).view(3, 2, 3), "matrix", leaves)
        self.own("plain", name, torch.ones(4, 2, dtype=torch.float64), "projection")


def model_of(*parts):
    return nn.ModuleList(parts)


def test_a_role_matches_itself_and_what_refines_it():
    assert role_matches("matrix.key", "matrix") and role_matches("matrix.key", "matrix.key")
    assert not role_matches("matrix", "matrix.key") and not role_matches("matrixes", "matrix")
    assert not role_matches("matrix.keys", "matrix.key")


def test_parameters_have_their_banks_role_and_leaves_refine_it():
    model = model_of(Pair())
    assert parameter_roles(model) == {"0.bank": "matrix", "0.plain": "projection"}
    assert [leaf for leaf, _ in leaf_views(model)] == [
        Leaf("blocks.0.key", "matrix.key", 0, (2, 3)),
        Leaf("blocks.1.key", "matrix.key", 1, (2, 3)),
        Leaf("blocks.0.up", "matrix.up", 0, (2, 3)),
        Leaf("pair.plain", "projection", -1, (4, 2)),
    ]


def test_leaves_are_views_of_float32_masters():
    part = Pair()
    views = {leaf.name: view for leaf, view in leaf_views(part)}
    assert part.plain.dtype == torch.float32
    assert torch.equal(views["blocks.1.key"], torch.arange(6.0, 12.0).view(2, 3))
    views["blocks.0.up"].fill_(-1.0)
    assert (part.bank[2] == -1).all() and (part.bank[:2] >= 0).all()


@pytest.mark.parametrize("stray", [nn.Linear(2, 2), nn.ParameterList([torch.ones(1)])])
def test_a_parameter_without_a_role_is_an_error_that_names_it(stray):
    with pytest.raises(ValueError, match=r"parameter 1\.(weight|0) has no role"):
        parameter_roles(model_of(Pair(), stray))


def test_a_parameter_registered_past_the_part_is_an_error():
    part = Pair()
    part.smuggled = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"parameter 0\.smuggled has no role"):
        parameter_roles(model_of(part))


def test_an_unknown_role_and_a_wrong_count_of_leaves_are_errors():
    with pytest.raises(ValueError, match="unknown role 'gate'"):
        Part().own("x", "x", torch.ones(1), "gate")
    with pytest.raises(ValueError, match="x: 1 leaves for 2 slices"):
        Part().own_bank("x", torch.ones(2, 1), "scalar", [("one", "scalar", 0)])


def test_two_leaves_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"two leaves are called blocks\.0\.key"):
        list(leaf_views(model_of(Pair(), Pair("other"))))


def test_leaves_come_back_through_load():
    one, two = Pair(), Pair()
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    load_leaves(two, {leaf.name: view for leaf, view in leaf_views(one)})
    assert torch.equal(one.bank, two.bank) and torch.equal(one.plain, two.plain)
    assert two.bank.requires_grad


@pytest.mark.parametrize("fault", ["missing", "surplus", "shape"])
def test_loading_what_does_not_fit_is_an_error_that_names_the_leaf(fault):
    part = Pair()
    tensors = {leaf.name: view.clone() for leaf, view in leaf_views(part)}
    if fault == "missing":
        del tensors["blocks.0.up"]
    else:
        tensors["blocks.0.up" if fault == "shape" else "blocks.9.up"] = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"blocks\.[09]\.up"):
        load_leaves(part, tensors)
