"""Muon (Keller Jordan; PR #162's constants): momentum, orthogonalised, on matrices in banks and on plain matrices."""

import math
from dataclasses import dataclass
from functools import partial

import torch

from ..sites import GroupSite, OrthogonaliserSite
from .banks import BankShard
from .orthogonal import Quintic
from .schedule import Ramp, check_rates


@dataclass(frozen=True)
class Muon(GroupSite):
    """buf <- mu buf + g; u = g + mu buf; W <- W (1 - rate decay) - rate sqrt(max(1, rows / columns)) orthogonal(u).

    Momentum stays float32, also on shards (PR #1523 keeps it in bfloat16).
    """

    roles: tuple[str, ...] = ("matrix", "projection")
    rate: float = 0.02
    momentum: Ramp = Ramp()
    weight_decay: float = 0.04
    orthogonaliser: OrthogonaliserSite = Quintic()

    def __post_init__(self):
        check_rates(self)

    def build(self, context):
        return MuonUpdate(self, context)


class MuonUpdate:
    """Muon's state and step over a list of parameters, sharded over the ranks of a world."""

    def __init__(self, node, context):
        self.node, self.products, self.names = node, context.products, list(context.parameters)
        # Largest first: the longest reduction starts first, and its work hides the others'.
        parameters = sorted(context.parameters.values(), key=lambda p: -p.numel())
        self.shards = [BankShard(p, context.world) for p in parameters]
        self.names.sort(key=lambda name: -context.parameters[name].numel())
        self.buffers = [
            torch.zeros(shard.share, *shard.parameter.shape[-2:], device=shard.parameter.device) for shard in self.shards
        ]

    def reduce(self):
        """Starts the reduce-scatter of every bank."""
        for shard in self.shards:
            shard.reduce()

    def sharded_gradients(self):
        """Averaged gradients of which this rank holds its part."""
        return [shard.wait() for shard in self.shards]

    def replicated_gradients(self):
        """Averaged gradients that every rank holds whole: none."""
        return []

    def step(self, moment):
        """Starts one update of every matrix; returns a function that waits for the other ranks' parts and applies it."""
        momentum, wholes = self.node.momentum.at(moment.step), []
        for shard, buffer_SRC in zip(self.shards, self.buffers, strict=True):
            gradient_SRC = shard.gradient_SRC
            buffer_SRC.mul_(momentum).add_(gradient_SRC)
            update_SRC = self.node.orthogonaliser.apply(gradient_SRC.add(buffer_SRC, alpha=momentum), self.products)
            wholes.append(shard.gather(update_SRC.contiguous()))
            shard.gradient_SRC = None
        return partial(self._apply, wholes, self.node.rate * moment.multiplier)

    def _apply(self, wholes, rate):
        for shard, whole in zip(self.shards, wholes, strict=True):
            parameter, update = shard.parameter, whole()
            scale = math.sqrt(max(1.0, parameter.shape[-2] / parameter.shape[-1]))
            parameter.data.mul_(1 - rate * self.node.weight_decay).add_(update, alpha=-rate * scale)

    def state(self):
        """Whole momentum tensors by parameter name, the same for any number of ranks."""
        wholes = [shard.gather(buffer)().clone() for shard, buffer in zip(self.shards, self.buffers, strict=True)]
        return dict(zip(self.names, wholes, strict=True))

    def restore(self, state):
        """Takes what `state` gave, on this or another number of ranks."""
        for name, shard, buffer in zip(self.names, self.shards, self.buffers, strict=True):
            buffer.copy_(shard.cut(state[name].to(buffer.device)))
