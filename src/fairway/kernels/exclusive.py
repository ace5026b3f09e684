"""What attention gives, without the part that lies along its own position's value (XSA).

B batch, T positions, H query heads, G key-value heads, R = H / G query heads a key-value head, K head width.
"""

import torch
from torch.nn import functional as F

from .capability import runs_triton
from .exclusive_triton import exclusive_backward_kernel, exclusive_forward_kernel
from .launch import triton_kernel


def reference_exclusive(y_BTHK, v_BTGK):
    """y_h - (y_h . v^) v^ with v^ = v / max(|v|, 1e-12) of the same position and key-value head h // R.

    The norm is taken in float32 at least, all else in y's dtype.
    """
    wide = torch.promote_types(v_BTGK.dtype, torch.float32)
    unit_BTG1K = F.normalize(v_BTGK.to(wide), dim=-1, eps=1e-12).to(y_BTHK.dtype).unsqueeze(3)
    y_BTGRK = y_BTHK.unflatten(2, (v_BTGK.shape[2], -1))
    return (y_BTGRK - (y_BTGRK * unit_BTG1K).sum(-1, keepdim=True) * unit_BTG1K).flatten(2, 3)


def exclusive(y_BTHK, v_BTGK):
    """The same [B, T, H, K]: where Triton runs, bfloat16 with a head width that is a power of two from 16 takes one kernel
    each way, which computes in float32 and rounds once. Strides may be any: attention's transposed output, a slice."""
    half = y_BTHK.dtype == v_BTGK.dtype == torch.bfloat16
    if half and fits_head_tile(y_BTHK.shape[-1]) and runs_triton(y_BTHK.device):
        return ExclusiveFunction.apply(y_BTHK, v_BTGK)
    return reference_exclusive(y_BTHK, v_BTGK)


def fits_head_tile(width):
    """Whether the kernels for heads take this head width: tiles are powers of two, and 16 channels fill a load or two."""
    return width >= 16 and width & (width - 1) == 0


def rows_of_tile(width):
    """How many heads of this width make a tile: 2,048 numbers, 16 a thread of 128, keep all in registers."""
    return max(1, 2048 // width)


def packed_heads(x_BTHK):
    """The tensor itself if its channels lie side by side, which is all that the kernels ask of strides; else a copy."""
    return x_BTHK if x_BTHK.stride(-1) == 1 else x_BTHK.contiguous()


class ExclusiveFunction(torch.autograd.Function):
    """Saves y and v."""

    @staticmethod
    def forward(ctx, y_BTHK, v_BTGK):
        ctx.save_for_backward(y_BTHK, v_BTGK)
        return exclusive_forward(y_BTHK, v_BTGK)

    @staticmethod
    def backward(ctx, dout_BTHK):
        return exclusive_backward(dout_BTHK, *ctx.saved_tensors)


@torch.library.custom_op("fairway::exclusive_forward", mutates_args=(), schema="(Tensor y, Tensor v) -> Tensor")
def exclusive_forward(y_BTHK, v_BTGK):
    """Contiguous [B, T, H, K]."""
    y_BTHK, v_BTGK = packed_heads(y_BTHK), packed_heads(v_BTGK)
    (B, T, H, K), G, block = y_BTHK.shape, v_BTGK.shape[2], rows_of_tile(y_BTHK.shape[3])
    out_BTHK = torch.empty(y_BTHK.shape, dtype=y_BTHK.dtype, device=y_BTHK.device)
    triton_kernel(exclusive_forward_kernel)[(B * -(-T * G // block),)](
        y_BTHK, v_BTGK, out_BTHK, T, *y_BTHK.stride()[:3], *v_BTGK.stride()[:3], G, H // G, K, block, num_warps=4
    )  # fmt: skip
    return out_BTHK


@exclusive_forward.register_fake
def exclusive_forward_shape(y_BTHK, v_BTGK):
    return y_BTHK.new_empty(y_BTHK.shape)


@torch.library.custom_op(
    "fairway::exclusive_backward", mutates_args=(), schema="(Tensor dout, Tensor y, Tensor v) -> (Tensor, Tensor)"
)
def exclusive_backward(dout_BTHK, y_BTHK, v_BTGK):
    """(dy [B, T, H, K], dv [B, T, G, K]), contiguous."""
    dout_BTHK, y_BTHK, v_BTGK = packed_heads(dout_BTHK), packed_heads(y_BTHK), packed_heads(v_BTGK)
    (B, T, H, K), G, block = y_BTHK.shape, v_BTGK.shape[2], rows_of_tile(y_BTHK.shape[3])
    dy_BTHK = torch.empty(y_BTHK.shape, dtype=y_BTHK.dtype, device=y_BTHK.device)
    dv_BTGK = torch.empty(v_BTGK.shape, dtype=v_BTGK.dtype, device=v_BTGK.device)
    strides = (*dout_BTHK.stride()[:3], *y_BTHK.stride()[:3], *v_BTGK.stride()[:3])
    triton_kernel(exclusive_backward_kernel)[(B * -(-T * G // block),)](
        dout_BTHK, y_BTHK, v_BTGK, dy_BTHK, dv_BTGK, T, *strides, G, H // G, K, block, num_warps=4
    )  # fmt: skip
    return dy_BTHK, dv_BTGK


@exclusive_backward.register_fake
def exclusive_backward_shapes(dout_BTHK, y_BTHK, v_BTGK):
    return y_BTHK.new_empty(y_BTHK.shape), v_BTGK.new_empty(v_BTGK.shape)
