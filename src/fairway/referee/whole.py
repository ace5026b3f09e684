"""The sum over the vocabulary: is what is charged for a token one share of a whole that is 1?

On a warm state: at targets spread over a text, what the model commits to for all V ids, what the mixers make of it, and
that a token which really stands there is charged just that. And at the contest's load, where hash tables are full: mixers
alone on long noise, whose price has a floor. P targets that are looked at, V vocabulary, N targets, K ids asked for.
"""

import math
import time
from dataclasses import replace

import numpy as np
import torch

from ..score.history import History
from ..score.mixing import Committed, CommittedWhole, build_mixers
from ..score.watched import Tallies, tallied_nats
from .probes import kraft_deficit
from .streams import ONE_IN_A_MILLION

POSITIONS = 64  # targets at which the sum is taken
TRIED = 4  # of those, where ids are put in the token's place
IDS = 16  # that are put there
SUM_EXACT, SUM_SINGLE = 1e-6, 1e-4  # what a sum may be off by: of float64, of float32
SAME = 1e-4  # nats between what is charged and what was committed to: products of other shapes round otherwise
HELD = 1 << 24  # log-probabilities at once: 128 MiB
LOADS = (1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22)  # targets of noise; #864 has 4,194,304 buckets
FEW = 4  # ids of the second noise: contexts come back


class WholeCommitter:
    """Stands before a Committer and keeps, for chosen targets, log-probabilities of all V ids. It changes nothing.

    chosen_P int64 ascending. Filled while a pass runs: whole_PV float64, charged_P (what the target itself was given).
    """

    def __init__(self, commit):
        self.commit, self.vocab, self.device = commit, commit.vocab, commit.device
        self.choose(np.zeros(0, np.int64))

    def choose(self, chosen_P):
        """From now on these targets are looked at."""
        self.chosen_P, chosen = chosen_P, len(chosen_P)
        self.whole_PV = torch.full((chosen, self.vocab), math.nan, dtype=torch.float64)
        self.charged_P = torch.full((chosen,), math.nan, dtype=torch.float64)
        self.dtype = torch.float64

    @property
    def tolerance(self):
        """What a sum of its probabilities may be off by."""
        return SUM_EXACT if self.dtype == torch.float64 else SUM_SINGLE

    def __call__(self, batch, ids_NK, entropy=False, tensors=(), linear=None):
        given = self.commit(batch, ids_NK, entropy, tensors, linear)
        target_N, live_N = batch.target_N.cpu().numpy(), batch.live_N.cpu().numpy()
        slot_M = np.flatnonzero(live_N & np.isin(target_N, self.chosen_P))
        if len(slot_M):
            place_M = torch.from_numpy(np.searchsorted(self.chosen_P, target_N[slot_M]))
            slot_M = torch.from_numpy(slot_M).to(batch.take_N.device)
            self.charged_P[place_M] = given[slot_M, 0].detach().double().cpu()
            self.whole_PV[place_M] = self.everything(batch, slot_M, tensors, linear).double().cpu()
            self.dtype = given.dtype
        return given

    @torch.no_grad()
    def everything(self, batch, slot_M, tensors, linear):
        """[M, V] of some slots of a batch, by a forward pass of its own in which another id comes first."""
        if linear is None and len(batch.take_N) * self.vocab > HELD:
            # An adapter's products may need the slots of all rows, the model's own do not; but all of them round as in the
            # score.
            batch = replace(batch, **{name: getattr(batch, name)[slot_M] for name in ("take_N", "target_N", "live_N")})
            slot_M = torch.arange(len(slot_M), device=slot_M.device)
        ids_V = torch.arange(self.vocab, device=batch.take_N.device).roll(1)
        parts = []
        for ids_K in ids_V.split(max(1, 2 * HELD // len(batch.take_N))):
            ids_NK = ids_K.expand(len(batch.take_N), -1)
            parts.append(self.commit(batch, ids_NK, False, tensors, linear)[slot_M])
        return torch.cat(parts, dim=1).roll(-1, 1)


class Replay:
    """A pass over the same text but for one token, without its model: mixers are built of the changed text, and look up
    what was committed to. It has what a Mixture asks of a Pass.

    `one`: the Pass that has run, with a WholeCommitter; `place` (of P): the target in whose place `token` is put.
    """

    def __init__(self, one, mix, place=None, token=None):
        self.plan, self.schedule, self.commit, self.entropy = one.plan, one.schedule, one.commit, one.entropy
        self.stream = one.stream.clone()
        target = None if place is None else int(one.commit.chosen_P[place])
        if place is not None:
            self.stream[target + 1] = token
        self.mixture = mix[0].mixture(mix, self)
        asked = [self.stream[1:], *self.mixture.queries]
        # As in a Pass: two columns at least.
        asked = asked if len(asked) > 1 else asked * 2
        self.ids_NK = torch.stack([ids_N.to(torch.int32) for ids_N in asked], dim=1)
        self.logp_NK = one.logp_NK[: one.targets].clone()
        if place is not None:
            whole_V = one.commit.whole_PV[place].to(self.logp_NK.device)
            self.logp_NK[target, : self.ids_NK.shape[1]] = whole_V[self.ids_NK[target].long()]

    def nats(self, tally=None):
        """float64 [N]: what the last mixer charges."""
        return self.mixture.nats(self.logp_NK, tally)[-1][1]

    def whole(self, place):
        """ln p [V] that the last mixer gives all ids at a target, float64; ValueError where it answers for one id alone."""
        target = int(self.commit.chosen_P[place])
        span, whole_1V = slice(target, target + 1), self.commit.whole_PV[place : place + 1]
        mixed = CommittedWhole(whole_1V.to(self.stream.device))
        if self.entropy:
            mixed.entropy_N = self.logp_NK[span, -1]
        for _, mixer in self.mixture.mixers:
            mixed = mixer.mix(mixed, span)
        return mixed.at(torch.arange(self.commit.vocab, device=self.stream.device)[None])[0].cpu()


def judge_sum(findings, make, mix, seconds=6.0, load=True):
    """C2: the sum over the vocabulary on a warm state, and with `load` on full tables.

    `make(wrap)` gives a Pass over the text whose Committer is wrap(commit), not yet run; its adapter is put back at the end.
    `mix`: the nodes of its mixers. Looks at 64 targets in the later part of the text.
    """
    kept = []

    def wrap(commit):
        kept.append(WholeCommitter(commit))
        return kept[0]

    try:
        one = make(wrap)
        kept[0].choose(np.unique(np.linspace(one.targets // 4, one.targets - 1, POSITIONS).astype(np.int64)))
        try:
            charged_N = one.run()[-1][1].nats_N
        finally:
            if one.adapter is not None:
                one.adapter.restore()
        judge_model_sum(findings, one)
        if mix:
            judge_mixed_sum(findings, one, mix, charged_N, seconds / 2)
    except Exception as fault:  # whatever a recipe's parts do, the referee goes on
        findings.untested("C2", f"the sum over the vocabulary could not be taken: {type(fault).__name__}: {fault}")
    if mix and load:
        judge_load(findings, mix, kept[0].vocab if kept else 1024, seconds)


def judge_model_sum(findings, one):
    """C2 of what the model commits to: its distribution sums to 1, and the target is charged just its share, whichever id is
    asked for first."""
    commit, stream = one.commit, one.stream.cpu()
    sum_P = commit.whole_PV.exp().sum(1)
    own_P1 = stream[torch.from_numpy(commit.chosen_P) + 1].long()[:, None]
    apart_P = (commit.charged_P - commit.whole_PV.gather(1, own_P1)[:, 0]).abs()
    if not bool(sum_P.isfinite().all()):
        return findings.untested("C2", "not all targets that were to be looked at have been scored")
    worst = int((sum_P - 1).abs().argmax())
    where = f"the model's own distribution at {len(sum_P)} targets from {commit.chosen_P[0]:,} to {commit.chosen_P[-1]:,}, "
    where += (
        f"sum over {commit.vocab:,} ids; the tokens that stand there are charged it within {float(apart_P.max()):.2g} nats"
    )
    holds = bool(abs(float(sum_P[worst]) - 1) <= commit.tolerance) and bool((apart_P <= SAME).all())
    return findings.say("C2", holds, float(sum_P[worst]), 1.0, commit.tolerance, where)


def judge_mixed_sum(findings, one, mix, charged_N, seconds):
    """C2 of what the mixers charge: their distributions sum to 1, and each of some ids, put in the token's place, is charged
    its share of it."""
    commit, replay = one.commit, Replay(one, mix)
    tallies = Tallies(replay.mixture.mixers)
    again_N = replay.nats(tallies.add)
    facts = list(tallies.summaries().values())[-1]
    if not np.allclose(again_N, charged_N, rtol=1e-5, atol=1e-5):
        return findings.untested("C2", "the mixers charge another price when they are asked again")
    names, tolerance = " and ".join(name for name, _ in replay.mixture.mixers), commit.tolerance
    if "mean_z" in facts and abs(facts["mean_z"] - 1) > tolerance:
        where = f"{names} tells the mean sum over {commit.vocab:,} ids at {facts['sampled_targets']:,} targets: "
        where += f"Z from {facts['least_z']:.6g} to {facts['greatest_z']:.6g}"
        return findings.say("C2", False, facts["mean_z"], 1.0, tolerance, where)
    try:
        whole_PV = torch.stack([replay.whole(place) for place in range(len(commit.chosen_P))])
    except ValueError as fault:
        return judge_by_substitution(findings, one, mix, names, seconds, str(fault))
    sum_P = whole_PV.exp().sum(1)
    worst, changed_PV = int((sum_P - 1).abs().argmax()), (whole_PV.exp() - commit.whole_PV.exp()).abs()
    places = changed_PV.sum(1).argsort(descending=True)[:TRIED].tolist()
    apart, tried, begin = 0.0, 0, time.perf_counter()
    for place in places:
        # The ids that mixing changes most, and some that it may think nobody asks for.
        drawn = torch.randint(commit.vocab, (IDS,), generator=torch.Generator().manual_seed(place))
        for token in torch.cat([changed_PV[place].topk(min(IDS, commit.vocab)).indices, drawn]).unique().tolist():
            if tried and time.perf_counter() - begin > seconds:
                break
            nats = float(Replay(one, mix, place, token).nats()[commit.chosen_P[place]])
            apart, tried = max(apart, abs(nats + float(whole_PV[place, token]))), tried + 1
    moved = float(changed_PV.sum(1).max()) / 2
    where = f"{names} at {len(sum_P)} targets from {commit.chosen_P[0]:,} to {commit.chosen_P[-1]:,}, sum over "
    where += f"{commit.vocab:,} ids; mixing moves up to {moved:.3g} of the whole; {tried} ids put in the token's place "
    where += f"are charged their share within {apart:.2g} nats"
    if apart > SAME:
        return judge_by_substitution(findings, one, mix, names, seconds, where)
    return findings.say("C2", abs(float(sum_P[worst]) - 1) <= tolerance, float(sum_P[worst]), 1.0, tolerance, where)


def judge_by_substitution(findings, one, mix, names, seconds, why):
    """C2 where a mixer cannot be asked for whole distributions, or charges something else: every id is put in the token's
    place, in turn, while there is time. Shares are not below 0, so a part that is above 1 already tells."""
    commit, end, rows = one.commit, time.perf_counter() + seconds, []
    for place in np.linspace(0, len(commit.chosen_P) - 1, TRIED).astype(int).tolist():
        total, tried = 0.0, 0
        for token in commit.whole_PV[place].argsort(descending=True).tolist():
            if time.perf_counter() > end:
                break
            total, tried = total + math.exp(-float(Replay(one, mix, place, token).nats()[commit.chosen_P[place]])), tried + 1
        rows.append((total, tried, int(commit.chosen_P[place])))
    # What is too much already; else the worst of those that are complete; else the one that is nearest to too much.
    full = [row for row in rows if row[1] == commit.vocab]
    tolerance = commit.tolerance
    total, tried, target = min(full) if full and max(rows)[0] <= 1 + tolerance else max(rows)
    where = f"{names}: {tried:,} of {commit.vocab:,} ids put in the place of target {target:,} in turn ({why})"
    holds = False if total > 1 + tolerance or (tried == commit.vocab and total < 1 - tolerance) else True if full else None
    return findings.say("C2", holds, total, 1.0, tolerance, where)


def judge_load(findings, mix, vocab, seconds):
    """C2 at the contest's load: mixers on uniform noise, beside a model that knows how many ids there are and no more.

    No code saves on noise (probes.judge_noise); full tables pretend to. Over all ids, then over few, as long as time lasts.
    """
    try:
        judge_loaded_sum(findings, mix, vocab)
        rows = noise_ladder(mix, vocab, vocab, 0.7 * seconds)
        rows += noise_ladder(mix, vocab, min(FEW, vocab), 0.3 * seconds)
    except Exception as fault:  # a mixer that cannot be built on plain noise
        return findings.untested("C2", f"no noise at load: {type(fault).__name__}: {fault}")
    # The one that saves most; if none does, the longest.
    short, mean, targets, kinds, _ = max(rows, key=lambda row: (max(row[0], 0.0), row[2], row[3]))
    where = f"at load: {targets:,} tokens of uniform noise over {kinds:,} ids cost {mean:.6g} nats each, the floor is "
    where += f"{math.log(kinds):.6g}" + (f"; {short:.4g} nats fewer than any code spends" if short > 0 else "")
    findings.say("C2", short <= 0, mean, math.log(kinds), ONE_IN_A_MILLION / targets, where)
    if told := [row for row in rows if row[4] is not None]:
        *_, targets, kinds, mean_z = max(told, key=lambda row: row[4])
        where = f"at load: the mixer tells the mean sum over {vocab:,} ids on {targets:,} tokens of noise over {kinds:,} ids"
        findings.say("C2", mean_z <= 1 + SUM_SINGLE, mean_z, 1.0, SUM_SINGLE, where)
    return None


def noise_ladder(mix, vocab, kinds, seconds):
    """[(nats under the floor, mean nats, targets, kinds, mean Z that the mixer tells or None)] of longer and longer noise,
    as long as there is time: it takes at most as many times as long as it is longer."""
    end, targets, rows = time.perf_counter() + seconds, LOADS[0], []
    while targets:
        before = time.perf_counter()
        nats_N, facts = noise_by_mixers(mix, vocab, kinds, targets)
        rows.append((*kraft_deficit(nats_N, kinds), targets, kinds, facts.get("mean_z")))
        now = time.perf_counter()
        affordable = [n for n in LOADS if targets < n <= 8 * targets and (now - before) * n / targets < end - now]
        targets = max(affordable, default=0)
    return rows


def judge_loaded_sum(findings, mix, vocab):
    """C2: the sum over the vocabulary at the last targets of noise over few ids, whose contexts have all come back."""
    kinds, targets = min(FEW, vocab), LOADS[1]
    _, mixers = mixers_on_noise(mix, vocab, kinds, targets)
    base_V = torch.where(torch.arange(vocab) < kinds, -math.log(kinds), -100.0)
    sums = []
    for target in range(targets - TRIED, targets):
        span = slice(target, target + 1)
        mixed = CommittedWhole(base_V[None])
        try:
            for _, mixer in mixers:
                mixed = mixer.mix(mixed, span)
            sums.append(float(mixed.at(torch.arange(vocab)[None]).exp().sum()))
        except ValueError:
            # It answers for the token that stands there alone: the price of noise tells.
            return None
    worst = max(sums, key=lambda one: abs(one - 1))
    where = (
        f"at load: the sum over {vocab:,} ids at {len(sums)} targets after {targets - TRIED:,} tokens of noise over {kinds}"
    )
    return findings.say("C2", abs(worst - 1) <= SUM_EXACT, worst, 1.0, SUM_EXACT, where)


def mixers_on_noise(mix, vocab, kinds, targets):
    """(tokens int32 [targets + 1], [(name, mixer)]) of uniform noise over ids 0..kinds - 1."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, kinds, targets + 1).astype(np.int32))
    return tokens, build_mixers(mix, History(tokens, None, None, vocab))


def noise_by_mixers(mix, vocab, kinds, targets):
    """(float64 nats [N], facts) of the last mixer on that noise, beside a model that spreads all its weight evenly."""
    tokens, mixers = mixers_on_noise(mix, vocab, kinds, targets)
    ids_NK = torch.stack([tokens[1:], *(ids_N.int() for _, mixer in mixers for ids_N in mixer.queries)], dim=1)
    logp_NK = torch.where(ids_NK < kinds, -math.log(kinds), -100.0).double()
    entropy_N = torch.full((targets,), math.log(kinds), dtype=torch.float64)
    _, nats_N, facts = tallied_nats(Committed(ids_NK, logp_NK, entropy_N), mixers, tokens[1:].long())[-1]
    return nats_N.numpy(), facts
