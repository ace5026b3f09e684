"""Site `residual`: what adorns a block, on its input, its norms and its deltas.

B batch, T positions, D width, L layers.
"""

from dataclasses import dataclass

import torch

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

    def attended(self, d_BTD, n_BTD, layer, carry):
        return self.attn_LD[layer].to(d_BTD.dtype) * d_BTD

    def fed(self, d_BTD, n_BTD, layer, carry):
        return self.mlp_LD[layer].to(d_BTD.dtype) * d_BTD
