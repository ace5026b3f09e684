"""Muon (Keller Jordan; PR #162's constants): momentum, orthogonalised, on matrices in banks and on plain matrices.

N matrices of one shape, S slices of a rank's shard, R rows, C columns (W the longer of the two, V the shorter).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from ..kernels.capability import runs_triton
from ..kernels.momentum import decayed_add_, nesterov_
from ..problem import Problem
from ..sites import GroupSite, OrthogonaliserSite
from .banks import BankShard
from .orthogonal import Quintic
from .schedule import DecaySchedule, Ramp, check_rates


@dataclass(frozen=True)
class Muon(GroupSite):
    """buf <- mu buf + g; u = g + mu buf; W <- W (1 - rate decay) - rate sqrt(max(1, rows / columns)) orthogonal(u).

    With `decay_last` the step is taken first and decays with the weight, W <- (W - rate s U) (1 - rate decay), as in
    PR #1205. `rate` falls by the schedule's factor, and the decay's `rate decay` by `decay`'s. Momentum stays float32,
    also on shards (PR #1523 keeps it in bfloat16). Every rank works on its slices of each bank, and on all plain
    matrices: they are few and small, and need no gather so. Problem for parameters that are neither.
    """

    roles: tuple[str, ...] = ("matrix", "projection")
    rate: float = 0.02
    momentum: Ramp = Ramp()
    weight_decay: float = 0.04
    orthogonaliser: OrthogonaliserSite = Quintic()
    decay_last: bool = False
    decay: DecaySchedule = DecaySchedule()

    moments = 1

    def __post_init__(self):
        check_rates(self)

    def build(self, context):
        for name, parameter in context.parameters.items():
            if parameter.ndim not in (2, 3):
                raise Problem(
                    f"Muon takes matrices and banks of them; {name} is {tuple(parameter.shape)}: leave it to AdamW"
                )
        return MuonUpdate(self, context)


class MuonUpdate:
    """Muon's state and step over a list of parameters: banks sharded over the ranks of a world, plain matrices whole."""

    def __init__(self, node, context):
        self.node, self.products = node, context.products
        self.triton = runs_triton(context.world.device)
        # Largest first: the longest reduction starts first, and its work hides the others'.
        ordered = sorted(context.parameters.items(), key=lambda item: -item[1].numel())
        banks, plain = ([item for item in ordered if item[1].ndim == ndim] for ndim in (3, 2))
        self.names = [name for name, _ in banks + plain]
        self.shards = [BankShard(p, context.world) for _, p in banks]
        self.replicated = [p for _, p in plain]
        self.buffers = [torch.zeros(s.share, *s.parameter.shape[-2:], device=s.parameter.device) for s in self.shards]
        self.buffers += [torch.zeros_like(p) for p in self.replicated]
        self.scale = None
        self.by_shape = {}
        for index, parameter in enumerate(self.replicated):
            self.by_shape.setdefault(parameter.shape, []).append(index)
        # Banks of one shape when turned wide are iterated as one batch: the kernels run as often as there are shapes.
        self.by_wide_shape = {}
        for index, shard in enumerate(self.shards):
            self.by_wide_shape.setdefault(tuple(sorted(shard.parameter.shape[1:])), []).append(index)

    def reduce(self):
        """Starts the reduce-scatter of every bank."""
        for shard in self.shards:
            shard.reduce()

    def sharded_gradients(self):
        """Averaged gradients of which this rank holds its part."""
        return [shard.wait() for shard in self.shards]

    def scale_shards(self, scale):
        """To be called before a step whose sharded gradients are to be multiplied by `scale`, a tensor of one element."""
        self.scale = scale

    def step(self, moment):
        """Starts one update of every matrix; returns a function that waits for the other ranks' parts and applies it."""
        momentum = self.node.momentum.at(moment.step)
        fused = self.products == torch.bfloat16 and self.triton and hasattr(self.node.orthogonaliser, "spread")
        wholes = self._fused_shards(momentum) if fused else self._unfused_shards(momentum)
        self.scale = None
        for shard in self.shards:
            shard.gradient_SRC = None
        # While the shards travel.
        buffers, gradients = self.buffers[len(self.shards) :], [p.grad for p in self.replicated]
        plain = self._plain_updates(self._directions(buffers, gradients, momentum))
        return partial(self._apply, wholes, plain, moment)

    def _directions(self, buffers, gradients, momentum):
        """Momentum and Nesterov's directions in plain torch."""
        if not buffers:
            return []
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return torch._foreach_add(gradients, buffers, alpha=momentum)

    def _unfused_shards(self, momentum):
        """Starts the gather of every bank's update; functions that wait for the whole ones."""
        gradients = self.sharded_gradients()
        if gradients and self.scale is not None:
            torch._foreach_mul_(gradients, self.scale)
        wholes = []
        directions = self._directions(self.buffers[: len(self.shards)], gradients, momentum)
        for shard, direction_SRC in zip(self.shards, directions, strict=True):
            update_SRC = self.node.orthogonaliser.apply(direction_SRC, self.products)
            wholes.append(shard.gather(update_SRC.contiguous()))
        return wholes

    def _fused_shards(self, momentum):
        """The same in fewer passes: momentum's kernel writes banks of one wide shape into one batch, tall ones transposed.

        What travels is the batch's parts as they are. While one batch's do, the next is iterated.
        """
        wholes, orthogonaliser = [None] * len(self.shards), self.node.orthogonaliser
        for (v, w), indices in self.by_wide_shape.items():
            shares = [self.shards[index].share for index in indices]
            batch_SVW = torch.empty(sum(shares), v, w, dtype=self.products, device=self.buffers[indices[0]].device)
            for index, part_SVW in zip(indices, batch_SVW.split(shares), strict=True):
                shard, buffer_SRC = self.shards[index], self.buffers[index]
                out_SRC = part_SVW.mT if shard.tall else part_SVW
                nesterov_(shard.wait(), buffer_SRC, self.scale, momentum, out_SRC, orthogonaliser.equal_rows)
            for index, part_SVW in zip(indices, orthogonaliser.spread(batch_SVW).split(shares), strict=True):
                shard = self.shards[index]
                if shard.tall:
                    update_SVW = orthogonaliser.finish(part_SVW.mT).mT.contiguous()
                    wholes[index] = partial(transposed, shard.gather(update_SVW))
                else:
                    wholes[index] = shard.gather(orthogonaliser.finish(part_SVW).contiguous())
        return wholes

    def _plain_updates(self, directions):
        """Plain matrices' updates in float32, times sqrt(max(1, rows / columns)); one batch for each shape."""
        updates = [None] * len(directions)
        for shape, indices in self.by_shape.items():
            stack_NRC = torch.stack([directions[index] for index in indices])
            stack_NRC = self.node.orthogonaliser.apply(stack_NRC, self.products).float() * shape_factor(shape)
            for index, update_RC in zip(indices, stack_NRC.unbind(), strict=True):
                updates[index] = update_RC
        return updates

    def _apply(self, wholes, plain, moment):
        rate = self.node.rate * moment.multiplier
        keep = 1 - self.node.rate * self.node.weight_decay * self.node.decay.factor(moment)
        for shard, whole in zip(self.shards, wholes, strict=True):
            weight_NRC = shard.parameter.data
            decayed_add_(weight_NRC, whole(), keep, -rate * shape_factor(weight_NRC.shape), self.node.decay_last)
        parameters = [p.data for p in self.replicated]
        if parameters and not self.node.decay_last:
            torch._foreach_mul_(parameters, keep)
        if parameters:
            torch._foreach_add_(parameters, plain, alpha=-rate)
        if parameters and self.node.decay_last:
            torch._foreach_mul_(parameters, keep)

    def state(self):
        """Whole momentum tensors by parameter name, the same for any number of ranks."""
        wholes = [shard.gather(buffer)().clone() for shard, buffer in zip(self.shards, self.buffers, strict=False)]
        wholes += [buffer.clone() for buffer in self.buffers[len(self.shards) :]]
        return dict(zip(self.names, wholes, strict=True))

    def restore(self, state):
        """Takes what `state` gave, on this or another number of ranks."""
        cuts = [shard.cut for shard in self.shards] + [lambda whole: whole for _ in self.replicated]
        for name, cut, buffer in zip(self.names, cuts, self.buffers, strict=True):
            buffer.copy_(cut(state[name].to(buffer.device)))


def shape_factor(shape):
    """sqrt(max(1, rows / columns)) of a matrix or of a bank's slices."""
    return math.sqrt(max(1.0, shape[-2] / shape[-1]))


def transposed(whole):
    """The transposed matrices of what `whole` waits for."""
    return whole().mT
