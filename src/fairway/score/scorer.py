"""The scorer: it owns the tokens. It hands out windows of inputs, takes what the model commits to, looks the targets up,
and only then lets anything learn from them.

N targets, B rows, T positions, S slots of a batch, K ids asked for at each target (the target itself first), V vocabulary.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from ..problem import Problem
from .schedule import prove_schedule, shared_out
from .windows import prove_coverage


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
    """One pass over a stream. Made, it has planned and proved; `run` scores.

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
        if int(tokens.min()) < 0 or int(tokens.max()) >= commit.vocab:
            raise Problem(foreign_token(tokens, commit.vocab))
        if count < 1:
            raise Problem(
                f"the {self.targets} targets stand for {count} bytes of text; check that the tokenizer is the data's own"
            )
        self.plan = (adapter or evaluation.windows).plan(self.targets, self.starts)
        prove_coverage(self.plan, self.targets)
        if adapter:
            self.schedule = adapter.schedule(self.plan, self.starts)
        else:
            self.schedule = [shared_out(self.plan, np.arange(len(self.plan)), world.size)]
        prove_schedule(self.schedule, self.plan)
        self.stream = torch.from_numpy(np.asarray(tokens[: self.targets + 1]).astype(np.int32)).to(world.device)
        self.collator = self.plan.collator(self.stream)
        # Nobody learns, nothing is mixed in: None.
        self.lessons = adapter and adapter.lessons(self)
        self.mixture = mix[0].mixture(mix, self) if mix else None
        self.entropy = any(part.wants_entropy for part in (adapter, self.mixture) if part)
        asked = [self.stream[1:], *(self.mixture.queries if mix else ())]
        # Two at least, so that passes without and with a mixer that asks for one id share their graphs.
        asked = asked if len(asked) > 1 else asked * 2
        self.ids_NK = torch.stack([ids_N.to(torch.int32) for ids_N in asked], dim=1)
        self.ended = 0.0  # above 0: nothing more is adapted to

    def cuts(self, windows):
        """How windows are cut into batches: [Cut]."""
        size = self.evaluation.batch_windows
        return self.adapter.cuts(self.collator, windows) if self.adapter else self.collator.cuts(windows, size)

    @torch.no_grad()
    def run(self):
        """[(name or None, Scored)]: what the model itself scores, then what it scores with each mixer added."""
        # One row more than there are targets: spare slots are written there. One column more where entropy is asked for.
        shape = self.targets + 1, self.ids_NK.shape[1] + self.entropy
        self.logp_NK = torch.zeros(shape, dtype=torch.float64, device=self.stream.device)
        self.times_N = torch.zeros(self.targets + 1, dtype=torch.int32, device=self.stream.device)
        for group in self.schedule:
            for episode in group.of_rank(self.world.rank, self.world.size):
                self.run_episode(episode)
            if self.lessons and not self.meet(group):
                break
        return self.results()

    def run_episode(self, episode):
        """Scores an episode's rounds, one after the other."""
        if self.lessons:
            self.lessons.begin(episode)
        for one in episode.rounds:
            for cut in self.cuts(one.windows):
                self.run_cut(cut)

    def run_cut(self, cut):
        """Scores one batch; then it may be learned from."""
        batch = self.collator.build(cut)
        logp_SK = self.score(batch, self.lessons.commit if self.lessons else self.commit)
        if self.lessons:
            self.lessons.after_batch(batch, logp_SK)

    def meet(self, group):
        """After a group: what it shows may be learned from. False ends the pass."""
        return self.lessons.after_group(group)

    def score(self, batch, commit):
        """Looks the targets up in what `commit(batch, ids, entropy)` gives; returns that."""
        logp_SK = commit(batch, self.ids_NK[batch.target_N].long(), self.entropy)
        at_S = torch.where(batch.live_N, batch.target_N, self.targets)
        self.logp_NK[at_S] = logp_SK.detach().double()
        self.times_N.index_add_(0, at_S, torch.ones_like(at_S, dtype=torch.int32))
        return logp_SK

    def count_of(self, windows):
        """How many targets windows score."""
        return int((self.plan.end[windows] - self.plan.begin[windows]).sum())

    def results(self):
        """All ranks' parts put together, proved whole, and mixed."""
        whole_NK, times_N = (self.world.all_reduce_sum(part[: self.targets]) for part in (self.logp_NK, self.times_N))
        found = [self._scored(None, -whole_NK[:, 0].cpu().numpy())]
        if not bool((times_N == 1).all()):
            raise ValueError(wrong_count(times_N))
        return found + [self._scored(*one) for one in (self.mixed(whole_NK) if self.mixture else ())]

    def mixed(self, whole_NK):
        """[(name, nats_N)] with each mixer added."""
        return self.mixture.nats(whole_NK)

    def _scored(self, name, nats_N):
        total = float(nats_N.sum())
        if not math.isfinite(total):
            raise Problem(bad_logit(name, nats_N, self.plan))
        facts = self.targets, self.count, self.dropped, len(self.plan)
        return name, Scored(total, *facts, nats_N.astype(np.float32))


def foreign_token(tokens, vocab):
    """Names the first token that a vocabulary does not have."""
    at = int(np.flatnonzero((tokens < 0) | (tokens >= vocab))[0])
    return f"token {at} of the validation stream is {tokens[at]}, not in 0..{vocab - 1}; take this vocabulary's data"


def bad_logit(name, nats_N, plan):
    """Names the first target whose nats are not finite, and the mixer (or None) or the window that is to blame."""
    target = int(np.flatnonzero(~np.isfinite(nats_N))[0])
    if name is not None:
        return f"{name} gives the token of target {target} no chance at all; leave the model some weight"
    window = int(np.searchsorted(plan.end, target, side="right"))
    return (
        f"window {window} (tokens {plan.start[window]}..{plan.end[window] - 1}): the logits for target {target} are NaN, "
        "infinite or give it no chance; look for overflow in the weights"
    )


def wrong_count(times_N):
    """Names the first target that was not scored exactly once."""
    at = int(torch.nonzero(times_N != 1)[0])
    return f"target {at} was scored {int(times_N[at])} times"
