"""Site `residual`: what adorns a block, on its input, its norms and its deltas.

B batch, T positions, D width, L layers, I gate inputs, P passes of a loop.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import ResidualSite
from .roles import Part


class ResidualPart(Part):
    """Where a residual technique may act; each method is the identity unless overridden."""

    def enter(self, x_BTD, layer, carry):
        """On the stream, before the block."""
        return x_BTD

    def normed(self, n_BTD, layer, carry):
        """On the normed input of attention and of the MLP."""
        return n_BTD

    def gains(self):
        """Vectors of all layers, (attn_LD, mlp_LD), that multiply attention's delta and the MLP's; None: no such vectors.

        Where products are plain they are folded into the matrices that the deltas come from: s (W y) = (s W) y. So they
        act before any `attended` or `fed`, wherever their node stands.
        """
        return None

    def attended(self, d_BTD, n_BTD, layer, carry):
        """On attention's delta; n_BTD is what attention read."""
        return d_BTD

    def fed(self, d_BTD, n_BTD, layer, carry):
        """On the MLP's delta; n_BTD is what the MLP read."""
        return d_BTD


@dataclass(frozen=True)
class ResidualMix(ResidualSite):
    """x <- m0 x + m1 x0 before each block, x0 being the stream before the first; (1, 0) at init, the identity."""

    def build(self, context):
        return ResidualMixModule(context)


class ResidualMixModule(ResidualPart):
    def __init__(self, context):
        super().__init__()
        mix_L2D = torch.stack((torch.ones(context.layers, context.width), torch.zeros(context.layers, context.width)), 1)
        self.own_per_layer("mix_L2D", "residual_mix", mix_L2D)

    def enter(self, x_BTD, layer, carry):
        keep_D, back_D = self.mix_L2D[layer].to(x_BTD.dtype)
        return keep_D * x_BTD + back_D * carry.x0_BTD


@dataclass(frozen=True)
class LayerScale(ResidualSite):
    """A learned vector on each block's attention delta and on its MLP delta; ones at init, the identity."""

    def build(self, context):
        return LayerScaleModule(context)


class LayerScaleModule(ResidualPart):
    def __init__(self, context):
        super().__init__()
        self.own_per_layer("attn_LD", "attn.scale", torch.ones(context.layers, context.width))
        self.own_per_layer("mlp_LD", "mlp.scale", torch.ones(context.layers, context.width))

    def gains(self):
        return self.attn_LD, self.mlp_LD


@dataclass(frozen=True)
class LNScale(ResidualSite):
    """n / sqrt(layer + 1) on the normed inputs of attention and MLP, by the physical layer from 0 (PR #1514)."""

    def build(self, context):
        return LNScaleModule()


class LNScaleModule(ResidualPart):
    def normed(self, n_BTD, layer, carry):
        return n_BTD * (layer + 1) ** -0.5


@dataclass(frozen=True)
class MLPGate(ResidualSite):
    """sigmoid(w . n[:inputs] + b) on the MLP's delta, n being what the MLP read (PR #1941).

    w of each layer is zero at init and b is `bias`: sigmoid(5) = 0.993. More inputs than the model is wide are a Problem.
    """

    inputs: int = 12
    bias: float = 5.0

    def build(self, context):
        context.refuse_inputs(self.inputs, "MLPGate")
        return MLPGateModule(context, self)


class MLPGateModule(ResidualPart):
    def __init__(self, context, node):
        super().__init__()
        self.inputs = node.inputs
        self.own_per_layer("gate_LI", "mlp.gate", torch.zeros(context.layers, node.inputs))
        self.own_per_layer("bias_L1", "mlp.gate_bias", torch.full((context.layers, 1), node.bias))

    def fed(self, d_BTD, n_BTD, layer, carry):
        z_BT = n_BTD[..., : self.inputs] @ self.gate_LI[layer].to(n_BTD.dtype)
        return d_BTD * torch.sigmoid(z_BT.unsqueeze(-1) + self.bias_L1[layer].to(n_BTD.dtype))


@dataclass(frozen=True)
class LoopEmbedding(ResidualSite):
    """A learned vector for each pass of a loop, added to the stream as the loop's first layer begins it (PR #1518).

    Zeros at init, the identity. The loop is read off the plan's last order: the first of the layers that run more than
    once; where a phase runs that layer only once, it gets the first pass's vector. A plan without a loop is a Problem.
    """

    def build(self, context):
        order = context.orders[-1]
        looped = {layer: runs for layer, runs in Counter(order.encoder + order.decoder).items() if runs > 1}
        if not looped:
            plan = "this plan" if context.model is None else type(context.model.plan).__name__
            raise Problem(f"LoopEmbedding needs a layer that runs more than once, {plan} has none: take plan=Loop(...)")
        return LoopEmbeddingModule(min(looped), looped[min(looped)], context.width)


class LoopEmbeddingModule(ResidualPart):
    def __init__(self, layer, passes, width):
        super().__init__()
        self.layer = layer
        self.own("embedding_PD", "loop.embedding", torch.zeros(passes, width), "scalar")

    def enter(self, x_BTD, layer, carry):
        return x_BTD + self.embedding_PD[carry.visit].to(x_BTD.dtype) if layer == self.layer else x_BTD
