"""Site `join`: the shape of a block, how its deltas meet the stream. B batch, T positions, D width."""

from dataclasses import dataclass

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


class SequentialModule(JoinModule):
    def forward(self, x, block, layer):
        u = block.enter(x, layer)
        u = u + block.attend(u, layer)
        return u + block.feed(u, layer)
