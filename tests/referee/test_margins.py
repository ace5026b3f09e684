"""Tests of a difference against published figures, SciPy, and simulated seeds; the margin's three readings."""

import math

import numpy as np
import pytest
from scipy.stats import kstest, ttest_ind, ttest_rel

from fairway.referee.margins import lacks_spread, margin_readings, mean_interval, t_test

# "Student" (1908), The probable error of a mean: extra hours of sleep of ten patients by two drugs; R has it as `sleep`.
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.mark.parametrize(
    "other, paired, t, df, p, interval",
    [
        (SECOND_DRUG, True, -4.0621, 9, 0.002833, (-2.4598858, -0.7001142)),
        (SECOND_DRUG, False, -1.8608, 17.776, 0.07939, (-3.3654832, 0.2054832)),
        ([0.0], False, 1.3257, 9, 0.2176, (-0.5297804, 2.0297804)),
    ],
)
def test_students_sleep_data_give_the_published_figures(other, paired, t, df, p, interval):
    result = t_test(FIRST_DRUG, other, 0.0, paired, "two-sided")
    assert result.statistic == pytest.approx(t, abs=5e-5) and result.df == pytest.approx(df, abs=5e-4)
    assert result.pvalue == pytest.approx(p, rel=5e-4)
    assert result.confidence_interval(0.95) == pytest.approx(interval, abs=5e-8)
    one_sided = t_test(FIRST_DRUG, other, 0.0, paired).pvalue
    assert one_sided == pytest.approx(p / 2 if t < 0 else 1 - p / 2, rel=5e-4)


def test_a_mean_has_the_published_interval_and_one_figure_has_none():
    assert mean_interval(FIRST_DRUG) == pytest.approx([-0.5297804, 2.0297804], abs=5e-8)
    assert mean_interval([1.0]) is None and mean_interval([1.0, 1.0]) is None


def test_a_margin_asks_for_more_than_nothing():
    other = [one + 0.5 for one in FIRST_DRUG]
    chances = [t_test(FIRST_DRUG, other, margin).pvalue for margin in (0.0, 0.5, 1.0)]
    assert chances == sorted(chances) and chances[1] == pytest.approx(0.5)
    shifted = [one + 0.3 for one in FIRST_DRUG]
    assert t_test(FIRST_DRUG, SECOND_DRUG, 0.3).pvalue == pytest.approx(
        ttest_ind(shifted, SECOND_DRUG, equal_var=False, alternative="less").pvalue
    )
    assert t_test(FIRST_DRUG, SECOND_DRUG, 0.3, True).pvalue == pytest.approx(
        ttest_rel(shifted, SECOND_DRUG, alternative="less").pvalue
    )


def test_a_side_without_spread_leaves_the_other_sides_spread():
    result = t_test([1.0, 1.0, 1.0], [1.1, 1.2, 1.3], 0.0, False, "two-sided")
    assert result.df == pytest.approx(2) and result.pvalue == pytest.approx(0.0742, abs=5e-5)
    assert not lacks_spread([1.0, 1.0, 1.0], [1.1, 1.2, 1.3])
    assert lacks_spread([1.0, 1.0], [2.0, 2.0]) and lacks_spread([1.0, 1.0], [2.0]) and not lacks_spread([1.0, 1.1], [2.0])
    assert lacks_spread([1.0, 1.1], [1.2, 1.3], paired=True) and not lacks_spread([1.0, 1.1], [1.2, 1.4], paired=True)


@pytest.mark.parametrize("kind", ["paired", "Welch", "one-sample"])
def test_without_a_gain_p_is_uniform_and_95_of_100_intervals_cover(kind):
    chance, draws, seeds, gain = np.random.default_rng(11), 400, 5, 0.002
    chances, covered = [], 0
    for _ in range(draws):
        own, other = chance.normal(1.06 - gain, 6e-4, seeds), chance.normal(1.06, 6e-4, seeds)
        if kind == "paired":  # what seeds share goes into both
            shared = chance.normal(0, 2e-3, seeds)
            own, other = own + shared, other + shared
        other = [1.06] if kind == "one-sample" else other
        chances.append(t_test(own, other, gain, kind == "paired").pvalue)
        low, high = t_test(own, other, 0.0, kind == "paired", "two-sided").confidence_interval(0.95)
        covered += low <= -gain <= high
    assert kstest(chances, "uniform").pvalue > 0.001
    assert covered / draws == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / draws))


def test_pairs_find_a_gain_that_noise_shared_by_the_seeds_hides():
    chance, found = np.random.default_rng(5), {True: 0, False: 0}
    for _ in range(200):
        shared = chance.normal(1.06, 1e-3, 5)
        own, other = shared - 3e-4 + chance.normal(0, 1e-4, 5), shared + chance.normal(0, 1e-4, 5)
        for paired in found:
            found[paired] += t_test(own, other, 0.0, paired).pvalue < 0.05
    assert found[True] > 180 and found[False] < 20


def test_the_margin_has_three_readings():
    found = margin_readings(0.005, 3.5)
    assert list(found) == ["nats a token", "nats a byte", "bpb"]
    assert found["nats a token"] == pytest.approx(0.002061, abs=5e-7)  # 0.005 / ln 2 / 3.5
    assert found["nats a byte"] == pytest.approx(0.0072135, abs=5e-8) and found["bpb"] == 0.005
    assert list(margin_readings(0.005)) == ["nats a byte", "bpb"]
