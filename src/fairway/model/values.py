"""Site `values`: v_BTGK -> v_BTGK before attention.

B batch, T positions, V vocabulary, G key-value heads, K head width, L layers, E table width, N chosen layers.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..problem import Problem
from ..sites import ValueSite
from .roles import Part


@dataclass(frozen=True)
class ValueResidual(ValueSite):
    """Mixes the first block's values into every later block's: l0 v0 + l1 v, a learned pair a layer, halves at init.

    v0 is what this technique sees at the first step of the order, as it is (PR #864). As published, the first block has
    a pair too, which no gradient reaches.
    """

    def build(self, context):
        return ValueResidualModule(context)


class ValueResidualModule(Part):
    def __init__(self, context):
        super().__init__()
        self.own_per_layer("mix_L2", "attn.value_mix", torch.full((context.layers, 2), 0.5))

    def forward(self, v_BTGK, layer, carry):
        if carry.step == 0:
            carry.notes["first_values"] = v_BTGK
            return v_BTGK
        first, own = self.mix_L2[layer].to(v_BTGK.dtype)
        return first * carry.notes["first_values"] + own * v_BTGK


@dataclass(frozen=True)
class ValueEmbedding(ValueSite):
    """Adds to the values what the token itself says: v + tau (table[ids] W^T) scale (PR #1205).

    Table, W and scale are shared; tau is a learned number a chosen layer, one at init. `std` is that of the table's
    initial values, W starts orthogonal. `layers`: negative numbers count from the last, an empty tuple is all.
    """

    layers: tuple[int, ...] = (-3, -2, -1)
    dim: int = 128
    std: float = 0.01
    scale: float = 0.1

    def __post_init__(self):
        if self.dim < 1:
            raise Problem(f"ValueEmbedding.dim is {self.dim}; take 1 or more")

    def build(self, context):
        return ValueEmbeddingModule(context, self)


class ValueEmbeddingModule(Part):
    def __init__(self, context, node):
        super().__init__()
        layers = sorted(context.chosen_layers(node.layers, "ValueEmbedding"))
        self.slots = {layer: slot for slot, layer in enumerate(layers)}
        table_VE = context.init.normal("value_embedding.table", context.vocab, node.dim, std=node.std)
        rows = context.kv_heads * context.head_width
        self.own("table_VE", "value_embedding.table", table_VE, "table")
        self.own(
            "proj_RE",  # R = G K rows
            "value_embedding.proj",
            context.init.orthogonal("value_embedding.proj", rows, node.dim),
            "projection",
        )
        self.own("scale", "value_embedding.scale", torch.full((1,), node.scale), "scalar")
        leaves = [(f"blocks.{layer}.attn.value_embedding", "scalar", layer) for layer in layers]
        self.own_bank("tau_N1", torch.ones(len(layers), 1), "scalar", leaves)

    def embed(self, carry):
        """What all chosen layers add, before their own factor; computed once a pass."""
        if "value_embedding" not in carry.notes:
            row_BTE = F.embedding(carry.ids_BT, self.table_VE).to(carry.dtype)
            h_BTR = carry.linear(row_BTE, self.proj_RE.to(carry.dtype), "value_embedding.proj")
            carry.notes["value_embedding"] = h_BTR * self.scale.to(carry.dtype)
        return carry.notes["value_embedding"]

    def forward(self, v_BTGK, layer, carry):
        if layer not in self.slots:
            return v_BTGK
        tau = self.tau_N1[self.slots[layer]].to(v_BTGK.dtype)
        return v_BTGK + (self.embed(carry) * tau).unflatten(-1, v_BTGK.shape[2:])
