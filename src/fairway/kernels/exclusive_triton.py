"""Kernels of kernels/exclusive.py. A program takes BN pairs of (position, key-value head), and all R query heads of each.

T positions, G key-value heads, K head width; strides by row, time and head. The pairs of a row are numbered with the
key-value head fastest. Sums are float32, each result is rounded once.
"""

from __future__ import annotations


def exclusive_forward_kernel(
    y, v, out, T, y_row, y_time, y_head, v_row, v_time, v_head,
    G: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T * G, BN)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    pair = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    here = (pair < T * G)[:, None]
    channel = tl.arange(0, K)[None, :]
    time, group = pair // G, pair % G
    from_v = v + row * v_row + (time * v_time + group * v_head)[:, None] + channel
    v_NK = tl.load(from_v, mask=here, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.maximum(tl.sum(v_NK * v_NK, 1), 1e-24)
    from_y = y + row * y_row + (time * y_time + group * (R * y_head))[:, None] + channel
    to_out = out + row * T * (G * R * K) + (pair * (R * K))[:, None] + channel
    for r in tl.static_range(R):
        y_NK = tl.load(from_y + r * y_head, mask=here, other=0.0).to(tl.float32)
        along = tl.sum(y_NK * v_NK, 1) * inverse
        tl.store(to_out + r * K, (y_NK - along[:, None] * v_NK).to(out.dtype.element_ty), mask=here)


def exclusive_backward_kernel(
    dout, y, v, dy, dv, T, d_row, d_time, d_head, y_row, y_time, y_head, v_row, v_time, v_head,
    G: tl.constexpr, R: tl.constexpr, K: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T * G, BN)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    pair = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    here = (pair < T * G)[:, None]
    channel = tl.arange(0, K)[None, :]
    time, group = pair // G, pair % G
    from_v = v + row * v_row + (time * v_time + group * v_head)[:, None] + channel
    v_NK = tl.load(from_v, mask=here, other=0.0).to(tl.float32)
    from_y = y + row * y_row + (time * y_time + group * (R * y_head))[:, None] + channel
    from_dout = dout + row * d_row + (time * d_time + group * (R * d_head))[:, None] + channel
    to_dy = dy + row * T * (G * R * K) + (pair * (R * K))[:, None] + channel
    square = tl.sum(v_NK * v_NK, 1)
    inverse = 1.0 / tl.maximum(square, 1e-24)
    dv_NK = tl.zeros((BN, K), tl.float32)
    both = tl.zeros((BN,), tl.float32)
    for r in tl.static_range(R):
        y_NK = tl.load(from_y + r * y_head, mask=here, other=0.0).to(tl.float32)
        d_NK = tl.load(from_dout + r * d_head, mask=here, other=0.0).to(tl.float32)
        # Both times 1/|v|^2 at once: its square alone would overflow where |v| is tiny.
        along = tl.sum(y_NK * v_NK, 1) * inverse
        d_along = tl.sum(d_NK * v_NK, 1) * inverse
        tl.store(to_dy + r * K, (d_NK - d_along[:, None] * v_NK).to(dy.dtype.element_ty), mask=here)
        dv_NK -= along[:, None] * d_NK + d_along[:, None] * y_NK
        both += along * d_along
    both = tl.where(square > 1e-24, 2.0 * both, 0.0)  # below, the norm is a constant
    to_dv = dv + row * T * (G * K) + (pair * K)[:, None] + channel
    tl.store(to_dv, (dv_NK + both[:, None] * v_NK).to(dv.dtype.element_ty), mask=here)
