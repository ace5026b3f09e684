"""Optimiser steps on one of several ranks, each with gradients of its own: what a process of `test_ranks` runs."""

import weakref
from datetime import timedelta

import torch
import torch.distributed as dist

from fairway.optim.adamw import AdamW
from fairway.optim.muon import Muon
from fairway.optim.optimizer import Optimizer
from fairway.optim.orthogonal import MuonEqR, PolarExpress, Turbo
from fairway.optim.schedule import DecaySchedule, Moment
from fairway.train.dist import World
from train.tiny import tiny

LAYERS = 4  # the banks hold 4 or 8 slices: 3 ranks must pad, and of 8 some have only padding
GROUPS = (
    AdamW(roles=("embedding",), rate=0.03),
    Muon(roles=("matrix",), rate=0.02, orthogonaliser=Turbo(), decay_last=True),
    AdamW(roles=("table",), rate=0.03, decay=DecaySchedule(follows_rate=False)),
    Muon(roles=("projection",), rate=0.02, orthogonaliser=MuonEqR(then=PolarExpress())),
    AdamW(roles=("scalar",), rate=0.02),
)


def gradients(model, step, ranks):
    """The mean gradient of some ranks, by parameter."""
    found = []
    for rank in ranks:
        random = torch.Generator().manual_seed(100 * step + rank)
        found.append([torch.randn(p.shape, generator=random) for p in model.parameters()])
    return [sum(parts) / len(parts) for parts in zip(*found, strict=True)]


def build():
    """A model of every role, the same in every process."""
    return tiny(f"model.layers={LAYERS}").model.build(1)


def optimised(world, ranks, steps=3):
    """Parameters, optimiser state and gradient norms after some steps from the mean gradient of `ranks` on this process."""
    model = build()
    optimizer = Optimizer(model, GROUPS, world, torch.float32, clip=5.0)
    norms = []
    for step in range(steps):
        for parameter, gradient in zip(model.parameters(), gradients(model, step, ranks), strict=True):
            parameter.grad = gradient
        norms.append(optimizer.step(Moment(step, 0.0, 1.0)))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {"parameters": parameters, "state": optimizer.state(), "norms": torch.stack(norms)}


def optimise_rank(rank, sizes, folder):
    """For each of `sizes` that has this rank: joins as many processes by a file in `folder`, works, leaves the result."""
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)
    for size in sizes:
        if rank >= size:
            continue
        meeting = f"file://{folder}/meeting{size}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=wait)
        group = weakref.ref(dist.group.WORLD)
        torch.save(optimised(World(rank, size, torch.device("cpu")), [rank]), f"{folder}/{rank}of{size}.pt")
        dist.destroy_process_group()
        assert group() is None, "somebody keeps the group, whose threads then may abort the process as it ends"
