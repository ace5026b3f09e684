"""Site `positions`: q_BTHK, k_BTGK -> the same.

B batch, T positions, H query heads, G key-value heads, K head width, F frequencies, L layers.
"""

from dataclasses import dataclass, replace

import torch

from ..kernels.heads import HeadTransform, rotate_heads
from ..kernels.norm import rms_norm
from ..problem import Problem
from ..sites import PositionSite
from .roles import Part


class PositionPart(Part):
    """What a node at this site builds where it may be one operation with its neighbours; others derive from Part."""

    def extend(self, transform, layer):
        """`transform` (kernels/heads.py HeadTransform) with this part after all that is in it, in this layer, in rows of
        one window each; None where it cannot be expressed so."""
        return None


def fused_transform(parts, layer):
    """One HeadTransform that does what all `parts` do, one after the other, or None; in rows of one window each."""
    transform = HeadTransform()
    for part in parts:
        transform = part.extend(transform, layer) if isinstance(part, PositionPart) else None
        if transform is None:
            return None
    return transform


@dataclass(frozen=True)
class QKNorm(PositionSite):
    """RMS norm of queries and keys per head, without weights."""

    def build(self, context):
        return QKNormModule()


class QKNormModule(PositionPart):
    def extend(self, transform, layer):
        first = not transform.norm and transform.cos_TF is None and transform.gain_H is None
        return replace(transform, norm=True) if first else None

    def forward(self, q_BTHK, k_BTGK, layer, carry):
        return rms_norm(q_BTHK), rms_norm(k_BTGK)


@dataclass(frozen=True)
class Rotary(PositionSite):
    """Rotary positions, half-split, on the first `dims` channels of each head (None: all).

    Positions and angles are exact float32: the public bfloat16 buffers kept 641 of 2,048 positions apart.
    """

    base: float = 10_000.0
    dims: int | None = None

    def __post_init__(self):
        if self.base <= 1:
            raise Problem(f"Rotary.base is {self.base}; take more than 1")

    def build(self, context):
        dims = context.head_width if self.dims is None else self.dims
        if dims % 2 or not 0 < dims <= context.head_width:
            raise Problem(f"Rotary.dims is {dims}; it must be even and at most the head width {context.head_width}")
        return RotaryModule(dims, self.base, context.sequence)


class RotaryModule(PositionPart):
    def __init__(self, dims, base, sequence):
        super().__init__()
        frequencies_F = base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        angles_TF = torch.outer(torch.arange(sequence, dtype=torch.float64), frequencies_F)
        self.register_buffer("cos_TF", angles_TF.cos().float(), persistent=False)
        self.register_buffer("sin_TF", angles_TF.sin().float(), persistent=False)

    def rotate(self, x_BTHK, bounds=None):
        """Turned by the place in the row, in packed rows by the place in the window."""
        place = slice(x_BTHK.shape[1]) if bounds is None else bounds.position_BT
        return rotate_heads(x_BTHK, self.cos_TF[place].unsqueeze(-2), self.sin_TF[place].unsqueeze(-2))

    def extend(self, transform, layer):
        fits = transform.cos_TF is None and transform.gain_H is None
        return replace(transform, cos_TF=self.cos_TF, sin_TF=self.sin_TF) if fits else None

    def forward(self, q_BTHK, k_BTGK, layer, carry):
        bounds = carry and carry.bounds
        return self.rotate(q_BTHK, bounds), self.rotate(k_BTGK, bounds)


@dataclass(frozen=True)
class QKGain(PositionSite):
    """A learned gain on each query head, after the rotation (PR #162: 1.5 at init)."""

    init: float = 1.5

    def build(self, context):
        return QKGainModule(context, self.init)


class QKGainModule(PositionPart):
    def __init__(self, context, value):
        super().__init__()
        gain_LH = torch.full((context.layers, context.heads), value)
        self.own_per_layer("gain_LH", "attn.gain", gain_LH)

    def forward(self, q_BTHK, k_BTGK, layer, carry):
        return q_BTHK * self.gain_LH[layer].to(q_BTHK.dtype).unsqueeze(-1), k_BTGK

    def extend(self, transform, layer):
        return replace(transform, gain_H=self.gain_LH[layer]) if transform.gain_H is None else None
