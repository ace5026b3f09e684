"""Muon's two passes over the weights: momentum with what the orthogonaliser begins with, and the update with the decay.

Fast on CUDA cards from Ampere on, for float32 weights and momentum and bfloat16 directions. In place, not differentiable,
and not for compiled graphs: the optimiser calls them. N slices, R rows, C columns.
"""

import torch

from .capability import runs_triton
from .launch import triton_kernel
from .momentum_triton import decayed_add_kernel, nesterov_kernel

LONGEST_ROW = 8192  # a program holds whole rows


def nesterov_(gradient_NRC, buffer_NRC, scale, momentum, out_NRC, equal_rows):
    """buffer <- momentum buffer + scale g; out <- scale g + momentum buffer, in `out`'s dtype.

    `scale` is a tensor of one element, or None for 1. With `equal_rows` each row of `out` is divided by max(its L2 norm,
    1e-7), in float32. `out` may be strided: a transposed view is written as fast. The gradient is not written to.
    """
    fits = gradient_NRC.is_contiguous() and gradient_NRC.shape[-1] <= LONGEST_ROW
    if fits and out_NRC.dtype == torch.bfloat16 and runs_triton(gradient_NRC.device):
        launch_nesterov_(gradient_NRC, buffer_NRC, scale, momentum, out_NRC, equal_rows)
    else:
        reference_nesterov_(gradient_NRC, buffer_NRC, scale, momentum, out_NRC, equal_rows)


def decayed_add_(weight_NRC, update_NRC, keep, alpha, decay_last=False):
    """weight <- keep weight + alpha update; with `decay_last` keep (weight + alpha update)."""
    if weight_NRC.is_contiguous() and update_NRC.dtype == torch.bfloat16 and runs_triton(weight_NRC.device):
        launch_decayed_add_(weight_NRC, update_NRC, keep, alpha, decay_last)
    else:
        reference_decayed_add_(weight_NRC, update_NRC, keep, alpha, decay_last)


def reference_nesterov_(gradient_NRC, buffer_NRC, scale, momentum, out_NRC, equal_rows):
    """`nesterov_` in plain torch."""
    g_NRC = gradient_NRC if scale is None else gradient_NRC * scale
    buffer_NRC.mul_(momentum).add_(g_NRC)
    direction_NRC = torch.add(g_NRC, buffer_NRC, alpha=momentum)
    if equal_rows:
        direction_NRC /= torch.linalg.vector_norm(direction_NRC, dim=-1, keepdim=True).clamp(min=1e-7)
    out_NRC.copy_(direction_NRC)


def reference_decayed_add_(weight_NRC, update_NRC, keep, alpha, decay_last=False):
    """`decayed_add_` in plain torch."""
    if not decay_last:
        weight_NRC.mul_(keep)
    weight_NRC.add_(update_NRC, alpha=alpha)
    if decay_last:
        weight_NRC.mul_(keep)


def launch_nesterov_(gradient_NRC, buffer_NRC, scale, momentum, out_NRC, equal_rows):
    """`nesterov_` by the kernel."""
    slices, rows, columns = gradient_NRC.shape
    wide = 1 << (columns - 1).bit_length()
    high = max(1, LONGEST_ROW // wide)  # 16 rows of 512: a transposed one is written in whole sectors of 32 bytes
    triton_kernel(nesterov_kernel)[(-(-rows // high), slices)](
        gradient_NRC, buffer_NRC, gradient_NRC if scale is None else scale, out_NRC, rows, columns, momentum,
        *out_NRC.stride(), scale is not None, equal_rows, high, wide, num_warps=8,
    )  # fmt: skip


def launch_decayed_add_(weight_NRC, update_NRC, keep, alpha, decay_last=False):
    """`decayed_add_` by the kernel."""
    slices, rows, columns = weight_NRC.shape
    triton_kernel(decayed_add_kernel)[(-(-rows // 64), -(-columns // 64), slices)](
        weight_NRC, update_NRC, rows, columns, keep, alpha * keep if decay_last else alpha,
        *update_NRC.stride(), 64, 64, num_warps=4,
    )  # fmt: skip
