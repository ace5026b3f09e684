"""Site `inputs` (summed): token ids -> x_BTD. B batch, T positions, V vocabulary, D width, E table width."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..problem import Problem
from ..sites import InputSite
from .roles import Part


def earlier_ids(ids_BT, back, bounds=None):
    """The ids `back` positions before each, int64 [B, T]; 0 where the window (of packed rows: `bounds`) has none."""
    # Padded first, so that a window of one position works too.
    earlier_BT = F.pad(ids_BT.long(), (back, 0))[:, : ids_BT.shape[1]]
    return earlier_BT if bounds is None else earlier_BT.masked_fill(bounds.position_BT < back, 0)


@dataclass(frozen=True)
class TokenEmbedding(InputSite):
    """The token table, Gaussian at init; the head may tie to it."""

    std: float = 0.005

    def build(self, context):
        return TokenEmbeddingModule(context, self.std)


class TokenEmbeddingModule(Part):
    def __init__(self, context, std):
        super().__init__()
        self.own(
            "table_VD", "token.table", context.init.normal("token.table", context.vocab, context.width, std=std), "embedding"
        )

    def forward(self, carry):
        carry.table_VD = self.table_VD
        return F.embedding(carry.ids_BT, self.table_VD).to(carry.dtype)


@dataclass(frozen=True)
class BigramHash(InputSite):
    """A hashed table of (previous, current) pairs, projected to the model's width (PR #162).

    Bucket of position i >= 1: ((36313 t_i) xor (27191 t_{i-1})) mod (buckets - 1); position 0 takes the last one.
    The table starts at zero, so at init this is the identity. The projection starts orthogonal times `gain`; None is
    1 / sqrt(2 layers), as in PR #162, where PR #864 has 1.
    """

    buckets: int = 4096
    dim: int = 128
    scale: float = 0.05
    gain: float | None = None

    def __post_init__(self):
        if self.buckets < 2 or self.dim < 1:
            raise Problem(f"BigramHash of {self.buckets} buckets, {self.dim} wide: take 2 buckets and 1 dim or more")

    def build(self, context):
        return BigramHashModule(context, self)


class BigramHashModule(Part):
    def __init__(self, context, node):
        super().__init__()
        self.buckets = node.buckets
        self.own("table_BE", "bigram.table", torch.zeros(node.buckets, node.dim), "table")
        gain = 1 / math.sqrt(2 * context.layers) if node.gain is None else node.gain
        self.own(
            "proj_DE",
            "bigram.proj",
            context.init.orthogonal("bigram.proj", context.width, node.dim, gain=gain),
            "projection",
        )
        self.own("scale", "bigram.scale", torch.full((1,), node.scale), "scalar")

    def hash(self, ids_BT, bounds=None):
        """Bucket of each position [B, T]; with a vocabulary under 59,000 the products stay below 2^31."""
        pairs_BS = (36313 * ids_BT[:, 1:]).bitwise_xor(27191 * ids_BT[:, :-1]) % (self.buckets - 1)
        bucket_BT = F.pad(pairs_BS, (1, 0), value=self.buckets - 1)
        return bucket_BT if bounds is None else bucket_BT.masked_fill(bounds.position_BT == 0, self.buckets - 1)

    def forward(self, carry):
        row_BTE = F.embedding(self.hash(carry.ids_BT, carry.bounds), self.table_BE).to(carry.dtype)
        return carry.linear(row_BTE, self.proj_DE.to(carry.dtype), "bigram.proj") * self.scale.to(carry.dtype)


@dataclass(frozen=True)
class EngramLite(InputSite):
    """Two hashes of (previous, current) and two of the last three ids, each into its own part of one table (PR #1205).

    With i the current id, p the previous, o the one before it (0 where there is none), modulo `buckets`, in int64:
    1009 p + i; (2719 p + 314159) xor 3137 i; 36313 o xor 27191 p xor 4903 i; 7919 o xor 4391 p xor 6151 i.
    The four rows, one after the other, are projected to the model's width and gated by sigmoid(gate), channel by
    channel. The projection starts at zero, so at init this is the identity. Documents are not told apart.
    """

    buckets: int = 10_240
    dim: int = 48
    std: float = 0.01

    def __post_init__(self):
        if self.buckets < 1 or self.dim < 1 or self.std < 0:
            raise Problem(f"EngramLite of {self.buckets} buckets, {self.dim} wide, std {self.std}: take 1, 1, 0 or more")

    def build(self, context):
        return EngramLiteModule(context, self)


class EngramLiteModule(Part):
    def __init__(self, context, node):
        super().__init__()
        self.buckets = node.buckets
        table_BE = context.init.normal("engram.table", 4 * node.buckets, node.dim, std=node.std)
        self.own("table_BE", "engram.table", table_BE, "table")
        self.own("proj_DE", "engram.proj", torch.zeros(context.width, 4 * node.dim), "projection")
        self.own("gate_D", "engram.gate", torch.zeros(context.width), "scalar")

    def hash(self, ids_BT, bounds=None):
        """Rows of the table [B, T, 4] that each position reads."""
        i, p, o = (earlier_ids(ids_BT, back, bounds) for back in range(3))
        keys = (
            1009 * p + i,
            (2719 * p + 314159).bitwise_xor(3137 * i),
            (36313 * o).bitwise_xor(27191 * p).bitwise_xor(4903 * i),
            (7919 * o).bitwise_xor(4391 * p).bitwise_xor(6151 * i),
        )
        return torch.stack([key % self.buckets + slot * self.buckets for slot, key in enumerate(keys)], dim=-1)

    def forward(self, carry):
        row_BTE = F.embedding(self.hash(carry.ids_BT, carry.bounds), self.table_BE).flatten(2).to(carry.dtype)
        x_BTD = carry.linear(row_BTE, self.proj_DE.to(carry.dtype), "engram.proj")
        return x_BTD * torch.sigmoid(self.gate_D).to(carry.dtype)
