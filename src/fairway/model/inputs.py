"""Site `inputs` (summed): token ids -> x_BTD. B batch, T positions, V vocabulary, D width, E table width."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..problem import Problem
from ..sites import InputSite
from .roles import Part


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
    The table starts at zero, so at init this is the identity.
    """

    buckets: int = 4096
    dim: int = 128
    scale: float = 0.05

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
        gain = 1 / math.sqrt(2 * context.layers)
        self.own(
            "proj_DE",
            "bigram.proj",
            context.init.orthogonal("bigram.proj", context.width, node.dim, gain=gain),
            "projection",
        )
        self.own("scale", "bigram.scale", torch.full((1,), node.scale), "scalar")

    def hash(self, ids_BT):
        """Bucket of each position [B, T]; with a vocabulary under 59,000 the products stay below 2^31."""
        pairs_BS = (36313 * ids_BT[:, 1:]).bitwise_xor(27191 * ids_BT[:, :-1]) % (self.buckets - 1)
        return F.pad(pairs_BS, (1, 0), value=self.buckets - 1)

    def forward(self, carry):
        row_BTE = F.embedding(self.hash(carry.ids_BT), self.table_BE).to(carry.dtype)
        return carry.linear(row_BTE, self.proj_DE.to(carry.dtype), "bigram.proj") * self.scale.to(carry.dtype)
