"""Weight schemes: how one leaf becomes stored parts, and how the parts become weights again.

A scheme is a node at a place in the recipe's `quantize`; what it leaves behind is decoded by the scheme's stored
name alone, so that a file needs no recipe to be read. A new scheme is one node, one line in `part_layout`, one in
`decode_coded`.

Shapes: R rows, C columns of a leaf. Its last dimension is a row; a vector or a single number is one row.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model.roles import ROLES, role_matches
from ..problem import Problem
from ..sites import SchemeSite

INTEGER_SCHEMES = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")
LEAST_SCALE = 2.0**-24  # the smallest positive float16


@dataclass(frozen=True, eq=False)
class Coded:
    """A leaf as stored: the scheme that decodes it, its role, its shape, and its parts by name."""

    scheme: str
    role: str
    shape: tuple[int, ...]
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class WeightScheme(SchemeSite):
    """Base of the schemes: which leaves it takes. `encode(weight, leaf)` gives the leaf's Coded."""

    role: str = ""  # this role and what refines it; empty: every role
    layers: tuple[int, ...] = ()  # empty: all; negative numbers count from the last layer
    largest: int = 0  # only leaves of at most this many elements; 0: any size

    def __post_init__(self):
        if self.role and self.role.split(".")[0] not in ROLES:
            raise Problem(f"{type(self).__name__}.role {self.role!r} is no role: one of {', '.join(ROLES)}")
        if self.largest < 0:
            raise Problem(f"{type(self).__name__}.largest is {self.largest}: give a count of elements, or 0 for any size")

    def takes(self, leaf, depth):
        """Whether this rule takes `leaf` of a model of `depth` layers. Problem for a layer that does not exist."""
        if beyond := [layer for layer in self.layers if not -depth <= layer < depth]:
            raise Problem(f"{type(self).__name__}.layers names layer {beyond[0]}, the model has {depth}")
        if self.role and not role_matches(leaf.role, self.role):
            return False
        if self.layers and leaf.layer not in [layer % depth for layer in self.layers]:
            return False
        return not self.largest or math.prod(leaf.shape) <= self.largest

    def grid(self, weight):
        """`weight` as it will come back, on its own device; None where training need not know (no integers)."""
        return None


@dataclass(frozen=True)
class KeepFloat16(WeightScheme):
    """Stores float16 values as they are. Problem when a weight is beyond float16."""

    def encode(self, weight, leaf):
        return Coded("float16", leaf.role, leaf.shape, {"value": _as_float16(weight, leaf)})


@dataclass(frozen=True)
class RowInt(WeightScheme):
    """Symmetric integers with one float16 scale a row (the contest's baseline and PR #162).

    Q = 2^(bits-1) - 1; scale = clip / Q in float16; q = round(w / scale) in [-Q, Q]. `clip` is the row's largest
    magnitude, or the `quantile` of its magnitudes, or `sigmas` of its standard deviations (PR #1394's SDClip: at 12.85
    for 6 bits nothing is clipped and the codes have 3.3 bits of entropy). A weight within its clip comes back within
    scale / 2 + Q * 2^-25; the second term is the rounding of a subnormal scale and vanishes for scales above 2^-14.

    Scales stop at the smallest positive float16, so a zero row stays zero and a small row keeps its own range. The
    public int8 stops at 1/127, a fixed step that flattens every row with max|w| < 1; that defect is mended here.
    """

    bits: int = 6
    quantile: float = 1.0
    sigmas: float = 0.0  # 0: the clip is by magnitude

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise Problem(f"RowInt.bits is {self.bits}: codes are held in int8, take 2 to 8")
        if not 0 < self.quantile <= 1:
            raise Problem(f"RowInt.quantile is {self.quantile}: take a fraction above 0, up to 1")
        if self.sigmas < 0 or (self.sigmas and self.quantile < 1):
            raise Problem(f"RowInt.sigmas is {self.sigmas} beside quantile {self.quantile}: above 0 it goes with quantile=1")

    def encode(self, weight, leaf):
        q_RC, scale_R = self._codes(weight)
        _refuse_infinite(scale_R, weight, leaf)
        parts = {"q": q_RC.to(torch.int8).reshape(leaf.shape), "scale": scale_R}
        return Coded(f"int{self.bits}", leaf.role, leaf.shape, parts)

    def grid(self, weight):
        q_RC, scale_R = self._codes(weight)
        return (q_RC * scale_R.float()[:, None]).reshape(weight.shape)

    def _codes(self, weight):
        top = 2 ** (self.bits - 1) - 1
        w_RC = weight.reshape(-1, weight.shape[-1] if weight.dim() else 1)
        scale_R = (self._clip(w_RC) / top).half().clamp(min=LEAST_SCALE)
        return (w_RC / scale_R.float()[:, None]).round().clamp(-top, top), scale_R

    def _clip(self, w_RC):
        if self.sigmas and w_RC.shape[1] > 1:
            return self.sigmas * w_RC.std(dim=1)
        magnitude_RC = w_RC.abs()
        if self.quantile == 1:
            return magnitude_RC.amax(dim=1)
        # torch.quantile refuses more than 16 M elements.
        return torch.from_numpy(np.quantile(magnitude_RC.cpu().numpy(), self.quantile, axis=1)).float().to(w_RC.device)


def part_layout(scheme, shape):
    """Part name -> (dtype, shape) of what `scheme` stores for a leaf of this shape. Problem for an unknown scheme."""
    if scheme == "float16":
        return {"value": (torch.float16, shape)}
    if scheme in INTEGER_SCHEMES:
        return {"q": (torch.int8, shape), "scale": (torch.float16, (math.prod(shape[:-1]),))}
    raise Problem(f"unknown weight scheme {scheme!r}; this file was written by another version of fairway")


def decode_coded(coded):
    """The float32 weights of a Coded, in its shape."""
    if coded.scheme == "float16":
        return coded.parts["value"].float()
    if coded.scheme in INTEGER_SCHEMES:
        scale_R = coded.parts["scale"].float()
        return (coded.parts["q"].float().reshape(len(scale_R), -1) * scale_R[:, None]).reshape(coded.shape)
    raise Problem(f"unknown weight scheme {coded.scheme!r}; this file was written by another version of fairway")


def _as_float16(values, leaf):
    half = values.half()
    _refuse_infinite(half, values, leaf)
    return half


def _refuse_infinite(half, values, leaf):
    if half.isinf().any():
        raise Problem(f"{leaf.name} holds {values.abs().max():.6g}, beyond float16 (65504); train it smaller or take RowInt")
