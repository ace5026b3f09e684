"""Test-time training on what has been scored: SGD on all weights, a chunk of the stream at a time."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from ..problem import Problem
from ..sites import AdaptSite, StreamSite
from .adapter import Adapter
from .schedule import shared_out
from .weights import WeightTrainer


@dataclass(frozen=True)
class ScoreFirstSGD(AdaptSite):
    """Scores a chunk, then takes `epochs` steps on it, one on all its windows of the evaluation's length (PR #1514, #1523).

    SGD with momentum on all weights, gradients clipped by their global norm, rate x (1 + cos(pi c / (C - 1))) / 2 at
    chunk c of C; the last chunk is not trained on. Windows belong to the chunk of their first scored target. The first
    `frozen` blocks do not learn. `fresh` techniques join the model for scoring only, from their initial values (#1523's
    hash embedding). Afterwards the weights are what they were.
    """

    rate: float = 0.005
    chunk: int = 32_768
    epochs: int = 3
    momentum: float = 0.9
    clip: float = 1.0
    frozen: int = 0
    chunks: int = 0  # C, if not those of the stream at hand
    fresh: tuple[StreamSite, ...] = ()

    def __post_init__(self):
        if self.chunks < 0 or self.chunks == 1:
            raise Problem(f"ScoreFirstSGD.chunks is {self.chunks}; take 2 or more, or 0 for those of the stream")
        for name in ("chunk", "epochs"):
            if getattr(self, name) < 1:
                raise Problem(f"ScoreFirstSGD.{name} is {getattr(self, name)}; take 1 or more")
        if not (self.rate > 0 and self.clip > 0):
            raise Problem(f"ScoreFirstSGD of rate {self.rate:g} and clip {self.clip:g}: take more than 0 for both")
        if not 0 <= self.momentum < 1:
            raise Problem(f"ScoreFirstSGD of momentum {self.momentum:g}: take 0 to below 1")

    def build(self, context):
        return ScoreFirstSGDAdapter(self, context)

    def work(self, evaluation, targets):
        return int(evaluation.windows.plan(targets).length.sum()), self.epochs * (
            targets - (targets % self.chunk or self.chunk)
        )


class ScoreFirstSGDAdapter(Adapter):
    def __init__(self, node, context):
        super().__init__(context)
        layers = len({layer for order in context.model.orders for layer in order.encoder + order.decoder})
        if not 0 <= node.frozen <= layers:
            raise Problem(f"ScoreFirstSGD.frozen is {node.frozen}; take 0 to the model's {layers} blocks")
        self.node, self.length = node, context.evaluation.windows.length
        if node.chunk < self.length:
            raise Problem(f"ScoreFirstSGD.chunk is {node.chunk}; take the windows' length {self.length}, or more")
        self.trainer = WeightTrainer(
            context.model, context.machine, context.world, node.momentum, node.clip, node.frozen
        )  # fmt: skip
        self.chunks, self.groups, self.done, self.steps = 1, 1, 0, 0

    def schedule(self, plan, starts):
        chunk_W = plan.begin // self.node.chunk
        cuts = np.flatnonzero(np.diff(chunk_W)) + 1
        groups = [shared_out(plan, part, self.context.world.size) for part in np.split(np.arange(len(plan)), cuts)]
        if 0 < self.node.chunks < len(groups):
            raise Problem(
                f"ScoreFirstSGD.chunks is {self.node.chunks}, the stream has {len(groups)}; take that or more, or 0"
            )
        self.chunks, self.groups = self.node.chunks or len(groups), len(groups)
        return groups

    def rehearse(self, vocab, plan, schedule):
        ids_N1 = torch.randint(vocab, (self._trained_in(plan, schedule[0]) + 1,), device=self.context.world.device)
        if len(schedule) < 2 or len(ids_N1) < 2:
            return 0.0
        for _ in range(2):
            begin = time.perf_counter()
            self._epoch(ids_N1, 0.0)
            self.context.world.synchronize()
            seconds = time.perf_counter() - begin
        self.steps = 0
        self.trainer.revert()
        trained = sum(self._trained_in(plan, group) for group in schedule[:-1])
        return seconds * self.node.epochs * trained / (len(ids_N1) - 1)

    def after_group(self, group, plan, revealed):
        done, self.done = self.done, self.done + 1
        count = self._trained_in(plan, group)
        if self.done == self.groups or not count:
            return
        begin = int(plan.begin[group.windows()].min())
        ids_N1 = revealed.tokens(begin, begin + count)
        rate = self.node.rate * (1 + math.cos(math.pi * done / (self.chunks - 1))) / 2
        self.learn_chunk(ids_N1, rate)

    def learn_chunk(self, ids_N1, rate):
        """The epochs of a chunk."""
        for _ in range(self.node.epochs):
            self._epoch(ids_N1, rate)

    def _trained_in(self, plan, group):
        """Targets of a group that fill whole windows."""
        windows = group.windows()
        span = int(plan.end[windows].max() - plan.begin[windows].min())
        return span // self.length * self.length

    def _epoch(self, ids_N1, rate):
        x_ST, y_ST = ids_N1[:-1].view(-1, self.length), ids_N1[1:].view(-1, self.length)
        self.trainer.step(x_ST, y_ST, rate)
        self.steps += 1

    def restore(self):
        self.trainer.revert()

    def summary(self):
        trained = sum(p.numel() for p in self.trainer.parameters)
        return {"chunks": self.chunks, "steps": self.steps, "parameters": trained}
