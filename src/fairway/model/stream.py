"""Site `stream`: x_BTD -> x_BTD before the blocks. B batch, T positions, D width."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..kernels.norm import rms_norm
from ..sites import StreamSite
from .roles import Part


@dataclass(frozen=True)
class InputNorm(StreamSite):
    """RMS norm of the summed inputs, without weights."""

    def build(self, context):
        return InputNormModule()


class InputNormModule(Part):
    def forward(self, x_BTD, carry):
        return rms_norm(x_BTD)


@dataclass(frozen=True)
class SmearGate(StreamSite):
    """Blends each position with its predecessor, channel by channel: (1 - g) x_i + g x_{i-1} (PR #162).

    The gate starts at 0.5, so at init this is not the identity. The predecessor of position 0 is zero; with
    `stop_at_bos` so is that of every document start, where PR #162 let the previous document leak in.
    """

    stop_at_bos: bool = True
    bos: int = 1

    def build(self, context):
        return SmearGateModule(context.width, self.bos if self.stop_at_bos else None)


class SmearGateModule(Part):
    def __init__(self, width, bos):
        super().__init__()
        self.bos = bos
        self.own("gate_D", "smear.gate", torch.zeros(width), "scalar")

    def forward(self, x_BTD, carry):
        gate_D = torch.sigmoid(self.gate_D).to(x_BTD.dtype)
        before_BTD = F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
        if self.bos is not None:
            before_BTD = before_BTD.masked_fill((carry.ids_BT == self.bos).unsqueeze(-1), 0.0)
        return torch.lerp(x_BTD, before_BTD, gate_D)
