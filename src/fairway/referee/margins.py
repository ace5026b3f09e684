"""How sure a difference of bits per byte is: t-tests of seeds, and the contest's margin in the three readings of its unit.

Figures are bpb, smaller is better: `own` is asked whether it lies below `other`.
"""

import math
import warnings
from statistics import stdev

from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

RECORD_CHANCE = 0.01  # the contest's: a margin counts where p is below
COVERAGE = 0.95  # of every interval
NO_SPREAD = 1e-12  # bpb: a sample deviation below is rounding


def margin_readings(nats, bytes_per_token=None):
    """{unit: bpb}: a margin of so many nats, read as nats a token, nats a byte, or as bpb. Without bytes a token the first
    reading is left out."""
    readings = {"nats a byte": nats / math.log(2), "bpb": nats}
    return readings if bytes_per_token is None else {"nats a token": nats / math.log(2) / bytes_per_token, **readings}


def t_test(own, other, margin=0.0, paired=False, alternative="less"):
    """SciPy's result (statistic, df, pvalue, confidence_interval of the difference) of the test that own + margin lies below
    `other`: paired, Welch's, or one-sample where `other` is one figure."""
    shifted = [one + margin for one in own]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one side without spread, which Welch's test can bear
        if paired:
            return ttest_rel(shifted, other, alternative=alternative)
        if len(other) == 1:
            return ttest_1samp([one - other[0] for one in shifted], 0.0, alternative=alternative)
        return ttest_ind(shifted, other, equal_var=False, alternative=alternative)


def lacks_spread(own, other, paired=False):
    """Whether there is no spread to judge a difference by: all figures of a side are equal, or all differences of pairs."""
    if paired:
        return stdev(one - two for one, two in zip(own, other, strict=True)) < NO_SPREAD
    return stdev(own) < NO_SPREAD and (len(other) == 1 or stdev(other) < NO_SPREAD)


def mean_interval(figures):
    """[low, high] in which the mean of a normal distribution lies, by Student's t; None without two figures and a spread."""
    if len(figures) < 2 or stdev(figures) < NO_SPREAD:
        return None
    half = student.ppf(0.5 + COVERAGE / 2, len(figures) - 1) * stdev(figures) / math.sqrt(len(figures))
    middle = sum(figures) / len(figures)
    return [float(middle - half), float(middle + half)]
