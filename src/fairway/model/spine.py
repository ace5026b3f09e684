"""The spine: inputs -> stream -> planned blocks -> head. It loops over sites and never asks what stands there.

B batch, T positions, D width, V vocabulary, S scored positions.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..kernels.norm import rms_norm
from ..problem import Problem
from ..sites import (
    HeadSite,
    InputSite,
    JoinSite,
    MLPSite,
    ModelSite,
    PlanSite,
    PositionSite,
    ResidualSite,
    StartSite,
    StreamSite,
    TapSite,
    ValueSite,
)
from .attention import AttentionModule
from .context import Carry, Initialiser, ModelContext, plain_linear
from .head import head_loss
from .roles import leaf_views


@dataclass(frozen=True)
class GPT(ModelSite):
    """A decoder-only transformer: its sizes, and the techniques at each site."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    sequence: int
    inputs: tuple[InputSite, ...]
    stream: tuple[StreamSite, ...]
    positions: tuple[PositionSite, ...]
    values: tuple[ValueSite, ...]
    taps: tuple[TapSite, ...]
    mlp: MLPSite
    join: JoinSite
    residual: tuple[ResidualSite, ...]
    plan: PlanSite
    head: tuple[HeadSite, ...]
    start: tuple[StartSite, ...] = ()

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in ("vocab", "width", "layers", "heads", "kv_heads", "sequence")}
        for name, value in sizes.items():
            if value < 1:
                raise Problem(f"model.{name} is {value}; it must be at least 1")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise Problem(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}: each must divide the one before it"
            )

    def build(self, seed=None, dtype=torch.float32):
        """The module, with activations in `dtype`; initial values from `seed`, or zeros to be loaded into (None)."""
        orders = self.plan.orders(self.layers)
        context = ModelContext(
            self.vocab, self.width, self.layers, self.heads, self.kv_heads, self.width // self.heads, self.sequence,
            orders, self, Initialiser(seed),
        )  # fmt: skip
        module = GPTModule(self, context, orders, dtype)
        try:
            views = {leaf.name: view for leaf, view in leaf_views(module)}
        except ValueError as error:
            raise Problem(f"{str(error).replace('Module', '')}; the model can hold one of them, drop the other") from error
        for node in self.start:
            node.build(context)(views)
        return module


class GPTModule(nn.Module):
    """Parameters are float32 masters; each pass casts them to the activations' dtype where they are used."""

    def __init__(self, node, context, orders, dtype):
        super().__init__()
        self.dtype, self.orders, self.sequence = dtype, orders, node.sequence
        self.inputs = nn.ModuleList(part.build(context) for part in node.inputs)
        self.stream = nn.ModuleList(part.build(context) for part in node.stream)
        self.attention = AttentionModule(context, node.positions, node.values, node.taps)
        self.mlp = node.mlp.build(context)
        self.join = node.join.build(context)
        self.residual = nn.ModuleList(part.build(context) for part in node.residual)
        self.skip = node.plan.build(context)
        self.head = nn.ModuleList(part.build(context) for part in node.head)

    def forward(self, ids_BT, phase=-1, first=0, linear=plain_linear):
        """Logits_BSV of positions first..T-1. `phase` chooses the plan's order; the last is what scoring uses.

        `linear(x, weight, name)` takes the products with matrices; the default is `plain_linear`.
        """
        carry = Carry(ids_BT, self.dtype, linear)
        return self.project(self.trunk(carry, phase)[:, first:], carry)

    def trunk(self, carry, phase=-1):
        """x_BTD after the last block; `carry` holds the ids and what else a pass shares."""
        x = sum(part(carry) for part in self.inputs)
        for part in self.stream:
            x = part(x, carry)
        carry.x0_BTD = x
        block = Block(self, carry)
        order, kept = self.orders[phase], []
        for layer in order.encoder:
            x = block.run(x, layer)
            kept.append(x)
        for step, layer in enumerate(order.decoder):
            if kept:
                x = self.join.skip(x, partial(self.skip, kept.pop(), step=step, carry=carry))
            x = block.run(x, layer)
        return self.join.leave(x)

    def project(self, x, carry):
        """Logits [..., V] of any positions x [..., D] of the trunk that ran with the same carry."""
        for part in self.head:
            x = part(x, carry)
        return x

    def loss(self, ids_BT, targets_BT, phase=-1, linear=plain_linear):
        """Mean cross-entropy in nats, on float32 logits."""
        carry = Carry(ids_BT, self.dtype, linear)
        return head_loss(self.head, self.trunk(carry, phase), targets_BT, carry)


class Block:
    """The halves of a block as a join calls them, bound to one forward pass."""

    def __init__(self, model, carry):
        self.model, self.carry = model, carry
        gains = self._all_gains()
        folded, self.gains = (gains, (None, None)) if carry.plain else ((None, None), gains)
        self.attention = model.attention.matrices(carry, folded[0])
        self.mlp = model.mlp.matrices(carry, folded[1])
        self.visits = [0] * model.attention.layers

    def _all_gains(self):
        """The products of what the residual sites multiply attention's deltas and the MLP's with; None: nothing."""
        given = [part.gains() for part in self.model.residual]
        pairs = [pair for pair in given if pair is not None]
        return tuple(map(math.prod, zip(*pairs, strict=True))) if pairs else (None, None)

    def run(self, x, layer):
        """The next step of the order: the block of `layer`, joined to the stream."""
        self.carry.visit = self.visits[layer]
        x = self.model.join(x, self, layer)
        self.visits[layer] += 1
        self.carry.step += 1
        return x

    def enter(self, x_BTD, layer):
        """The stream as the block takes it in."""
        for part in self.model.residual:
            x_BTD = part.enter(x_BTD, layer, self.carry)
        return x_BTD

    def attend(self, u_BTD, layer):
        """Attention's delta."""
        n_BTD = self._norm(u_BTD, layer)
        d_BTD = self._gained(self.model.attention(n_BTD, self.attention, layer, self.carry), self.gains[0], layer)
        for part in self.model.residual:
            d_BTD = part.attended(d_BTD, n_BTD, layer, self.carry)
        return d_BTD

    def feed(self, u_BTD, layer):
        """The MLP's delta."""
        n_BTD = self._norm(u_BTD, layer)
        d_BTD = self._gained(self.model.mlp(n_BTD, self.mlp, layer, self.carry), self.gains[1], layer)
        for part in self.model.residual:
            d_BTD = part.fed(d_BTD, n_BTD, layer, self.carry)
        return d_BTD

    def _gained(self, d_BTD, gain_LD, layer):
        return d_BTD if gain_LD is None else gain_LD[layer].to(d_BTD.dtype) * d_BTD

    def _norm(self, u_BTD, layer):
        n_BTD = rms_norm(u_BTD)
        for part in self.model.residual:
            n_BTD = part.normed(n_BTD, layer, self.carry)
        return n_BTD
