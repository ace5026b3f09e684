"""A skip and a residual mix as one sum of three tensors times vectors, of width 512; forward and backward."""

import torch

from fairway.kernels.blend import blend, reference_blend

COUNT, WIDTH, ROW = 3, 512, 2048


def case(device, tokens=98_304):
    """What to time: the reference compiled, the fast version compiled, and the least that must be moved (bytes) and done.

    Bytes: the tensors read, the result written; its gradient and the tensors read, the gradients of the tensors written.
    """
    row = min(ROW, tokens)
    shape = tokens // row, row, WIDTH
    xs = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(COUNT)]
    vectors = [torch.randn(WIDTH, device=device, requires_grad=True) for _ in range(COUNT)]
    grad = torch.randn(shape, device=device, dtype=torch.bfloat16)

    def compiled(function):
        whole = torch.compile(function, fullgraph=True, dynamic=False)
        return lambda: torch.autograd.grad(whole(xs, vectors), [*xs, *vectors], grad)

    return {
        "name": "blend",
        "reference": compiled(reference_blend),
        "fast": compiled(blend),
        "bytes": 2 * shape[0] * row * WIDTH * (3 * COUNT + 2),
        "flops": 5 * shape[0] * row * WIDTH * COUNT,
    }
