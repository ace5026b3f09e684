"""The kernel of kernels/blend.py: sums over rows of one tensor times each of up to three others.

A program takes every PROGRAMS-th tile of BN rows in its BD channels and keeps a sum for each place of the tile, so that
nothing changes hands before the end. N rows, D width.
"""

from __future__ import annotations


def blend_sums_kernel(
    grad, x0, x1, x2, parts, N, PROGRAMS,
    D: tl.constexpr, COUNT: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = channel < D
    sum0 = tl.zeros((BN, BD), tl.float32)
    sum1 = tl.zeros((BN, BD), tl.float32)
    sum2 = tl.zeros((BN, BD), tl.float32)
    for step in tl.range(0, tl.cdiv(N, PROGRAMS * BN), num_stages=3):
        row = (step * PROGRAMS + tl.program_id(0)) * BN + tl.arange(0, BN)
        place = row.to(tl.int64)[:, None] * D + channel[None, :]
        here = (row < N)[:, None] & inside[None, :]
        grad_ND = tl.load(grad + place, mask=here, other=0.0).to(tl.float32)
        sum0 += grad_ND * tl.load(x0 + place, mask=here, other=0.0).to(tl.float32)
        if COUNT > 1:
            sum1 += grad_ND * tl.load(x1 + place, mask=here, other=0.0).to(tl.float32)
        if COUNT > 2:
            sum2 += grad_ND * tl.load(x2 + place, mask=here, other=0.0).to(tl.float32)
    to_parts = parts + tl.program_id(0) * (COUNT * D) + channel
    tl.store(to_parts, tl.sum(sum0, 0), mask=inside)
    if COUNT > 1:
        tl.store(to_parts + D, tl.sum(sum1, 0), mask=inside)
    if COUNT > 2:
        tl.store(to_parts + 2 * D, tl.sum(sum2, 0), mask=inside)
