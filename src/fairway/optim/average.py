"""Averages of the weights over training: what is packed at the end instead of the last step's weights.

All are float32 on the weights' device. The tensors that a state gives are its own or copies: they are not written to.
"""

from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import AverageSite


@dataclass(frozen=True)
class LastWeights(AverageSite):
    """No average: the weights as they are when asked for. To be scored beside an average, or packed instead of one."""

    copies = 0

    def build(self, model):
        return LastWeightsState(model)


class LastWeightsState:
    """Nothing but the model."""

    def __init__(self, model):
        self.model = model

    def after_step(self, moment):
        """Nothing to keep."""

    @torch.no_grad()
    def tensors(self):
        """Parameter name -> a copy of what the model holds now."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def summary(self):
        """A line that says what `tensors` gives."""
        return "the last step's weights"

    def state(self):
        """Nothing."""
        return {}

    def restore(self, state):
        """Takes what `state` gave."""


@dataclass(frozen=True)
class EMA(AverageSite):
    """The exponential moving average of the weights after every step: E <- d E + (1 - d) W (PR #864: d = 0.997).

    The public ones begin with the initial weights. This one counts only weights after steps: at the t-th, 1-based,
    E <- E + (W - E) (1 - d) / (1 - d^t). After the 4,700 steps and more of public runs the two are equal to 1e-6 of the
    initial weights; a short run is not diluted by them.
    """

    decay: float = 0.997

    copies = 1

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise Problem(f"EMA.decay is {self.decay}; take a fraction from 0, under 1")

    def build(self, model):
        return EMAState(self, model)


class EMAState:
    """The running average and the number of steps in it."""

    def __init__(self, node, model):
        self.node, self.steps = node, 0
        self.parameters = list(model.parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def after_step(self, moment):
        """To be called after the step of `moment`."""
        self.steps += 1
        weight = (1 - self.node.decay) / (1 - self.node.decay**self.steps)
        torch._foreach_lerp_(list(self.averages.values()), self.parameters, weight)

    def tensors(self):
        """Parameter name -> average; before the first step the initial weights."""
        return dict(self.averages)

    def summary(self):
        """A line that says what `tensors` gives."""
        return f"EMA weights (decay {self.node.decay:g}, {self.steps} steps)"

    def state(self):
        """Steps and averages."""
        return {"steps": self.steps, "averages": self.averages}

    def restore(self, state):
        """Takes what `state` gave."""
        self.steps = state["steps"]
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])


@dataclass(frozen=True)
class SWA(AverageSite):
    """Stochastic weight averaging: the mean of the weights after every `every`-th step whose rate factor is below `below`.

    With `of` it is the mean of what another average gives at those steps (PR #864's mean of EMAs). With fewer than two
    snapshots what they would be of is used as it is at the end. Sums are float32 on the device (PR #162 sums bfloat16
    tensors in bfloat16, 0.6 % off after 30 snapshots).
    """

    below: float = 0.5
    every: int = 50
    of: AverageSite | None = None

    def __post_init__(self):
        if self.every < 1:
            raise Problem(f"SWA.every is {self.every}; take 1 or more")

    @property
    def copies(self):
        return 1 + (self.of.copies if self.of else 0)

    def build(self, model):
        return SWAState(self, model)


class SWAState:
    """The running sum and its count, and the state of what is summed."""

    def __init__(self, node, model):
        self.node, self.count, self.sums = node, 0, {}
        self.devices = {name: parameter.device for name, parameter in model.named_parameters()}
        self.inner = (node.of or LastWeights()).build(model)

    @torch.no_grad()
    def after_step(self, moment):
        """To be called after the step of `moment`."""
        self.inner.after_step(moment)
        if moment.multiplier >= self.node.below or (moment.step + 1) % self.node.every:
            return
        tensors = self.inner.tensors()
        if self.count:
            torch._foreach_add_(list(self.sums.values()), [tensors[name] for name in self.sums])
        else:
            self.sums = {name: tensor.clone() for name, tensor in tensors.items()}
        self.count += 1

    def tensors(self):
        """Parameter name -> mean of the snapshots; of fewer than two, what they would be of, as it is."""
        if self.count < 2:
            return self.inner.tensors()
        return {name: total / self.count for name, total in self.sums.items()}

    def summary(self):
        """A line that says what `tensors` gives."""
        if self.count < 2:
            return f"SWA took {self.count} snapshots, under 2: {self.inner.summary()} are used"
        return f"SWA of {self.count} snapshots" + (f" of {self.inner.summary()}" if self.node.of else "")

    def state(self):
        """Count and sums, and the state of what is summed."""
        return {"count": self.count, "sums": self.sums, "of": self.inner.state()}

    def restore(self, state):
        """Takes what `state` gave."""
        self.count = state["count"]
        self.sums = {name: total.to(self.devices[name], copy=True) for name, total in state["sums"].items()}
        self.inner.restore(state["of"])
