"""Grouped-query attention with its sites. B batch, T positions, D width, H query heads, G key-value heads, K head width."""

import torch
from torch import nn

from ..kernels.attention import attention, fits_varlen, window_mask
from ..kernels.fold import fold
from ..kernels.heads import shape_heads
from .positions import fused_transform
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

    def matrices(self, carry, gain_LD=None):
        """The banks cast once a pass and cut into slices: one cast and one stacked gradient, however often used.

        Where products are plain, (queries, keys and values joined [D + 2 G K, D], outputs with their rows times
        `gain_LD`) of each layer; else, for those who watch or bend products, each under its own name and without a gain.
        """
        if not carry.plain:
            return self.qo.to(carry.dtype).unbind(0), self.kv.to(carry.dtype).unbind(0)
        (queries, outputs), (keys, values) = self.qo.split(self.layers), self.kv.split(self.layers)
        joined_LRD = fold((queries, keys, values), carry.dtype)
        return joined_LRD.unbind(0), fold((outputs,), carry.dtype, gain_LD).unbind(0)

    def mask(self, q_BTHK, carry):
        """The mask of packed rows, where attention needs one; built once a pass."""
        if carry.bounds is None or fits_varlen(q_BTHK):
            return None
        if "window_mask" not in carry.notes:
            carry.notes["window_mask"] = window_mask(carry.bounds)
        return carry.notes["window_mask"]

    def shaped(self, n_BTD, matrices, layer, carry):
        """q_BTHK, k_BTGK and v_BTGK as attention takes them, before the value sites."""
        block, narrow = f"blocks.{layer}.attn", (self.kv_heads, -1)
        if carry.plain:
            qkv_BTR = carry.linear(n_BTD, matrices[0][layer], f"{block}.joined")
            transform = fused_transform(self.positions, layer) if carry.bounds is None else None
            if transform is not None:
                return shape_heads(qkv_BTR, self.heads, self.kv_heads, transform)
            width = qkv_BTR.shape[-1] // (self.heads + 2 * self.kv_heads)
            parts = qkv_BTR.unflatten(-1, (-1, width)).split((self.heads, self.kv_heads, self.kv_heads), dim=2)
            q_BTHK, k_BTGK, v_BTGK = parts
        else:
            qo, kv = matrices
            q_BTHK = carry.linear(n_BTD, qo[layer], f"{block}.query").unflatten(-1, (self.heads, -1))
            k_BTGK = carry.linear(n_BTD, kv[layer], f"{block}.key").unflatten(-1, narrow)
            v_BTGK = carry.linear(n_BTD, kv[self.layers + layer], f"{block}.value").unflatten(-1, narrow)
        for part in self.positions:
            q_BTHK, k_BTGK = part(q_BTHK, k_BTGK, layer, carry)
        return q_BTHK, k_BTGK, v_BTGK

    def forward(self, n_BTD, matrices, layer, carry):
        q_BTHK, k_BTGK, v_BTGK = self.shaped(n_BTD, matrices, layer, carry)
        for part in self.values:
            v_BTGK = part(v_BTGK, layer, carry)
        y_BTHK = attention(q_BTHK, k_BTGK, v_BTGK, carry.bounds, self.mask(q_BTHK, carry))
        for part in self.taps:
            y_BTHK = part(y_BTHK, n_BTD, v_BTGK, layer, carry)
        outputs = matrices[1] if carry.plain else matrices[0][self.layers :]
        return carry.linear(y_BTHK.flatten(2), outputs[layer], f"blocks.{layer}.attn.output")
