"""What attention gives without the part along its own value: 8 query and 4 key-value heads of 64; forward and backward."""

import torch

from fairway.kernels.exclusive import exclusive, reference_exclusive

HEADS, KV_HEADS, WIDTH, ROW = 8, 4, 64, 2048


def case(device, tokens=98_304):
    """What to time: the reference compiled, the fast version, and the least that must be moved (bytes) and done (flops).

    Bytes: y and v read, the result written; its gradient, y and v read, the gradients of both written.
    """
    row = min(ROW, tokens)
    shape = tokens // row, row
    y_BTHK, dout_BTHK = torch.randn(2, *shape, HEADS, WIDTH, device=device, dtype=torch.bfloat16)
    v_BTGK = torch.randn(*shape, KV_HEADS, WIDTH, device=device, dtype=torch.bfloat16, requires_grad=True)
    y_BTHK = y_BTHK.clone().requires_grad_()
    compiled = torch.compile(reference_exclusive, fullgraph=True, dynamic=False)

    def reference():
        return torch.autograd.grad(compiled(y_BTHK, v_BTGK), (y_BTHK, v_BTGK), dout_BTHK)

    def fast():
        return torch.autograd.grad(exclusive(y_BTHK, v_BTGK), (y_BTHK, v_BTGK), dout_BTHK)

    return {
        "name": "exclusive",
        "reference": reference,
        "fast": fast,
        "bytes": 2 * shape[0] * row * WIDTH * (5 * HEADS + 3 * KV_HEADS),
        "flops": 16 * shape[0] * row * HEADS * WIDTH,
    }
