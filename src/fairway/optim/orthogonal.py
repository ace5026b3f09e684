"""Orthogonalisers: matrices G_NRC -> nearly (semi-)orthogonal matrices of the same shape. N slices, R rows, C columns."""

from dataclasses import dataclass

import torch

from ..sites import OrthogonaliserSite

# a, b, c of X <- a X + (b A + c A^2) X with A = X X^T (Keller Jordan's quintic, as PR #162 runs it).
QUINTIC = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Quintic(OrthogonaliserSite):
    """Newton-Schulz iteration with fixed quintic coefficients; singular values end between about 0.7 and 1.2."""

    steps: int = 5

    def apply(self, gradient_NRC, dtype):
        """Orthogonalises each slice with products in `dtype`; zero slices stay zero. Returns `dtype`."""
        a, b, c = QUINTIC
        x_NRC = gradient_NRC.to(dtype)
        tall = x_NRC.shape[-2] > x_NRC.shape[-1]
        x = x_NRC.mT if tall else x_NRC
        x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
        for _ in range(self.steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x
