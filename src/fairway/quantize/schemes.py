"""Weight schemes: how one leaf becomes stored parts, and how the parts become weights again.

A scheme is a node at a place in the recipe's `quantize`; what it leaves behind is decoded by the scheme's stored
name alone, so that a file needs no recipe to be read. A new scheme is one node, one line in `part_layout`, one in
`decode_coded`.

Shapes: N leaves of one shape, R rows, C columns. A leaf's last dimension is a row; a vector or a single number is one row.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.trellis import trellis_values
from ..model.roles import ROLES, role_matches
from ..problem import Problem
from ..sites import RoundingSite, SchemeSite
from .gptq import Nearest
from .lowrank import LowRank, low_rank_layout, low_rank_weights

INTEGER_SCHEME = r"(?:int|path)[2-8](\.log)?(?:\+lr([1-9]\d?))?"
LEAST_SCALE = 2.0**-24  # the smallest positive float16
LARGEST_SCALE = 65504.0  # of float16
BATCH_ELEMENTS = 2**26  # of the weights, or of the Hessians, that are rounded at a time


@dataclass(frozen=True, eq=False)
class Coded:
    """A leaf as stored: the scheme that decodes it, its role, its shape, and its parts by name."""

    scheme: str
    role: str
    shape: tuple[int, ...]
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class WeightScheme(SchemeSite):
    """Base of the schemes: which leaves it takes. `encode(weights, leaves, hessians)` gives their Coded, on the CPU."""

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

    def grid(self, weights):
        """`weights` [N, ...] of N leaves as they will come back if rounded to nearest, on their own device; None where
        training need not know (no integers)."""
        return None


@dataclass(frozen=True)
class KeepFloat16(WeightScheme):
    """Stores float16 values as they are. Problem when a weight is beyond float16."""

    def encode(self, weights, leaves, hessians):
        return [
            Coded("float16", leaf.role, leaf.shape, {"value": _as_float16(weight, leaf).cpu()})
            for weight, leaf in zip(weights, leaves, strict=True)
        ]


@dataclass(frozen=True)
class RowInt(WeightScheme):
    """Symmetric integers with one scale a row (the contest's baseline and PR #162).

    Q = 2^(bits-1) - 1; scale = clip / Q as stored; q = round(w / scale) in [-Q, Q]. `clip` is the row's largest magnitude,
    or the `quantile` of its magnitudes, or that one of `search`, quantiles too, with the least squared error in this row
    (PR #864's GPTQ-lite: 0.999, 0.9995, 0.9999, 0.99999, 1.0; of equals the first), or `sigmas` of its root mean squares
    (PR #1394's SDClip: at 12.85 for 6 bits nothing is clipped and the codes have 3.3 bits of entropy).

    Scales are float16, or with `log_scales` base * 2^(-code / 8) in 8 bits, up to 9 % above what was asked for; the float16
    base is the matrix's largest scale. Rows that are alike, as those clipped by sigmas, then cost next to nothing.
    A weight within its clip comes back, if `rounding` is Nearest(), within scale / 2 + Q * 2^-25 + Q * 2^-20 * scale; the
    second term is the rounding of a subnormal float16 (scales under 2^-14), the third that of float32. GPTQ moves single
    weights further, for less error in the outputs. `correct` adds low-rank terms to the worst of the rule's matrices.

    Scales stop at 2^-24, so a zero row stays zero and a small row keeps its own range. The public int8 stops at 1/127, a
    fixed step that flattens every row with max|w| < 1; that defect is mended here.
    """

    bits: int = 6
    quantile: float = 1.0
    sigmas: float = 0.0  # 0: the clip is by magnitude
    search: tuple[float, ...] = ()
    log_scales: bool = False
    rounding: RoundingSite = Nearest()
    correct: tuple[LowRank, ...] = ()  # at most one

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise Problem(f"RowInt.bits is {self.bits}: codes are held in int8, take 2 to 8")
        if strange := [one for one in (self.quantile, *self.search) if not 0 < one <= 1]:
            raise Problem(f"RowInt: a quantile is {strange[0]}: take fractions above 0, up to 1")
        if self.sigmas < 0 or (self.sigmas > 0) + (self.quantile < 1) + bool(self.search) > 1:
            raise Problem(
                f"RowInt.sigmas is {self.sigmas} beside quantile {self.quantile} and search {self.search}: sigmas is 0 or"
                " more, and only one of the three decides the clip; leave two out"
            )
        if len(self.correct) > 1:
            raise Problem(f"RowInt.correct has {len(self.correct)} entries: give one, of a greater rank or count")

    @property
    def calibrated(self):
        """Whether it reads Hessians."""
        return self.rounding.calibrated or bool(self.correct)

    def encode(self, weights, leaves, hessians):
        if self.calibrated and any(one is None for one in hessians):
            raise Problem(
                f"a rule rounds {leaves[0].name} by {self.rounding} and corrects it by {self.correct}, which take Hessians,"
                " and there are none; give the recipe calibrate=(Calibration(),)"
            )
        coded = [None] * len(leaves)
        for chosen in self._batches(weights):
            w_NRC = torch.stack([as_rows(weights[i]) for i in chosen])
            stored = self._scales(w_NRC)
            scale_NR = scale_values(stored)
            for i, largest in zip(chosen, scale_NR.amax(1).tolist(), strict=True):
                refuse_scale(largest, weights[i], leaves[i])
            hessian_NCC = torch.stack([hessians[i] for i in chosen]) if self.rounding.calibrated else None
            code = "path" if self.rounding.kind == "path" else "q"
            stored[code] = self.rounding.round(w_NRC, scale_NR, self._top, hessian_NCC)
            for i, parts in zip(chosen, by_matrix(stored), strict=True):
                parts[code] = parts[code].reshape(leaves[i].shape)
                scheme = f"{self.rounding.kind}{self.bits}{'.log' * self.log_scales}"
                coded[i] = Coded(scheme, leaves[i].role, leaves[i].shape, parts)
        for node in self.correct:
            self._correct(node, coded, weights, hessians)
        return coded

    def _correct(self, node, coded, weights, hessians):
        """Puts low-rank parts beside the codes of the worst matrices."""
        errors = [as_rows(w - decode_coded(one).to(w.device)) for w, one in zip(weights, coded, strict=True)]
        for i, parts in node.parts(errors, hessians).items():
            old = coded[i]
            coded[i] = Coded(f"{old.scheme}+lr{len(parts['gain'])}", old.role, old.shape, old.parts | parts)

    def _batches(self, weights):
        """Lists of indices of weights of one shape, as many as BATCH_ELEMENTS allow."""
        alike = {}
        for i, weight in enumerate(weights):
            alike.setdefault(as_rows(weight).shape, []).append(i)
        for (rows, columns), chosen in alike.items():
            size = max(1, BATCH_ELEMENTS // (columns * max(rows, columns * self.rounding.calibrated)))
            yield from (chosen[at : at + size] for at in range(0, len(chosen), size))

    def grid(self, weights):
        w_NRC = weights.reshape(len(weights), -1, weights.shape[-1] if weights.dim() > 1 else 1)
        scale_NR = scale_values(self._scales(w_NRC))
        return (Nearest().round(w_NRC, scale_NR, self._top, None) * scale_NR[..., None]).reshape(weights.shape)

    @property
    def _top(self):
        return 2 ** (self.bits - 1) - 1

    def _scales(self, w_NRC):
        """Each row's scale as stored: {"scale": [N, R], and of logarithmic ones "base": [N, 1]}."""
        asked_KNR = torch.stack(self._clips(w_NRC)) / self._top
        if self.log_scales:
            stored = log_scales(asked_KNR)
        else:
            stored = {"scale": asked_KNR.half().clamp(min=LEAST_SCALE)}
        best_1NR = torch.zeros_like(asked_KNR[:1], dtype=torch.int64)
        if len(asked_KNR) > 1:
            errors = [self._squared_errors(w_NRC, scale_NR) for scale_NR in scale_values(stored)]
            best_1NR = torch.stack(errors).argmin(0, keepdim=True)
        return stored | {"scale": stored["scale"].gather(0, best_1NR)[0]}

    def _squared_errors(self, w_NRC, scale_NR):
        q_NRC = Nearest().round(w_NRC, scale_NR, self._top, None)
        return (w_NRC - q_NRC * scale_NR[..., None]).square().sum(-1)

    def _clips(self, w_NRC):
        if self.sigmas:
            # Of a trained row that is its standard deviation, but a row of equal weights has none.
            return [self.sigmas * w_NRC.square().mean(dim=-1).sqrt()]
        if self.quantile == 1 and not self.search:
            return [w_NRC.abs().amax(dim=-1)]
        return row_quantiles(w_NRC.abs(), self.search or (self.quantile,))


def as_rows(weight):
    """A leaf as [R, C]."""
    return weight.reshape(-1, weight.shape[-1] if weight.dim() else 1)


def row_quantiles(x_NRC, fractions):
    """[the rows' quantile [N, R], for each fraction], between two values by the straight line; needs no whole sort."""
    last = x_NRC.shape[-1] - 1
    places = [(1 - fraction) * last for fraction in fractions]  # counted from the largest
    sorted_NRK = x_NRC.topk(math.ceil(max(places)) + 1).values
    above = [(sorted_NRK[..., int(place)], sorted_NRK[..., math.ceil(place)], place % 1) for place in places]
    return [torch.lerp(one, next_one, share) for one, next_one, share in above]


def log_scales(asked_KNR):
    """{"scale": uint8 [K, N, R], "base": float16 [N, 1]} of scales asked for, in K versions of N matrices: the least
    base * 2^(-scale / 8) that is not under it (up to rounding), the base not under any of a matrix's own."""
    # float16 rounds by 2^-11 at most, but for the smallest.
    base_N1 = (asked_KNR.amax((0, 2))[:, None] * (1 + 2.0**-10)).half().clamp(min=LEAST_SCALE)
    # In float64, so that a scale of the grid keeps its code on every device.
    code_KNR = ((base_N1.double() / asked_KNR.double()).log2() * 8 + 1e-5).floor().clamp(0, 255).to(torch.uint8)
    return {"scale": code_KNR, "base": base_N1}


def scale_values(parts):
    """Float32 scales of stored ones: float16, or what `log_scales` gave."""
    if "base" not in parts:
        return parts["scale"].float()
    return (parts["base"].double() * (parts["scale"].double() / -8).exp2()).float()


def by_matrix(stored):
    """{part: [N, ...]} -> [{part: [...]} of each matrix], on the CPU."""
    on_cpu = {part: batch.cpu() for part, batch in stored.items()}
    return [dict(zip(on_cpu, parts, strict=True)) for parts in zip(*on_cpu.values(), strict=True)]


def part_layout(scheme, shape):
    """Part name -> (dtype, shape) of what `scheme` stores for a leaf of this shape. Problem for an unknown scheme."""
    if scheme == "float16":
        return {"value": (torch.float16, shape)}
    if found := re.fullmatch(INTEGER_SCHEME, scheme):
        rows = math.prod(shape[:-1])
        scales = log_scale_layout(rows) if found[1] else {"scale": (torch.float16, (rows,))}
        codes = {"path" if scheme.startswith("path") else "q": (torch.int8, shape)}
        return codes | scales | low_rank_layout(int(found[2] or 0), rows, math.prod(shape[-1:]))
    raise Problem(f"unknown weight scheme {scheme!r}; this file was written by another version of fairway")


def log_scale_layout(rows):
    """Part name -> (dtype, shape) of what `log_scales` gives for a matrix."""
    return {"scale": (torch.uint8, (rows,)), "base": (torch.float16, (1,))}


def decode_coded(coded):
    """The float32 weights of a Coded, in its shape."""
    if coded.scheme == "float16":
        return coded.parts["value"].float()
    if re.fullmatch(INTEGER_SCHEME, coded.scheme):
        scale_R = scale_values(coded.parts)
        if "path" in coded.parts:
            w_RC = trellis_values(coded.parts["path"].reshape(len(scale_R), -1)) * (scale_R / 2)[:, None]
        else:
            w_RC = coded.parts["q"].float().reshape(len(scale_R), -1) * scale_R[:, None]
        return (w_RC + low_rank_weights(coded.parts) if "gain" in coded.parts else w_RC).reshape(coded.shape)
    raise Problem(f"unknown weight scheme {coded.scheme!r}; this file was written by another version of fairway")


def _as_float16(values, leaf):
    half = values.half()
    if half.isinf().any():
        raise Problem(f"{leaf.name} holds {values.abs().max():.6g}, beyond float16 (65504); train it smaller or take RowInt")
    return half


def refuse_scale(largest, values, leaf):
    """Problem for a matrix whose largest scale is beyond float16."""
    if not largest <= LARGEST_SCALE:
        raise Problem(
            f"{leaf.name} holds {values.abs().max():.6g}, whose scale is beyond float16 ({LARGEST_SCALE:g}); train it"
            " smaller, or take more bits"
        )
