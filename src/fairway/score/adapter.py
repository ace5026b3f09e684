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
    """The adapter that does nothing; others override what they need. All methods but `linear` run outside of graphs."""

    by_round = False  # True: the nats of each batch come with their graph, and after_round follows each batch
    wants_entropy = False  # True: after_group gets the mean entropy of the group's distributions

    def __init__(self, context):
        self.context = context

    def plan(self, targets, starts):
        """The WindowPlan; `starts` int64 [documents] are the places of document starts in the stream."""
        return self.context.evaluation.windows.plan(targets, starts)

    def schedule(self, plan, starts):
        """The Groups in which the plan is scored."""
        raise NotImplementedError

    def cuts(self, collator, windows):
        """How the windows of a round are cut into batches."""
        return collator.cuts(windows, self.context.evaluation.batch_windows)

    def warm_up(self, vocab, plan, schedule):
        """Runs every kind of step that `after_group` takes on random tokens, so that all is compiled, and leaves no trace.
        Returns the seconds that all of them will take: part of the forecast."""
        return 0.0

    def begin(self, episode):
        """Before an episode of this rank."""

    def tensors(self, rows=None):
        """What `linear` needs for a batch of so many rows, as tensors that become inputs of the compiled graph."""
        return ()

    @staticmethod
    def linear(tensors):
        """How products with matrices are taken in one forward pass: `carry.linear`'s function."""
        return plain_linear

    def after_round(self, nats_N, batch):
        """`nats_N` with its graph: what a batch's live slots have just cost (0 at spare ones). Only with `by_round`."""

    def after_group(self, group, plan, revealed, entropy):
        """All ranks, after all of them have scored the group. `entropy`: mean nats of the model's distributions there."""

    def forget(self):
        """Undoes what `after_round` has learned, from a warm-up's random tokens."""

    def restore(self):
        """Puts the model's parameters back as they were."""

    def summary(self):
        """Facts for score.json."""
        return {}


def build_adapter(nodes, context):
    """The Adapter of a recipe's `adapt`; None without one. Problem for more than one."""
    if len(nodes) > 1:
        names = " and ".join(type(node).__name__ for node in nodes)
        raise Problem(f"`adapt` holds {names}: each wants its own order of scoring; leave one")
    return nodes[0].build(context) if nodes else None
