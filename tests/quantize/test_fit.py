"""Dials on a stand-in for a packing, whose bytes follow from its rules by a formula."""

from dataclasses import replace
from math import prod

import pytest

from fairway.model.roles import Leaf
from fairway.problem import Problem
from fairway.quantize.fit import MixedBits, Pruning, StepDial, amended
from fairway.quantize.gptq import GPTQ
from fairway.quantize.schemes import KeepFloat16, RowInt

MATRIX, TABLE, GAIN = LEAVES = (
    Leaf("matrix", "matrix.key", 0, (64, 100)),
    Leaf("table", "table", -1, (10, 100)),
    Leaf("gain", "scalar", -1, (100,)),
)
RULE = RowInt(bits=6, sigmas=10.0, rounding=GPTQ())
RULES = {"matrix": RULE, "table": RULE, "gain": KeepFloat16()}


class Bytes:
    """A packing whose file has size(rule of the matrix) bytes; `seen`: those rules, in order."""

    def __init__(self, size, least, most):
        self.size, self.least, self.most, self.seen = size, least, most, []
        self.rules, self.leaves = dict(RULES), LEAVES

    def quantise(self, rules):
        self.seen.append(rules["matrix"])
        return rules

    def measure(self, codes):
        return self.size(codes["matrix"]), {}


def pruned(size, least, most, dial):
    """(the packing, the pruning it ends with, those it was measured with) of a dial; size(pruning) -> bytes."""
    packing = Bytes(lambda rule: size(rule.rounding.prune), least, most)
    told = dial.turn(packing)
    return told, packing.rules["matrix"].rounding.prune, [rule.rounding.prune for rule in packing.seen]


def test_only_rules_under_the_role_that_change_are_amended():
    changed = amended(RULES, LEAVES, "matrix", lambda rule: replace(rule, bits=4), None)
    assert changed == RULES | {"matrix": replace(RULE, bits=4)}
    finer = amended(RULES, LEAVES, "", lambda rule: replace(rule, bits=7) if rule == RULE else None, None)
    assert finer == RULES | {name: replace(RULE, bits=7) for name in ("matrix", "table")}
    with pytest.raises(Problem, match="no rule is blue"):
        amended(RULES, LEAVES, "", lambda rule: None, Problem("no rule is blue"))


def test_pruning_stays_off_while_the_bytes_fit_and_is_full_where_nothing_fits():
    assert pruned(lambda prune: 950, 900, 950, Pruning(role="table")) == ("no pruning", 0.0, [0.0])
    assert pruned(lambda prune: 951, 900, 950, Pruning(most=1.5)) == ("pruning 1.5000", 1.5, [0.0, 1.5])


def test_pruning_halves_its_way_into_the_window():
    told, prune, seen = pruned(lambda prune: 1000 - 100 * prune, 934, 936, Pruning())
    assert seen[:4] == [0.0, 2.0, 1.0, 0.5] and 0.64 <= prune <= 0.66 and told == f"pruning {prune:.4f}"


def test_pruning_ends_under_the_limit_where_no_amount_meets_the_window():
    _, prune, seen = pruned(lambda prune: 900 if prune >= 0.7 else 1000, 940, 950, Pruning())
    assert prune in seen and 0.7 <= prune < 0.71
    assert seen[-1] < 0.7, "the last amount tried was over the limit"


def test_the_step_moves_by_the_weights_it_counts_on():
    # Of the embedding and the matrix together, one bit a weight is 925 bytes.
    weights = prod(MATRIX.shape) + prod(TABLE.shape)
    packing = Bytes(lambda rule: 5000 if rule.sigmas == 10 else 4500, 4400, 4600)
    assert StepDial().turn(packing) == f"steps x {2 ** (500 * 8 / weights):.4f}"
    assert packing.rules["table"] == packing.rules["matrix"] != RULE and packing.rules["gain"] == RULES["gain"]


def test_bits_span_what_the_role_holds_and_nothing_else():
    coarse, fine = MixedBits(bits=(4, 7)).span(RULES, LEAVES)
    assert [rule["matrix"].bits for rule in (coarse, fine)] == [4, 7]
    assert {name for name in RULES if coarse[name] != fine[name]} == {"matrix"}
