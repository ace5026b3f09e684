"""All groups together: they must cover the model exactly; gradients are reduced, then clipped, then used."""

from dataclasses import dataclass

import torch
from torch import nn

from ..model.roles import parameter_roles, role_matches
from ..problem import Problem
from .banks import ReplicatedGradients


@dataclass(frozen=True)
class GroupContext:
    """What a group is built with: its parameters by name, the ranks, and the dtype of matrix products."""

    parameters: dict[str, nn.Parameter]
    world: object
    products: torch.dtype


def assign_groups(model, groups):
    """A list of {name: parameter} for each group, by role. Problem unless each parameter is in exactly one."""
    roles, parameters = parameter_roles(model), dict(model.named_parameters())
    taken = [{name for name, role in roles.items() if any(role_matches(role, one) for one in g.roles)} for g in groups]
    for name, role in roles.items():
        count = sum(name in names for names in taken)
        if count != 1:
            raise Problem(
                f"{count} optimiser groups take {name} (role {role}); the roles of `optim` must cover each exactly once"
            )
    for group, names in zip(groups, taken, strict=True):
        if not names:
            raise Problem(f"{type(group).__name__} for roles {group.roles} has no parameters; leave it out of `optim`")
    return [{name: parameters[name] for name in parameters if name in names} for names in taken]


class Optimizer:
    """The recipe's groups in their order, as one optimiser."""

    def __init__(self, model, groups, world, products, clip):
        assigned = assign_groups(model, groups)
        self.updates = [
            group.build(GroupContext(members, world, products)) for group, members in zip(groups, assigned, strict=True)
        ]
        self.parameters, self.world, self.clip = list(model.parameters()), world, clip
        self.replicated = ReplicatedGradients([p for update in self.updates for p in update.replicated], world)

    def step(self, moment):
        """Averages gradients over ranks, clips their global norm, updates. Returns the norm before clipping (a tensor).

        A parameter that this phase of the plan does not use gets a zero gradient, on all ranks alike.
        The public systems with banks clip each rank's own gradient before it is reduced: ranks then weigh unequally.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for update in self.updates:
            update.reduce()
        self.replicated.reduce()
        shards = [update.sharded_gradients() for update in self.updates]
        replicated, sharded = self.replicated.wait(), [g for gradients in shards for g in gradients]
        norm = self._norm(replicated, sharded)
        if self.clip:
            scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            if replicated:
                torch._foreach_mul_(replicated, scale)
            # Shards are scaled by whoever reads them next: a pass over the largest gradients less.
            for update, gradients in zip(self.updates, shards, strict=True):
                if gradients:
                    update.scale_shards(scale)
        # Those with shards first: the gathers that they start travel while the others compute.
        pairs = zip(self.updates, shards, strict=True)
        for finish in [update.step(moment) for update, _ in sorted(pairs, key=lambda pair: not pair[1])]:
            finish()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def _norm(self, replicated, sharded):
        def squares(tensors):
            return torch.stack(torch._foreach_norm(tensors)).square().sum() if tensors else torch.zeros((), device=device)

        device = self.world.device
        shared = squares(sharded)
        if self.world.size > 1:
            self.world.all_reduce_sum(shared)
        return (squares(replicated) + shared).sqrt()

    def state(self):
        """The groups' states in order (a collective call)."""
        return [update.state() for update in self.updates]

    def restore(self, states):
        """Takes what `state` gave."""
        for update, state in zip(self.updates, states, strict=True):
            update.restore(state)
