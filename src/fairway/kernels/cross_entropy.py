"""Cross-entropy of a linear head with capped logits. N positions, D width, V vocabulary.

The logits are by far the largest tensor of a training step. The fast version writes them once, in bfloat16, and reads
them once: the sweep that takes a row's loss leaves the row's gradient in its place, for the two products of backward.
"""

import math

import torch
from torch.nn import functional as F

from .capability import runs_triton
from .cross_entropy_triton import cross_entropy_kernel
from .launch import triton_kernel

WIDEST_ROW = 16_384  # logits that the registers of one program hold
# exp(64) and exp(-64), and the sums of WIDEST_ROW of them, are ordinary float32 numbers.
SAFE_CAP = 64.0
LOG2_E = 1 / math.log(2)


def reference_linear_cross_entropy(x, table_VD, targets, cap=None):
    """Mean cross-entropy in nats of logits z = x table^T, or cap tanh(z / cap) where cap is given, in float32 (float64 for
    float64). x [..., D] and table in one dtype; targets [...] int64, each 0..V - 1."""
    z = F.linear(x, table_VD)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    return F.cross_entropy(z.flatten(0, -2), targets.flatten())


def linear_cross_entropy(x, table_VD, targets, cap=None):
    """The same; in one sweep over the logits where `sweeps_logits`. No double backward."""
    if sweeps_logits(x, table_VD):
        return LinearCrossEntropy.apply(x.flatten(0, -2), table_VD, targets.flatten(), cap)
    return reference_linear_cross_entropy(x, table_VD, targets, cap)


def sweeps_logits(x, table_VD):
    """Whether the fast version takes these: bfloat16, rows of at most WIDEST_ROW logits, on a card that runs Triton."""
    return runs_triton(x.device) and x.dtype == table_VD.dtype == torch.bfloat16 and table_VD.shape[0] <= WIDEST_ROW


class LinearCrossEntropy(torch.autograd.Function):
    """(x_ND, table_VD, targets_N, cap) -> the mean. Saves the gradient by the logits, which forward has already taken."""

    @staticmethod
    def forward(ctx, x_ND, table_VD, targets_N, cap):
        losses_N, d_NV = cross_entropy_sweep(x_ND, table_VD, targets_N, cap)
        ctx.save_for_backward(x_ND, table_VD, d_NV)
        return losses_N.mean()

    @staticmethod
    def backward(ctx, grad):
        x_ND, table_VD, d_NV = ctx.saved_tensors
        # The incoming scalar goes to the table and its gradient: they are small, and logits need no further pass.
        dx_ND = d_NV @ (table_VD * grad) if ctx.needs_input_grad[0] else None
        dtable_VD = (d_NV.t() @ x_ND) * grad if ctx.needs_input_grad[1] else None
        return dx_ND, dtable_VD, None, None


@torch.library.custom_op(
    "fairway::cross_entropy_sweep",
    mutates_args=(),
    schema="(Tensor x_ND, Tensor table_VD, Tensor targets_N, float? cap) -> (Tensor, Tensor)",
)
def cross_entropy_sweep(x_ND, table_VD, targets_N, cap):
    """The positions' losses, float32 [N], and the gradient of their mean by the uncapped logits, [N, V] in x's dtype.

    Product and sweep are one operation, so that no compiler sees logits that change under it and copies them.
    """
    z_NV = x_ND @ table_VD.t()
    N, V = z_NV.shape
    losses_N = torch.empty(N, dtype=torch.float32, device=z_NV.device)
    block = 1 << (V - 1).bit_length()
    # 64 logits a thread: 90 to 100 registers (Triton 3.6), so a multiprocessor has five rows of 8,192 under way.
    warps = max(block // 2048, 1)
    slope, height = (LOG2_E, 0.0) if cap is None else (2 * LOG2_E / cap, 2 * LOG2_E * cap)
    bounded = cap is not None and cap <= SAFE_CAP
    triton_kernel(cross_entropy_kernel)[(N,)](
        z_NV, targets_N, losses_N, 1 / N, slope, height, V, cap is not None, bounded, block, num_warps=warps
    )
    return losses_N, z_NV


@cross_entropy_sweep.register_fake
def cross_entropy_sweep_shapes(x_ND, table_VD, targets_N, cap):
    losses_N = x_ND.new_empty(x_ND.shape[0], dtype=torch.float32)
    return losses_N, x_ND.new_empty(x_ND.shape[0], table_VD.shape[0])
