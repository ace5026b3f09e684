"""From the joint product to normed, turned, gained heads: 8 query and 4 key-value heads of 64, 16 channels turned."""

import torch

from fairway.kernels.heads import HeadTransform, reference_shape_heads, shape_heads

HEADS, KV_HEADS, WIDTH, FREQUENCIES, ROW = 8, 4, 64, 8, 2048


def case(device, tokens=98_304):
    """What to time: the reference compiled, the fast version, and the least that must be moved (bytes) and done (flops).

    Bytes: queries and keys read and written; all gradients, queries and keys read, the joint gradient written.
    """
    row = min(ROW, tokens)
    shape, counts = (tokens // row, row), (HEADS, KV_HEADS, KV_HEADS)
    channels = sum(counts) * WIDTH
    qkv_BTN = torch.randn(*shape, channels, device=device, dtype=torch.bfloat16, requires_grad=True)
    grads = [torch.randn(*shape, count, WIDTH, device=device, dtype=torch.bfloat16) for count in counts]
    angles_TF = torch.outer(torch.arange(row), 10_000.0 ** -torch.linspace(0, 1, FREQUENCIES)).to(device)
    gain_H = torch.full((HEADS,), 5.0, device=device, requires_grad=True)
    transform = HeadTransform(True, angles_TF.cos(), angles_TF.sin(), gain_H)
    compiled = torch.compile(reference_shape_heads, fullgraph=True, dynamic=False)

    def reference():
        return torch.autograd.grad(compiled(qkv_BTN, HEADS, KV_HEADS, transform), (qkv_BTN, gain_H), grads)

    def fast():
        return torch.autograd.grad(shape_heads(qkv_BTN, HEADS, KV_HEADS, transform), (qkv_BTN, gain_H), grads)

    return {
        "name": "heads",
        "reference": reference,
        "fast": fast,
        "bytes": 2 * shape[0] * row * WIDTH * (3 * (HEADS + KV_HEADS) + 2 * sum(counts)),
        "flops": 20 * shape[0] * row * (HEADS + KV_HEADS) * WIDTH,
    }
