"""The two products of a squared MLP that its activation is fused with: tiles copied by TMA, programs that stay.

N rows, M hidden units, K width of x (up) or of the output (back). A tile is BN rows and BM units, made BK of K at a time.
p is bfloat16; its lowest bit is not the square's but says whether the unit was above zero (mlp.py).
"""

from __future__ import annotations


def mlp_up_kernel(
    x_desc, up_desc, p_desc, N, steep, shallow, M: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """p = leaky(x up^T)^2, two neighbours in a 32-bit word. leaky(c) = steep c + shallow |c| needs no comparison."""
    tiles = tl.cdiv(N, BN) * (M // BM)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        n = tile // (M // BM)
        m = tile % (M // BM)
        acc = tl.zeros((BN, BM), tl.float32)
        for k in range(K // BK):
            x = x_desc.load([n * BN, k * BK])
            up = up_desc.load([m * BM, k * BK])
            acc = tl.dot(x, up.T, acc)
        low, high = tl.split(tl.reshape(acc, (BN, BM // 2, 2)))
        low = low * steep + tl.abs(low) * shallow
        high = high * steep + tl.abs(high) * shallow
        # The squares cut to their upper halves, each with the sign of its unit.
        low = (low * tl.abs(low)).to(tl.uint32, bitcast=True) >> 16
        high = (high * tl.abs(high)).to(tl.uint32, bitcast=True) & 0xFFFF0000
        word = low | high
        # Above zero: odd values, the middle of what was cut off. Below: the nearest even value, a half being rounded up.
        above = (word >> 15 & 0x00010001) ^ 0x00010001
        word = ((word + 0x00010001 - above) & 0x7FFE7FFE) | above
        p_desc.store([n * BN, m * (BM // 2)], word.to(tl.int32, bitcast=True))


def mlp_back_kernel(
    go_desc, down_desc, p, d_desc, N, fall, M: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, WARPS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """d = (go down) times the square's slope at p: 2 sqrt(p) above zero, `fall` sqrt(p) below.

    One loop over all steps of all tiles. A tile's p is asked for before the last of its products is waited for, and by
    plain loads: those of TMA would be waited for where they stand. Each warp reads those rows that it has of the product,
    four threads 64 bytes of a row: what then changes hands does so within a warp, and needs 4 KiB for it instead of 64.
    """
    piece = tl.arange(0, BN * BM // 32)[:, None]  # 32 units of a row; of its number lane, warp, eight, chunk, lowest first
    row = piece // 8 % WARPS * (BN // WARPS) + piece // (8 * WARPS) % (BN // (8 * WARPS)) * 8 + piece % 8
    offset = row * M + piece // BN * 32 + tl.arange(0, 32)[None, :]
    tiles = tl.cdiv(N, BN) * (M // BM)
    steps = tl.cdiv(tiles - tl.program_id(0), PROGRAMS) * (K // BK)
    acc = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(0, steps):
        k = step % (K // BK)
        tile = tl.program_id(0) + step // (K // BK) * PROGRAMS
        n = tile // (M // BM)
        m = tile % (M // BM)
        last = k == K // BK - 1
        go = go_desc.load([n * BN, k * BK])
        down = down_desc.load([k * BK, m * BM])
        acc = tl.dot(go, down, acc)
        rows = tl.where(last, N - n * BN, 0)
        ahead = tl.load(p + (n * BN).to(tl.int64) * M + m * BM + offset, mask=row < rows)
        if last:
            pieces = tl.reshape(ahead, (BM // 32, BN // (8 * WARPS), WARPS, 8, 32))
            square = tl.reshape(tl.permute(pieces, (2, 1, 3, 0, 4)), (BN, BM)).to(tl.float32)
            slope = tl.where((square.to(tl.int32, bitcast=True) & 0x10000) != 0, 2.0, fall)
            d_desc.store([n * BN, m * BM], (acc * (tl.sqrt(square) * slope)).to(tl.bfloat16))
            acc = tl.zeros((BN, BM), tl.float32)
