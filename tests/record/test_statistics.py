"""Judgements on numbers alone: which test, what it finds, and that a bootstrap meets no margin."""

import math

import numpy as np
import pytest
from scipy.stats import kstest, ttest_ind
from scipy.stats import t as student

from fairway.record.statistics import BOOTSTRAP, judge_by_documents, judge_by_seeds, judged_margins

OWN, OTHER = (1.0562, 1.0571, 1.0563), (1.0581, 1.0589, 1.0588)


def test_welch_is_scipys():
    judged, wanted = judge_by_seeds(OWN, OTHER, "reasons"), ttest_ind(OWN, OTHER, equal_var=False)
    assert judged.test == "Welch t" and "reasons" in judged.because
    assert judged.two_sided == pytest.approx(wanted.pvalue) and judged.chance(0.0) == pytest.approx(wanted.pvalue / 2)
    assert judged.interval == pytest.approx(list(wanted.confidence_interval(0.95)))


@pytest.mark.parametrize("own, other, unpaired", [((1, 1), (2, 2), "x"), ((1, 1.5), (2, 2.5), None), ((1, 1), (2,), "x")])
def test_figures_without_spread_are_not_tested(own, other, unpaired):
    judged = judge_by_seeds(own, other, unpaired)
    assert (judged.test, judged.interval, judged.chance, judged.two_sided) == (None, None, None, None)
    assert "no spread" in judged.because


def documents(count, gain, seed):
    """Nats of `count` documents under two models, of which the first is better by `gain` bpb, and their bytes."""
    chance = np.random.default_rng(seed)
    bytes_D = chance.integers(500, 5000, count)
    nats_b_D = bytes_D * 0.75
    delta_D = bytes_D * (chance.normal(-gain, 0.01, count) * math.log(2))
    return nats_b_D + delta_D, nats_b_D, bytes_D


def test_p_over_documents_is_uniform_without_a_gain_and_small_with_one():
    chances = [judge_by_documents(*documents(120, 0.003, seed)).chance(0.003) for seed in range(150)]
    assert kstest(chances, "uniform").pvalue > 0.001
    judged = judge_by_documents(*documents(120, 0.003, 1))
    assert judged.test == BOOTSTRAP and judged.chance(0.0) < 0.01 < 0.05 < judged.chance(0.003)
    assert judged.interval[0] < -0.003 < judged.interval[1] < 0
    weak = judge_by_documents(*documents(120, 0.0008, 1))
    assert weak.two_sided == pytest.approx(2 * weak.chance(0.0), rel=1e-6) and weak.two_sided > 0.002
    strong = judge_by_documents(*documents(120, 0.3, 1))
    assert strong.chance(0.0) == strong.two_sided == 0.001, "a thousand draws tell no less"


def test_p_over_documents_agrees_with_its_interval():
    for seed in range(30):
        judged = judge_by_documents(*documents(40, 0.003, seed))
        low, high = judged.interval
        assert judged.chance(0.0) > 0.025 - 1e-9 or high < 0
        assert judged.chance(-low) > 0.5 > judged.chance(-high)


def test_p_over_documents_goes_by_the_farther_end_of_a_lopsided_interval():
    bytes_D = np.full(20, 1000)
    nats_b_D = bytes_D * 0.75
    nats_a_D = nats_b_D + np.array([40.0] + [-5.0] * 19)  # one document is worse, and by much
    judged, delta = judge_by_documents(nats_a_D, nats_b_D, bytes_D), -55 / 20_000 / math.log(2)
    low, high = judged.interval
    assert high - delta > 1.2 * (delta - low)
    assert judged.chance(0.0) == pytest.approx(student.cdf(2.093024 * delta / (high - delta), 19))


def test_few_documents_are_told():
    assert not any("narrow" in note for note in judge_by_documents(*documents(40, 0, 1)).notes)
    assert any("narrow" in note for note in judge_by_documents(*documents(12, 0, 1)).notes)


def test_equal_nats_and_a_single_document_are_not_tested():
    nats_a_D, nats_b_D, bytes_D = documents(40, 0.003, 1)
    assert judge_by_documents(nats_b_D, nats_b_D, bytes_D).test is None
    assert judge_by_documents(nats_a_D[:1], nats_b_D[:1], bytes_D[:1]).test is None


def test_seeds_meet_a_margin_below_p_of_one_in_hundred_and_documents_meet_none():
    found = judged_margins(judge_by_seeds(OWN, OTHER, "reasons"), 0.0002, 3.5)
    assert {unit: one["met"] for unit, one in found.items()} == {"nats a token": True, "nats a byte": True, "bpb": True}
    found = judged_margins(judge_by_seeds(OWN, OTHER, "reasons"), 0.0012, 3.5)
    assert {unit: one["met"] for unit, one in found.items()} == {"nats a token": True, "nats a byte": False, "bpb": False}
    assert found["nats a token"]["p_value"] < found["bpb"]["p_value"] < found["nats a byte"]["p_value"]
    of_documents = judged_margins(judge_by_documents(*documents(120, 0.02, 1)), 0.0002, 3.5)
    assert of_documents["bpb"]["p_value"] == 0.001 and of_documents["bpb"]["met"] is None
    untested = judged_margins(judge_by_seeds((1, 1), (2,), ""), 0.005, 3.5)
    assert untested["bpb"] == {"bpb": 0.005, "p_value": None, "met": None}
