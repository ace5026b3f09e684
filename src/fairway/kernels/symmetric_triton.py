"""The kernel behind symmetric.py. N slices, R rows, C columns; each program makes one tile on or above the diagonal."""

from __future__ import annotations


def symmetric_kernel(
    x, squares, out, R, C, a, b, c, margin,
    POLYNOMIAL: tl.constexpr, SCALED: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """X X^T, or with POLYNOMIAL, of a symmetric X (R = C), s (a I + b s^2 X + c s^4 X X): the tile (i, j) and its mirror.

    s is 1, or with SCALED 1 / (margin sqrt(squares[n]) + 1e-7). R is a multiple of BM, C of BK. Grid: (tiles, N).
    """
    tile = tl.program_id(0)
    # Tiles are counted down the columns of the upper triangle. The half between 1 and 2 keeps an approximate root right.
    j = ((tl.sqrt(8.0 * tile + 1.5) - 1.0) * 0.5).to(tl.int32)
    i = tile - j * (j + 1) // 2
    n = tl.program_id(1).to(tl.int64)
    rows_i = i * BM + tl.arange(0, BM)
    rows_j = j * BM + tl.arange(0, BM)
    inner = tl.arange(0, BK)
    x += n * R * C
    left = x + rows_i[:, None] * C + inner[None, :]
    right = x + rows_j[:, None] * C + inner[None, :]
    if POLYNOMIAL:
        share = b / c
        if SCALED:
            s = 1.0 / (margin * tl.sqrt(tl.load(squares + n)) + 1e-7)
            a *= s
            c *= s * s * s * s * s
            share /= s * s
        # The sum begins with it: at the end the tile would need registers of its own.
        result = tl.load(x + rows_i[:, None] * C + rows_j[None, :]).to(tl.float32) * share
    else:
        result = tl.zeros((BM, BM), tl.float32)
    for _ in range(0, C, BK):
        result = tl.dot(tl.load(left), tl.trans(tl.load(right)), result)
        left += BK
        right += BK
    if POLYNOMIAL:
        result = tl.where(rows_i[:, None] == rows_j[None, :], c * result + a, c * result)
    result = result.to(out.dtype.element_ty)
    out += n * R * R
    tl.store(out + rows_i[:, None] * R + rows_j[None, :], result)
    if i != j:
        tl.store(out + rows_j[:, None] * R + rows_i[None, :], tl.trans(result))
