"""How gradients are shared among ranks. Banks: reduce-scatter, work on a shard of slices, all-gather (PR #1523).
Everything else, of all groups together: one coalesced all-reduce. One process is a world of size 1 and takes the same path.

N slices of a bank, P slices padded to a multiple of the ranks, S = P / ranks slices a rank, R rows, C columns.
"""

import torch
from torch.nn import functional as F


class BankShard:
    """One bank's gradient as this rank's slices, and the way back to the whole."""

    def __init__(self, parameter, world):
        self.parameter, self.world = parameter, world
        self.slices, rows, columns = parameter.shape
        self.tall = rows > columns
        self.padding = -self.slices % world.size
        self.share = (self.slices + self.padding) // world.size
        self.gradient_SRC = None
        self.pending = None

    def reduce(self):
        """Starts the averaging reduce-scatter of the gradient. Padding slices are zero and stay zero."""
        whole_PRC = self.parameter.grad
        if self.world.size == 1:
            self.gradient_SRC = whole_PRC
            return
        if self.padding:
            whole_PRC = torch.cat([whole_PRC, whole_PRC.new_zeros(self.padding, *whole_PRC.shape[1:])])
        self.gradient_SRC, self.pending = self.world.reduce_scatter_mean(whole_PRC)

    def wait(self):
        """This rank's averaged gradient [S, R, C]."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        return self.gradient_SRC

    def gather(self, shard_SRC):
        """Starts the all-gather of a shard; returns a function that waits and gives the whole bank."""
        if self.world.size == 1:
            return lambda: shard_SRC
        whole_PRC, pending = self.world.all_gather(shard_SRC)

        def finish():
            pending.wait()
            return whole_PRC[: self.slices]

        return finish

    def cut(self, whole):
        """This rank's slices [S, R, C] of a whole bank."""
        padded_PRC = F.pad(whole, (0, 0, 0, 0, 0, self.padding))
        return padded_PRC[self.world.rank * self.share : (self.world.rank + 1) * self.share].clone()


class ReplicatedGradients:
    """Gradients that every rank needs whole: flattened into one buffer, averaged in one call."""

    def __init__(self, parameters, world):
        self.parameters, self.world = parameters, world
        self.flat = self.pending = None

    def reduce(self):
        """Starts the averaging all-reduce."""
        if self.world.size > 1 and self.parameters:
            self.flat = torch.cat([p.grad.reshape(-1) for p in self.parameters])
            self.pending = self.world.all_reduce_mean(self.flat)

    def wait(self):
        """Puts the averages back; returns the gradients."""
        gradients = [p.grad for p in self.parameters]
        if self.pending is not None:
            self.pending.wait()
            means = self.flat.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [mean.view_as(g) for mean, g in zip(means, gradients, strict=True)])
            self.flat = self.pending = None
        return gradients
