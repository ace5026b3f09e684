"""The kernels behind momentum.py. N slices, R rows, C columns."""

from __future__ import annotations


def nesterov_kernel(
    gradient, buffer, scale, out, R, C, momentum, out_n, out_r, out_c,
    SCALED: tl.constexpr, EQUAL: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """buffer <- momentum buffer + scale g; out <- scale g + momentum buffer, with EQUAL each row over its norm.

    BR whole rows a program (BC >= C). `out` has strides of its own. Grid: (rows / BR, N).
    """
    n = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]
    column = tl.arange(0, BC)[None, :]
    mask = (row < R) & (column < C)
    at = row * C + column
    gradient += n * R * C
    buffer += n * R * C
    g = tl.load(gradient + at, mask, 0.0).to(tl.float32)
    if SCALED:
        g *= tl.load(scale)
    kept = tl.load(buffer + at, mask, 0.0) * momentum + g
    tl.store(buffer + at, kept, mask)
    direction = g + kept * momentum
    if EQUAL:
        norm = tl.sqrt(tl.sum(direction * direction, 1))
        direction /= tl.maximum(norm, 1e-7)[:, None]
    out += n * out_n
    tl.store(out + row * out_r + column * out_c, direction.to(out.dtype.element_ty), mask)


def decayed_add_kernel(
    weight, update, R, C, keep, alpha, update_n, update_r, update_c, BR: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """weight <- keep weight + alpha update. `update` has strides of its own. Grid: (rows / BR, columns / BC, N)."""
    n = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BR + tl.arange(0, BR)[:, None]
    column = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]
    mask = (row < R) & (column < C)
    at = weight + n * R * C + (row * C + column)
    u = tl.load(update + n * update_n + (row * update_r + column * update_c), mask, 0.0).to(tl.float32)
    tl.store(at, tl.load(at, mask, 0.0) * keep + alpha * u, mask)
