"""Test-time training against a literal loop, and what it must never do. S sequences, T positions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conformance.table import BASE, randomise
from fairway.kernels.capability import capability
from fairway.model.positions import QKNorm, Rotary
from fairway.model.roles import leaf_views
from fairway.model.stream import HashEmbedding, InputNorm
from fairway.problem import Problem
from fairway.score.adapter import AdaptContext, Revealed, build_adapter
from fairway.score.averaged_sgd import AveragedSGD
from fairway.score.commit import Committer, read_model
from fairway.score.sgd import ScoreFirstSGD
from fairway.score.watched import WatchedPass
from fairway.score.weights import WeightTrainer, frozen_slices
from fairway.score.windows import Evaluation, NonOverlapping, Sliding
from fairway.train.dist import World
from score.test_scorer import Ranks

CPU, LENGTH = torch.device("cpu"), 16
NODE = replace(BASE, stream=(InputNorm(),), positions=(QKNorm(), Rotary()), layers=2, sequence=LENGTH)
TOKENS = np.random.default_rng(5).integers(2, 12, 16 * 20 + 7).astype(np.uint16)  # a fifth of the vocabulary: can be learned


def fresh_model(node=NODE):
    return randomise(node.build(), seed=3)


def run(sgd, tokens=TOKENS, windows=None, world=None, model=None, batch=4):
    """(model, adapter, Scored, parameters at the end of the pass, before they are restored)."""
    model, world = model or fresh_model(), world or World(0, 1, CPU)
    evaluation = Evaluation(windows or NonOverlapping(LENGTH), batch_windows=batch)
    adapter = build_adapter((sgd,), AdaptContext(model, capability(CPU), world, evaluation))
    one = WatchedPass(Committer(read_model(model), BASE.vocab, CPU), tokens, evaluation, len(tokens), world, None, adapter)
    scored = one.run()[0][1]
    at_the_end = [p.detach().clone() for p in model.parameters()]
    adapter.restore()
    return model, adapter, scored, at_the_end


def literal(sgd, tokens, frozen=()):
    """#1514, section 6, for windows side by side: nats of every target, and the weights at the end."""
    model = fresh_model()
    ids = torch.from_numpy(tokens.astype(np.int64))
    parameters, targets = list(model.parameters()), len(tokens) - 1
    velocity, chunks = [torch.zeros_like(p) for p in parameters], -(-targets // sgd.chunk)
    nats_N = torch.zeros(targets)
    for c in range(chunks):
        low, high = c * sgd.chunk, min((c + 1) * sgd.chunk, targets)
        with torch.no_grad():
            at = low
            while at < high:
                start = min(at, targets - LENGTH)  # the last window is moved left
                z = model(ids[start : start + LENGTH][None])[0]
                nats = F.cross_entropy(z, ids[start + 1 : start + LENGTH + 1], reduction="none")
                nats_N[at : start + LENGTH] = nats[at - start :]
                at = start + LENGTH
        if c == chunks - 1:
            break
        x, y = ids[low:high].view(-1, LENGTH), ids[low + 1 : high + 1].view(-1, LENGTH)
        for _ in range(sgd.epochs):
            gradients = torch.autograd.grad(model.loss(x, y), parameters)
            norm = torch.sqrt(sum((g * g).sum() for g in gradients))
            for parameter, moving, gradient in zip(parameters, velocity, gradients, strict=True):
                moving.mul_(sgd.momentum).add_(gradient * min(1.0, sgd.clip / float(norm)))
                rate = sgd.rate * 0.5 * (1 + math.cos(math.pi * c / (chunks - 1)))
                parameter.data.sub_(rate * moving)
    return nats_N, [p.detach() for p in parameters]


ONE_EPOCH = ScoreFirstSGD(rate=0.3, chunk=32, epochs=1, clip=0.05, momentum=0.0)


@pytest.mark.parametrize("sgd", [ScoreFirstSGD(rate=0.1, chunk=64), ONE_EPOCH])
def test_it_is_the_literal_loop(sgd):
    _, adapter, scored, at_the_end = run(sgd)
    nats_N, weights = literal(sgd, TOKENS)
    np.testing.assert_allclose(scored.nats_N, nats_N.numpy(), rtol=2e-5, atol=2e-5)
    for one, other in zip(at_the_end, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert scored.facts["steps"] == sgd.epochs * (adapter.chunks - 1)


def test_it_gains_where_there_is_something_to_learn_and_the_first_chunk_gains_nothing():
    _, _, scored, _ = run(ScoreFirstSGD(rate=0.2, chunk=64))
    _, _, plain, _ = run(ScoreFirstSGD(rate=1e-9, chunk=64))
    assert scored.nats < 0.9 * plain.nats
    np.testing.assert_allclose(scored.nats_N[:64], plain.nats_N[:64], rtol=1e-6)
    assert not np.allclose(scored.nats_N[64:80], plain.nats_N[64:80], rtol=1e-3)


def test_the_last_chunk_is_not_trained_on_and_the_weights_come_back_to_the_bit():
    model = fresh_model()
    before = {leaf.name: view.clone() for leaf, view in leaf_views(model)}
    for stream in (TOKENS, TOKENS[:60]):
        _, _, _, at_the_end = run(ScoreFirstSGD(rate=0.2, chunk=64), stream, model=model)
        moved = any(not torch.equal(one, p) for one, p in zip(at_the_end, model.parameters(), strict=True))
        assert moved == (len(stream) > 64)
        assert all(torch.equal(view, before[leaf.name]) for leaf, view in leaf_views(model))


@pytest.mark.parametrize("windows", [NonOverlapping(LENGTH), Sliding(LENGTH, 4)])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_change_nothing(size, windows):
    sgd = ScoreFirstSGD(rate=0.2, chunk=64, epochs=2)
    alone = run(sgd, windows=windows)[2]
    for _, _, scored, _ in Ranks(size).run(lambda world: run(sgd, windows=windows, world=world)):
        np.testing.assert_allclose(scored.nats_N, alone.nats_N, rtol=1e-4, atol=1e-5)


def test_windows_belong_to_the_chunk_of_their_first_target():
    # 2048 and 64, chunks of 32,768 of the contest's validation: 481 windows, then 512 each, 96 last (#1514).
    windows, targets = Sliding(2048, 64), 40_540_160
    plan = windows.plan(targets)
    assert len(plan) == 633_409
    context = AdaptContext(fresh_model(), capability(CPU), World(0, 1, CPU), Evaluation(windows))
    groups = ScoreFirstSGD().build(context).schedule(plan, np.zeros(0, np.int64))
    counts = [len(group.windows()) for group in groups]
    assert (len(groups), counts[0], set(counts[1:-1]), counts[-1]) == (1238, 481, {512}, 96)


def test_frozen_blocks_do_not_move_and_nothing_else_is_held():
    model, _, _, at_the_end = run(ScoreFirstSGD(rate=0.2, chunk=64, frozen=1))
    moved = fresh_model()
    with torch.no_grad():
        for parameter, value in zip(moved.parameters(), at_the_end, strict=True):
            parameter.copy_(value)
    before = {leaf.name: view for leaf, view in leaf_views(model)}
    for leaf, view in leaf_views(moved):
        assert torch.equal(view, before[leaf.name]) == (leaf.layer == 0), leaf.name
    assert all(not rows for rows in frozen_slices(model, 0))


def test_the_polyak_average_is_what_scores():
    sgd = AveragedSGD(rate=0.2, chunk=64, epochs=2, polyak=0.5)
    _, _, averaged, _ = run(sgd)
    _, _, live, _ = run(replace(sgd, polyak=0.0))
    np.testing.assert_allclose(averaged.nats_N[:64], live.nats_N[:64])
    assert not np.allclose(averaged.nats_N[64:128], live.nats_N[64:128], rtol=1e-3)
    # By hand, after the first chunk's two steps: (w0 / 2 + w1 / 2) / 2 + w2 / 2.
    model = fresh_model()
    trainer = WeightTrainer(model, capability(CPU), World(0, 1, CPU), sgd.momentum, sgd.clip)
    ids = torch.from_numpy(TOKENS[:65].astype(np.int64))
    average = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        trainer.step(ids[:-1].view(-1, LENGTH), ids[1:].view(-1, LENGTH), sgd.rate)
        average = [0.5 * one + 0.5 * p.detach() for one, p in zip(average, model.parameters(), strict=True)]
    trainer.exchange(average)
    z = model(torch.from_numpy(TOKENS[64:80].astype(np.int64))[None])[0]
    nats = F.cross_entropy(z, torch.from_numpy(TOKENS[65:81].astype(np.int64)), reduction="none")
    np.testing.assert_allclose(averaged.nats_N[64:80], nats.detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize("band, epochs", [((0.0, 99.0), 2), ((98.0, 99.0), 1), ((0.0, 0.0), 3), (None, 2)])
def test_a_chunk_that_surprises_gets_another_epoch(band, epochs):
    _, adapter, scored, _ = run(AveragedSGD(rate=0.1, chunk=64, epochs=2, entropy_band=band))
    assert scored.facts["steps"] == epochs * (adapter.chunks - 1)


def test_a_hash_embedding_that_joins_for_scoring_starts_as_nothing_and_learns():
    node = replace(NODE, stream=(*NODE.stream, HashEmbedding(buckets=64)))
    with_table = fresh_model(node)
    tables = {leaf.name: view for leaf, view in leaf_views(with_table) if "hash" in leaf.name}
    assert len(tables) == 1
    (table,) = tables.values()
    table.zero_()
    sgd = ScoreFirstSGD(rate=0.2, chunk=64)
    _, _, scored, _ = run(sgd, model=with_table)
    _, _, plain, _ = run(sgd)
    np.testing.assert_allclose(scored.nats_N[:64], plain.nats_N[:64], rtol=1e-5)
    assert scored.facts["parameters"] == plain.facts["parameters"] + 64 * NODE.width
    assert not np.allclose(scored.nats_N[64:], plain.nats_N[64:], rtol=1e-3) and bool((table == 0).all())


def test_nothing_can_learn_from_a_token_that_is_still_to_be_scored():
    revealed = Revealed(torch.arange(20, dtype=torch.int32))
    revealed.mark(0, 8)
    assert revealed.tokens(2, 8).tolist() == list(range(2, 9))
    for begin, end in ((0, 9), (8, 9), (7, 12)):
        with pytest.raises(ValueError, match="not all been scored"):
            revealed.tokens(begin, end)


def test_the_warm_up_learns_nothing_and_forecasts():
    sgd, tokens = ScoreFirstSGD(rate=0.2, chunk=64), TOKENS
    model, world, evaluation = fresh_model(), World(0, 1, CPU), Evaluation(NonOverlapping(LENGTH), batch_windows=4)
    adapter = build_adapter((sgd,), AdaptContext(model, capability(CPU), world, evaluation))
    one = WatchedPass(Committer(read_model(model), BASE.vocab, CPU), tokens, evaluation, 9, world, None, adapter)
    assert one.warm_up() > 0
    np.testing.assert_array_equal(one.run()[0][1].nats_N, run(sgd)[2].nats_N)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"rate": 0.0}, "rate 0"), ({"chunk": 0}, "chunk is 0"), ({"epochs": 0}, "epochs is 0"), ({"clip": -1.0}, "clip -1"),
        ({"entropy_band": (2.0, 1.0)}, "entropy_band"), ({"momentum": 1.0}, "momentum 1"),
    ],
)  # fmt: skip
def test_a_senseless_value_is_one_line(fields, named):
    with pytest.raises(Problem, match=named):
        AveragedSGD(**fields)


def test_more_frozen_blocks_than_there_are_and_two_adapters_are_refused():
    context = AdaptContext(fresh_model(), capability(CPU), World(0, 1, CPU), Evaluation(NonOverlapping(LENGTH)))
    with pytest.raises(Problem, match="frozen is 3"):
        ScoreFirstSGD(frozen=3).build(context)
    with pytest.raises(Problem, match="ScoreFirstSGD and ScoreFirstSGD"):
        build_adapter((ScoreFirstSGD(), ScoreFirstSGD()), context)
