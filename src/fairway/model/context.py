"""What every node of the model is built with, and what one forward pass shares among its sites."""

from dataclasses import dataclass

import torch
from torch import nn


class Initialiser:
    """Draws initial values in float32 from one seeded generator, so that all ranks agree without a broadcast.

    With seed None nothing is drawn: tensors are zero, for a model that is about to be loaded.
    """

    def __init__(self, seed):
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def normal(self, *shape, std):
        """Gaussian with the given standard deviation."""
        if self.generator is None:
            return torch.zeros(shape)
        return torch.randn(shape, generator=self.generator) * std

    def orthogonal(self, *shape, gain=1.0):
        """Matrices [..., rows, columns] with orthonormal rows or columns, whichever are fewer, times gain."""
        data = torch.zeros(shape)
        if self.generator is not None:
            for matrix in data.view(-1, *shape[-2:]):
                nn.init.orthogonal_(matrix, gain, generator=self.generator)
        return data


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
    skips: int  # encoder-decoder skip connections of the plan
    init: Initialiser


class Carry:
    """What one forward pass shares: ids_BT, the activations' dtype, the token table, x0_BTD, and notes by name."""

    def __init__(self, ids_BT, dtype):
        self.ids_BT = ids_BT
        self.dtype = dtype
        self.table_VD = None
        self.x0_BTD = None
        self.notes = {}
