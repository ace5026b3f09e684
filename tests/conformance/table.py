"""Every technique of the model in one table: how it is put into a tiny model, and what it promises.

A new technique gets one row here; the checks in `test_conformance.py` do the rest.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise

import torch

from fairway.model.context import Bounds, Carry
from fairway.model.head import AsymmetricSoftcap, FinalNorm, Softcap, TiedHead
from fairway.model.inputs import BigramHash, EngramLite, TokenEmbedding
from fairway.model.join import Parallel, Sequential, TwoLane
from fairway.model.mlp import LeakyReluSquared, ReluSquared
from fairway.model.plan import AddSkip, LerpSkip, Loop, Straight, UNet
from fairway.model.positions import QKGain, QKNorm, Rotary
from fairway.model.residual import LayerScale, LNScale, LoopEmbedding, MLPGate, ResidualMix
from fairway.model.roles import leaf_views
from fairway.model.spine import GPT
from fairway.model.start import MimeticOutput
from fairway.model.stream import GatedSmear, HashEmbedding, InputNorm, SmearGate
from fairway.model.taps import ExclusiveSelfAttention, HeadGate, SparseGate
from fairway.model.values import ValueEmbedding, ValueResidual
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


def in_the_loop(site, model, node):
    """The same with layers 1 and 2 running twice from half of the training on."""
    return last(site, replace(model, plan=Loop(1, 2, 2, 0.5, AddSkip())), node)


def on_a_u_net(site, model, node):
    """The model with `node` in place of what the base has there, and skips."""
    return only(site, replace(model, plan=UNet(AddSkip())), node)


@dataclass(frozen=True)
class Row:
    """A technique, the function (base model, technique) -> model that puts it in its place, and its promises."""

    technique: Node
    put: Callable[[GPT, Node], GPT]
    identity_at_init: bool = False  # with it, before any training, logits are those of the base to the bit
    stops_at_bos: bool = True  # attention aside, nothing of one document reaches the next
    causal: bool = True  # no logit depends on a later token
    unused: tuple[str, ...] = ()  # leaves that, as published, no gradient reaches
    restarts: str | None = None  # the role of the leaves whose initial values it is there to change

    @property
    def model(self):
        return self.put(BASE, self.technique)


ROWS = (
    Row(TokenEmbedding(std=0.02), partial(only, "inputs")),
    Row(BigramHash(buckets=32, dim=8), partial(last, "inputs"), identity_at_init=True, stops_at_bos=False),
    Row(InputNorm(), partial(last, "stream")),
    Row(SmearGate(stop_at_bos=True, bos=BOS), partial(last, "stream")),
    Row(SmearGate(stop_at_bos=False), partial(last, "stream"), stops_at_bos=False),
    Row(EngramLite(buckets=16, dim=4), partial(last, "inputs"), identity_at_init=True, stops_at_bos=False),
    Row(GatedSmear(inputs=6, bos=BOS), partial(last, "stream"), identity_at_init=True),
    Row(GatedSmear(stop_at_bos=False), partial(last, "stream"), identity_at_init=True, stops_at_bos=False),
    Row(HashEmbedding(buckets=32), partial(last, "stream"), identity_at_init=True, stops_at_bos=False),
    Row(QKNorm(), partial(last, "positions")),
    Row(Rotary(), partial(last, "positions")),
    Row(Rotary(dims=2, base=500.0), partial(last, "positions")),
    Row(QKGain(), partial(last, "positions")),
    Row(QKGain(init=1.0), partial(last, "positions"), identity_at_init=True),
    Row(ValueResidual(), partial(last, "values"), unused=("blocks.0.attn.value_mix",)),
    Row(ValueEmbedding(layers=(-3, -1), dim=8, std=0.5), partial(last, "values")),
    Row(ExclusiveSelfAttention(), partial(last, "taps")),
    Row(ExclusiveSelfAttention(layers=(1, -1)), partial(last, "taps")),
    Row(HeadGate(), partial(last, "taps")),
    Row(SparseGate(), partial(last, "taps")),
    Row(ReluSquared(expansion=1.5), partial(only, "mlp")),
    Row(LeakyReluSquared(expansion=2.0), partial(only, "mlp")),
    Row(LeakyReluSquared(expansion=2.0, slopes=(0.5, -0.1, 0.0, 0.3)), partial(only, "mlp")),
    Row(Sequential(), partial(only, "join")),
    Row(Parallel(first=2), partial(only, "join")),
    Row(TwoLane(first=2), partial(on_a_u_net, "join")),
    Row(ResidualMix(), partial(last, "residual"), identity_at_init=True),
    Row(LayerScale(), partial(last, "residual"), identity_at_init=True),
    Row(LNScale(), partial(last, "residual")),
    Row(MLPGate(inputs=6), partial(last, "residual")),
    Row(LoopEmbedding(), partial(in_the_loop, "residual")),
    Row(Straight(), partial(only, "plan")),
    Row(UNet(skip=AddSkip()), partial(only, "plan")),
    Row(AddSkip(), lambda model, node: replace(model, layers=5, plan=UNet(node))),
    Row(Loop(first=1, last=2, passes=2, starts_at=0.35, skip=LerpSkip()), partial(only, "plan")),
    Row(Loop(first=2, last=2, passes=3, starts_at=0.0, skip=AddSkip()), partial(only, "plan")),
    Row(LerpSkip(), lambda model, node: replace(model, plan=UNet(node))),
    Row(FinalNorm(), partial(first, "head")),
    Row(TiedHead(), partial(only, "head")),
    Row(Softcap(cap=5.0), partial(last, "head")),
    Row(AsymmetricSoftcap(cap=5.0), partial(last, "head")),
    Row(MimeticOutput(), partial(last, "start"), restarts="matrix.output"),
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


def bounds_of(rows, spare=0):
    """The Bounds of rows given as lists of windows' lengths, with `spare` more offsets than the windows need."""
    lengths = [length for row in rows for length in row]
    offsets = [0, *accumulate(lengths)]
    position_BT = torch.cat([torch.arange(length) for length in lengths]).view(len(rows), -1)
    offsets_W = torch.tensor(offsets + spare * offsets[-1:], dtype=torch.int32)
    return Bounds(position_BT, offsets_W, max(lengths))


def packed_logits(module, ids_BT, bounds):
    """Logits_BTV of packed rows."""
    carry = Carry(ids_BT, module.dtype, bounds=bounds)
    return module.project(module.trunk(carry), carry)


def check_windows_apart(module, ids_BT, rows, tolerance):
    """A packed row gives each window what it gets alone, and no window's ids change a bit of another's logits."""
    bounds, vocab = bounds_of(rows, spare=2), int(ids_BT.max()) + 1
    offsets = bounds.offsets_W.tolist()[:-2]
    with torch.no_grad():
        packed_BTV = packed_logits(module, ids_BT, bounds)
        for begin, end in pairwise(offsets):
            alone_BTV = module(ids_BT.flatten()[None, begin:end])
            torch.testing.assert_close(packed_BTV.flatten(0, 1)[begin:end], alone_BTV[0], rtol=tolerance, atol=tolerance)
            other_BT = ids_BT.clone()
            other_BT.view(-1)[begin:end] = (ids_BT.flatten()[begin:end] + 1) % vocab
            same_NV = (packed_logits(module, other_BT, bounds) == packed_BTV).flatten(0, 1).all(-1)
            assert not same_NV[begin:end].any() and same_NV[:begin].all() and same_NV[end:].all()
