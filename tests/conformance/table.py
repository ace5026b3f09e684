"""Every technique of the model in one table: how it is put into a tiny model, and what it promises.

A new technique gets one row here; the checks in `test_conformance.py` do the rest.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from fairway.model.head import FinalNorm, Softcap, TiedHead
from fairway.model.inputs import BigramHash, TokenEmbedding
from fairway.model.join import Sequential
from fairway.model.mlp import ReluSquared
from fairway.model.plan import AddSkip, Straight, UNet
from fairway.model.positions import QKGain, QKNorm, Rotary
from fairway.model.residual import LayerScale, ResidualMix
from fairway.model.roles import leaf_views
from fairway.model.spine import GPT
from fairway.model.stream import InputNorm, SmearGate
from fairway.node import Node

BOS = 1
BASE = GPT(
    vocab=40,
    width=16,
    layers=4,
    heads=4,
    kv_heads=2,
    sequence=16,
    inputs=(TokenEmbedding(),),
    stream=(),
    positions=(),
    values=(),
    taps=(),
    mlp=ReluSquared(2.0),
    join=Sequential(),
    residual=(),
    plan=Straight(),
    head=(TiedHead(),),
)


def last(site, model, node):
    """The model with `node` at the end of a site's tuple."""
    return replace(model, **{site: (*getattr(model, site), node)})


def first(site, model, node):
    """The model with `node` at the beginning of a site's tuple."""
    return replace(model, **{site: (node, *getattr(model, site))})


def only(site, model, node):
    """The model with `node` in place of what the base has there."""
    return replace(model, **{site: (node,) if isinstance(getattr(model, site), tuple) else node})


@dataclass(frozen=True)
class Row:
    """A technique, the function (base model, technique) -> model that puts it in its place, and its promises."""

    technique: Node
    put: Callable[[GPT, Node], GPT]
    identity_at_init: bool = False  # with it, before any training, logits are those of the base to the bit
    stops_at_bos: bool = True  # attention aside, nothing of one document reaches the next
    causal: bool = True  # no logit depends on a later token

    @property
    def model(self):
        return self.put(BASE, self.technique)


ROWS = (
    Row(TokenEmbedding(std=0.02), partial(only, "inputs")),
    Row(BigramHash(buckets=32, dim=8), partial(last, "inputs"), identity_at_init=True, stops_at_bos=False),
    Row(InputNorm(), partial(last, "stream")),
    Row(SmearGate(stop_at_bos=True, bos=BOS), partial(last, "stream")),
    Row(SmearGate(stop_at_bos=False), partial(last, "stream"), stops_at_bos=False),
    Row(QKNorm(), partial(last, "positions")),
    Row(Rotary(), partial(last, "positions")),
    Row(Rotary(dims=2, base=500.0), partial(last, "positions")),
    Row(QKGain(), partial(last, "positions")),
    Row(QKGain(init=1.0), partial(last, "positions"), identity_at_init=True),
    Row(ReluSquared(expansion=1.5), partial(only, "mlp")),
    Row(Sequential(), partial(only, "join")),
    Row(ResidualMix(), partial(last, "residual"), identity_at_init=True),
    Row(LayerScale(), partial(last, "residual"), identity_at_init=True),
    Row(Straight(), partial(only, "plan")),
    Row(UNet(skip=AddSkip()), partial(only, "plan")),
    Row(AddSkip(), lambda model, node: replace(model, layers=5, plan=UNet(node))),
    Row(FinalNorm(), partial(first, "head")),
    Row(TiedHead(), partial(only, "head")),
    Row(Softcap(cap=5.0), partial(last, "head")),
)


def random_values(leaf, seed=0):
    """Values of a sensible size for a leaf, none at its initial value; they depend on its name and the seed only."""
    generator = torch.Generator().manual_seed(zlib.crc32(leaf.name.encode()) + seed)
    values = torch.randn(leaf.shape, generator=generator)
    if leaf.role == "scalar":
        return 0.7 + 0.3 * values
    return values if leaf.role in ("embedding", "table") else 1.5 * values / leaf.shape[-1] ** 0.5


def randomise(model, seed=0):
    """Puts random values into every leaf of a module and returns it."""
    for leaf, view in leaf_views(model):
        view.copy_(random_values(leaf, seed))
    return model


def random_ids(model, seed=0, batch=2):
    """Ids [batch, sequence] without a document start."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(BOS + 1, model.vocab, (batch, model.sequence), generator=generator)
