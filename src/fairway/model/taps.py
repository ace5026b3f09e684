"""Site `taps`: what attention gives, before its output matrix: y_BTHK -> y_BTHK.

B batch, T positions, D width, H query heads, G key-value heads, K head width, L layers, I gate inputs.
"""

from dataclasses import dataclass

import torch

from ..kernels.exclusive import exclusive
from ..sites import TapSite
from .roles import Part


@dataclass(frozen=True)
class ExclusiveSelfAttention(TapSite):
    """Takes out of each head what its own position's value says already (XSA, PR #864): y_h - (y_h . v^) v^ with
    v^ = v / max(|v|, 1e-12) of the same position and key-value head, the norm in float32.

    `layers`: where it acts; negative numbers count from the last, an empty tuple is all.
    """

    layers: tuple[int, ...] = ()

    def build(self, context):
        return ExclusiveSelfAttentionModule(context.chosen_layers(self.layers, "ExclusiveSelfAttention"))


class ExclusiveSelfAttentionModule(Part):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, y_BTHK, n_BTD, v_BTGK, layer, carry):
        if layer not in self.layers:
            return y_BTHK
        return exclusive(y_BTHK, v_BTGK)


@dataclass(frozen=True)
class HeadGate(TapSite):
    """y_h sigmoid(W n + b)_h with W [H, D] of each layer zero and b `bias` at init: sigmoid(4) = 0.982 (PR #864)."""

    bias: float = 4.0

    def build(self, context):
        return HeadGateModule(context, self.bias)


class HeadGateModule(Part):
    def __init__(self, context, bias):
        super().__init__()
        self.own_per_layer("gate_LHD", "attn.gate", torch.zeros(context.layers, context.heads, context.width))
        self.own_per_layer("bias_LH", "attn.gate_bias", torch.full((context.layers, context.heads), bias))

    def forward(self, y_BTHK, n_BTD, v_BTGK, layer, carry):
        z_BTH = carry.linear(n_BTD, self.gate_LHD[layer].to(n_BTD.dtype), f"blocks.{layer}.attn.gate")
        return y_BTHK * torch.sigmoid(z_BTH + self.bias_LH[layer].to(z_BTH.dtype)).unsqueeze(-1)


@dataclass(frozen=True)
class SparseGate(TapSite):
    """y_h sigmoid(scale w_h . n[:inputs]): a gate a head that reads the first few channels (PR #1787).

    w [H, inputs] of each layer is zero at init, every gate one half. More inputs than the model is wide are a Problem.
    """

    inputs: int = 12
    scale: float = 0.5

    def build(self, context):
        context.refuse_inputs(self.inputs, "SparseGate")
        return SparseGateModule(context, self)


class SparseGateModule(Part):
    def __init__(self, context, node):
        super().__init__()
        self.inputs, self.scale = node.inputs, node.scale
        self.own_per_layer("gate_LHI", "attn.sparse_gate", torch.zeros(context.layers, context.heads, node.inputs))

    def forward(self, y_BTHK, n_BTD, v_BTGK, layer, carry):
        gate_HI = self.gate_LHI[layer].to(n_BTD.dtype)
        z_BTH = carry.linear(n_BTD[..., : self.inputs], gate_HI, f"blocks.{layer}.attn.sparse_gate")
        return y_BTHK * torch.sigmoid(self.scale * z_BTH).unsqueeze(-1)
