"""Site `stream`: x_BTD -> x_BTD before the blocks. B batch, T positions, D width, I gate inputs, N buckets."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..kernels.norm import rms_norm
from ..problem import Problem
from ..sites import StreamSite
from .inputs import earlier_ids
from .roles import Part


def predecessors(x_BTD, carry, bos):
    """Each position's predecessor: zero for a window's first position, and for document starts unless `bos` is None."""
    before_BTD = F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
    if carry.bounds is not None:
        before_BTD = before_BTD.masked_fill((carry.bounds.position_BT == 0).unsqueeze(-1), 0.0)
    return before_BTD if bos is None else before_BTD.masked_fill((carry.ids_BT == bos).unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class InputNorm(StreamSite):
    """RMS norm of the summed inputs, without weights."""

    def build(self, context):
        return InputNormModule()


class InputNormModule(Part):
    def forward(self, x_BTD, carry):
        return rms_norm(x_BTD)


@dataclass(frozen=True)
class SmearGate(StreamSite):
    """Blends each position with its predecessor, channel by channel: (1 - g) x_i + g x_{i-1} (PR #162).

    The gate starts at 0.5, so at init this is not the identity. The predecessor of position 0 is zero; with
    `stop_at_bos` so is that of every document start, where PR #162 let the previous document leak in.
    """

    stop_at_bos: bool = True
    bos: int = 1

    def build(self, context):
        return SmearGateModule(context.width, self.bos if self.stop_at_bos else None)


class SmearGateModule(Part):
    def __init__(self, width, bos):
        super().__init__()
        self.bos = bos
        self.own("gate_D", "smear.gate", torch.zeros(width), "scalar")

    def forward(self, x_BTD, carry):
        gate_D = torch.sigmoid(self.gate_D).to(x_BTD.dtype)
        before_BTD = predecessors(x_BTD, carry, self.bos)
        return torch.lerp(x_BTD, before_BTD, gate_D)


@dataclass(frozen=True)
class GatedSmear(StreamSite):
    """x_i + lambda sigmoid(w . x_i[:inputs]) x_{i-1}, with one lambda and one w for all channels (PR #1693).

    lambda and w start at zero: the identity at init. The predecessor of position 0 is zero; with `stop_at_bos` so is
    that of every document start. More inputs than the model is wide are a Problem.
    """

    inputs: int = 12
    stop_at_bos: bool = True
    bos: int = 1

    def build(self, context):
        context.refuse_inputs(self.inputs, "GatedSmear")
        return GatedSmearModule(self.inputs, self.bos if self.stop_at_bos else None)


class GatedSmearModule(Part):
    def __init__(self, inputs, bos):
        super().__init__()
        self.bos = bos
        self.own("weight_I", "smear.weight", torch.zeros(inputs), "scalar")
        self.own("strength", "smear.lambda", torch.zeros(1), "scalar")

    def forward(self, x_BTD, carry):
        weight_I = self.weight_I.to(x_BTD.dtype)
        gate_BT1 = torch.sigmoid(x_BTD[..., : len(weight_I)] @ weight_I).unsqueeze(-1)
        return x_BTD + self.strength.to(x_BTD.dtype) * gate_BT1 * predecessors(x_BTD, carry, self.bos)


@dataclass(frozen=True)
class HashEmbedding(StreamSite):
    """Adds a hashed table's row of (previous, current): x + H[(2039 t_{i-1} + t_i) mod buckets], t_{-1} = 0 (PR #1523).

    H starts at zero, the identity: it is there to learn while scoring. Documents are not told apart. Rows are added in
    the stream's dtype; the public code's float32 table made the whole stream float32.
    """

    buckets: int = 16_384

    def __post_init__(self):
        if self.buckets < 1:
            raise Problem(f"HashEmbedding.buckets is {self.buckets}; take 1 or more")

    def build(self, context):
        return HashEmbeddingModule(self.buckets, context.width)


class HashEmbeddingModule(Part):
    def __init__(self, buckets, width):
        super().__init__()
        self.buckets = buckets
        self.own("table_ND", "hash.table", torch.zeros(buckets, width), "table")

    def hash(self, ids_BT, bounds=None):
        """The table's row of each position, int64 [B, T]."""
        return (2039 * earlier_ids(ids_BT, 1, bounds) + ids_BT) % self.buckets

    def forward(self, x_BTD, carry):
        return x_BTD + F.embedding(self.hash(carry.ids_BT, carry.bounds), self.table_ND).to(x_BTD.dtype)
