"""A sum of tensors, each times a vector of its channels: residual mixes and skips, several of which are one such sum.

N rows, D width, I terms of a blend.
"""

import torch

from .blend_triton import blend_sums_kernel
from .capability import multiprocessors, runs_triton
from .launch import triton_kernel

SUMS_ROWS, SUMS_WIDTH = 8, 256  # the tile of a program: 4 KiB of each tensor
SUMS_AT_ONCE = 3  # terms whose sums a program keeps in registers
SUMS_PROGRAMS = 2  # times the multiprocessors: as many programs for each 256 channels


class Blend:
    """A blend not yet taken: x_1 w_1 + x_2 w_2 + ..., `terms` being the pairs (x [..., D], w [D])."""

    def __init__(self, terms):
        self.terms = terms

    def times(self, vector_D):
        """The same, times a vector: a blend again, of the same tensors."""
        return Blend(tuple((x, weight * vector_D) for x, weight in self.terms))

    def plus(self, x, vector_D):
        """With one more term, which joins that of the same tensor if there is one."""
        others = tuple((one, weight) for one, weight in self.terms if one is not x)
        return Blend((*others, (x, sum((weight for one, weight in self.terms if one is x), vector_D))))


def begin_blend(x, vector_D):
    """A Blend that is `x` times a vector, where `x` may be a Blend itself."""
    return x.times(vector_D) if isinstance(x, Blend) else Blend(((x, vector_D),))


def taken(x):
    """`x`, a tensor or a Blend, as a tensor."""
    return blend(*zip(*x.terms, strict=True)) if isinstance(x, Blend) else x


def reference_blend(xs, vectors):
    """The sum of `xs`, [..., D] each, times `vectors`, [D] each and cast to the dtype of the tensors first."""
    terms = [vector.to(x.dtype) * x for x, vector in zip(xs, vectors, strict=True)]
    return sum(terms[1:], terms[0])


def blend(xs, vectors):
    """The same: where Triton runs, bfloat16 takes the vectors' gradients with a kernel that reads all it needs once."""
    if xs[0].dtype == torch.bfloat16 and runs_triton(xs[0].device):
        return BlendFunction.apply(len(xs), *xs, *vectors)
    return reference_blend(xs, vectors)


class BlendFunction(torch.autograd.Function):
    """Plain operations, which torch.compile joins with their neighbours, but for sums over rows: beside others in one
    kernel they hold its loop up. Saves the tensors and the vectors; the vectors' gradients are float32 sums."""

    @staticmethod
    def forward(ctx, count, *operands):
        ctx.count = count
        ctx.save_for_backward(*operands)
        return reference_blend(operands[:count], operands[count:])

    @staticmethod
    def backward(ctx, grad):
        xs, vectors = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        sums = blend_sums(grad, list(xs)).unbind(0)
        of_vectors = [sum_D.to(vector.dtype) for sum_D, vector in zip(sums, vectors, strict=True)]
        return None, *(vector.to(grad.dtype) * grad for vector in vectors), *of_vectors


@torch.library.custom_op("fairway::blend_sums", mutates_args=(), schema="(Tensor grad, Tensor[] xs) -> Tensor")
def blend_sums(grad, xs):
    """Float32 [I, D], row i being the sum of `grad` [..., D] times xs[i] over all but the last dimension."""
    width = grad.shape[-1]
    grad_ND, rows = grad.reshape(-1, width).contiguous(), grad.numel() // width
    programs = SUMS_PROGRAMS * multiprocessors(grad.device)
    grid = programs, -(-width // SUMS_WIDTH)
    sums = []
    for first in range(0, len(xs), SUMS_AT_ONCE):
        some = [x.reshape(-1, width).contiguous() for x in xs[first : first + SUMS_AT_ONCE]]
        filled = (*some, *some[:1] * (SUMS_AT_ONCE - len(some)))
        parts_PID = torch.empty(programs, len(some), width, dtype=torch.float32, device=grad.device)
        triton_kernel(blend_sums_kernel)[grid](
            grad_ND, *filled, parts_PID, rows, programs, width, len(some), SUMS_ROWS, SUMS_WIDTH, num_warps=4
        )  # fmt: skip
        sums.append(parts_PID.sum(0))
    return torch.cat(sums) if len(sums) > 1 else sums[0]


@blend_sums.register_fake
def blend_sums_shape(grad, xs):
    return grad.new_empty(len(xs), grad.shape[-1], dtype=torch.float32)
