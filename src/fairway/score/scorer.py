"""The scorer: it owns the tokens. It hands out windows of inputs, takes what the model commits to, looks the targets up,
and only then lets anything learn from them.

N targets, B rows, T positions, S slots of a batch, K ids asked for at each target (the target itself first), V vocabulary.
"""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..problem import Problem
from .adapter import Revealed
from .batches import Collator
from .history import History
from .mixing import Committed, build_mixers, mixed_nats
from .rest import plain_rest
from .schedule import order_of_scoring, prove_schedule, scoring_rank, shared_out
from .windows import prove_coverage

CHECK_EVERY = 64  # batches at most between two looks at the results: each look makes the host wait for the device
LOOKS = 50  # at least, in a pass: the budget ends it to within a fiftieth or so


@dataclass(frozen=True, eq=False)
class Scored:
    """A score: `nats` is the float64 sum over `tokens` targets, `bytes` the bytes of text that they stand for."""

    nats: float
    tokens: int
    bytes: int
    dropped: int  # targets at the end of the stream that `multiple_of` left out
    windows: int
    nats_N: np.ndarray  # float32, one a target, in order
    facts: dict = field(default_factory=dict)  # what the adapter or mixer says of itself

    @property
    def bpb(self):
        """Bits per byte."""
        return self.nats / math.log(2) / self.bytes

    @property
    def implied_bytes(self):
        """The bytes that nats and bpb imply: the check that a reader of two published numbers can make."""
        return self.nats / math.log(2) / self.bpb if self.nats else float(self.bytes)

    def as_json(self):
        """The figures without the array."""
        return {name: getattr(self, name) for name in ("bpb", "nats", "tokens", "bytes", "implied_bytes")} | {
            "dropped_targets": self.dropped,
            "windows": self.windows,
        }


class Pass:
    """One pass over a stream. `prepare` plans and proves, `warm_up` compiles and forecasts, `run` scores.

    `commit` is a Committer, `tokens` a 1-D integer array, `starts` the places of document starts in it, `count` the bytes
    that the scored targets stand for. `world` has `rank`, `size`, `device`, `all_reduce_sum(tensor)` and
    `largest(numbers)`; every rank gets the whole result. `adapter` is a built Adapter or None, `mix` the nodes of mixers.
    Raises Problem for an empty stream, ids outside the vocabulary, no bytes, and logits of the wrong shape or not finite.
    """

    def __init__(self, commit, tokens, evaluation, count, world, starts=None, adapter=None, mix=()):
        self.commit, self.evaluation, self.count, self.world, self.adapter = commit, evaluation, count, world, adapter
        self.targets = evaluation.scored_targets(len(tokens))
        self.dropped = len(tokens) - 1 - self.targets
        starts = np.zeros(0, np.int64) if starts is None else np.asarray(starts)
        self.starts = starts[starts < self.targets]
        _check_stream(tokens, commit.vocab)
        if count < 1:
            raise Problem(
                f"the {self.targets} targets stand for {count} bytes of text; check that the tokenizer is the data's own"
            )
        maker = evaluation.windows if adapter is None else adapter
        self.plan = maker.plan(self.targets, self.starts)
        prove_coverage(self.plan, self.targets)
        whole = np.arange(len(self.plan))
        self.schedule = (
            [shared_out(self.plan, whole, world.size)] if adapter is None else adapter.schedule(self.plan, self.starts)
        )
        prove_schedule(self.schedule, self.plan)
        self.stream = torch.from_numpy(np.asarray(tokens[: self.targets + 1]).astype(np.int32)).to(world.device)
        self.collator = Collator(self.stream, self.plan)
        before = time.perf_counter()
        self.mixers = self._build_mixers(mix)
        # Mixing, at the end, takes about as long as counting did.
        self.mixing = time.perf_counter() - before
        asked = [self.stream[1:], *(ids_N for _, mixer in self.mixers for ids_N in mixer.queries)]
        # Two at least, so that passes without and with a mixer that asks for one id share their graphs.
        asked = asked if len(asked) > 1 else asked * 2
        self.ids_NK = torch.stack([ids_N.to(torch.int32) for ids_N in asked], dim=1)
        self.wants_entropy = any(mixer.wants_entropy for _, mixer in self.mixers)
        self.forecast, self.plain_pace = None, 0.0  # seconds in all, seconds a target where the rest is scored plainly
        self.spent = 0.0  # seconds of the budget that were spent on preparing
        self.read = self.plainly_scored = 0  # positions read by this rank's passes; targets that the budget left over

    def _build_mixers(self, mix):
        if not mix:
            return []
        # Statistics come from what stands before in the order of scoring, and contexts stop where windows see no further.
        in_order = bool(np.all(np.diff(order_of_scoring(self.schedule)) > 0))
        rank_N = None if in_order else torch.from_numpy(scoring_rank(self.schedule, self.plan)).to(self.stream.device)
        floor_N = None
        if self.plan.floor is not None:
            floor_N = torch.from_numpy(np.repeat(self.plan.floor, self.plan.end - self.plan.begin)).to(self.stream.device)
        history = History(self.stream, rank_N, floor_N, self.commit.vocab)
        return build_mixers(mix, history)

    def cuts(self, windows):
        """How windows are cut into batches: [Cut]."""
        size = self.evaluation.batch_windows
        return self.collator.cuts(windows, size) if self.adapter is None else self.adapter.cuts(self.collator, windows)

    @torch.no_grad()
    def warm_up(self):
        """Runs each kind of batch and of learning on random tokens: all is compiled then. Returns a forecast in seconds."""
        own = [
            cut
            for group in self.schedule
            for episode in group.of_rank(self.world.rank, self.world.size)
            for one in episode.rounds
            for cut in self.cuts(one.windows)
        ]
        families = {}
        for cut in own:
            families.setdefault(_family(cut), {})[cut.shape[1]] = cut
        seconds = {}
        for family, by_length in families.items():
            # The shortest and the longest: between them time goes by the length, and one graph serves all.
            for length in {min(by_length), max(by_length)}:
                seconds[family, length] = self._seconds_of(self.collator, by_length[length])
        total = sum(_interpolated(seconds, families[_family(cut)], cut) for cut in own)
        self._measure_plain()
        if self.adapter is not None:
            total += self.adapter.warm_up(self.commit.vocab, self.plan, self.schedule)
        self.forecast = self.world.largest([total + self.mixing])[0]
        return self.forecast

    def _measure_plain(self):
        """Seconds a target where the rest is scored plainly."""
        rest = plain_rest(self.plan, np.arange(len(self.plan)), self.evaluation.windows.length)
        collator = self._rest_collator(rest)
        cuts = collator.cuts(np.arange(len(rest)), self.evaluation.batch_windows)
        kinds = {_family(cut): cut for cut in cuts}
        seconds = {family: self._seconds_of(collator, cut, plain=True) for family, cut in kinds.items()}
        self.plain_pace = sum(seconds[_family(cut)] for cut in cuts) / self.targets

    def _rest_collator(self, rest):
        """Rows of one length, however little is left: the one that was warmed up."""
        return Collator(self.stream, rest, max(self.collator.length, min(self.evaluation.windows.length, self.targets)))

    def _seconds_of(self, collator, cut, plain=False):
        """Of one batch of random tokens, the second time that it is run."""
        batch = collator.build(cut)
        batch = replace(batch, ids_BT=torch.randint_like(batch.ids_BT, self.commit.vocab))
        ids_SK = torch.randint(self.commit.vocab, (len(batch.take_N), self.ids_NK.shape[1]), device=self.stream.device)
        for _ in range(2):
            self.world.synchronize()
            begin = time.perf_counter()
            logp_SK, _ = self._committed(batch, ids_SK, plain)
            if self.adapter is not None and not plain:
                self.adapter.after_round(self._live_nats(batch, logp_SK), batch)
            self.world.synchronize()
            seconds = time.perf_counter() - begin
        if self.adapter is not None and not plain:
            self.adapter.forget()
        return seconds

    def _committed(self, batch, ids_SK, plain=False):
        adapter = None if plain else self.adapter
        with torch.set_grad_enabled(adapter is not None and adapter.by_round):
            if adapter is None:
                return self.commit(batch, ids_SK, entropy=self._entropy_asked())
            tensors = adapter.tensors(len(batch.ids_BT))
            return self.commit(batch, ids_SK, tensors, adapter.linear, self._entropy_asked())

    @staticmethod
    @torch.enable_grad()
    def _live_nats(batch, logp_SK):
        return torch.where(batch.live_N, -logp_SK[:, 0], 0.0)

    @torch.no_grad()
    def run(self, progress=None):
        """[(name or None, Scored)]: what the model itself scores, then what it scores with each mixer added.

        `progress(targets done, targets of this rank)` is called now and then.
        """
        device, asked = self.stream.device, self.ids_NK.shape[1]
        # One row more than there are targets: spare slots are written there.
        self.logp_NK = torch.zeros(self.targets + 1, asked, dtype=torch.float64, device=device)
        self.entropy_N = torch.zeros(self.targets + 1 if self._entropy_asked() else 0, dtype=torch.float64, device=device)
        self.times_N = torch.zeros(self.targets + 1, dtype=torch.int32, device=device)
        self.revealed, self.progress = Revealed(self.stream), progress
        self.scored_W = np.zeros(len(self.plan), bool)
        self.begin = self.last_look = time.perf_counter()
        self.stopped, self.fault, self.batches = False, False, 0
        self.longest_gap = (self.forecast or 0.0) / LOOKS  # seconds between two looks
        own = [group.of_rank(self.world.rank, self.world.size) for group in self.schedule]
        windows = [one.windows for group in own for episode in group for one in episode.rounds]
        windows = np.concatenate(windows) if windows else np.zeros(0, np.int64)
        self.own = self.left = self._count(windows)
        by_round = self.adapter is not None and self.adapter.by_round
        ahead = sum(len(episode.rounds) for group in own for episode in group) if by_round else len(windows)
        ahead //= 1 if by_round else self.evaluation.batch_windows
        self.every = min(max(1, ahead // LOOKS), CHECK_EVERY)
        for group, episodes in zip(self.schedule, own, strict=True):
            for episode in episodes:
                self._run_episode(episode)
            if self.adapter is not None and not self._all_meet(group):
                break
        if not self.fault:
            self._score_rest(np.sort(windows[~self.scored_W[windows]]))
        return self._results()

    def _entropy_asked(self):
        return self.wants_entropy or (self.adapter is not None and self.adapter.wants_entropy)

    def _count(self, windows):
        return int((self.plan.end[windows] - self.plan.begin[windows]).sum())

    def _run_episode(self, episode):
        if self.adapter is not None:
            self.adapter.begin(episode)
        for one in episode.rounds:
            for cut in self.cuts(one.windows):
                if self.stopped or self.fault:
                    return
                batch = self.collator.build(cut)
                logp_SK = self._score(batch)
                if self.adapter is not None and self.adapter.by_round:
                    self.adapter.after_round(self._live_nats(batch, logp_SK), batch)
                self._account(cut)

    def _score(self, batch, plain=False):
        logp_SK, entropy_S = self._committed(batch, self.ids_NK[batch.target_N].long(), plain)
        self.read += batch.ids_BT.numel()
        at_S = torch.where(batch.live_N, batch.target_N, self.targets)
        self.logp_NK[at_S] = logp_SK.detach().double()
        self.times_N.index_add_(0, at_S, torch.ones_like(at_S, dtype=torch.int32))
        if entropy_S is not None:
            self.entropy_N[at_S] = entropy_S.detach().double()
        return logp_SK

    def _account(self, cut):
        """Now and then waits for the device, looks whether all is finite, and whether the budget still lasts."""
        self.scored_W[cut.windows] = True
        self.left -= self._count(cut.windows)
        self.batches += 1
        if self.batches % self.every and self.left:
            return
        self.world.synchronize()
        now = time.perf_counter()
        self.longest_gap, self.last_look = max(self.longest_gap, now - self.last_look), now
        # A fault ends this share early; it is raised after the ranks have met, on all of them, so that none hangs.
        self.fault = not bool(self.logp_NK[: self.targets, 0].isfinite().all())
        if self.progress:
            self.progress(self.own - self.left, self.own)
        self.stopped |= self._too_late(now)

    def _too_late(self, now):
        """Whether another stretch like the longest so far would leave too little time to score the rest plainly."""
        ahead = self.longest_gap + 1.2 * self.plain_pace * self.left + self.mixing
        return bool(self.left) and self.spent + now - self.begin + ahead > self.evaluation.seconds

    def _all_meet(self, group):
        """After a group: all ranks learn whether one has to stop; if none has, the adapter learns. False ends adapting."""
        self.stopped |= self._too_late(time.perf_counter())
        stopped, fault = self.world.largest([float(self.stopped), float(self.fault)])
        self.stopped, self.fault = bool(stopped), bool(fault)
        if self.stopped or self.fault:
            return False
        windows = np.sort(group.windows())
        begin, end = self.plan.begin[windows], self.plan.end[windows]
        for run in np.split(np.arange(len(windows)), np.flatnonzero(begin[1:] != end[:-1]) + 1):
            self.revealed.mark(begin[run[0]], end[run[-1]])
        self.adapter.after_group(group, self.plan, self.revealed, self._mean_entropy(windows))
        self.world.synchronize()
        self.longest_gap, self.last_look = max(self.longest_gap, time.perf_counter() - self.last_look), time.perf_counter()
        return True

    def _mean_entropy(self, windows):
        """Mean entropy in nats over the targets of these windows, of all ranks; None unless the adapter wants it."""
        if not self.adapter.wants_entropy:
            return None
        begin, end = int(self.plan.begin[windows].min()), int(self.plan.end[windows].max())
        total = self.world.all_reduce_sum(self.entropy_N[begin:end].sum())
        return float(total) / self._count(windows)

    def _score_rest(self, windows):
        """Scores what the budget left over in windows side by side, from the weights as they are, and learns nothing."""
        self.plainly_scored = self._count(windows)
        rest = plain_rest(self.plan, windows, self.evaluation.windows.length)
        collator = self._rest_collator(rest)
        for cut in collator.cuts(np.arange(len(rest)), self.evaluation.batch_windows):
            self._score(collator.build(cut), plain=True)

    def _results(self):
        """All ranks' parts put together, proved whole, and mixed."""
        world, targets = self.world, self.targets
        whole_NK, times_N = world.all_reduce_sum(self.logp_NK[:targets]), world.all_reduce_sum(self.times_N[:targets])
        nats_N = -whole_NK[:, 0].cpu().numpy()
        _check_finite(nats_N, self.plan)
        if not bool((times_N == 1).all()):
            at = int(torch.nonzero(times_N != 1)[0])
            raise ValueError(f"target {at} was scored {int(times_N[at])} times")
        entropy_N = world.all_reduce_sum(self.entropy_N[:targets]) if self._entropy_asked() else None
        ours = torch.tensor([self.read, self.plainly_scored], dtype=torch.int64, device=self.stream.device)
        self.read, self.plainly_scored = world.all_reduce_sum(ours).tolist()
        facts = {"seconds_budget": self.evaluation.seconds, "plainly_scored": self.plainly_scored}
        facts |= {} if self.forecast is None else {"seconds_forecast": round(self.forecast, 1)}
        facts |= {} if self.adapter is None else self.adapter.summary()
        results = [(None, self._scored(nats_N, facts))]
        if self.mixers:
            committed = Committed(self.ids_NK, whole_NK, entropy_N)
            for name, mixed_N, summary in mixed_nats(committed, self.mixers, self.stream[1:].long()):
                nats_N = mixed_N.cpu().numpy()
                if not math.isfinite(nats_N.sum()):
                    at = int(np.flatnonzero(~np.isfinite(nats_N))[0])
                    raise Problem(f"{name} gives the token of target {at} no chance at all; leave the model some weight")
                results.append((name, self._scored(nats_N, summary)))
        return results

    def _scored(self, nats_N, facts):
        total = float(nats_N.sum())
        return Scored(total, self.targets, self.count, self.dropped, len(self.plan), nats_N.astype(np.float32), facts)


def _family(cut):
    """Rows and slots of a cut's batch, and whether windows share rows: all but the length."""
    return cut.shape[0], cut.shape[2], cut.layout is not None


def _interpolated(seconds, by_length, cut):
    """Seconds of a batch: on the line through those of the shortest and the longest of its family."""
    low, high, family = min(by_length), max(by_length), _family(cut)
    share = (cut.shape[1] - low) / max(1, high - low)
    return seconds[family, low] + share * (seconds[family, high] - seconds[family, low])


def _check_stream(tokens, vocab):
    if not (int(tokens.min()) >= 0 and int(tokens.max()) < vocab):
        at = int(np.flatnonzero((tokens < 0) | (tokens >= vocab))[0])
        raise Problem(
            f"token {at} of the validation stream is {tokens[at]}, not in 0..{vocab - 1}; take this vocabulary's data"
        )


def _check_finite(nats_N, plan):
    if math.isfinite(nats_N.sum()):
        return
    target = int(np.flatnonzero(~np.isfinite(nats_N))[0])
    window = int(np.searchsorted(plan.end, target, side="right"))
    raise Problem(
        f"window {window} (tokens {plan.start[window]}..{plan.end[window] - 1}): the logits for target {target} are NaN, "
        "infinite or give it no chance; look for overflow in the weights"
    )
