"""Grouped-query attention with its sites. B batch, T positions, D width, H query heads, G key-value heads, K head width."""

import torch
from torch import nn

from ..kernels.attention import attention, fits_varlen, window_mask
from .roles import Part


class AttentionModule(Part):
    """All layers' attention: banks qo [2L, D, D] (queries, then outputs) and kv [2L, GK, D] (keys, then values).

    Query, key and value matrices start orthogonal, output matrices at zero, so that a block starts as the identity.
    """

    def __init__(self, context, positions, values, taps):
        super().__init__()
        self.layers, self.heads, self.kv_heads = context.layers, context.heads, context.kv_heads
        width, narrow = context.width, context.kv_heads * context.head_width
        rows = {"query": width, "output": width, "key": narrow, "value": narrow}
        leaves = [(f"blocks.{i}.attn.{kind}", f"matrix.{kind}", i) for kind in rows for i in range(context.layers)]
        drawn = {
            name: context.init.orthogonal(name, rows[role.split(".")[1]], width)
            for name, role, _ in leaves
            if role != "matrix.output"
        }
        slices = [drawn.get(name, torch.zeros(width, width)) for name, _, _ in leaves]
        middle = 2 * context.layers
        self.own_bank("qo", torch.stack(slices[:middle]), "matrix", leaves[:middle])
        self.own_bank("kv", torch.stack(slices[middle:]), "matrix", leaves[middle:])
        self.positions = nn.ModuleList(node.build(context) for node in positions)
        self.values = nn.ModuleList(node.build(context) for node in values)
        self.taps = nn.ModuleList(node.build(context) for node in taps)

    def matrices(self, dtype):
        """The banks cast once a pass and cut into slices: one cast and one stacked gradient, however often used."""
        return self.qo.to(dtype).unbind(0), self.kv.to(dtype).unbind(0)

    def mask(self, q_BTHK, carry):
        """The mask of packed rows, where attention needs one; built once a pass."""
        if carry.bounds is None or fits_varlen(q_BTHK):
            return None
        if "window_mask" not in carry.notes:
            carry.notes["window_mask"] = window_mask(carry.bounds)
        return carry.notes["window_mask"]

    def forward(self, n_BTD, matrices, layer, carry):
        qo, kv = matrices
        block = f"blocks.{layer}.attn"
        q_BTHK = carry.linear(n_BTD, qo[layer], f"{block}.query").unflatten(-1, (self.heads, -1))
        k_BTGK = carry.linear(n_BTD, kv[layer], f"{block}.key").unflatten(-1, (self.kv_heads, -1))
        v_BTGK = carry.linear(n_BTD, kv[self.layers + layer], f"{block}.value").unflatten(-1, (self.kv_heads, -1))
        for part in self.positions:
            q_BTHK, k_BTGK = part(q_BTHK, k_BTGK, layer, carry)
        for part in self.values:
            v_BTGK = part(v_BTGK, layer, carry)
        y_BTHK = attention(q_BTHK, k_BTGK, v_BTGK, carry.bounds, self.mask(q_BTHK, carry))
        for part in self.taps:
            y_BTHK = part(y_BTHK, n_BTD, v_BTGK, layer, carry)
        return carry.linear(y_BTHK.flatten(2), qo[self.layers + layer], f"{block}.output")
