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
        middle = layers // 2
        return (Order(tuple(range(middle)), tuple(range(middle, layers))),)

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
