"""Gradient steps on the model's own weights while scoring, and the way back. S sequences, T positions of each."""

import torch

from ..kernels.attention import attention_backends
from ..model.roles import Part

MICRO_SEQUENCES = 16  # sequences of one forward and backward pass: 32,768 tokens at 2,048


class WeightTrainer:
    """SGD with momentum on the weights of every block that is not frozen; `revert` puts all of them back to the bit.

    Sequences of a step are dealt out over the ranks; gradients are summed in one all-reduce, then clipped by their global
    norm, so a step does not depend on the number of ranks beyond rounding. Blocks 0..`frozen` - 1 do not learn: the
    slices of banks that are theirs get no gradient (in #1205, which went by names, banks never froze).
    """

    def __init__(self, model, machine, world, momentum, clip, frozen=0):
        self.model, self.machine, self.world = model, machine, world
        self.momentum, self.clip = momentum, clip
        self.parameters = list(model.parameters())
        self.before = [p.detach().clone() for p in self.parameters]
        self.velocity = [torch.zeros_like(p) for p in self.parameters]
        self.still = frozen_slices(model, frozen)
        self.loss = torch.compile(model.loss, dynamic=False) if machine.compiled else model.loss

    def step(self, ids_ST, targets_ST, rate):
        """One step on the mean loss over all S x T targets. All ranks call it with the same sequences."""
        gradients = self._summed(self._own_gradients(ids_ST, targets_ST))
        for gradient, rows in zip(gradients, self.still, strict=True):
            if rows:
                gradient[rows] = 0.0
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, self.clip / norm.clamp(min=self.clip))
        with torch.no_grad():
            torch._foreach_mul_(self.velocity, self.momentum)
            torch._foreach_add_(self.velocity, gradients)
            torch._foreach_add_(self.parameters, self.velocity, alpha=-rate)

    def _own_gradients(self, ids_ST, targets_ST):
        """This rank's share of the gradient of the mean loss."""
        own = list(range(self.world.rank, len(ids_ST), self.world.size))
        micro = max(1, min(MICRO_SEQUENCES, -(-len(ids_ST) // self.world.size)))
        total = None
        # The scorer works without graphs; this is the one place that needs one.
        with torch.enable_grad(), attention_backends(self.machine.device):
            for at in range(0, len(own), micro):
                chosen = own[at : at + micro]
                loss = self.loss(ids_ST[chosen], targets_ST[chosen]) * (len(chosen) / len(ids_ST))
                found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
                total = list(found) if total is None else torch._foreach_add(total, found)
        return [torch.zeros_like(p) for p in self.parameters] if total is None else total

    def _summed(self, gradients):
        if self.world.size == 1:
            return gradients
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.world.all_reduce_sum(flat)
        sizes = [gradient.numel() for gradient in gradients]
        return [part.view_as(one) for part, one in zip(flat.split(sizes), gradients, strict=True)]

    @torch.no_grad()
    def exchange(self, tensors):
        """Puts `tensors` into the model, in the order of its parameters; returns copies of what was there."""
        there = [p.detach().clone() for p in self.parameters]
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.copy_(tensor)
        return there

    def revert(self):
        """Parameters as they were when this began, momentum at rest."""
        self.exchange(self.before)
        torch._foreach_zero_(self.velocity)


def frozen_slices(model, frozen):
    """For each parameter of the model, in order, the slices of dimension 0 that belong to blocks 0..frozen - 1."""
    rows = {}
    for module in model.modules():
        for attribute, (_, leaves) in module.owned.items() if isinstance(module, Part) else ():
            layers = [] if isinstance(leaves, str) else [layer for _, _, layer in leaves]
            rows[id(getattr(module, attribute))] = [row for row, layer in enumerate(layers) if 0 <= layer < frozen]
    return [rows[id(parameter)] for parameter in model.parameters()]
