"""Site `join`: the shape of a block, how its deltas meet the stream. B batch, T positions, D width."""

from dataclasses import dataclass

import torch

from ..problem import Problem
from ..sites import JoinSite
from .roles import Part


class JoinModule(Part):
    """A join maps the stream through one block; `block` offers enter(x, layer), attend(u, layer), feed(u, layer)."""

    def skip(self, x, connect):
        """Lets an encoder output in: `connect` maps x_BTD to x_BTD."""
        return connect(x)

    def leave(self, x):
        """What the head gets after the last block."""
        return x


@dataclass(frozen=True)
class Sequential(JoinSite):
    """Attention, then the MLP on what attention has changed."""

    def build(self, context):
        return SequentialModule()


def one_after_the_other(x, block, layer):
    """A block whose MLP reads what attention has changed."""
    u = block.enter(x, layer)
    u = u + block.attend(u, layer)
    return u + block.feed(u, layer)


class SequentialModule(JoinModule):
    def forward(self, x, block, layer):
        return one_after_the_other(x, block, layer)


@dataclass(frozen=True)
class Parallel(JoinSite):
    """From layer `first` on attention and MLP read the same stream, and both deltas are added to it (PR #1514).

    Layers below `first` are sequential. Problem unless 0 <= first <= the model's layers.
    """

    first: int

    def build(self, context):
        if not 0 <= self.first <= context.layers:
            raise Problem(f"Parallel.first is {self.first}; take 0 to the model's {context.layers} layers")
        return ParallelModule(self.first)


class ParallelModule(JoinModule):
    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x, block, layer):
        if layer < self.first:
            return one_after_the_other(x, block, layer)
        u = block.enter(x, layer)
        return u + block.attend(u, layer) + block.feed(u, layer)


@dataclass(frozen=True)
class TwoLane(JoinSite):
    """From the first step with a layer >= `first` on, the stream is two lanes, equal at first (PR #1523).

    Attention reads lane 0 and adds to it; the MLP reads lane 1 and adds to it; nothing passes between them. What a block
    does on entering, and skips, act on lane 0 only. At the end w lane 0 + (1 - w) lane 1 with w learned, `merge` at
    init. Layers below `first` are sequential.

    Problem where an order of the plan has such a layer in its encoder, a layer below `first` after one, or none.
    """

    first: int
    merge: float = 0.5

    def __post_init__(self):
        if not 0 <= self.merge <= 1:
            raise Problem(f"TwoLane.merge is {self.merge}; it is lane 0's share at the start, take 0 to 1")

    def build(self, context):
        plan = "this plan" if context.model is None else type(context.model.plan).__name__
        for order in context.orders:
            laned = [layer >= self.first for layer in order.decoder]
            if self.first < 0 or not any(laned):
                raise Problem(
                    f"TwoLane.first is {self.first}, {plan} has no such decoder layer; take a smaller first, from 0 on"
                )
            if early := [layer for layer in order.encoder if layer >= self.first]:
                raise Problem(
                    f"TwoLane.first is {self.first}, {plan} has layer {early[0]} in its encoder, whose outputs skip over; "
                    "take a larger first"
                )
            if laned != sorted(laned):
                raise Problem(
                    f"TwoLane.first is {self.first}, {plan} goes back to a layer below it, and lanes do not join; "
                    "take another first"
                )
        return TwoLaneModule(self.first, self.merge)


class TwoLaneModule(JoinModule):
    def __init__(self, first, merge):
        super().__init__()
        self.first = first
        self.own("merge", "lane.merge", torch.full((1,), merge), "scalar")

    def forward(self, x, block, layer):
        if layer < self.first:
            return one_after_the_other(x, block, layer)
        lane0, lane1 = x if isinstance(x, tuple) else (x, x)
        u = block.enter(lane0, layer)
        return u + block.attend(u, layer), lane1 + block.feed(lane1, layer)

    def skip(self, x, connect):
        return (connect(x[0]), x[1]) if isinstance(x, tuple) else connect(x)

    def leave(self, x):
        merge = self.merge.to(x[0].dtype)
        return merge * x[0] + (1 - merge) * x[1]
