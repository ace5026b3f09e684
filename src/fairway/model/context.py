"""What every node of the model is built with, and what one forward pass shares among its sites."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..problem import Problem


class Initialiser:
    """Draws initial values in float32, each tensor from a generator of its own, seeded by the run's seed and its name.

    So all ranks agree without a broadcast, and leaving a technique out leaves every other tensor's values as they were:
    runs with and without it are a pair. With seed None nothing is drawn: tensors are zero, about to be loaded.
    """

    def __init__(self, seed):
        self.seed = seed

    def normal(self, name, *shape, std):
        """Gaussian with the given standard deviation."""
        if self.seed is None:
            return torch.zeros(shape)
        return torch.randn(shape, generator=self._generator(name)) * std

    def orthogonal(self, name, *shape, gain=1.0):
        """A matrix [rows, columns] with orthonormal rows or columns, whichever are fewer, times gain."""
        matrix = torch.zeros(shape)
        return matrix if self.seed is None else nn.init.orthogonal_(matrix, gain, generator=self._generator(name))

    def _generator(self, name):
        words = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(words[:8]) >> 1)


@dataclass(frozen=True)
class ModelContext:
    """The sizes that techniques need, and the initialiser they draw from."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    sequence: int  # the longest window
    orders: tuple  # the plan's Orders, one a phase; scoring uses the last
    model: object  # the GPT node, for a technique that must refuse what it cannot live with
    init: Initialiser

    @property
    def skips(self):
        """Encoder-decoder skip connections, in the phase that has most."""
        return max(order.skips() for order in self.orders)

    def refuse_inputs(self, inputs, owner):
        """Problem, naming `owner`, unless a gate that reads the first `inputs` channels finds so many."""
        if not 1 <= inputs <= self.width:
            raise Problem(f"{owner}.inputs is {inputs}; take 1 to the model's width {self.width}")

    def chosen_layers(self, layers, owner):
        """The layers that a technique acts on as a set: negative numbers count from the last, an empty tuple is all.

        Problem, naming `owner`, for a layer that the model does not have.
        """
        if beyond := [layer for layer in layers if not -self.layers <= layer < self.layers]:
            raise Problem(f"{owner}.layers names layer {beyond[0]}, the model has {self.layers}")
        return frozenset(layer % self.layers for layer in layers) or frozenset(range(self.layers))


def plain_linear(x, weight, name):
    """x weight^T. `name` is the weight's canonical name, for those who watch or bend products (Hessians, adapters, QAT)."""
    return F.linear(x, weight)


@dataclass(frozen=True, eq=False)
class Bounds:
    """Where windows begin in rows that hold several, one after the other; no position may see beyond its own window.

    position_BT int64: each position's place in its window, from 0. offsets_W int32: where windows begin in the flattened
    [B * T], ascending from 0, filled up with B * T to a fixed length. longest: positions of the longest window.
    """

    position_BT: torch.Tensor
    offsets_W: torch.Tensor
    longest: int


class Carry:
    """What one forward pass shares: ids_BT, the activations' dtype, how matrix products are taken, the Bounds of packed
    rows (None: a row is one window), the token table, x0_BTD, which step of the order is running and the how-many-eth
    visit of its layer (both from 0), and notes by name."""

    def __init__(self, ids_BT, dtype, linear=plain_linear, bounds=None):
        self.ids_BT = ids_BT
        self.dtype = dtype
        self.linear = linear
        self.bounds = bounds
        self.table_VD = None
        self.x0_BTD = None
        self.step = self.visit = 0
        self.notes = {}

    @property
    def plain(self):
        """Whether nobody watches or bends products: several may then be one, and vectors be folded into matrices."""
        return self.linear is plain_linear
