"""Site `head`: x_BTD -> logits_BTV, then logits -> logits. B batch, T positions, D width, V vocabulary.

The loss is one operation (kernels/cross_entropy.py) where a head ends in a ProductPart, or in one and a CapPart.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..kernels.cross_entropy import linear_cross_entropy
from ..kernels.norm import rms_norm
from ..problem import Problem
from ..sites import HeadSite
from .inputs import TokenEmbedding
from .roles import Part


class ProductPart(Part):
    """A part that is nothing but a product: forward(x, carry) is carry.linear(x, table(carry) in x's dtype, name)."""

    def table(self, carry):
        """table_VD, as the parameter is."""
        raise NotImplementedError


class CapPart(Part):
    """A part that is nothing but a cap: forward(z_BTV, carry) is cap tanh(z / cap) in float32, `cap` a plain number."""

    cap: float


def head_loss(parts, x_BTD, targets_BT, carry):
    """Mean cross-entropy in nats of the float32 logits that `parts`, one after the other, make of x_BTD."""
    before, cap = list(parts), None
    if before and isinstance(before[-1], CapPart):
        cap = before.pop().cap
    if before and isinstance(before[-1], ProductPart) and carry.plain:
        table_VD = before.pop().table(carry)
        for part in before:
            x_BTD = part(x_BTD, carry)
        return linear_cross_entropy(x_BTD, table_VD.to(x_BTD.dtype), targets_BT, cap)
    z_BTV = x_BTD
    for part in parts:
        z_BTV = part(z_BTV, carry)
    return F.cross_entropy(z_BTV.float().flatten(0, 1), targets_BT.flatten())


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
    """Logits by the token table's transpose. Problem without a TokenEmbedding, whose table it is."""

    def build(self, context):
        if context.model is not None and not any(isinstance(part, TokenEmbedding) for part in context.model.inputs):
            raise Problem("TiedHead needs a TokenEmbedding in model.inputs, whose table it takes; add one, or drop TiedHead")
        return TiedHeadModule()


class TiedHeadModule(ProductPart):
    def table(self, carry):
        return carry.table_VD

    def forward(self, x_BTD, carry):
        return carry.linear(x_BTD, self.table(carry).to(x_BTD.dtype), "token.table")


def refuse_cap(cap, owner):
    """Problem, naming `owner`, for a cap that is none."""
    if cap <= 0:
        raise Problem(f"{owner}.cap is {cap}; take more than 0, or leave {owner} out")


@dataclass(frozen=True)
class Softcap(HeadSite):
    """cap tanh(z / cap), in float32 (the public systems cap bfloat16 logits in bfloat16)."""

    cap: float = 30.0

    def __post_init__(self):
        refuse_cap(self.cap, "Softcap")

    def build(self, context):
        return SoftcapModule(self.cap)


class SoftcapModule(CapPart):
    def __init__(self, cap):
        super().__init__()
        self.cap = cap

    def forward(self, z_BTV, carry):
        return self.cap * torch.tanh(z_BTV.float() / self.cap)


@dataclass(frozen=True)
class AsymmetricSoftcap(HeadSite):
    """c+ tanh(z / c+) above zero, c- tanh(z / c-) below, in float32; `cap` at init (PR #1923).

    Both caps are learned in training; #1923 froze them there and moved them in test-time training only.
    """

    cap: float = 30.0

    def __post_init__(self):
        refuse_cap(self.cap, "AsymmetricSoftcap")

    def build(self, context):
        return AsymmetricSoftcapModule(self.cap)


class AsymmetricSoftcapModule(Part):
    def __init__(self, cap):
        super().__init__()
        self.own("caps_2", "softcap.caps", torch.full((2,), cap), "scalar")

    def forward(self, z_BTV, carry):
        z_BTV = z_BTV.float()
        above, below = self.caps_2
        cap_BTV = torch.where(z_BTV > 0, above, below)
        return cap_BTV * torch.tanh(z_BTV / cap_BTV)
