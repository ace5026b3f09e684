"""Site `head`: x_BTD -> logits_BTV, then logits -> logits. B batch, T positions, D width, V vocabulary."""

from dataclasses import dataclass

import torch

from ..kernels.norm import rms_norm
from ..problem import Problem
from ..sites import HeadSite
from .roles import Part


@dataclass(frozen=True)
class FinalNorm(HeadSite):
    """RMS norm before the head, without weights."""

    def build(self, context):
        return FinalNormModule()


class FinalNormModule(Part):
    def forward(self, x_BTD, carry):
        return rms_norm(x_BTD)


@dataclass(frozen=True)
class TiedHead(HeadSite):
    """Logits by the token table's transpose."""

    def build(self, context):
        return TiedHeadModule()


class TiedHeadModule(Part):
    def forward(self, x_BTD, carry):
        return carry.linear(x_BTD, carry.table_VD.to(x_BTD.dtype), "token.table")


@dataclass(frozen=True)
class Softcap(HeadSite):
    """cap tanh(z / cap), in float32 (the public systems cap bfloat16 logits in bfloat16)."""

    cap: float = 30.0

    def __post_init__(self):
        if self.cap <= 0:
            raise Problem(f"Softcap.cap is {self.cap}; take more than 0, or leave Softcap out")

    def build(self, context):
        return SoftcapModule(self.cap)


class SoftcapModule(Part):
    def __init__(self, cap):
        super().__init__()
        self.cap = cap

    def forward(self, z_BTV, carry):
        return self.cap * torch.tanh(z_BTV.float() / self.cap)
