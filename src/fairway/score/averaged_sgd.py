"""ScoreFirstSGD as #1205 refines it: a running average of the weights scores, and what is hard is learned more often."""

import math
from dataclasses import dataclass

import torch

from ..problem import Problem
from .adapter import EntropyLessons
from .sgd import ScoreFirstSGD, ScoreFirstSGDAdapter


@dataclass(frozen=True)
class AveragedSGD(ScoreFirstSGD):
    """ScoreFirstSGD with two additions of PR #1205. `polyak` (0.998 there; 0: none) scores with a running average of the
    weights; with `entropy_band` (1.75, 2.1 there) a chunk whose mean entropy is under the band gets an epoch less, one over
    it one more.
    """

    polyak: float = 0.0
    entropy_band: tuple[float, float] | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.polyak < 1:
            raise Problem(f"AveragedSGD.polyak is {self.polyak:g}; take 0 to below 1")
        if self.entropy_band is not None and not 0 <= self.entropy_band[0] <= self.entropy_band[1]:
            raise Problem(f"AveragedSGD.entropy_band is {self.entropy_band}; give the lower bound first, in nats")

    def build(self, context):
        return AveragedSGDAdapter(self, context)


class AveragedSGDAdapter(ScoreFirstSGDAdapter):
    wants_entropy = True

    def __init__(self, node, context):
        super().__init__(node, context)
        # With `polyak`: the running average, which scores, and the weights that learn.
        self.average = self.live = None

    def lessons(self, one):
        return EntropyLessons(self, one)

    def after_group(self, group, plan, revealed, entropy):
        low, high = self.node.entropy_band or (-math.inf, math.inf)
        self.epochs = max(1, self.node.epochs + (entropy >= high) - (entropy <= low))
        super().after_group(group, plan, revealed)

    def learn_chunk(self, ids_N1, rate):
        if self.average is not None:
            self.trainer.exchange(self.live)
        for _ in range(self.epochs):
            self._epoch(ids_N1, rate)
            if self.node.polyak:
                self._follow()
        if self.node.polyak:
            self.live = self.trainer.exchange(self.average)

    def _follow(self):
        parameters = [p.detach() for p in self.trainer.parameters]
        if self.average is None:
            self.average = [before.clone() for before in self.trainer.before]
        torch._foreach_lerp_(self.average, parameters, 1 - self.node.polyak)
