"""Muon's step over pr1523's banks, and its parts: momentum, the symmetric products of the iteration, the update."""

from functools import partial
from unittest.mock import patch

import torch
from torch import nn

from fairway.kernels.momentum import decayed_add_, nesterov_, reference_decayed_add_, reference_nesterov_
from fairway.kernels.symmetric import gram_polynomial, row_products
from fairway.optim.muon import Muon
from fairway.optim.optimizer import GroupContext
from fairway.optim.orthogonal import QUINTIC, MuonEqR
from fairway.optim.schedule import Moment
from fairway.train.dist import World

BANKS = {"up": (11, 2048, 512), "down": (11, 512, 2048), "qo": (22, 512, 512), "kv": (22, 256, 512)}


def case(device, tokens=98_304):
    """What to time, each with the least that must be moved (bytes) and done (flops). Fewer tokens take fewer slices.

    Bytes of `muon`: gradient, momentum, weight read and the latter two written in float32, in bfloat16 the batch written
    and the update read, and in each of five steps X read twice and written once; of a symmetric product half is done.
    """
    share = min(1.0, tokens / 98_304)
    shapes = {name: (max(1, int(slices * share)), *matrix) for name, (slices, *matrix) in BANKS.items()}
    return [_pass_case(device, shapes, "momentum"), _pass_case(device, shapes, "update"),
            _product_case(device, shapes, "row_products"), _product_case(device, shapes, "gram_polynomial"),
            _muon_case(device, shapes)]  # fmt: skip


def _pass_case(device, shapes, name):
    """One pass over all banks."""
    banks = [[torch.randn(shape, device=device) for _ in range(2)] for shape in shapes.values()]
    outs = [_wide_empty(g_NRC) for g_NRC, _ in banks]
    scale = torch.ones((), device=device)

    def run(momentum, update):
        for (g_NRC, kept_NRC), out_NRC in zip(banks, outs, strict=True):
            if name == "momentum":
                momentum(g_NRC, kept_NRC, scale, 0.95, out_NRC, True)
            else:
                update(kept_NRC, out_NRC, 0.99, -0.02)

    for out_NRC in outs:
        out_NRC.normal_()
    total = sum(g_NRC.numel() for g_NRC, _ in banks)
    return {
        "name": name,
        "reference": partial(run, reference_nesterov_, reference_decayed_add_),
        "fast": partial(run, nesterov_, decayed_add_),
        "bytes": (14 if name == "momentum" else 10) * total,
        "flops": (8 if name == "momentum" else 3) * total,
    }


def _product_case(device, shapes, name):
    """A symmetric product of the matrices of the two MLP banks as one batch."""
    slices, rows, columns = 2 * shapes["down"][0], *shapes["down"][1:]
    x_NRC = (torch.randn(slices, rows, columns, device=device) / columns**0.5).bfloat16()
    gram_NRR = row_products(x_NRC)
    a, b, c = QUINTIC
    if name == "row_products":
        reference, fast = partial(torch.bmm, x_NRC, x_NRC.mT), partial(row_products, x_NRC)
        inner, read = columns, x_NRC.numel()
    else:
        reference = partial(torch.baddbmm, gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        fast = partial(gram_polynomial, gram_NRR, (a, b, c))
        inner, read = rows, gram_NRR.numel()
    return {
        "name": name,
        "reference": reference,
        "fast": fast,
        "bytes": 2 * (read + gram_NRR.numel()),
        "flops": slices * rows * (rows + 1) * inner,
    }


def _muon_case(device, shapes):
    """The whole step, by kernels and in plain torch, on banks of its own each."""
    steps = {}
    for form in ("reference", "fast"):
        parameters = {name: nn.Parameter(torch.randn(shape, device=device)) for name, shape in shapes.items()}
        update = Muon(orthogonaliser=MuonEqR()).build(GroupContext(parameters, World(0, 1, device), torch.bfloat16))
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        steps[form] = partial(_step, update, torch.ones((), device=device))
    total = sum(slices * rows * columns for slices, rows, columns in shapes.values())
    flops = sum(slices * 5 * (3 * min(matrix) ** 2 * max(matrix) + min(matrix) ** 3) for slices, *matrix in shapes.values())
    return {
        "name": "muon",
        "reference": partial(_plainly, steps["reference"]),
        "fast": steps["fast"],
        "bytes": (14 + 10 + 5 * 6) * total,
        "flops": flops,
    }


def _plainly(step):
    """Without kernels."""
    step.args[0].triton = False
    with (
        patch("fairway.kernels.momentum.runs_triton", lambda device: False),
        patch("fairway.kernels.symmetric.runs_triton", lambda device: False),
    ):
        step()


def _step(update, scale):
    update.reduce()
    update.scale_shards(scale)
    update.step(Moment(0, 0.0, 1.0))()


def _wide_empty(g_NRC):
    """A bfloat16 tensor of this shape in which tall matrices lie transposed."""
    tall = g_NRC.shape[1] > g_NRC.shape[2]
    out_NRC = torch.empty((g_NRC.mT if tall else g_NRC).shape, dtype=torch.bfloat16, device=g_NRC.device)
    return out_NRC.mT if tall else out_NRC
