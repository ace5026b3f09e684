"""Site `mlp`: normed n_BTD -> delta_BTD. B batch, T positions, D width, L layers, M hidden width."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..kernels.fold import fold
from ..kernels.mlp import leaky_squared_mlp
from ..problem import Problem
from ..sites import MLPSite
from .roles import Part


@dataclass(frozen=True)
class ReluSquared(MLPSite):
    """W_down relu(W_up n)^2 with `expansion` times the width hidden; W_down starts at zero."""

    expansion: float = 3.0

    def build(self, context):
        return SquaredModule(context, self.expansion, (0.0,))


@dataclass(frozen=True)
class LeakyReluSquared(MLPSite):
    """W_down leaky(W_up n)^2, the square taken after the leak: z^2 above zero, slope^2 z^2 below (PR #864: slope 0.5).

    `slopes` is one for all layers or one a layer (PR #1205); a slope's sign does not matter. Another number of slopes
    is a Problem. W_down starts at zero.
    """

    expansion: float = 3.0
    slopes: tuple[float, ...] = (0.5,)

    def build(self, context):
        if len(self.slopes) not in (1, context.layers):
            raise Problem(
                f"LeakyReluSquared.slopes has {len(self.slopes)} values: give 1, or one for each of {context.layers} layers"
            )
        return SquaredModule(context, self.expansion, self.slopes)


class SquaredModule(Part):
    """Slope 0 is the plain square of the relu."""

    def __init__(self, context, expansion, slopes):
        super().__init__()
        hidden = int(expansion * context.width)
        if hidden < 1:
            raise Problem(f"mlp.expansion={expansion} of width {context.width} leaves no hidden unit; take more")
        layers = range(context.layers)
        self.slopes = slopes if len(slopes) == context.layers else slopes * context.layers
        ups = [context.init.orthogonal(f"blocks.{i}.mlp.up", hidden, context.width) for i in layers]
        down_LDM = torch.zeros(context.layers, context.width, hidden)
        self.own_bank("up_LMD", torch.stack(ups), "matrix", [(f"blocks.{i}.mlp.up", "matrix.up", i) for i in layers])
        self.own_bank("down_LDM", down_LDM, "matrix", [(f"blocks.{i}.mlp.down", "matrix.down", i) for i in layers])

    def matrices(self, carry, gain_LD=None):
        """The banks cast once a pass and cut into slices; the rows of `down` times `gain_LD`, where one is given."""
        return fold((self.up_LMD,), carry.dtype).unbind(0), fold((self.down_LDM,), carry.dtype, gain_LD).unbind(0)

    def forward(self, n_BTD, matrices, layer, carry):
        (up_LMD, down_LDM), slope = matrices, self.slopes[layer]
        if carry.plain:
            return leaky_squared_mlp(n_BTD, up_LMD[layer], down_LDM[layer], slope)
        hidden_BTM = carry.linear(n_BTD, up_LMD[layer], f"blocks.{layer}.mlp.up")
        hidden_BTM = F.leaky_relu(hidden_BTM, slope) if slope else F.relu(hidden_BTM)
        return carry.linear(hidden_BTM.square(), down_LDM[layer], f"blocks.{layer}.mlp.down")
