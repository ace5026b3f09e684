"""Orthogonalisers: matrices G_NRC -> nearly (semi-)orthogonal matrices of the same shape. N slices, R rows, C columns.

All are one iteration, X <- a X + (b A + c A^2) X with A = X X^T, on the wide one of X and its transpose. They differ in
the coefficients, and in how X is brought below a spectral norm of 1 before it or evened out after it.

`apply` does the whole. Who writes X anyway can write it as it is needed and take the parts: rows divided by their norms
where `equal_rows`, turned wide, slices of several tensors joined; then `spread(x_NRC)`, the iteration; then, turned back and
apart, `finish(x_NRC)`.
"""

from dataclasses import dataclass

import torch

from ..kernels.symmetric import gram_polynomial, multiplies_symmetrically, row_products
from ..problem import Problem
from ..sites import OrthogonaliserSite

TINY = 1e-7  # keeps zero slices at zero
# (a, b, c). Keller Jordan's quintic, the same at every step, as PR #162 runs it.
QUINTIC = (3.4445, -4.7750, 2.0315)
# Polar Express as PR #1344 and PR #1787 run it: one row a step.
POLAR = (
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5000),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)
# PR #1205's: rows 2 to 5 of another Polar Express; its first row is what the scaling by rows and columns replaces.
TURBO = (
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


class WideIteration:
    """What orthogonalisers share: `apply` from `spread` and `finish`."""

    equal_rows = False

    def apply(self, gradient_NRC, dtype):
        """Orthogonalises each slice with products in `dtype`; zero slices stay zero. Returns `dtype`."""
        x, tall = wide(gradient_NRC.to(dtype))
        x = self.spread(x)
        return self.finish(x.mT if tall else x)

    def finish(self, x_NRC):
        """Nothing is left to do after the iteration."""
        return x_NRC


@dataclass(frozen=True)
class Quintic(WideIteration, OrthogonaliserSite):
    """Newton-Schulz iteration with fixed quintic coefficients; singular values end between about 0.7 and 1.2."""

    steps: int = 5

    def __post_init__(self):
        if self.steps < 1:
            raise Problem(f"Quintic.steps is {self.steps}; take 1 or more")

    def spread(self, x_NRC):
        """Brings the singular values of wide matrices of any norm towards 1."""
        return iterate_scaled(x_NRC, (QUINTIC,) * self.steps, 1.0)


@dataclass(frozen=True)
class PolarExpress(WideIteration, OrthogonaliserSite):
    """Five steps with coefficients of their own (PR #1344, PR #1787): nearer to 1 than the fixed quintic brings them.

    X <- G / (1.02 |G|_F + 1e-7), a margin that is ours: with it the rounding of bfloat16 products does not carry a singular
    value past the range in which the coefficients converge.
    """

    def spread(self, x_NRC):
        """Brings the singular values of wide matrices of any norm towards 1."""
        return iterate_scaled(x_NRC, POLAR, 1.02)


@dataclass(frozen=True)
class Turbo(WideIteration, OrthogonaliserSite):
    """Turbo-Muon (PR #1205): almost-orthogonal scaling, which lets four steps do, then rows and columns of norm 1.

    A = X X^T; s_i = 1 / (sqrt(sum_j |A_ij|) + 1e-7); X <- diag(s) X and A <- diag(s) A diag(s), with which the first of
    four steps begins. With `post_norm`, each row of what comes out is divided by its L2 norm + 1e-7, then each column by
    its own, in float32: the root mean square of the elements is 1 / sqrt(rows).
    """

    post_norm: bool = True

    def spread(self, x_NRC):
        """Brings the singular values of wide matrices of any norm towards 1."""
        gram_NRR = row_products(x_NRC)
        scale = 1 / (gram_NRR.abs().sum(-1, keepdim=True).sqrt() + TINY)
        return iterate(scale * x_NRC, TURBO, scale * gram_NRR * scale.mT)

    def finish(self, x_NRC):
        """With `post_norm` rows, then columns, over their norms; in the matrices' own orientation. Returns x's dtype."""
        if not self.post_norm:
            return x_NRC
        even_NRC = x_NRC.float()
        for dimension in (-1, -2):
            even_NRC = even_NRC / (torch.linalg.vector_norm(even_NRC, dim=dimension, keepdim=True) + TINY)
        return even_NRC.to(x_NRC.dtype)


@dataclass(frozen=True)
class MuonEqR(OrthogonaliserSite):
    """Equal rows (PR #1514): each row is divided by max(its L2 norm, 1e-7), in float32, and `then` orthogonalises."""

    then: OrthogonaliserSite = Quintic()

    equal_rows = True

    def __post_init__(self):
        if isinstance(self.then, MuonEqR):
            raise Problem("MuonEqR.then is MuonEqR; rows that are equal stay so: take another orthogonaliser")

    def apply(self, gradient_NRC, dtype):
        """Orthogonalises each slice with products in `dtype`; zero slices stay zero. Returns `dtype`."""
        g_NRC = gradient_NRC.float()
        return self.then.apply(g_NRC / torch.linalg.vector_norm(g_NRC, dim=-1, keepdim=True).clamp(min=TINY), dtype)

    def spread(self, x_NRC):
        """As `then` does."""
        return self.then.spread(x_NRC)

    def finish(self, x_NRC):
        """As `then` does."""
        return self.then.finish(x_NRC)


def wide(x_NRC):
    """The matrices with no more rows than columns, and whether they had to be transposed for it."""
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    return (x_NRC.mT if tall else x_NRC), tall


def iterate_scaled(x_NRC, coefficients, margin):
    """One step for each (a, b, c) from X / (margin |X|_F + 1e-7).

    Where symmetric products are fast X is not divided: its norm is taken from the diagonal of X X^T, and the first
    polynomial carries the scale.
    """
    if not multiplies_symmetrically(x_NRC):
        return iterate(x_NRC / (margin * torch.linalg.matrix_norm(x_NRC, keepdim=True) + TINY), coefficients)
    gram_NRR = row_products(x_NRC)
    squares_N = gram_NRR.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float32)
    x_NRC = gram_polynomial(gram_NRR, coefficients[0], squares_N, margin) @ x_NRC
    return iterate(x_NRC, coefficients[1:])


def iterate(x_NRC, coefficients, gram_NRR=None):
    """One step for each (a, b, c); `gram_NRR` is X X^T where it is already known."""
    for a, b, c in coefficients:
        gram_NRR = row_products(x_NRC) if gram_NRR is None else gram_NRR
        if multiplies_symmetrically(x_NRC):
            x_NRC = gram_polynomial(gram_NRR, (a, b, c)) @ x_NRC
        else:
            x_NRC = torch.baddbmm(x_NRC, torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c), x_NRC, beta=a)
        gram_NRR = None
    return x_NRC
