"""What may be said of a comparison in words: no more than its figures carry."""

import math

from ..referee.margins import RECORD_CHANCE
from ..referee.rules import read_policy
from .statistics import BOOTSTRAP


def digits_of(result):
    """Places after the point at which the smallest figure of a result still shows: 4 to 8."""
    sizes = [side["std"] for side in (result["runs"], result["against"]) if side]
    sizes += [abs(result["delta"]["bpb"])] if result["delta"] else []
    return max([4, *(min(8, -math.floor(math.log10(size))) for size in sizes if size)])


def described_side(side, digits):
    """A side in words: its name, n, mean, spread."""
    spread = "" if side["std"] is None else f", sd {side['std']:.{digits}f}"
    count = f"n = {side['n']}, " if side["n"] > 1 or side["runs"][0]["run"] else ""
    return f"{side['name']} ({count}{side['mean']:.{digits}f} bpb{spread})"


def chance_text(chance):
    """A p-value as it is quoted."""
    return "p < 0.0001" if chance < 1e-4 else f"p = {chance:#.2g}"  # 0.010: a bare 0.01 hides on which side it is


def span_text(interval, digits, sign=""):
    """An interval as it is printed."""
    return "-" if interval is None else f"{interval[0]:{sign}.{digits}f} to {interval[1]:{sign}.{digits}f}"


def quotable(result):
    """One sentence of a comparison that claims no more than its figures carry."""
    digits, delta = digits_of(result), result["delta"]
    own = described_side(result["runs"], digits)
    if delta is None:
        interval = result["runs"]["interval"]
        return (
            f"{own}: 95 % interval of the mean {span_text(interval, digits)}." if interval else f"{own}: no spread is known."
        )
    other, size = described_side(result["against"], digits), f"{abs(delta['bpb']):.{digits}f} bpb"
    way = "better" if delta["bpb"] < 0 else "worse"
    if result["test"] is None:
        measured = f"measures {size} {way} than" if delta["bpb"] else "measures the same as"
        return f"{own} {measured} {other}, which is not tested: {result['because']}."
    interval, test = span_text(result["interval"], digits, "+"), result["test"]
    if result["noise"]:
        found = f"{delta['bpb']:+.{digits}f} bpb, 95 % {interval}, {test}, two-sided {chance_text(result['p_two_sided'])}"
        return f"{own} is not shown to differ from {other}: {found}."
    chance = f"one-sided {chance_text(result['p_value'])}"
    if way == "worse":
        chance = f"two-sided {chance_text(result['p_two_sided'])}"
    if test == BOOTSTRAP:
        drawn = result["because"].rpartition(" of the ")[2]
        found = f"95 % {interval}, {test} ({drawn}), {chance}"
        return f"{own} is {size} {way} than {other} on this text: {found}; one seed each."
    return f"{own} is {size} {way} than {other}: 95 % {interval}, {test}, {chance}{margins_text(result, way)}."


def margins_text(result, way):
    """Which readings of the contest's margin a gain exceeds, and which it is not shown to."""
    if way == "worse":
        return ""
    size, parts = read_policy().limit("S1"), []
    for met, words in ((True, "more than"), (False, f"not shown at p < {RECORD_CHANCE:g} to be more than")):
        readings = [
            f"{size:g} {unit} ({chance_text(one['p_value'])})"
            for unit, one in result["margins"].items()
            if one["met"] is met
        ]
        parts += [f"; {words} {', '.join(readings)}"] if readings else []
    return "".join(parts)
