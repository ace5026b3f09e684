"""The algebra of distributions: what a mixer may answer with. A closed set of classes, normalised by construction.

A mixer is shown a History and what the model commits to at ids it has named beforehand, never the stream. It answers with
one of the classes below; only `mixed_nats` looks the targets up. N targets, K ids asked for at each, V vocabulary.
"""

import numpy as np
import torch

from ..problem import Problem
from ..sites import MixSite
from .history import History, spans_of
from .schedule import order_of_scoring, scoring_rank

UNDERFLOW = -700.0  # exp of less is no normal float64
PUBLISHED_FLOOR = 1e-10  # of probabilities, in the rule of #864


class Distribution:
    """A probability for each of the V ids at each of N targets. `entropy_N` float64 nats: of the model's own softmax,
    handed through whatever was mixed in (None if it was not asked for)."""

    normalised = True
    entropy_N = None

    def at(self, ids):
        """ln p of the ids, int [N] or [N, K]: float64, shaped alike."""
        raise NotImplementedError

    def tally(self, target_N):
        """{name: number} to be added up over spans: what came of it, once the targets are known."""
        return {}


class Committed(Distribution):
    """What the model gave the ids that were asked for beforehand: ids_NK int, logp_NK float64."""

    def __init__(self, ids_NK, logp_NK, entropy_N=None):
        self.ids_NK, self.logp_NK, self.entropy_N = ids_NK, logp_NK, entropy_N

    def at(self, ids):
        """ValueError for an id that was not asked for at its target."""
        asked_N1 = ids.reshape(len(ids), -1)
        return torch.stack([self._column(ids_N) for ids_N in asked_N1.unbind(1)], dim=1).reshape(ids.shape)

    def _column(self, ids_N):
        found_N = torch.zeros(len(ids_N), dtype=torch.bool, device=ids_N.device)
        logp_N = torch.zeros(len(ids_N), dtype=torch.float64, device=ids_N.device)
        for column in range(self.ids_NK.shape[1]):
            same_N = self.ids_NK[:, column] == ids_N
            logp_N = torch.where(same_N, self.logp_NK[:, column], logp_N)
            found_N |= same_N
            if bool(found_N.all()):
                return logp_N
        at = int(torch.nonzero(~found_N)[0])
        raise ValueError(f"id {int(ids_N[at])} at target {at} was not asked for before the model committed itself")

    def part(self, span):
        """The same at the targets of a slice."""
        return Committed(self.ids_NK[span], self.logp_NK[span], None if self.entropy_N is None else self.entropy_N[span])


class CommittedWhole(Distribution):
    """A model's whole distributions, logp_NV: for probes and tests."""

    def __init__(self, logp_NV):
        self.logp_NV = logp_NV.double()
        self.entropy_N = -torch.where(self.logp_NV > UNDERFLOW, self.logp_NV.exp() * self.logp_NV, 0.0).sum(1)

    def at(self, ids):
        return self.logp_NV.gather(1, ids.long().reshape(len(ids), -1)).reshape(ids.shape)

    def part(self, span):
        """The same at the targets of a slice."""
        return CommittedWhole(self.logp_NV[span])


class Tilted(Distribution):
    """One hint a target made likelier: p'(v) = p(v) e^(b [v = h]) / Z with Z = 1 + p(h) (e^b - 1) (#1514).

    hint_N int: h, or -1 for none, which leaves p as it is. strength_N float: b >= 0.
    """

    def __init__(self, base, hint_N, strength_N):
        _check_range(strength_N, 0.0, -UNDERFLOW, "a tilt's strength")
        self.base, self.hint_N, self.strength_N = base, hint_N, strength_N
        self.normalised, self.entropy_N = base.normalised, base.entropy_N

    def at(self, ids):
        hint_N1, strength_N1 = self.hint_N[:, None], self.strength_N.double()[:, None]
        # Rounding of a float32 model may bring ln p(h) a little above 0.
        hinted_N1 = self.base.at(self.hint_N.clamp(min=0))[:, None].clamp(max=0.0)
        logp_N1 = self.base.at(ids).reshape(len(ids), -1)
        missed_NK = logp_N1 - torch.log1p(hinted_N1.exp() * torch.expm1(strength_N1))
        # p'(h) = 1 / (1 + (1 / p(h) - 1) e^-b): nothing cancels, however near p(h) is to 1. Below float64's range 1 - p(h)
        # is 1, and p' is in proportion to p.
        above_N1 = hinted_N1.clamp(min=UNDERFLOW)
        hit_N1 = -torch.log1p(torch.expm1(-above_N1) * torch.exp(-strength_N1)) + (hinted_N1 - above_N1)
        tilted_NK = torch.where(ids.reshape(len(ids), -1) == hint_N1, hit_N1, missed_NK)
        return torch.where(hint_N1 < 0, logp_N1, tilted_NK).reshape(ids.shape)

    def tally(self, target_N):
        return {"hits": int(((self.hint_N >= 0) & (self.hint_N == target_N)).sum())}


class Blended(Distribution):
    """(1 - w) p(v) + w r(v). weight_N float in [0, 1]; `rows.at(ids, span)` gives r, float64: a distribution over the V
    ids at every target whose weight is not 0. `span`: which of the rows' targets these are, a slice (None: all)."""

    def __init__(self, base, weight_N, rows, span=None):
        _check_range(weight_N, 0.0, 1.0, "a blend's weight")
        self.base, self.weight_N, self.rows, self.span = base, weight_N.double(), rows, span
        self.normalised, self.entropy_N = base.normalised, base.entropy_N

    def at(self, ids):
        weight_N1 = self.weight_N[:, None]
        ratio_NK = self.rows.at(ids, self.span).reshape(len(ids), -1)
        logp_NK = self.base.at(ids).reshape(len(ids), -1)
        mixed_NK = torch.logaddexp(torch.log1p(-weight_N1) + logp_NK, weight_N1.log() + ratio_NK.log())
        return torch.where(weight_N1 > 0, mixed_NK, logp_NK).reshape(ids.shape)

    def tally(self, target_N):
        return {"weight": float(self.weight_N.sum())}


class Unnormalised(Distribution):
    """#864's rule as published, (1 - a) max(p, 1e-10) + a r, at least 1e-10: no distribution, and it says so.

    Knows the targets' own tokens alone. `rows.at(target_N, span)` gives r float64 [N]; weight_N float: a.
    """

    normalised = False

    def __init__(self, base, weight_N, rows, span=None):
        _check_range(weight_N, 0.0, 1.0, "a blend's weight")
        self.base, self.weight_N, self.rows, self.span = base, weight_N.double(), rows, span
        self.entropy_N = base.entropy_N

    def at(self, ids):
        """ValueError for ids that are not the targets."""
        ratio_N = self.rows.at(ids, self.span)
        p_N = self.base.at(ids).exp().clamp(min=PUBLISHED_FLOOR)
        return ((1 - self.weight_N) * p_N + self.weight_N * ratio_N).clamp(min=PUBLISHED_FLOOR).log()

    def tally(self, target_N):
        return {"weight": float(self.weight_N.sum())}


class MixerBase:
    """What a MixSite builds from a History: it turns one Distribution into another."""

    normalised = True  # False: what it answers with is no distribution, and nothing can stand on it
    queries = ()  # int [N] each: ids besides the target whose probability it will ask its base for
    wants_entropy = False  # True: it needs the base's entropy_N

    def prepare(self, queries):
        """The ids that mixers after this one will ask for at every target."""

    def mix(self, base, span=None):
        """The Distribution of the targets of `span`, a slice (None: all), for which `base` stands."""
        raise NotImplementedError

    def summary(self, tally):
        """Facts for score.json, after all has been mixed; `tally` is what its distributions have added up."""
        return {}


class Mixing(MixSite):
    """What every node of a mixer is."""

    def mixture(self, nodes, one):
        """The Mixture of these nodes for a Pass."""
        return Mixture(nodes, one)


class Mixture:
    """The mixers of a Pass, one after the other. Statistics come from what stands before in its order of scoring, and
    contexts stop where its windows see no further."""

    def __init__(self, nodes, one):
        plan, device, rank_N, floor_N = one.plan, one.stream.device, None, None
        if np.any(np.diff(order_of_scoring(one.schedule)) < 0):
            rank_N = torch.from_numpy(scoring_rank(one.schedule, plan)).to(device)
        if plan.floor is not None:
            floor_N = torch.from_numpy(np.repeat(plan.floor, plan.end - plan.begin)).to(device)
        self.one = one
        self.mixers = build_mixers(nodes, History(one.stream, rank_N, floor_N, one.commit.vocab))
        self.queries = [ids_N for _, mixer in self.mixers for ids_N in mixer.queries]
        self.wants_entropy = any(mixer.wants_entropy for _, mixer in self.mixers)

    def nats(self, whole_NK, tally=None):
        """`mixed_nats` of what all ranks' models have committed to: a column for each id, and maybe one of entropies."""
        asked = self.one.ids_NK.shape[1]
        committed = Committed(self.one.ids_NK, whole_NK[:, :asked], whole_NK[:, asked] if self.one.entropy else None)
        return [
            (name, nats_N.cpu().numpy())
            for name, nats_N in mixed_nats(committed, self.mixers, self.one.stream[1:].long(), tally)
        ]


def build_mixers(nodes, history):
    """[(name, mixer)] of a recipe's `mix`; of several of one kind each name also has its place. Problem where something is
    to stand on what is no distribution."""
    kinds, mixers = [type(node).__name__ for node in nodes], []
    for place, (kind, node) in enumerate(zip(kinds, nodes, strict=True)):
        if mixers and not mixers[-1][1].normalised:
            before = mixers[-1][0]
            raise Problem(f"`mix` holds {kind} after {before}, which gives no distribution to change: put {before} last")
        mixers.append((kind if kinds.count(kind) == 1 else f"{kind}:{place}", node.build(history)))
    return mixers


def mixed_nats(committed, mixers, target_N, tally=None):
    """[(name, nats_N float64)], one for each (name, mixer), each with all before it: nats of the targets.

    `committed` knows the targets and every mixer's queries. `tally(place, mixed, target_N)` is called with what each mixer
    answers for each span: the work is done in spans, so that temporaries stay small. ValueError where a mixer answers with
    anything but a Distribution of this module, or where a nat is not a number or below 0 although the distribution is one.
    """
    for place, (_, mixer) in enumerate(mixers):
        if later := [ids_N for _, one in mixers[place + 1 :] for ids_N in one.queries]:
            mixer.prepare(later)
    nats = [torch.empty(len(target_N), dtype=torch.float64, device=target_N.device) for _ in mixers]
    for span in spans_of(len(target_N)):
        mixed = committed.part(span)
        for place, (name, mixer) in enumerate(mixers):
            mixed = mixer.mix(mixed, span)
            if not isinstance(mixed, Distribution) or type(mixed).__module__ != Distribution.__module__:
                raise ValueError(
                    f"{name} answers with {type(mixed).__name__}, none of the distributions that are known to be sound"
                )
            nats[place][span] = _nats_of(mixed, target_N[span], name)
            if tally:
                tally(place, mixed, target_N[span])
    return [(name, nats_N) for (name, _), nats_N in zip(mixers, nats, strict=True)]


def _nats_of(mixed, target_N, name):
    nats_N = -mixed.at(target_N)
    # A float32 model's rounding brings ln p a little above 0; what is no distribution may go beyond 1 as it likes.
    good_N = nats_N >= (-1e-4 if mixed.normalised else -torch.inf)
    if not bool(good_N.all()):
        raise ValueError(strange_nats(nats_N, good_N, name))
    return nats_N


def strange_nats(nats_N, good_N, name):
    """Names the first target whose nats no probability costs."""
    at = int(torch.nonzero(~good_N)[0])
    return f"{name} gives target {at} of its span {float(nats_N[at])} nats, which no probability costs"


def _check_range(values_N, low, high, what):
    good_N = (values_N >= low) & (values_N <= high)
    if not bool(good_N.all()):
        raise ValueError(f"{what} is {float(values_N[~good_N][0])}, not in {low:g}..{high:g}")
