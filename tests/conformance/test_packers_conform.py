"""Every scheme with every codec: what is packed comes back to the bit, whatever the machine, and near to what it was."""

import importlib
import pkgutil

import pytest
import torch

import fairway.codec
import fairway.quantize
from conformance.packers_table import CODECS, DIALS, PLAIN, SCHEMES
from fairway.artifact.container import measure_container, read_container, write_container
from fairway.model.roles import Leaf
from fairway.node import Node, parse_node, show, walk
from fairway.problem import Problem
from fairway.quantize.policy import assign_rules, dequantise, quantise
from fairway.quantize.schemes import RowInt

SHAPES = ((96, 64), (96, 64), (33, 17), (1, 40), (40, 1), (24,), ())
LEAVES = [Leaf(f"blocks.{i}.up", "matrix.up", i, shape) for i, shape in enumerate(SHAPES)]


def drawn():
    draw = torch.Generator().manual_seed(11)
    return {leaf.name: 0.1 * torch.randn(leaf.shape, generator=draw) for leaf in LEAVES}


def inputs():
    """A Hessian for each leaf: inputs that depend on each other a little."""
    draw, found = torch.Generator().manual_seed(12), {}
    for leaf in LEAVES:
        width = leaf.shape[-1] if leaf.shape else 1
        x_MC = torch.randn(4 * width, width, generator=draw) + 0.3 * torch.randn(4 * width, 1, generator=draw)
        found[leaf.name] = x_MC.T @ x_MC / len(x_MC)
    return found


def packed(scheme):
    hessians = inputs() if scheme.calibrated else {}
    return quantise(drawn(), LEAVES, assign_rules(LEAVES, (scheme,)), hessians)


@pytest.mark.parametrize("scheme, most", SCHEMES, ids=repr)
def test_what_comes_back_is_near_to_what_it_was(scheme, most):
    weights, back = drawn(), dequantise(packed(scheme))
    for leaf in LEAVES[:3]:
        assert (back[leaf.name] - weights[leaf.name]).norm() <= most * weights[leaf.name].norm(), leaf
    assert all(back[leaf.name].shape == leaf.shape and back[leaf.name].isfinite().all() for leaf in LEAVES)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("scheme, most", SCHEMES, ids=repr)
def test_a_file_gives_the_codes_to_the_bit_and_its_owners_sum(scheme, most, codec):
    codes = packed(scheme)
    data, owners = write_container(codes, codec, "0" * 16)
    assert sum(owner["bytes"] for owner in owners) == len(data) and min(owner["bytes"] for owner in owners) >= 0
    back, _ = read_container(data, codec)
    for name, one in codes.items():
        assert (back[name].scheme, back[name].role, back[name].shape) == (one.scheme, one.role, one.shape)
        assert all(torch.equal(back[name].parts[part], tensor) for part, tensor in one.parts.items())
    assert measure_container(codes, codec, "0" * 16)[0] == pytest.approx(len(data), rel=0.1)


@pytest.mark.parametrize("scheme, most", SCHEMES, ids=repr)
def test_packing_is_deterministic(scheme, most):
    one, other = packed(scheme), packed(scheme)
    assert all(torch.equal(one[name].parts[part], tensor) for name, x in other.items() for part, tensor in x.parts.items())


@pytest.mark.parametrize("dial", DIALS, ids=repr)
def test_a_dial_spans_from_coarse_to_fine(dial):
    from fairway.quantize.gptq import GPTQ

    rule = RowInt(bits=6, sigmas=12.85, rounding=GPTQ())
    rules, hessians, sizes = assign_rules(LEAVES, (rule,)), inputs(), []
    for end in dial.span(rules, LEAVES):
        codes = quantise(drawn(), LEAVES, end, hessians)
        sizes.append(measure_container(codes, CODECS[0], "0" * 16)[0])
    assert sizes[0] < sizes[1]
    with pytest.raises(Problem, match="finds no"):
        dial.span(assign_rules(LEAVES, (SCHEMES[0][0],)), LEAVES)


@pytest.mark.parametrize("node", [*(scheme for scheme, _ in SCHEMES), *CODECS, *DIALS, *PLAIN], ids=repr)
def test_a_node_is_written_and_read_back(node):
    assert parse_node(repr(node)) == parse_node(show(node)) == node


def test_no_node_of_the_rooms_is_missing():
    for room in (fairway.codec, fairway.quantize):
        for module in pkgutil.iter_modules(room.__path__):
            importlib.import_module(f"{room.__name__}.{module.name}")
    rows = [*(scheme for scheme, _ in SCHEMES), *CODECS, *DIALS, *PLAIN]
    seen = {type(node) for row in rows for _, node in walk(row)}

    def kinds(kind):
        for child in kind.__subclasses__():
            yield child
            yield from kinds(child)

    ours = {kind for kind in kinds(Node) if kind.__module__.startswith(("fairway.codec.", "fairway.quantize."))}
    bases = {kind for kind in ours if kind.__subclasses__()}
    assert ours - bases == seen
