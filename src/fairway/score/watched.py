"""A Pass under a budget: forecast before it begins, watched while it runs, and where the time ends the rest is scored
plainly. What the command line runs.

S slots of a batch, K ids asked for at each.
"""

import math
import time
from dataclasses import replace

import numpy as np
import torch

from .mixing import mixed_nats
from .rest import plain_rest
from .scorer import Pass

CHECK_EVERY = 64  # batches at most between two looks at the results: each look makes the host wait for the device
LOOKS = 50  # at least, in a pass: the budget ends it to within a fiftieth or so
FAULT = 2.0  # of `ended`: something is not finite; 1.0 is the end of the budget


class WatchedPass(Pass):
    """A Pass that knows the time. `warm_up` compiles and forecasts, `run` scores."""

    def __init__(self, *arguments, **more):
        before = time.perf_counter()
        super().__init__(*arguments, **more)
        # Mixing, at the end, takes about as long as counting did, which is nearly all of this.
        self.mixing = time.perf_counter() - before if self.mixture else 0.0
        self.forecast, self.plain_pace = None, 0.0  # seconds in all, seconds a target where the rest is scored plainly
        self.spent = 0.0  # seconds of the budget that were spent on preparing
        self.read = self.plainly_scored = 0  # positions read by this rank's passes; targets that the budget left over

    def _own(self):
        """This rank's rounds, by group and episode: an int64 array of windows each."""
        rank, size = self.world.rank, self.world.size
        return [
            one.windows for group in self.schedule for episode in group.of_rank(rank, size) for one in episode.rounds
        ]  # fmt: skip

    @torch.no_grad()
    def warm_up(self):
        """Runs each kind of batch and of learning on random tokens: all is compiled then. Returns a forecast in seconds."""
        own = [cut for windows in self._own() for cut in self.cuts(windows)]
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
        if self.adapter:
            total += self.adapter.rehearse(self.commit.vocab, self.plan, self.schedule)
        self.forecast = self.world.largest([total + self.mixing])[0]
        return self.forecast

    def _measure_plain(self):
        """Seconds a target where the rest is scored plainly."""
        collator, cuts = self._plain_cuts(np.arange(len(self.plan)))
        kinds = {_family(cut): cut for cut in cuts}
        seconds = {family: self._seconds_of(collator, cut, plain=True) for family, cut in kinds.items()}
        self.plain_pace = sum(seconds[_family(cut)] for cut in cuts) / self.targets

    def _plain_cuts(self, windows):
        """(Collator, Cuts) of what windows score, side by side. Rows of one length, however little is left: the one that was
        warmed up."""
        longest = self.evaluation.windows.length
        rest = plain_rest(self.plan, windows, longest)
        collator = rest.collator(self.stream, max(self.collator.length, min(longest, self.targets)))
        return collator, collator.cuts(np.arange(len(rest)), self.evaluation.batch_windows)

    def _seconds_of(self, collator, cut, plain=False):
        """Of one batch of random tokens, the second time that it is run."""
        batch = collator.build(cut)
        batch = replace(batch, ids_BT=torch.randint_like(batch.ids_BT, self.commit.vocab))
        ids_SK = torch.randint(self.commit.vocab, (len(batch.take_N), self.ids_NK.shape[1]), device=self.stream.device)
        lessons = None if plain else self.lessons
        for _ in range(2):
            self.world.synchronize()
            begin = time.perf_counter()
            logp_SK = (lessons.commit if lessons else self._plainly)(batch, ids_SK, self.entropy)
            if lessons:
                lessons.after_batch(batch, logp_SK)
            self.world.synchronize()
            seconds = time.perf_counter() - begin
        if lessons:
            self.adapter.forget()
        return seconds

    def run(self, progress=None):
        """What `Pass.run` gives, with facts. `progress(targets done, targets of this rank)` is called now and then."""
        self.progress, self.scored_W, self.batches, self.ended = progress, np.zeros(len(self.plan), bool), 0, 0.0
        self.begin = self.last_look = time.perf_counter()
        self.longest_gap = (self.forecast or 0.0) / LOOKS  # seconds between two looks
        own, by_round = self._own(), self.adapter is not None and self.adapter.by_round
        self.windows = np.concatenate(own) if own else np.zeros(0, np.int64)
        self.own = self.left = self.count_of(self.windows)
        ahead = len(own) if by_round else len(self.windows) // self.evaluation.batch_windows
        self.every = min(max(1, ahead // LOOKS), CHECK_EVERY)
        found = super().run()
        found[0][1].facts.update(self._facts())
        return found

    def _facts(self):
        facts = {"seconds_budget": self.evaluation.seconds, "plainly_scored": self.plainly_scored}
        facts |= {} if self.forecast is None else {"seconds_forecast": round(self.forecast, 1)}
        return facts | (self.adapter.summary() if self.adapter else {})

    def run_cut(self, cut):
        if self.ended:
            return
        super().run_cut(cut)
        self.read += math.prod(cut.shape[:2])
        self._account(cut)

    def _account(self, cut):
        """Now and then waits for the device, looks whether all is finite, and whether the budget still lasts."""
        self.scored_W[cut.windows] = True
        self.left -= self.count_of(cut.windows)
        self.batches += 1
        if self.batches % self.every and self.left:
            return
        now = self._look()
        # A fault ends this share early; it is raised after the ranks have met, on all of them, so that none hangs.
        if not bool(self.logp_NK[: self.targets, 0].isfinite().all()):
            self.ended = FAULT
        if self.progress:
            self.progress(self.own - self.left, self.own)
        self._stop_if_late(now)

    def _look(self):
        self.world.synchronize()
        now = time.perf_counter()
        self.longest_gap, self.last_look = max(self.longest_gap, now - self.last_look), now
        return now

    def _stop_if_late(self, now):
        """Ends adapting where another stretch like the longest so far would leave too little time to score the rest."""
        ahead = self.longest_gap + 1.2 * self.plain_pace * self.left + self.mixing
        if self.left and self.spent + now - self.begin + ahead > self.evaluation.seconds:
            self.ended = max(self.ended, 1.0)

    def meet(self, group):
        self._stop_if_late(time.perf_counter())
        goes_on = super().meet(group)
        if goes_on:
            self._look()
        return goes_on

    def results(self):
        if self.ended < FAULT:
            self._score_rest()
        ours = torch.tensor([self.read, self.plainly_scored], dtype=torch.int64, device=self.stream.device)
        self.read, self.plainly_scored = self.world.all_reduce_sum(ours).tolist()
        return super().results()

    def _score_rest(self):
        """Scores what the budget left over in windows side by side, from the weights as they are, and learns nothing."""
        windows = np.sort(self.windows[~self.scored_W[self.windows]])
        self.plainly_scored = self.count_of(windows)
        collator, cuts = self._plain_cuts(windows)
        for cut in cuts:
            self.read += math.prod(cut.shape[:2])
            self.score(collator.build(cut), self._plainly)

    def _plainly(self, batch, ids_SK, entropy):
        if self.adapter and self.adapter.by_round:
            self.adapter.ready(batch, ids_SK)
        return self.commit(batch, ids_SK, entropy)

    def mixed(self, whole_NK):
        self.tallies = Tallies(self.mixture.mixers)
        return self.mixture.nats(whole_NK, self.tallies.add)

    def _scored(self, name, nats_N):
        name, scored = super()._scored(name, nats_N)
        if name is not None:
            scored.facts.update(self.tallies.summaries()[name])
        return name, scored


class Tallies:
    """What came of mixing, added up over spans: for `mixed_nats`."""

    def __init__(self, mixers):
        self.mixers, self.sums, self.sound = mixers, [{} for _ in mixers], [True for _ in mixers]

    def add(self, place, mixed, target_N):
        """A mixer's answer for a span of targets."""
        self.sound[place] &= mixed.normalised
        for what, number in mixed.tally(target_N).items():
            self.sums[place][what] = self.sums[place].get(what, 0) + number

    def summaries(self):
        """Name -> facts of each mixer, and whether it gave distributions."""
        rows = zip(self.mixers, self.sums, self.sound, strict=True)
        return {name: mixer.summary(sums) | {"normalised": sound} for (name, mixer), sums, sound in rows}


def tallied_nats(committed, mixers, target_N):
    """[(name, nats_N, summary)] of `mixed_nats`."""
    tallies = Tallies(mixers)
    found = mixed_nats(committed, mixers, target_N, tallies.add)
    return [(name, nats_N, facts) for (name, nats_N), facts in zip(found, tallies.summaries().values(), strict=True)]


def _family(cut):
    """Rows and slots of a cut's batch, and whether windows share rows: all but the length."""
    return cut.shape[0], cut.shape[2], cut.layout is not None


def _interpolated(seconds, by_length, cut):
    """Seconds of a batch: on the line through those of the shortest and the longest of its family."""
    low, high, family = min(by_length), max(by_length), _family(cut)
    share = (cut.shape[1] - low) / max(1, high - low)
    return seconds[family, low] + share * (seconds[family, high] - seconds[family, low])
