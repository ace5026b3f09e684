"""The two products of a squared MLP that its activation is fused with: tiles copied by TMA, two programs a multiprocessor.

N rows, M hidden units, K width of x (up) or of the output (back). A tile is BN rows and BM units, made BK of K at a time.
p is bfloat16; its lowest bit is not the square's but says whether the unit was above zero (mlp.py). With two programs on a
multiprocessor one's activation runs beside the other's products; on an H200 larger tiles, one a time, took a tenth longer.
"""

from __future__ import annotations


def mlp_up_kernel(
    x_desc, up_desc, p_desc, N, steep, shallow, M: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """p = leaky(x up^T)^2, two neighbours in a 32-bit word. leaky(c) = steep c + shallow |c| needs no comparison.

    Programs stay, and a tile leaves in two halves: the first travels while the second is made.
    """
    tiles = tl.cdiv(N, BN) * (M // BM)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        n = tile // (M // BM)
        m = tile % (M // BM)
        acc = tl.zeros((BN, BM), tl.float32)
        for k in range(K // BK):
            x = x_desc.load([n * BN, k * BK])
            up = up_desc.load([m * BM, k * BK])
            acc = tl.dot(x, up.T, acc)
        halves = tl.split(tl.permute(tl.reshape(acc, (BN, 2, BM // 2)), (0, 2, 1)))
        for half in tl.static_range(2):
            low, high = tl.split(tl.reshape(halves[half], (BN, BM // 4, 2)))
            low = low * steep + tl.abs(low) * shallow
            high = high * steep + tl.abs(high) * shallow
            # The squares cut to their upper halves, each with the sign of its unit.
            low = (low * tl.abs(low)).to(tl.uint32, bitcast=True) >> 16
            high = (high * tl.abs(high)).to(tl.uint32, bitcast=True) & 0xFFFF0000
            word = low | high
            # Above zero: odd values, the middle of what was cut off. Below: the nearest even value, a half being rounded up.
            above = (word >> 15 & 0x00010001) ^ 0x00010001
            word = ((word + 0x00010001 - above) & 0x7FFE7FFE) | above
            p_desc.store([n * BN, m * (BM // 2) + half * (BM // 4)], word.to(tl.int32, bitcast=True))


def mlp_back_kernel(
    go_desc, down_desc, p_desc, d_desc, fall, M: tl.constexpr, K: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """d = (go down) times the square's slope at p: 2 sqrt(p) above zero, `fall` sqrt(p) below. A program has one tile."""
    n = tl.program_id(0) // (M // BM)
    m = tl.program_id(0) % (M // BM)
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(K // BK):
        go = go_desc.load([n * BN, k * BK])
        down = down_desc.load([k * BK, m * BM])
        acc = tl.dot(go, down, acc)
    square = p_desc.load([n * BN, m * BM]).to(tl.float32)
    slope = tl.where((square.to(tl.int32, bitcast=True) & 0x10000) != 0, 2.0, fall)
    d_desc.store([n * BN, m * BM], (acc * (tl.sqrt(square) * slope)).to(tl.bfloat16))
