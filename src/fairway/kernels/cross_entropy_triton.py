"""The sweep of `cross_entropy.py`: a row of logits becomes its loss and, where the logits stood, their gradient.

One program a row, which it holds in registers whole. N rows, V vocabulary.
"""

from __future__ import annotations


def cross_entropy_kernel(
    z_NV,
    targets_N,
    losses_N,
    weight,  # of each row's loss in their sum
    slope,  # 2 log2(e) / cap, or log2(e) without a cap
    height,  # 2 cap log2(e)
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    BOUNDED: tl.constexpr,  # powers of e of capped logits and their sum can neither overflow nor vanish
    BLOCK: tl.constexpr,
):
    row_V = z_NV + tl.program_id(0).to(tl.int64) * V
    place = tl.arange(0, BLOCK)
    target = tl.load(targets_N + tl.program_id(0))
    own = tl.load(row_V + target).to(tl.float32)
    if BLOCK == V:
        z = tl.load(row_V + place).to(tl.float32)
    else:
        z = tl.load(row_V + place, mask=place < V, other=-float("inf")).to(tl.float32)
    # y: the capped logits in bits. With r = 1 / (1 + exp(2 z / cap)), tanh(z / cap) is 1 - 2 r and its slope 4 (r - r r).
    # The reciprocal as a square of x ** -0.5: one instruction and a product, where a division takes six.
    if CAPPED:
        root, own_root = tl.rsqrt(1.0 + tl.exp2(z * slope)), tl.rsqrt(1.0 + tl.exp2(own * slope))
        r, own_r = root * root, own_root * own_root
        y, own_y = 0.5 * height - height * r, 0.5 * height - height * own_r
    else:
        y, own_y = z * slope, own * slope
    if BOUNDED:
        top = 0.0
        share, own_share = tl.exp2(y), tl.exp2(own_y)
    else:
        top = tl.max(y, 0)
        share, own_share = tl.exp2(y - top), tl.exp2(own_y - top)
    if BLOCK != V:
        share = tl.where(place < V, share, 0.0)
    # d before the sum, so that one number a logit waits for it, not two; its factor comes after.
    if CAPPED:
        d, own_slope = share * (r - r * r), 4.0 * (own_r - own_r * own_r)
        factor = 4.0 * weight
    else:
        d, own_slope = share, 1.0
        factor = weight
    total = tl.sum(share, 0)
    tl.store(losses_N + tl.program_id(0), (tl.log2(total) + top - own_y) * 0.6931471805599453)
    d = d * (factor / total)
    own_d = (own_share / total - 1.0) * own_slope * weight
    if BLOCK == V:
        tl.store(row_V + place, d.to(z_NV.dtype.element_ty))
    else:
        tl.store(row_V + place, d.to(z_NV.dtype.element_ty), mask=place < V)
    # The target's is written over what another thread wrote there: cheaper than comparing every place with the target.
    tl.debug_barrier()
    tl.store(row_V + target, own_d.to(z_NV.dtype.element_ty))
