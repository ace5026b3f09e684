"""What every adapter is: something that changes the model by what has been scored, and is shown nothing else."""

from dataclasses import dataclass

import numpy as np
import torch

from ..model.context import plain_linear
from ..problem import Problem


@dataclass(frozen=True, eq=False)
class AdaptContext:
    """What an adapter is built with: the model whose parameters it may change until `restore`, the machine, the world, the
    Evaluation, and the length of training windows."""

    model: torch.nn.Module
    machine: object
    world: object
    evaluation: object


class Revealed:
    """Tokens whose scoring is done. Asking for any other is an error: nothing learns from what it has yet to predict."""

    def __init__(self, stream):
        self._stream = stream  # int32 [tokens], on the device
        self._scored_N = np.zeros(len(stream) - 1, bool)

    def mark(self, begin, end):
        """For the scorer: targets begin..end - 1 (token i + 1 is target i) have been scored."""
        self._scored_N[begin:end] = True

    def tokens(self, begin, end):
        """Tokens begin..end, both included, int64 [end - begin + 1]. ValueError unless targets begin..end - 1 are scored.

        Token `begin` is the input before the first of these targets: scored before, or where a document is known to begin.
        """
        if not self._scored_N[begin:end].all():
            raise ValueError(f"targets {begin}..{end - 1} have not all been scored yet: nothing may learn from them")
        return self._stream[begin : end + 1].long()


class Adapter:
    """What learns after groups; others override what they need, but not `lessons`. All methods run outside of graphs."""

    by_round = False
    wants_entropy = False  # True: what the model commits to comes with its entropy

    def __init__(self, context):
        self.context = context

    def lessons(self, one):
        """For a Pass: what it goes through to reach this adapter."""
        return Lessons(self, one)

    def plan(self, targets, starts):
        """The WindowPlan; `starts` int64 [documents] are the places of document starts in the stream."""
        return self.context.evaluation.windows.plan(targets, starts)

    def schedule(self, plan, starts):
        """The Groups in which the plan is scored."""
        raise NotImplementedError

    def cuts(self, collator, windows):
        """How the windows of a round are cut into batches."""
        return collator.cuts(windows, self.context.evaluation.batch_windows)

    def rehearse(self, vocab, plan, schedule):
        """Runs every kind of step that `after_group` takes on random tokens, so that all is compiled, and leaves no trace.
        Returns the seconds that all of them will take: part of the forecast."""
        return 0.0

    def after_group(self, group, plan, revealed):
        """All ranks, after all of them have scored the group."""

    def forget(self):
        """Undoes what has been learned within rounds, from a warm-up's random tokens."""

    def restore(self):
        """Puts the model's parameters back as they were."""

    def summary(self):
        """Facts for score.json."""
        return {}


class RoundAdapter(Adapter):
    """One that also learns by round: the nats of each batch come with their graph, and after_round follows each batch. All
    methods but `linear` run outside of graphs."""

    by_round = True

    def lessons(self, one):
        return RoundLessons(self, one)

    def begin(self, episode):
        """Before an episode of this rank."""

    def ready(self, batch, ids_NK):
        """Before the model sees a batch: marks what compiled graphs should take in any size."""

    def tensors(self, rows=None):
        """What `linear` needs for a batch of so many rows, as tensors that become inputs of the compiled graph."""
        return ()

    @staticmethod
    def linear(tensors):
        """How products with matrices are taken in one forward pass: `carry.linear`'s function."""
        return plain_linear

    def after_round(self, nats_N, batch):
        """`nats_N` with its graph: what a batch's live slots have just cost (0 at spare ones)."""


class Lessons:
    """Stands between a Pass and its Adapter, so that the adapter is shown what has been scored, and nothing else."""

    def __init__(self, adapter, one):
        self.adapter, self.one, self.revealed = adapter, one, Revealed(one.stream)

    def begin(self, episode):
        """Before an episode of this rank."""

    def commit(self, batch, ids_NK, entropy=False):
        """What the model commits to as the adapter has changed it."""
        return self.one.commit(batch, ids_NK, entropy)

    def after_batch(self, batch, logp_SK):
        """A batch has been scored: `logp_SK` is what `commit` gave."""

    def after_group(self, group):
        """All ranks meet; if none had to stop, the adapter learns. False ends adapting."""
        one, plan = self.one, self.one.plan
        (one.ended,) = one.world.largest([one.ended])
        if one.ended:
            return False
        windows = np.sort(group.windows())
        for begin, end in zip(plan.begin[windows].tolist(), plan.end[windows].tolist(), strict=True):
            self.revealed.mark(begin, end)
        self.learn(group, windows)
        return True

    def learn(self, group, windows):
        """The adapter's turn: all ranks have scored these windows."""
        self.adapter.after_group(group, self.one.plan, self.revealed)


class EntropyLessons(Lessons):
    """The same for an adapter with `wants_entropy`: its after_group also gets the mean entropy in nats of the model's
    distributions over the group's targets."""

    def learn(self, group, windows):
        one, plan = self.one, self.one.plan
        own = one.logp_NK[int(plan.begin[windows].min()) : int(plan.end[windows].max()), -1]
        entropy = float(one.world.all_reduce_sum(own.sum())) / one.count_of(windows)
        self.adapter.after_group(group, plan, self.revealed, entropy)


class RoundLessons(Lessons):
    """The same for an adapter that learns by round."""

    def begin(self, episode):
        self.adapter.begin(episode)

    def commit(self, batch, ids_NK, entropy=False):
        """With a graph, for the adapter to learn from."""
        self.adapter.ready(batch, ids_NK)
        with torch.enable_grad():
            tensors = self.adapter.tensors(len(batch.ids_BT))
            return self.one.commit(batch, ids_NK, entropy, tensors, self.adapter.linear)

    def after_batch(self, batch, logp_SK):
        with torch.enable_grad():
            nats_N = torch.where(batch.live_N, -logp_SK[:, 0], 0.0)
        self.adapter.after_round(nats_N, batch)


def build_adapter(nodes, context):
    """The Adapter of a recipe's `adapt`; None without one. Problem for more than one."""
    if len(nodes) > 1:
        names = " and ".join(type(node).__name__ for node in nodes)
        raise Problem(f"`adapt` holds {names}: each wants its own order of scoring; leave one")
    return nodes[0].build(context) if nodes else None
