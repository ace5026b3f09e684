"""From the joint product to queries, keys and values per head: split, RMS norm, rotation and gain in one pass.

B batch, T positions, H query heads, G key-value heads, K head width, N = (H + 2 G) K channels, F frequencies.
"""

from dataclasses import dataclass

import torch

from .capability import runs_triton
from .exclusive import fits_head_tile, packed_heads, rows_of_tile
from .heads_triton import shape_heads_backward_kernel, shape_heads_kernel
from .launch import triton_kernel
from .norm import RMS_EPSILON, rms_norm


@dataclass(frozen=True, eq=False)
class HeadTransform:
    """What happens to heads, in this order; each part may be absent.

    norm: RMS norm of queries and keys. cos_TF, sin_TF: float32 tables of at least as many positions as a row has, by which
    the first 2 F channels of queries and keys are rotated. gain_H: a factor of each query head.
    """

    norm: bool = False
    cos_TF: torch.Tensor | None = None
    sin_TF: torch.Tensor | None = None
    gain_H: torch.Tensor | None = None


def rotate_heads(x_BTHK, cos, sin):
    """Rotary positions, half-split: channels a, b of the first two halves of 2 F become a cos + b sin, b cos - a sin.

    cos, sin [..., F] must broadcast over heads. Computed in float32 at least, rounded to x's dtype.
    """
    half = cos.shape[-1]
    wide = torch.promote_types(x_BTHK.dtype, torch.float32)
    a, b, rest = x_BTHK.to(wide).tensor_split((half, 2 * half), dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1).to(x_BTHK.dtype)


def reference_shape_heads(qkv_BTN, heads, kv_heads, transform):
    """q [B, T, H, K], k and v [B, T, G, K] of qkv [B, T, N], queries first: HeadTransform `transform` part by part, rounded
    after each. v is a view."""
    width = qkv_BTN.shape[-1] // (heads + 2 * kv_heads)
    q_BTHK, k_BTGK, v_BTGK = qkv_BTN.unflatten(-1, (-1, width)).split((heads, kv_heads, kv_heads), dim=2)
    if transform.norm:
        q_BTHK, k_BTGK = rms_norm(q_BTHK), rms_norm(k_BTGK)
    if transform.cos_TF is not None:
        cos_T1F, sin_T1F = (table_TF[: qkv_BTN.shape[1]].unsqueeze(1) for table_TF in (transform.cos_TF, transform.sin_TF))
        q_BTHK, k_BTGK = rotate_heads(q_BTHK, cos_T1F, sin_T1F), rotate_heads(k_BTGK, cos_T1F, sin_T1F)
    if transform.gain_H is not None:
        q_BTHK = q_BTHK * transform.gain_H.to(q_BTHK.dtype).unsqueeze(-1)
    return q_BTHK, k_BTGK, v_BTGK


def shape_heads(qkv_BTN, heads, kv_heads, transform):
    """The same, q and k contiguous where it is fast: bfloat16 where Triton runs, with a head width that is a power of two
    from 16. One kernel each way, which computes in float32 and rounds once."""
    width = qkv_BTN.shape[-1] // (heads + 2 * kv_heads)
    if qkv_BTN.dtype == torch.bfloat16 and fits_head_tile(width) and runs_triton(qkv_BTN.device):
        gain_H, tables = transform.gain_H, (transform.cos_TF, transform.sin_TF)
        return ShapedHeads.apply(qkv_BTN, gain_H, *tables, heads, kv_heads, transform.norm)
    return reference_shape_heads(qkv_BTN, heads, kv_heads, transform)


class ShapedHeads(torch.autograd.Function):
    """Saves its inputs alone: the norm is computed again. The tables have no gradient."""

    @staticmethod
    def forward(ctx, qkv_BTN, gain_H, cos_TF, sin_TF, heads, kv_heads, norm):
        ctx.save_for_backward(qkv_BTN, gain_H, cos_TF, sin_TF)
        ctx.norm = norm
        # Attention reads values where they lie.
        v_BTGK = qkv_BTN.unflatten(-1, (heads + 2 * kv_heads, -1))[:, :, heads + kv_heads :]
        return *shape_heads_forward(qkv_BTN, gain_H, cos_TF, sin_TF, heads, kv_heads, norm), v_BTGK

    @staticmethod
    def backward(ctx, dq_BTHK, dk_BTGK, dv_BTGK):
        gain_H = ctx.saved_tensors[1]
        d_qkv_BTN, d_gain_H = shape_heads_backward(dq_BTHK, dk_BTGK, dv_BTGK, *ctx.saved_tensors, ctx.norm)
        return d_qkv_BTN, None if gain_H is None else d_gain_H.to(gain_H.dtype), None, None, None, None, None


@torch.library.custom_op(
    "fairway::shape_heads_forward",
    mutates_args=(),
    schema="(Tensor qkv, Tensor? gain, Tensor? cos, Tensor? sin, int heads, int kv_heads, bool norm) -> (Tensor, Tensor)",
)
def shape_heads_forward(qkv_BTN, gain_H, cos_TF, sin_TF, heads, kv_heads, norm):
    """q [B, T, H, K] and k [B, T, G, K], contiguous."""
    qkv_BTN = qkv_BTN.contiguous()
    q_BTHK, k_BTGK = shape_heads_shapes(qkv_BTN, gain_H, cos_TF, sin_TF, heads, kv_heads, norm)
    (B, T, _), K = qkv_BTN.shape, q_BTHK.shape[-1]
    F, block = _frequencies(cos_TF, T), rows_of_tile(K)
    vectors = _contiguous(gain_H, cos_TF, sin_TF)
    triton_kernel(shape_heads_kernel)[(B * -(-T // block) * (heads + kv_heads),)](
        qkv_BTN, *vectors, q_BTHK, k_BTGK, T,
        heads, kv_heads, K, F, norm, gain_H is not None, RMS_EPSILON, block, num_warps=4,
    )  # fmt: skip
    return q_BTHK, k_BTGK


@shape_heads_forward.register_fake
def shape_heads_shapes(qkv_BTN, gain_H, cos_TF, sin_TF, heads, kv_heads, norm):
    """Its results, unfilled."""
    (B, T, N), groups = qkv_BTN.shape, heads + 2 * kv_heads
    return tuple(qkv_BTN.new_empty(B, T, some, N // groups) for some in (heads, kv_heads))


@torch.library.custom_op(
    "fairway::shape_heads_backward",
    mutates_args=(),
    schema="(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor? gain, Tensor? cos, Tensor? sin, bool norm)"
    " -> (Tensor, Tensor)",
)
def shape_heads_backward(dq_BTHK, dk_BTGK, dv_BTGK, qkv_BTN, gain_H, cos_TF, sin_TF, norm):
    """d_qkv [B, T, N] contiguous, and d_gain [H] float32 (without a gain nothing is written to it)."""
    grads, qkv_BTN = [packed_heads(grad) for grad in (dq_BTHK, dk_BTGK, dv_BTGK)], qkv_BTN.contiguous()
    (B, T, H, K), G = dq_BTHK.shape, dk_BTGK.shape[2]
    F, block = _frequencies(cos_TF, T), rows_of_tile(K)
    blocks, vectors = B * -(-T // block), _contiguous(gain_H, cos_TF, sin_TF)
    strides = (step for grad in grads for step in grad.stride()[:3])
    d_qkv_BTN = torch.empty(qkv_BTN.shape, dtype=qkv_BTN.dtype, device=qkv_BTN.device)
    part_PH = torch.empty(blocks, 0 if gain_H is None else H, device=qkv_BTN.device)
    triton_kernel(shape_heads_backward_kernel)[(blocks * (H + 2 * G),)](
        *grads, qkv_BTN, *vectors, d_qkv_BTN, part_PH, T, *strides,
        H, G, K, F, norm, gain_H is not None, RMS_EPSILON, block, num_warps=4,
    )  # fmt: skip
    return d_qkv_BTN, part_PH.sum(0)


@shape_heads_backward.register_fake
def shape_heads_backward_shapes(dq_BTHK, dk_BTGK, dv_BTGK, qkv_BTN, gain_H, cos_TF, sin_TF, norm):
    """Its results, unfilled."""
    heads = 0 if gain_H is None else dq_BTHK.shape[2]
    return qkv_BTN.new_empty(qkv_BTN.shape), dq_BTHK.new_empty(heads, dtype=torch.float32)


def _contiguous(*tensors):
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def _frequencies(cos_TF, length):
    """F; 0 without a table. ValueError where rows are longer than it."""
    if cos_TF is not None and length > cos_TF.shape[0]:
        raise ValueError(f"rows of {length} positions, tables of {cos_TF.shape[0]}")
    return 0 if cos_TF is None else cos_TF.shape[1]
