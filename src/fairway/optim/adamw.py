"""AdamW groups by role: torch's own fused optimiser behind the interface that Muon has."""

from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import GroupSite
from .schedule import DecaySchedule, check_rates


@dataclass(frozen=True)
class AdamW(GroupSite):
    """AdamW with decoupled decay, W <- W (1 - rate decay) before the step; `decay` is the schedule of that factor."""

    roles: tuple[str, ...]
    rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay: DecaySchedule = DecaySchedule()

    moments = 2

    def __post_init__(self):
        check_rates(self)
        if self.epsilon < 0:
            raise Problem(f"AdamW.epsilon is {self.epsilon}; take 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Problem(f"AdamW.betas is {self.betas}; each is a fraction from 0, under 1")

    def build(self, context):
        return AdamWUpdate(self, context)


class AdamWUpdate:
    """torch.optim.AdamW over parameters that every rank holds and updates alike."""

    def __init__(self, node, context):
        self.node, self.names = node, list(context.parameters)
        self.replicated = list(context.parameters.values())
        self.torch = torch.optim.AdamW(
            self.replicated, lr=node.rate, betas=node.betas, eps=node.epsilon, weight_decay=node.weight_decay, fused=True
        )

    def reduce(self):
        """Nothing of its own: the optimiser averages what is replicated."""

    def sharded_gradients(self):
        """Averaged gradients of which this rank holds its part: none."""
        return []

    def step(self, moment):
        """One update; nothing is left to finish."""
        node = self.node
        strength = node.weight_decay * node.decay.at(moment.progress)
        if not node.decay.follows_rate:
            # torch ties the decay to the rate, which may be 0 here: this one is done beside it.
            torch._foreach_mul_([p.data for p in self.replicated], 1 - node.rate * strength)
            strength = 0.0
        for group in self.torch.param_groups:
            group["lr"], group["weight_decay"] = node.rate * moment.multiplier, strength
        self.torch.step()
        return lambda: None

    def state(self):
        """torch's own state by parameter name."""
        state = self.torch.state_dict()["state"]
        return {name: state[index] for index, name in enumerate(self.names) if index in state}

    def restore(self, state):
        """Takes what `state` gave."""
        whole = self.torch.state_dict()
        whole["state"] = {index: state[name] for index, name in enumerate(self.names) if name in state}
        self.torch.load_state_dict(whole)
