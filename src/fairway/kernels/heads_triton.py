"""Kernels of kernels/heads.py. A program takes BN positions of one row and one head; heads number fastest, queries first.

T positions, H query heads, G key-value heads, K head width, F frequencies (0: no rotation); strides by row, time and head.
A channel's partner is the one that it is turned with. Sums are float32, each result is rounded once.
"""

from __future__ import annotations


def shape_heads_kernel(
    qkv, gain, cos, sin, q, k, T,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, F: tl.constexpr,
    NORM: tl.constexpr, GAIN: tl.constexpr, EPSILON: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    head, block = tl.program_id(0) % (H + G), tl.program_id(0) // (H + G)
    blocks = tl.cdiv(T, BN)
    time = block % blocks * BN + tl.arange(0, BN)
    channel = tl.arange(0, K)[None, :]
    here = (time < T)[:, None]
    start = (block // blocks).to(tl.int64) * T
    from_x = qkv + (start * (H + 2 * G) + head) * K + (time * ((H + 2 * G) * K))[:, None]
    out_NK = tl.load(from_x + channel, mask=here, other=0.0).to(tl.float32)
    scale = tl.full((BN,), 1.0, tl.float32)
    if GAIN:
        scale *= tl.load(gain + head, mask=head < H, other=1.0).to(tl.float32)
    if NORM:
        scale *= tl.rsqrt(tl.sum(out_NK * out_NK, 1) * (1.0 / K) + EPSILON)
    if F > 0:
        turns = here & (channel < 2 * F)
        angle = (time * F)[:, None] + channel % F
        partner = tl.where(channel < F, channel + F, channel - F)
        cos_NK = tl.load(cos + angle, mask=turns, other=1.0)
        sin_NK = tl.load(sin + angle, mask=turns, other=0.0)
        partner_NK = tl.load(from_x + partner, mask=turns, other=0.0).to(tl.float32)
        out_NK = out_NK * cos_NK + partner_NK * tl.where(channel < F, sin_NK, -sin_NK)
    out_NK *= scale[:, None]
    out, heads, place = tl.where(head < H, q, k), tl.where(head < H, H, G), tl.where(head < H, head, head - H)
    to_out = out + (start * heads + place) * K + (time * (heads * K))[:, None] + channel
    tl.store(to_out, out_NK.to(out.dtype.element_ty), mask=here)


def shape_heads_backward_kernel(
    dq, dk, dv, qkv, gain, cos, sin, d_qkv, d_gain, T,
    q_row, q_time, q_head, k_row, k_time, k_head, v_row, v_time, v_head,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, F: tl.constexpr,
    NORM: tl.constexpr, GAIN: tl.constexpr, EPSILON: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    head, block = tl.program_id(0) % (H + 2 * G), tl.program_id(0) // (H + 2 * G)
    blocks = tl.cdiv(T, BN)
    time = block % blocks * BN + tl.arange(0, BN)
    channel = tl.arange(0, K)[None, :]
    here = (time < T)[:, None]
    row = (block // blocks).to(tl.int64)
    is_q, is_k = head < H, head < H + G
    by_row = tl.where(is_q, q_row, tl.where(is_k, k_row, v_row))
    by_time = tl.where(is_q, q_time, tl.where(is_k, k_time, v_time))
    by_head = tl.where(is_q, q_head, tl.where(is_k, k_head, v_head)) * tl.where(is_q, head, (head - H) % G)
    from_d = tl.where(is_q, dq, tl.where(is_k, dk, dv)) + row * by_row + by_head + (time * by_time)[:, None]
    d_NK = tl.load(from_d + channel, mask=here, other=0.0).to(tl.float32)
    of_x = (row * T * (H + 2 * G) + head) * K + (time * ((H + 2 * G) * K))[:, None] + channel
    if is_k:
        if F > 0:
            turns = here & (channel < 2 * F)
            angle = (time * F)[:, None] + channel % F
            partner = tl.where(channel < F, channel + F, channel - F)
            cos_NK = tl.load(cos + angle, mask=turns, other=1.0)
            sin_NK = tl.load(sin + angle, mask=turns, other=0.0)
            partner_NK = tl.load(from_d + partner, mask=turns, other=0.0).to(tl.float32)
            d_NK = d_NK * cos_NK - partner_NK * tl.where(channel < F, sin_NK, -sin_NK)
        scale = tl.full((BN,), 1.0, tl.float32)
        if GAIN:
            scale *= tl.load(gain + head, mask=is_q, other=1.0).to(tl.float32)
        if NORM or GAIN:
            n_NK = tl.load(qkv + of_x, mask=here, other=0.0).to(tl.float32)
            if NORM:
                rstd = tl.rsqrt(tl.sum(n_NK * n_NK, 1) * (1.0 / K) + EPSILON)
                n_NK *= rstd[:, None]
                scale *= rstd
            along = tl.sum(d_NK * n_NK, 1)
            if GAIN:
                tl.store(d_gain + block * H + head, tl.sum(along, 0), mask=is_q)
            if NORM:
                d_NK -= n_NK * (along * (1.0 / K))[:, None]
        d_NK *= scale[:, None]
    tl.store(d_qkv + of_x, d_NK.to(d_qkv.dtype.element_ty), mask=here)
