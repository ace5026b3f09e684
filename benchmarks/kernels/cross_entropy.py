"""The loss of a head: 512 wide, 8,192 pieces, logits capped at 30; forward and backward."""

import torch

from fairway.kernels.cross_entropy import LinearCrossEntropy, reference_linear_cross_entropy

WIDTH, VOCAB, CAP = 512, 8192, 30.0


def case(device, tokens=98_304):
    """What to time: the reference compiled, the fast version, and the least that must be moved (bytes) and done (flops).

    Bytes: inputs and their gradients once; logits written, read, overwritten by their gradient, and that read twice.
    """
    x_ND = torch.randn(tokens, WIDTH, device=device, dtype=torch.bfloat16, requires_grad=True)
    table_VD = (torch.randn(VOCAB, WIDTH, device=device) * 0.1).bfloat16().requires_grad_()
    targets_N = torch.randint(VOCAB, (tokens,), device=device)
    compiled = torch.compile(reference_linear_cross_entropy, fullgraph=True, dynamic=False)

    def reference():
        return torch.autograd.grad(compiled(x_ND, table_VD, targets_N, CAP), (x_ND, table_VD))

    def fast():
        return torch.autograd.grad(LinearCrossEntropy.apply(x_ND, table_VD, targets_N, CAP), (x_ND, table_VD))

    logits, inputs = 2 * tokens * VOCAB, 2 * WIDTH * (tokens + VOCAB)
    return {
        "name": "cross_entropy",
        "reference": reference,
        "fast": fast,
        "bytes": 5 * logits + 3 * inputs,
        "flops": 3 * 2 * tokens * VOCAB * WIDTH,
    }
