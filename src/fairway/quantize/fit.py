"""Site `fit`: dials that are moved until the packed bytes lie between two limits: as many as may be had, and a few less.

A dial sees a Packing (artifact/pack.py): `rules` by leaf name, which it changes; `leaves`; `hessians` by name;
`tensors`, the weights, by name; quantise(rules) -> codes by name; measure(codes) -> (bytes of the file, bytes by name);
`least` and `most`, the limits. `span(rules, leaves)` gives the rules at both ends of a dial, coarsest first: what
`fairway plan` packs.
"""

import heapq
import math
from dataclasses import dataclass, replace

from ..model.roles import role_matches
from ..problem import Problem
from ..sites import FitSite
from .gptq import GPTQ
from .hessian import output_error
from .schemes import decode_coded

ROUNDS = 10  # of a search; each quantises anew


def amended(rules, leaves, role, change, missing):
    """`rules` with `change(rule)` for every rule under `role` ("": any) of which it makes another; None: not of this one.
    Raises the Problem `missing` where there is none."""
    moved = {
        leaf.name: changed
        for leaf in leaves
        if role_matches(leaf.role, role or leaf.role) and (changed := change(rules[leaf.name]))
    }
    if not moved:
        raise missing
    return rules | moved


@dataclass(frozen=True)
class StepDial(FitSite):
    """One factor on the `sigmas` of every rule under `role` that clips by them (PR #1514: k is the size and quality knob).

    Twice the step saves a bit a weight, which is how the search aims; the factor stays in [least, most].
    """

    role: str = ""
    least: float = 0.5
    most: float = 2.0

    def __post_init__(self):
        if not 0 < self.least <= 1 <= self.most:
            raise Problem(f"StepDial from {self.least} to {self.most}: the factor 1 must lie between, both above 0")

    def rules_at(self, factor, rules, leaves):
        """`rules` with the factor on their sigmas. Problem where no rule has any."""

        def stepped(rule):
            return replace(rule, sigmas=rule.sigmas * factor) if getattr(rule, "sigmas", 0) else None

        missing = Problem(f"StepDial finds no rule for {self.role or 'any role'} that clips by sigmas; give one, or drop it")
        return amended(rules, leaves, self.role, stepped, missing)

    def span(self, rules, leaves):
        return self.rules_at(self.most, rules, leaves), self.rules_at(self.least, rules, leaves)

    def turn(self, packing):
        begin, factor = packing.rules, 1.0
        coarser = self.rules_at(2.0, begin, packing.leaves)
        weights = sum(math.prod(leaf.shape) for leaf in packing.leaves if coarser[leaf.name] != begin[leaf.name])
        for _ in range(ROUNDS):
            packing.rules = self.rules_at(factor, begin, packing.leaves)
            size, _ = packing.measure(packing.quantise(packing.rules))
            if packing.least <= size <= packing.most:
                break
            aim = 2 ** ((size - (packing.least + packing.most) / 2) * 8 / weights)
            used, factor = factor, min(max(factor * aim, self.least), self.most)
            if factor == used:
                break
        else:
            factor = used
        return f"steps x {factor:.4f}"


@dataclass(frozen=True)
class MixedBits(FitSite):
    """Integers of several widths under a byte budget (PR #1205): all leaves under `role` begin at the fewest bits; then
    whichever gains most per byte gets the next width, as long as it fits.

    Gain is the fall of the error in a matrix's outputs, tr(E H E^T) (without Hessians of tr(E E^T)); bytes are measured
    by the recipe's own codec. The public allocator looked at tr(H) alone, and estimated bytes; it left every matrix at 5.
    """

    role: str = "matrix"
    bits: tuple[int, ...] = (5, 6, 7)

    def __post_init__(self):
        if sorted(set(self.bits)) != list(self.bits) or len(self.bits) < 2 or not 2 <= min(self.bits) <= max(self.bits) <= 8:
            raise Problem(f"MixedBits.bits is {self.bits}: give two or more widths from 2 to 8, ascending, as (5, 6, 7)")

    def rules_at(self, bits, rules, leaves):
        """`rules` with so many bits in every integer rule under `role`. Problem where there is none."""

        def widened(rule):
            return replace(rule, bits=bits) if hasattr(rule, "bits") else None

        missing = Problem(f"MixedBits finds no integer rule for {self.role}; give one, or drop it")
        return amended(rules, leaves, self.role, widened, missing)

    def span(self, rules, leaves):
        return self.rules_at(self.bits[0], rules, leaves), self.rules_at(self.bits[-1], rules, leaves)

    def turn(self, packing):
        lowest, highest = self.span(packing.rules, packing.leaves)
        movable = [name for name in lowest if lowest[name] != highest[name]]
        sizes, errors = [], []
        for bits in self.bits:
            codes = packing.quantise(self.rules_at(bits, packing.rules, packing.leaves))
            total, by_name = packing.measure(codes)
            sizes.append((total, by_name))
            errors.append({name: self._error(codes[name], packing, name) for name in movable})
        step, spent = dict.fromkeys(movable, 0), sizes[0][0]
        heap = [self._offer(name, 0, sizes, errors) for name in movable]
        heapq.heapify(heap)
        while heap:
            _, cost, name = heapq.heappop(heap)
            if spent + cost <= packing.most:
                spent, step[name] = spent + cost, step[name] + 1
                if step[name] + 1 < len(self.bits):
                    heapq.heappush(heap, self._offer(name, step[name], sizes, errors))
        packing.rules = lowest | {name: replace(lowest[name], bits=self.bits[step[name]]) for name in movable}
        counts = [sum(number == index for number in step.values()) for index in range(len(self.bits))]
        return ", ".join(f"{count} matrices of {bits} bits" for count, bits in zip(counts, self.bits, strict=True))

    @staticmethod
    def _error(coded, packing, name):
        weight, hessian_CC = packing.tensors[name], packing.hessians.get(name)
        error = decode_coded(coded).to(weight.device) - weight
        return float(error.square().sum() if hessian_CC is None else output_error(error, hessian_CC))

    @staticmethod
    def _offer(name, index, sizes, errors):
        # (minus gain per byte, bytes, name), the best first; a width that costs nothing is the best of all.
        cost = sizes[index + 1][1][name] - sizes[index][1][name]
        gain = errors[index][name] - errors[index + 1][name]
        return -gain / cost if cost > 0 else -math.inf, cost, name


@dataclass(frozen=True)
class Pruning(FitSite):
    """Only if the bytes are still over the limit: small codes become zero inside GPTQ's sweep, where it costs least, and the
    columns after them make up for it (GPTQ.prune, up to `most`). PR #1205 zeroed the smallest codes afterwards, by their
    scale alone, which took the query and output matrices first and was undone by nothing."""

    role: str = "matrix"
    most: float = 2.0

    def rules_at(self, amount, rules, leaves):
        """`rules` with so much pruning in every rule under `role` that rounds by GPTQ. Problem where there is none."""

        def pruned(rule):
            rounding = getattr(rule, "rounding", None)
            return replace(rule, rounding=replace(rounding, prune=amount)) if isinstance(rounding, GPTQ) else None

        missing = Problem(f"Pruning finds no rule for {self.role} that rounds by GPTQ; give one, or drop it")
        return amended(rules, leaves, self.role, pruned, missing)

    def span(self, rules, leaves):
        return self.rules_at(self.most, rules, leaves), rules

    def turn(self, packing):
        begin = packing.rules
        size, _ = packing.measure(packing.quantise(begin))
        if size <= packing.most:
            return "no pruning"
        low, high = 0.0, self.most
        amount = high  # if the most is too little, no less will do
        for _ in range(ROUNDS):
            size, _ = packing.measure(packing.quantise(self.rules_at(amount, begin, packing.leaves)))
            low, high = (amount, high) if size > packing.most else (low, amount)
            if packing.least <= size <= packing.most or low == high:
                break
            amount = (low + high) / 2
        packing.rules = self.rules_at(high, begin, packing.leaves)
        return f"pruning {high:.4f}"
