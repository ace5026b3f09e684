"""Site `plan`: pure data, the order of physical blocks and which outputs skip from encoder to decoder.

B batch, T positions, D width, S skips.
"""

from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import PlanSite, SkipSite
from .roles import Part


@dataclass(frozen=True)
class Order:
    """Physical layers in the order they run. Encoder outputs are stacked; each decoder step pops one while any is left."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    def skips(self):
        """How many decoder steps get a skip."""
        return min(len(self.encoder), len(self.decoder))


def halved(layers):
    """The Order that runs `layers` with the first half, rounded down, as its encoder."""
    middle = len(layers) // 2
    return Order(tuple(layers[:middle]), tuple(layers[middle:]))


class Plan(PlanSite):
    """A plan has one or more phases, each an Order; all of them are compiled before the clock starts."""

    def orders(self, layers):
        """One Order a phase."""
        raise NotImplementedError

    def phase(self, progress):
        """The phase at a fraction of the training budget; scoring uses that of 1.0."""
        return 0


@dataclass(frozen=True)
class Straight(Plan):
    """Every layer once, no skips."""

    def orders(self, layers):
        return (Order((), tuple(range(layers))),)

    def build(self, context):
        return None


@dataclass(frozen=True)
class UNet(Plan):
    """The first half of the layers is the encoder, the second the decoder, last output first; `skip` connects them."""

    skip: SkipSite

    def orders(self, layers):
        if layers < 2:
            raise Problem(
                f"UNet needs an encoder and a decoder, model.layers is {layers}: take 2 or more, or plan=Straight()"
            )
        return (halved(range(layers)),)

    def build(self, context):
        return self.skip.build(context)


@dataclass(frozen=True)
class Loop(Plan):
    """A U-Net that from the fraction `starts_at` of the budget on runs layers first..last `passes` times (PR #1514).

    Before it, each layer runs once. Both orders are cut in the middle into encoder and decoder: of 11 layers,
    Loop(3, 5, 3) has the encoder 0 1 2 3 4 5 3 4 and the decoder 5 3 4 5 6 7 8 9 10. With starts_at=0 there is the
    looped order only. Problem for layers that the model does not have, under 2 passes, or starts_at outside [0, 1).
    """

    first: int
    last: int
    passes: int
    starts_at: float
    skip: SkipSite

    def __post_init__(self):
        if not 0 <= self.first <= self.last:
            raise Problem(f"Loop from layer {self.first} to {self.last}: take 0 <= first <= last")
        if self.passes < 2:
            raise Problem(f"Loop.passes is {self.passes}; take 2 or more, or plan=UNet(...)")
        if not 0 <= self.starts_at < 1:
            raise Problem(f"Loop.starts_at is {self.starts_at}; take a fraction of the budget, from 0 to below 1")

    def orders(self, layers):
        if self.last >= layers:
            raise Problem(f"Loop.last is {self.last}, model.layers is {layers}: take at most {layers - 1}")
        loop = [*range(self.first, self.last + 1)] * self.passes
        looped = halved([*range(self.first), *loop, *range(self.last + 1, layers)])
        return (halved(range(layers)), looped) if self.starts_at > 0 else (looped,)

    def phase(self, progress):
        return int(0 < self.starts_at <= progress)

    def build(self, context):
        return self.skip.build(context)


@dataclass(frozen=True)
class AddSkip(SkipSite):
    """x + w_j * skip, with one learned vector a decoder step; ones at init (PR #162)."""

    def build(self, context):
        return AddSkipModule(context)


class AddSkipModule(Part):
    def __init__(self, context):
        super().__init__()
        self.own("weight_SD", "skip.weight", torch.ones(context.skips, context.width), "scalar")

    def forward(self, skip_BTD, x_BTD, step, carry):
        return x_BTD + self.weight_SD[step].to(x_BTD.dtype) * skip_BTD


@dataclass(frozen=True)
class LerpSkip(SkipSite):
    """s + g (x - s) with s = w_j * skip and g = sigmoid(gate_j), vectors a decoder step (PR #1514).

    w is ones and the gates are zeros at init: half of each, not the identity.
    """

    def build(self, context):
        return LerpSkipModule(context)


class LerpSkipModule(Part):
    def __init__(self, context):
        super().__init__()
        self.own("weight_SD", "skip.weight", torch.ones(context.skips, context.width), "scalar")
        self.own("gate_SD", "skip.gate", torch.zeros(context.skips, context.width), "scalar")

    def forward(self, skip_BTD, x_BTD, step, carry):
        # Two vectors first: each gradient is then one sum over positions of what is kept anyway.
        gate_D = torch.sigmoid(self.gate_SD[step])
        back_D = ((1 - gate_D) * self.weight_SD[step]).to(x_BTD.dtype)
        return gate_D.to(x_BTD.dtype) * x_BTD + back_D * skip_BTD
