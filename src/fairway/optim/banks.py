"""How gradients are shared among ranks. Banks: reduce-scatter, work on a shard of slices, all-gather (PR #1523 section 4).
Everything else: one coalesced all-reduce. One process is a world of size 1 and takes the same path.

N slices of a bank, P slices padded to a multiple of the ranks, S = P / ranks slices a rank, R rows, C columns.
"""

import torch
from torch.nn import functional as F


class BankShard:
    """One bank's (or one plain matrix's) gradient as this rank's slices, and the way back to the whole."""

    def __init__(self, parameter, world):
        self.parameter, self.world = parameter, world
        self.slices = parameter.shape[0] if parameter.ndim == 3 else 1
        self.padding = -self.slices % world.size
        self.share = (self.slices + self.padding) // world.size
        self.gradient_SRC = None
        self.pending = None

    def reduce(self):
        """Starts the averaging reduce-scatter of the gradient. Padding slices are zero and stay zero."""
        whole_PRC = self._slices(self.parameter.grad)
        if self.world.size == 1:
            self.gradient_SRC = whole_PRC
            return
        if self.padding:
            whole_PRC = F.pad(whole_PRC, (0, 0, 0, 0, 0, self.padding))
        self.gradient_SRC, self.pending = self.world.reduce_scatter_mean(whole_PRC)

    def wait(self):
        """This rank's averaged gradient [S, R, C]."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        return self.gradient_SRC

    def gather(self, shard_SRC):
        """Starts the all-gather of a shard; returns a function that waits and gives the whole in the parameter's shape."""
        if self.world.size == 1:
            return lambda: shard_SRC.reshape(self.parameter.shape)
        whole_PRC, pending = self.world.all_gather(shard_SRC)

        def finish():
            pending.wait()
            return whole_PRC[: self.slices].reshape(self.parameter.shape)

        return finish

    def cut(self, whole):
        """This rank's slices [S, R, C] of a whole tensor in the parameter's shape."""
        padded_PRC = F.pad(self._slices(whole), (0, 0, 0, 0, 0, self.padding))
        return padded_PRC[self.world.rank * self.share : (self.world.rank + 1) * self.share].clone()

    def _slices(self, tensor):
        return tensor.reshape(self.slices, *tensor.shape[-2:])


class ReplicatedGradients:
    """Gradients that every rank needs whole: flattened into one buffer, averaged in one call."""

    def __init__(self, parameters, world):
        self.parameters, self.world = parameters, world
        self.flat = self.pending = None

    def reduce(self):
        """Starts the averaging all-reduce."""
        if self.world.size > 1:
            self.flat = torch.cat([p.grad.reshape(-1) for p in self.parameters])
            self.pending = self.world.all_reduce_mean(self.flat)

    def wait(self):
        """Puts the averages back; returns the gradients."""
        if self.pending is not None:
            self.pending.wait()
            sizes = [p.numel() for p in self.parameters]
            for parameter, mean in zip(self.parameters, self.flat.split(sizes), strict=True):
                parameter.grad.copy_(mean.view_as(parameter))
            self.flat = self.pending = None
        return [p.grad for p in self.parameters]
