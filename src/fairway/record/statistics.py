"""What two sets of figures say of each other: t-tests of seeds, the bootstrap of documents, margins. Numbers alone.

D documents. Differences are own - other, in bpb: below 0 own is better.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from ..referee.margins import COVERAGE, RECORD_CHANCE, lacks_spread, margin_readings, t_test
from ..score.bootstrap import paired_bootstrap

BOOTSTRAP = "bootstrap over documents"
FEW_DOCUMENTS = 30  # below, an interval over documents is known to be too narrow


@dataclass(frozen=True)
class Judgement:
    """A test that was made, or with `test` None why none was. `chance(margin)`: one-sided p that own is better by more."""

    test: str | None
    because: str
    interval: list | None = None
    chance: object = None
    two_sided: float | None = None
    notes: tuple = ()


def judge_by_seeds(own, other, unpaired=None):
    """The Judgement of two sets of figures, of which `own` has two or more: paired if `unpaired` is None, or else for that
    reason by Welch's test, or by the one-sample test where `other` is one figure."""
    paired, notes = unpaired is None, ()
    if lacks_spread(own, other, paired):
        what = "the differences of the pairs are all equal" if paired else "the figures of each side are all equal"
        return Judgement(None, f"{what}, so there is no spread to judge by")
    if paired:
        test, because = "paired t", "both sides share seeds, data and its order, so each seed is a pair"
    elif len(other) > 1:
        test, because = "Welch t", f"not paired, since {unpaired}"
    else:
        test, because = "one-sample t", "the record is one figure"
        notes = ("the record is taken as exact: its own spread between seeds is not in the p-value",)
    result = t_test(own, other, 0.0, paired, "two-sided")
    interval = [float(edge) for edge in result.confidence_interval(COVERAGE)]

    def chance(margin):
        return float(t_test(own, other, margin, paired).pvalue)

    return Judgement(test, because, interval, chance, float(result.pvalue), notes)


def judge_by_documents(nats_a_D, nats_b_D, bytes_D):
    """The Judgement of two single runs by their nats of the same documents: whole documents are drawn again.

    p-values are Student's with one degree of freedom less than documents, and the deviation that the farther end of the
    draws' 95 % interval implies; none is below what so many draws can tell.
    """
    found = paired_bootstrap(nats_a_D, nats_b_D, bytes_D, np.arange(len(bytes_D)))
    delta, documents = found["delta_bpb"], found["documents"]
    low, high = found["interval"] or (delta, delta)
    if high - low == 0:
        return Judgement(None, f"there is no spread between documents to judge by ({documents} in all)")
    law, least = student(documents - 1), 1 / found["draws"]
    deviation = max(high - delta, delta - low) / law.ppf(0.5 + COVERAGE / 2)

    def chance(margin):
        return min(max(float(law.cdf((delta + margin) / deviation)), least), 1 - least)

    notes = ["one seed on each side: an interval over documents says nothing about other seeds"]
    if documents < FEW_DOCUMENTS:
        notes.append(f"with {documents} documents the interval over documents is too narrow")
    because = f"single runs: {found['draws']} draws of the {documents} documents"
    two_sided = max(float(2 * law.sf(abs(delta) / deviation)), least)
    return Judgement(BOOTSTRAP, because, [low, high], chance, two_sided, tuple(notes))


def judged_margins(judged, nats, bytes_per_token):
    """A margin of `nats` in its three readings: {unit: {bpb, p_value, met}}. A bootstrap knows one seed, and meets none."""
    found = {}
    for unit, bpb in margin_readings(nats, bytes_per_token).items():
        chance = judged.chance and judged.chance(bpb)
        met = None if judged.test in (None, BOOTSTRAP) else chance < RECORD_CHANCE
        found[unit] = {"bpb": bpb, "p_value": chance, "met": met}
    return found
