"""Site `mlp`: normed n_BTD -> delta_BTD. B batch, T positions, D width, L layers, M hidden width."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..problem import Problem
from ..sites import MLPSite
from .roles import Part


@dataclass(frozen=True)
class ReluSquared(MLPSite):
    """W_down relu(W_up n)^2 with `expansion` times the width hidden; W_down starts at zero."""

    expansion: float = 3.0

    def build(self, context):
        hidden = int(self.expansion * context.width)
        if hidden < 1:
            raise Problem(f"mlp.expansion={self.expansion} of width {context.width} leaves no hidden unit; take more")
        return ReluSquaredModule(context, hidden)


class ReluSquaredModule(Part):
    def __init__(self, context, hidden):
        super().__init__()
        layers = range(context.layers)
        ups = [context.init.orthogonal(f"blocks.{i}.mlp.up", hidden, context.width) for i in layers]
        down_LDM = torch.zeros(context.layers, context.width, hidden)
        self.own_bank("up_LMD", torch.stack(ups), "matrix", [(f"blocks.{i}.mlp.up", "matrix.up", i) for i in layers])
        self.own_bank("down_LDM", down_LDM, "matrix", [(f"blocks.{i}.mlp.down", "matrix.down", i) for i in layers])

    def matrices(self, dtype):
        """The banks cast once a pass and cut into slices."""
        return self.up_LMD.to(dtype).unbind(0), self.down_LDM.to(dtype).unbind(0)

    def forward(self, n_BTD, matrices, layer, carry):
        up, down = matrices
        hidden_BTM = F.relu(carry.linear(n_BTD, up[layer], f"blocks.{layer}.mlp.up")).square()
        return carry.linear(hidden_BTM, down[layer], f"blocks.{layer}.mlp.down")
