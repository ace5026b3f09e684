"""Low-rank correction of the matrices that rounding hurt most: W + sum over k of gain_k l_k r_k^T (LQER, PR #1797).

R rows, C columns, K terms.
"""

from dataclasses import dataclass

import torch

from ..node import Node
from ..problem import Problem
from .hessian import output_error

TOP = 7  # factors have 4 bits: twice the gain a byte of 8 bits, and hardly less than 2 or 3 bits with many more terms


@dataclass(frozen=True)
class LowRank(Node):
    """Gives the `count` matrices of greatest weighted error `rank` terms each, of 4 bits a number.

    The terms minimise tr((E - LR) H (E - LR)^T): with U the first eigenvectors of E H E^T, L = U and R = U^T E. That is the
    SVD of E H^(1/2) with the root divided out again; #1797 takes that of E itself and stores L in 2 bits, R in 4.
    """

    rank: int = 4
    count: int = 3

    def __post_init__(self):
        if not 1 <= self.rank <= 99 or self.count < 1:
            raise Problem(f"LowRank of rank {self.rank}, count {self.count}: take ranks of 1 to 99 and a count of 1 or more")

    def parts(self, errors, hessians):
        """Index -> stored parts, for the worst of the errors E_RC = W - decoded. hessians: a H_CC for each."""
        worth = [float(output_error(error_RC, hessian_CC)) for error_RC, hessian_CC in zip(errors, hessians, strict=True)]
        worst = sorted(range(len(errors)), key=worth.__getitem__)[-self.count :]
        return {i: self._terms(errors[i], hessians[i]) for i in sorted(worst)}

    def _terms(self, error_RC, hessian_CC):
        rank = min(self.rank, *error_RC.shape)
        left_KR = torch.linalg.eigh(error_RC @ hessian_CC @ error_RC.T)[1][:, -rank:].T
        (left_KR, left_K), (right_KC, right_K) = _as_int4(left_KR), _as_int4(left_KR @ error_RC)
        gain_K = (left_K * right_K).half().cpu()
        return {"left": left_KR.cpu(), "right": right_KC.cpu(), "gain": gain_K}


def _as_int4(x_KN):
    """(int8 codes in [-7, 7], step a row)."""
    step_K = x_KN.abs().amax(1).clamp(min=torch.finfo(x_KN.dtype).tiny) / TOP
    return (x_KN / step_K[:, None]).round().to(torch.int8), step_K


def low_rank_layout(rank, rows, columns):
    """Part name -> (dtype, shape) of `rank` terms of a [rows, columns] matrix; nothing for none."""
    layout = {"left": (torch.int8, (rank, rows)), "right": (torch.int8, (rank, columns)), "gain": (torch.float16, (rank,))}
    return layout if rank else {}


def low_rank_weights(parts):
    """What the terms add, float32 [R, C]; term by term, so that the sum is the same to the bit on every machine."""
    factors = [parts[name].float() for name in ("left", "right", "gain")]
    return sum(gain * torch.outer(left_R, right_C) for left_R, right_C, gain in zip(*factors, strict=True))
