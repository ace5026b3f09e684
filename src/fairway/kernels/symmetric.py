"""Batched products that are symmetric, as the Newton-Schulz iteration has two of in each step: half of the tiles are made.

Fast on CUDA cards from Ampere on, for contiguous bfloat16 whose rows and columns are multiples of 64. Not differentiable,
and not for compiled graphs: the optimiser calls them. N slices, R rows, C columns.
"""

import torch

from .capability import runs_triton
from .launch import triton_kernel
from .symmetric_triton import symmetric_kernel

ENOUGH_TILES = 128  # as many large tiles keep a card busy; of fewer products smaller ones are made


def row_products(x_NRC):
    """X X^T of each slice, [N, R, R] in x's dtype; sums are float32."""
    return launch_row_products(x_NRC) if multiplies_symmetrically(x_NRC) else reference_row_products(x_NRC)


def gram_polynomial(gram_NRR, coefficients, squares_N=None, margin=1.0):
    """s (a I + b s^2 A + c s^4 A^2) of symmetric slices A, in A's dtype; `coefficients` are (a, b, c).

    s is 1, or 1 / (margin sqrt(squares) + 1e-7) of each slice, float32: what brings an X whose A = X X^T was taken before it
    was scaled to a norm of 1. The next iterate is then the product with X. Norms of X above 1e9 overflow.
    """
    if multiplies_symmetrically(gram_NRR):
        return launch_gram_polynomial(gram_NRR, coefficients, squares_N, margin)
    return reference_gram_polynomial(gram_NRR, coefficients, squares_N, margin)


def multiplies_symmetrically(x_NRC):
    """Whether the fast kernel takes these matrices."""
    fits = x_NRC.shape[-2] % 64 == 0 and x_NRC.shape[-1] % 64 == 0 and x_NRC.is_contiguous()
    return fits and x_NRC.dtype == torch.bfloat16 and runs_triton(x_NRC.device)


def reference_row_products(x_NRC):
    """`row_products` in plain torch."""
    return x_NRC @ x_NRC.mT


def reference_gram_polynomial(gram_NRR, coefficients, squares_N=None, margin=1.0):
    """`gram_polynomial` in plain torch; in float32 at least."""
    a, b, c = coefficients
    gram = gram_NRR.to(torch.promote_types(gram_NRR.dtype, torch.float32))
    s = 1.0 if squares_N is None else (1 / (margin * squares_N.sqrt() + 1e-7)).view(-1, 1, 1)
    eye_RR = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return (s * (a * eye_RR + b * s**2 * gram + c * s**4 * (gram @ gram))).to(gram_NRR.dtype)


def launch_row_products(x_NRC, tile=None):
    """`row_products` by the kernel, in tiles of `tile` rows (64 or 128) or as many as suit the card."""
    return _launch(x_NRC, x_NRC, (0.0, 0.0, 0.0), 1.0, False, False, tile)


def launch_gram_polynomial(gram_NRR, coefficients, squares_N=None, margin=1.0, tile=None):
    """`gram_polynomial` by the kernel."""
    scaled = squares_N is not None
    return _launch(gram_NRR, squares_N if scaled else gram_NRR, coefficients, margin, True, scaled, tile)


def _launch(x_NRC, squares, coefficients, margin, polynomial, scaled, tile):
    slices, rows, columns = x_NRC.shape
    out_NRR = torch.empty(slices, rows, rows, dtype=x_NRC.dtype, device=x_NRC.device)
    if tile is None:
        tile = 128 if rows % 128 == 0 and slices * _triangle(rows // 128) >= ENOUGH_TILES else 64
    grid = (_triangle(rows // tile), slices)
    triton_kernel(symmetric_kernel)[grid](
        x_NRC, squares, out_NRR, rows, columns, *coefficients, margin, polynomial, scaled, tile, 64,
        num_warps=tile // 16, num_stages=3,
    )  # fmt: skip
    return out_NRR


def _triangle(count):
    return count * (count + 1) // 2
