"""The back-off cache of #864 twice: with exact counts, a distribution; and as it was published, which is none.

H is the entropy in nats of the model's own softmax, n an order: a context of n - 1 tokens. N targets, S sampled ones.
"""

from dataclasses import dataclass

import torch

from ..problem import Problem
from .mixing import Blended, MixerBase, Mixing, Unnormalised

HIGHEST_ORDER = 32
PUBLISHED_ORDERS = 9  # the published hash has primes for no more
PUBLISHED_SAYS = (
    "not a probability: the chances of all tokens sum to mean_z, not to 1, and a valid code would cost log2 of that more "
    "bits at each token; this number cannot be compared with a score"
)


@dataclass(frozen=True)
class EntropyWeight:
    """How much a cache counts: a = clip(m_n [low + rise sigmoid(slope (H - c_n))], 0, cap), c_n = centre - step (n - 2).

    The more the model hesitates, and the longer the context, the more. `factors` are m_2, m_3, ...; the last holds for all
    higher orders. Defaults: #864.
    """

    low: float = 0.05
    rise: float = 0.55
    slope: float = 2.0
    centre: float = 3.0
    step: float = 0.25
    factors: tuple[float, ...] = (0.3, 0.3, 0.97, 2.0)
    cap: float = 0.95

    def check_weight(self, owner):
        """Problem, naming `owner`, for factors that are none or negative, and a cap outside of 0..1."""
        if not self.factors or min(self.factors) < 0:
            raise Problem(f"{owner}.factors is {self.factors}: give one or more, none below 0")
        if not 0 <= self.cap < 1:
            raise Problem(f"{owner}.cap takes 0 to below 1, not {self.cap:g}: the model must keep some weight")

    def weight(self, entropy_N, order_N):
        """float64 [N] of float64 H and the order of each target, 0 where no order was taken."""
        order_N = order_N.long()
        orders = range(2, 3 + int(order_N.max()) if len(order_N) else 3)
        factor = [0.0, 0.0, *(self.factors[min(order - 2, len(self.factors) - 1)] for order in orders)]
        factor_N = torch.tensor(factor, dtype=torch.float64, device=entropy_N.device)[order_N]
        centre_N = self.centre - self.step * (order_N - 2)
        return (factor_N * (self.low + self.rise * torch.sigmoid(self.slope * (entropy_N - centre_N)))).clamp(0.0, self.cap)


@dataclass(frozen=True)
class BackoffCache(EntropyWeight, Mixing):
    """(1 - a) p(v) + a count(context, v) / count(context), with the longest context that has been seen `least` times.

    Counts are exact, so that the ratio is a distribution. The cache grows after each `every` targets, in the order of
    scoring: 65,536 as in #864, 1 for all that has been scored.
    """

    orders: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9)
    least: int = 2
    every: int = 65_536

    def __post_init__(self):
        self.check_weight("BackoffCache")
        _check_orders("BackoffCache", self.orders, HIGHEST_ORDER)
        _check_least("BackoffCache", least=self.least, every=self.every)

    def build(self, history):
        """The mixer for the targets of a History."""
        return BackoffMixer(self, history.backoff(self.orders, self.least, self.every))


@dataclass(frozen=True)
class BackoffCacheAsPublished(EntropyWeight, Mixing):
    """#864's rule to the letter: hash tables of `buckets` entries in which contexts and targets collide, the realised target
    in the key. Reports its number with the sum of its chances over all tokens, measured at `sample` targets.

    Only in the order of the stream, without documents; it can only stand last.
    """

    orders: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9)
    buckets: int = 1 << 22
    every: int = 65_536
    sample: int = 4096

    def __post_init__(self):
        self.check_weight("BackoffCacheAsPublished")
        _check_orders("BackoffCacheAsPublished", self.orders, PUBLISHED_ORDERS)
        _check_least("BackoffCacheAsPublished", buckets=self.buckets, every=self.every, sample=self.sample)

    def build(self, history):
        """The mixer for the targets of a History; Problem for another order of scoring than the stream's."""
        if not history.plain:
            raise Problem(
                "BackoffCacheAsPublished counts in the order of the stream, across documents; leave it out where an adapter "
                "or windows for each document score in another, or take BackoffCache"
            )
        return PublishedMixer(self, history)


class BackoffMixer(MixerBase):
    """Weights from orders and entropies; `rows` are the History's BackoffRows."""

    wants_entropy = True

    def __init__(self, node, rows):
        self.node, self.rows = node, rows

    def prepare(self, queries):
        for ids_N in queries:
            self.rows.prepare(ids_N)

    def mix(self, base, span=None):
        weight_N = self.node.weight(base.entropy_N, self.rows.order_N if span is None else self.rows.order_N[span])
        return Blended(base, weight_N, self.rows, span)

    def summary(self, tally):
        """How many targets each order served (0: the model alone), and the mean weight over all targets."""
        return _facts_of_rows(self.rows.order_N, tally)


class PublishedMixer(MixerBase):
    """The published look-up, and at sampled targets what it would have said of every token."""

    normalised = False
    wants_entropy = True

    def __init__(self, node, history):
        self.node = node
        self.sample_S = spread_sample(history.targets, node.sample).to(history.device)
        self.rows = history.hashed_backoff(node.orders, node.buckets, node.every, self.sample_S)
        self.z_S = torch.full((len(self.sample_S),), torch.nan, dtype=torch.float64, device=history.device)

    def mix(self, base, span=None):
        span = slice(0, len(self.rows.order_N)) if span is None else span
        weight_N = self.node.weight(base.entropy_N, self.rows.order_N[span])
        low, high = torch.searchsorted(self.sample_S, torch.tensor([span.start, span.stop], device=weight_N.device)).tolist()
        # The base sums to 1; the floor of 1e-10 adds less than 1e-5 for 65,536 tokens and is left out.
        self.z_S[low:high] = 1 + weight_N[self.sample_S[low:high] - span.start] * (self.rows.sum_S[low:high] - 1)
        return Unnormalised(base, weight_N, self.rows, span)

    def summary(self, tally):
        """The sum over all tokens, Z = 1 + a (S - 1) (1 where no order was taken), and what that means."""
        return {
            "mean_z": float(self.z_S.mean()),
            "least_z": float(self.z_S.min()),
            "greatest_z": float(self.z_S.max()),
            "sampled_targets": len(self.sample_S),
            "says": PUBLISHED_SAYS,
        } | _facts_of_rows(self.rows.order_N, tally)


def spread_sample(targets, sample):
    """`sample` targets, ascending int64, one drawn from each of as many equal stretches (all targets if there are fewer)."""
    if sample >= targets:
        return torch.arange(targets)
    within = torch.rand(sample, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.arange(sample) + within) * (targets / sample)).long().clamp(max=targets - 1)


def _facts_of_rows(order_N, tally):
    counts = torch.bincount(order_N.long()).tolist()
    served = {str(order): count for order, count in enumerate(counts) if count}
    return {"targets_of_order": served, "mean_weight": tally.get("weight", 0.0) / max(1, len(order_N))}


def _check_orders(owner, orders, highest):
    if not orders or len(set(orders)) != len(orders) or not all(2 <= order <= highest for order in orders):
        raise Problem(f"{owner}.orders is {orders}: give different orders from 2 to {highest}")


def _check_least(owner, **values):
    for name, value in values.items():
        if value < 1:
            raise Problem(f"{owner}.{name} takes 1 or more, not {value}")
