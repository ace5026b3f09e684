"""Rounding: to the nearest, or column by column with feedback of the error (GPTQ, Frantar et al. 2022).

N matrices of one shape, R rows, C columns, B columns of a block. H_CC is the mean of x x^T over a matrix's inputs x.
"""

from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import RoundingSite

TRIES = 5  # of a Cholesky factor, each with ten times the damping of the one before


@dataclass(frozen=True)
class Nearest(RoundingSite):
    """Each weight to the nearest code: what the public systems before GPTQ did."""

    def round(self, w_NRC, scale_NR, top, hessian_NCC):
        """Codes int8 [N, R, C] in [-top, top]; the Hessians are not looked at."""
        return (w_NRC / scale_NR[..., None]).round_().clamp_(-top, top).to(torch.int8)


@dataclass(frozen=True)
class GPTQ(RoundingSite):
    """Each column to the nearest code, its error made up for by the columns after it (PR #1394, PR #1514).

    `prune` above 0 also sets a code of magnitude 1 to zero where that adds less weighted error than `prune` times the
    matrix's mean of scale^2 / d^2 (d: see `gptq_sweep`), a whole step of error in a mean row and column. It happens inside
    the sweep, so later columns make up for it too; PR #1205 pruned afterwards, by scale^2 alone. More prune, more zeros.
    """

    damp: float = 0.01
    block: int = 128
    prune: float = 0.0
    calibrated = True

    def __post_init__(self):
        if self.damp <= 0 or self.block < 1 or self.prune < 0:
            raise Problem(
                f"GPTQ of damp {self.damp}, block {self.block}, prune {self.prune}: take damp above 0, as 0.01, a block of 1"
                " or more, as 128, and prune of 0 or more"
            )

    def round(self, w_NRC, scale_NR, top, hessian_NCC):
        """Codes int8 [N, R, C] in [-top, top]. Problem where a Hessian has no Cholesky factor."""
        w_NCR, order_NC, factor_NCC = ordered_columns(w_NRC, hessian_NCC, self.damp)
        mean_weight_N = factor_NCC.diagonal(dim1=1, dim2=2).pow(-2).mean(1)
        least_N1 = self.prune * (scale_NR.square().mean(1) * mean_weight_N)[:, None]

        def choose(x_NR, weight_N):
            code_NR = (x_NR / scale_NR).round_().clamp_(-top, top)
            if self.prune:
                # (x - 0)^2 - (x - scale)^2, of an x that rounds to +-scale.
                added_NR = scale_NR * (2 * x_NR.abs() - scale_NR) * weight_N[:, None]
                code_NR = code_NR.masked_fill((code_NR.abs() == 1) & (added_NR < least_N1), 0.0)
            return code_NR, code_NR * scale_NR

        return sweep_columns(w_NCR, order_NC, factor_NCC, choose, self.block)


def gptq_sweep(w_NRC, hessian_NCC, choose, damp=0.01, block=128):
    """Codes int8 [N, R, C] of float32 weights, chosen one column after the other, the error fed forward.

    Columns go by descending diagonal of the Hessian. choose(x_NR, weight_N) -> (codes_NR, values_NR) picks the codes of a
    column for its values x, in which earlier columns' errors are made up for already; `weight_N` is 1 / d^2, what a
    squared error there costs once later columns have done their best, d the column's diagonal in the upper Cholesky
    factor of the inverse Hessian. Problem where a Hessian has no factor even with 10,000 times the damping.
    """
    return sweep_columns(*ordered_columns(w_NRC, hessian_NCC, damp), choose, block)


def ordered_columns(w_NRC, hessian_NCC, damp):
    """(w_NCR, order_NC, U_NCC): the columns by descending diagonal, and U upper with U^T U = (H + damping)^-1, so ordered.

    Damping is `damp` times the mean of the live diagonal. A dead column (diagonal 0: its input was always 0) has weights 0
    and takes that mean as its diagonal: it is coupled to no other, so any number does, and this one leaves means alone.
    """
    diagonal_NC = hessian_NCC.diagonal(dim1=1, dim2=2)
    dead_NC = diagonal_NC == 0
    live_N1 = (~dead_NC).sum(1, keepdim=True)
    mean_N1 = torch.where(live_N1 > 0, diagonal_NC.sum(1, keepdim=True) / live_N1.clamp(min=1), 1.0)
    whole_NC = torch.where(dead_NC, mean_N1, diagonal_NC)
    order_NC = whole_NC.argsort(dim=1, descending=True, stable=True)
    # H = V V^T with V upper gives U = V^-1. V is the ordinary lower factor of H back to front, turned round again:
    # one factor and one triangular inverse, where the inverse of H and a factor of that would be four.
    back_NC = order_NC.flip(1)
    columns = hessian_NCC.shape[1]
    turned_NCC = hessian_NCC.gather(1, back_NC[:, :, None].expand(-1, -1, columns))
    turned_NCC = turned_NCC.gather(2, back_NC[:, None].expand(-1, columns, -1))
    whole_NC = whole_NC.gather(1, back_NC)
    damp_N1 = torch.full_like(mean_N1, damp)
    for _ in range(TRIES):
        turned_NCC.diagonal(dim1=1, dim2=2).copy_(whole_NC + damp_N1 * mean_N1)
        lower_NCC, failed_N = torch.linalg.cholesky_ex(turned_NCC)
        failed_N1 = (failed_N > 0)[:, None] | ~lower_NCC.diagonal(dim1=1, dim2=2).isfinite().all(1, keepdim=True)
        if not failed_N1.any():
            break
        damp_N1 = torch.where(failed_N1, 10 * damp_N1, damp_N1)
    else:
        raise Problem(
            f"a Hessian of {columns} columns has no Cholesky factor even with damping {damp * 10 ** (TRIES - 1):g}: its"
            " inputs are not finite, or they overflow; train at a lower rate, or round with Nearest()"
        )
    eye_CC = torch.eye(columns, device=turned_NCC.device, dtype=turned_NCC.dtype)
    factor_NCC = torch.linalg.solve_triangular(lower_NCC.flip(1, 2), eye_CC, upper=True)
    place_NCR = order_NC[:, :, None].expand(-1, -1, w_NRC.shape[1])
    # Columns first, so that what one step of the sweep reads and writes lies together.
    return w_NRC.mT.masked_fill(dead_NC[:, :, None], 0.0).gather(1, place_NCR), order_NC, factor_NCC


def sweep_columns(w_NCR, order_NC, factor_NCC, choose, block):
    """The sweep over ordered columns, in place on their weights; codes [N, R, C] in the matrices' own order."""
    codes_NCR = torch.empty_like(w_NCR, dtype=torch.int8)
    weight_NC = factor_NCC.diagonal(dim1=1, dim2=2).pow(-2)
    for first in range(0, w_NCR.shape[1], block):
        w_NBR = w_NCR[:, first : first + block]
        error_NBR = torch.empty_like(w_NBR)
        for i in range(w_NBR.shape[1]):
            u_NB = factor_NCC[:, first + i, first + i : first + block]
            codes_NR, values_NR = choose(w_NBR[:, i], weight_NC[:, first + i])
            codes_NCR[:, first + i] = codes_NR
            error_NBR[:, i] = (w_NBR[:, i] - values_NR) / u_NB[:, :1]
            w_NBR[:, i + 1 :].addcmul_(u_NB[:, 1:, None], error_NBR[:, i, None], value=-1)
        rest_NBC = factor_NCC[:, first : first + block, first + block :]
        w_NCR[:, first + block :].baddbmm_(rest_NBC.mT, error_NBR, alpha=-1)
    return codes_NCR.gather(1, order_NC.argsort(dim=1)[:, :, None].expand_as(codes_NCR)).mT.contiguous()
