"""AdamW groups by role: torch's own fused optimiser behind the interface that Muon has."""

from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import GroupSite
from .banks import ReplicatedGradients
from .schedule import check_rates


@dataclass(frozen=True)
class AdamW(GroupSite):
    """AdamW with decoupled decay, W <- W (1 - rate decay) before the step."""

    roles: tuple[str, ...]
    rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.01

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
        parameters = list(context.parameters.values())
        self.gradients = ReplicatedGradients(parameters, context.world)
        self.torch = torch.optim.AdamW(
            parameters, lr=node.rate, betas=node.betas, eps=node.epsilon, weight_decay=node.weight_decay, fused=True
        )

    def reduce(self):
        """Starts the all-reduce."""
        self.gradients.reduce()

    def sharded_gradients(self):
        """Averaged gradients of which this rank holds its part: none."""
        return []

    def replicated_gradients(self):
        """Averaged gradients that every rank holds whole."""
        return self.gradients.wait()

    def step(self, moment):
        """One update; nothing is left to finish."""
        for group in self.torch.param_groups:
            group["lr"] = self.node.rate * moment.multiplier
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
