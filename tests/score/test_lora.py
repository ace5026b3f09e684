"""A LoRA for each document against a literal loop, and what it must never do. B rows, T positions, N targets."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend
from torch.nn import functional as F

from conformance.table import BASE, randomise
from fairway.kernels.capability import capability
from fairway.model.head import FinalNorm, TiedHead
from fairway.model.join import Parallel
from fairway.model.plan import LerpSkip, Loop
from fairway.model.positions import QKNorm, Rotary
from fairway.model.roles import leaf_views
from fairway.model.stream import InputNorm
from fairway.problem import Problem
from fairway.score.adapter import AdaptContext, build_adapter
from fairway.score.batches import Collator
from fairway.score.commit import Committer, read_model
from fairway.score.lora import DocumentLoRA
from fairway.score.lora_products import LowRankProducts, find_products
from fairway.score.schedule import order_of_scoring, prove_schedule
from fairway.score.watched import WatchedPass
from fairway.score.weights import WeightTrainer
from fairway.score.windows import Evaluation, NonOverlapping, prove_coverage
from fairway.train.dist import World
from score.test_scorer import Ranks

CPU, BOS, VOCAB = torch.device("cpu"), 1, BASE.vocab
# Layers 1 and 2 twice, the last two of them in parallel: a product is used up to twice in a pass.
NODE = replace(
    BASE, stream=(InputNorm(),), positions=(QKNorm(), Rotary()), layers=3, sequence=32, join=Parallel(first=2),
    plan=Loop(first=1, last=2, passes=2, starts_at=0.0, skip=LerpSkip()), head=(FinalNorm(), TiedHead()),
)  # fmt: skip
LENGTHS = (5, 31, 12, 1, 40, 8, 9, 17, 26, 3, 33)
LORA = DocumentLoRA(
    rank=3, alpha=6.0, rate=0.02, decay=0.5, batch=3, context=24, chunks=((10, 2), (30, 5)), chunk=6, lanes=2
)


def documents(lengths=LENGTHS, seed=5):
    """A stream of documents, each with its BOS and four pieces of its own; the last target is one token more."""
    draw, parts = np.random.default_rng(seed), []
    for length in lengths:
        parts.append([BOS, *draw.choice(draw.integers(2, VOCAB, 4), length - 1)])
    return np.array([*(token for part in parts for token in part), BOS], np.uint16)


def starts_of(tokens):
    return np.flatnonzero(tokens == BOS)


def fresh_model(node=NODE, dtype=torch.float64):
    model = randomise(node.build(dtype=dtype), seed=3)
    for _, view in leaf_views(model):
        view.mul_(0.5)  # or its predictions would all be certain
    return model


def adapting(lora, model, world=None):
    evaluation = Evaluation(NonOverlapping(NODE.sequence), batch_windows=4)
    return build_adapter((lora,), AdaptContext(model, capability(CPU), world or World(0, 1, CPU), evaluation))


def prepared(lora, tokens, world=None, model=None, starts=None):
    world, model = world or World(0, 1, CPU), model or fresh_model()
    adapter = adapting(lora, model, world)
    commit = Committer(read_model(model), VOCAB, CPU)
    starts = starts_of(tokens) if starts is None else starts
    return WatchedPass(commit, tokens, adapter.context.evaluation, len(tokens), world, starts, adapter)


def run(lora, tokens, **more):
    """Nats of every target, in float64."""
    one = prepared(lora, tokens, **more)
    one.run()
    one.adapter.restore()
    return -one.logp_NK[: one.targets, 0].numpy()


class LiteralProducts:
    """x W^T + scale B (A x) for one document, a product after the other: `matrices` (target, use) -> (A, B)."""

    def __init__(self, matrices, scale):
        self.matrices, self.scale, self.uses, self.normed = matrices, scale, {}, None

    def __call__(self, x, weight, name):
        y, kind = F.linear(x, weight), {"table": "head", "down": "mlp"}.get(name.split(".")[-1], name.split(".")[-1])
        if kind == "up":
            self.normed = x
        use = self.uses[kind] = self.uses.get(kind, -1) + 1
        if (kind, use) in self.matrices:
            a, b = self.matrices[kind, use]
            y = y + self.scale * (self.normed if kind == "mlp" else x) @ a.T @ b.T
        return y


def literal(lora, tokens, model, episodes, first):
    """Nats, document by document and chunk by chunk. `episodes`: (lane, [documents]) in the order in which they are scored;
    `first`: (target, use) -> (A, number of outputs)."""
    edges, ids, nats_N = [*starts_of(tokens[:-1]), len(tokens) - 1], torch.from_numpy(tokens.astype(np.int64)), {}
    left, (_, b2) = {}, lora.betas
    for lane, members in episodes:
        for row, document in enumerate(members):
            floor, end = int(edges[document]), int(edges[document + 1])
            size = next((size for limit, size in lora.chunks if end - floor < limit), lora.chunk)
            a = left.setdefault((lane, row), {key: one.clone() for key, (one, _) in first.items()})
            b = {key: torch.zeros(out, lora.rank, dtype=a[key].dtype) for key, (_, out) in first.items()}
            v = {}
            for step, low in enumerate(range(floor, end, size), 1):
                high = min(low + size, end)
                begin = max(floor, high - lora.context)
                leaves = [one.requires_grad_() for key in first for one in (a[key], b[key])]
                hook = LiteralProducts({key: (a[key], b[key]) for key in first}, lora.alpha / lora.rank)
                z = model(ids[begin:high][None], linear=hook)[0, low - begin :]
                nats = F.cross_entropy(z, ids[low + 1 : high + 1], reduction="none")
                nats_N |= dict(zip(range(low, high), nats.tolist(), strict=True))
                if high < end:
                    gradients = torch.autograd.grad(nats.mean(), leaves)
                    for at, (leaf, g) in enumerate(zip(leaves, gradients, strict=True)):
                        v[at] = b2 * v.get(at, 0) + (1 - b2) * g * g
                        hat = v[at] / (1 - b2**step)
                        leaf.data = leaf.data * (1 - lora.rate * lora.decay) - lora.rate * g / (hat.sqrt() + 1e-8)
    return np.array([nats_N[target] for target in range(len(tokens) - 1)])


def episodes_of(adapter, plan, schedule):
    """(lane, documents) of every batch, by number of the document in the stream."""
    floors = np.unique(plan.floor)
    return [
        (one.lane, np.searchsorted(floors, plan.floor[one.rounds[0].windows]).tolist())
        for group in schedule
        for one in group.episodes
    ]  # fmt: skip


def first_matrices(lora, model):
    """A as it is drawn, of row 0."""
    adapter = adapting(lora, model)
    half = len(adapter.tensors()) // 2
    return {
        (target, use): (down[use, 0].detach().clone(), out)
        for (target, (uses, out, _)), down in zip(adapter.layout.shapes.items(), adapter.tensors()[:half], strict=True)
        for use in range(uses)
    }


@pytest.mark.parametrize("lora", [LORA, replace(LORA, targets=("output", "mlp"), batch=16, lanes=1, rank=1)])
def test_it_is_the_literal_loop(lora):
    tokens, model = documents(), fresh_model()
    one = prepared(lora, tokens, model=model)
    episodes = episodes_of(one.adapter, one.plan, one.schedule)
    expected = literal(lora, tokens, fresh_model(), episodes, first_matrices(lora, fresh_model()))
    found = run(lora, tokens)
    # The cap is float32, and Adam divides small gradients by their own size: 1e-8 at the median, 2e-6 at most.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.median(np.abs(found - expected)) < 1e-7
    assert np.abs(found - run(replace(lora, rate=1e-12), tokens)).max() > 0.1


def test_single_precision_follows_double():
    tokens = documents()
    single = run(LORA, tokens, model=fresh_model(dtype=torch.float32))
    np.testing.assert_allclose(single, run(LORA, tokens), atol=1e-2)
    assert np.median(np.abs(single - run(LORA, tokens))) < 1e-5


def test_adam_with_a_first_moment_is_torchs():
    # One document in a batch of its own: torch.optim.AdamW on the same leaves.
    lora, tokens, model = replace(LORA, betas=(0.9, 0.99), batch=1, lanes=1), documents((60,)), fresh_model()
    adapter = adapting(lora, model)
    leaves = [one.detach().clone().requires_grad_() for one in adapter.tensors()]
    torchs = torch.optim.AdamW(leaves, lora.rate, lora.betas, 1e-8, lora.decay)
    ids, expected = torch.from_numpy(tokens.astype(np.int64)), []
    for low in range(0, 60, 6):
        begin = max(0, low + 6 - lora.context)
        half = len(leaves) // 2
        hook = LowRankProducts(adapter.layout, leaves[:half], leaves[half:], lora.alpha / lora.rank)
        z = model(ids[None, begin : low + 6], linear=hook)[0, low - begin :]
        nats = F.cross_entropy(z, ids[low + 1 : low + 7], reduction="none")
        expected += nats.tolist()
        torchs.zero_grad()
        nats.mean().backward()
        torchs.step()
    np.testing.assert_allclose(run(lora, tokens), expected, atol=1e-9)


def test_windows_begin_with_their_document_and_reach_back_as_far_as_the_context():
    adapter = adapting(LORA, fresh_model())
    plan = adapter.plan(75, np.array([20, 29, 61]))
    prove_coverage(plan, 75)
    # Documents of 20, 9, 32 and 14 inputs in chunks of 5, 2, 6 and 5.
    assert plan.begin.tolist() == [0, 5, 10, 15, 20, 22, 24, 26, 28, 29, 35, 41, 47, 53, 59, 61, 66, 71]
    assert plan.floor.tolist() == [0] * 4 + [20] * 5 + [29] * 6 + [61] * 3
    assert plan.start.tolist() == [0] * 4 + [20] * 5 + [29] * 4 + [35, 37] + [61] * 3
    # A limit is the first length that is not shorter than it.
    edges = np.array([0, 9, 19, 48])
    assert np.diff(np.flatnonzero(np.isin(adapter.plan(78, edges).begin, [*edges, 78]))).tolist() == [5, 2, 6]
    whole = adapter.plan(7, np.zeros(0, np.int64))
    assert whole.end.tolist() == [2, 4, 6, 7] and set(whole.floor) == {0}


def test_batches_go_from_long_to_short_and_rows_stay_the_same_document():
    one = prepared(replace(LORA, phases=2, prefix=5), documents())
    prove_schedule(one.schedule, one.plan)
    length_W = np.array(LENGTHS)[np.searchsorted(np.unique(one.plan.floor), one.plan.floor)]
    batches = [episode for group in one.schedule for episode in group.episodes]
    lengths = [length_W[episode.rounds[0].windows].tolist() for episode in batches]
    assert lengths == [[40, 33], [31], [26, 17], [12], [9, 8, 5], [3, 1]]
    assert [sum(len(e.rounds[0].windows) for e in group.episodes) for group in one.schedule] == [2, 3, 6]
    for episode in batches:
        floors = one.plan.floor[episode.rounds[0].windows]
        for later in episode.rounds:
            assert np.array_equal(one.plan.floor[later.windows], floors[: len(later.windows)])
        sizes = {one.adapter.cuts(one.collator, later.windows)[0].shape[2] for later in episode.rounds}
        assert len(sizes) == 1


def test_a_million_windows_are_planned_and_put_in_order_in_seconds():
    lengths = np.minimum(np.random.default_rng(0).lognormal(6.2, 1.1, 50_000).astype(np.int64) + 4, 60_000)
    starts = np.cumsum(lengths) - lengths
    lora = DocumentLoRA(context=32, chunk=32)
    adapter, begin = adapting(lora, fresh_model()), time.perf_counter()
    plan = adapter.plan(int(lengths.sum()), starts)
    schedule = adapter.schedule(plan, starts)
    assert time.perf_counter() - begin < 12
    assert len(plan) > 1_000_000
    prove_coverage(plan, int(lengths.sum()))
    prove_schedule(schedule, plan)
    # The first batches are many times as long as the others: dealt out in turn, the first lane would have the most by far.
    collator, load = Collator(torch.zeros(1, dtype=torch.int32), plan), np.zeros(8)
    for episode in schedule[0].episodes:
        for one in episode.rounds:
            load[episode.lane] += math.prod(adapter.cuts(collator, one.windows)[0].shape[:2])
    assert load.max() < 1.01 * load.mean()


@pytest.mark.parametrize("phases", [0, 2])
def test_later_tokens_change_nothing_before_them_in_the_order_of_scoring(phases):
    tokens, lora = documents(), replace(LORA, phases=phases, prefix=6, base_rate=0.05, base_batch=64)
    one = prepared(lora, tokens)
    targets = np.concatenate([np.arange(one.plan.begin[w], one.plan.end[w]) for w in order_of_scoring(one.schedule)])
    before = run(lora, tokens)
    for place in (1, 40, 90, 130, 170):
        # All that is scored from here on is another text, but for where documents begin.
        later = targets[place:][tokens[targets[place:] + 1] != BOS]
        flipped = tokens.copy()
        flipped[later + 1] = 2 + (flipped[later + 1] + 5) % (VOCAB - 2)
        after = run(lora, flipped)
        np.testing.assert_allclose(after[targets[:place]], before[targets[:place]], rtol=0, atol=1e-9)
        assert np.abs(after - before)[later].max() > 1e-3


def test_a_document_does_not_depend_on_who_is_in_its_batch():
    tokens = documents()
    together = run(replace(LORA, batch=16, lanes=1), tokens)
    edges = [*starts_of(tokens[:-1]), len(tokens) - 1]
    # Every batch of this run is the first of its lane.
    for lora in (replace(LORA, batch=1, lanes=50), replace(LORA, batch=2, lanes=50)):
        alone = run(lora, tokens)
        first = [d for d, length in enumerate(LENGTHS) if length >= 30]
        for document in first:
            part = slice(edges[document], edges[document + 1])
            np.testing.assert_allclose(alone[part], together[part], atol=1e-9)


@pytest.mark.parametrize("phases", [0, 2])
def test_ranks_change_nothing(phases):
    lora = replace(LORA, phases=phases, prefix=6, base_rate=0.05, base_batch=96)
    tokens = documents()
    alone = run(lora, tokens)
    together = Ranks(2).run(lambda world: prepared(lora, tokens, world=world).run()[0][1].nats_N)
    for nats_N in together:
        np.testing.assert_allclose(nats_N, alone, atol=1e-5)
    assert not np.allclose(alone, run(replace(lora, lanes=1), tokens), atol=1e-3)


def test_b_begins_anew_and_a_stays_warm_within_its_lane():
    adapter, half = adapting(LORA, fresh_model()), 6
    one = prepared(LORA, documents(), model=adapter.context.model)
    one.adapter.restore()
    adapter = one.adapter
    lanes = {}
    for episode in one.schedule[0].episodes:
        adapter.begin(episode)
        down, up = adapter.tensors()[:half], adapter.tensors()[half:]
        assert all(bool((b == 0).all()) for b in up) and all(bool((v == 0).all()) for v in adapter.second)
        if episode.lane in lanes:
            assert all(torch.equal(a, b) for a, b in zip(down, lanes[episode.lane], strict=True))
        else:
            assert all(torch.equal(a, a[:, :1].expand_as(a)) for a in down)
        for later in episode.rounds:
            batch = one.collator.build(one.cuts(later.windows)[0])
            with torch.enable_grad():
                logp = one.commit(batch, one.ids_NK[batch.target_N].long(), False, adapter.tensors(), adapter.linear)
            before = [t.detach().clone() for t in adapter.tensors()]
            adapter.after_round(torch.where(batch.live_N, -logp[:, 0], 0.0), batch)
            number = list(episode.rounds).index(later) + 1
            going = len(episode.rounds[number].windows) if number < len(episode.rounds) else 0
            for was, now in zip(before, adapter.tensors(), strict=True):
                moved_B = (was != now).flatten(2).any(2).any(0)
                assert moved_B.tolist() == [row < going for row in range(LORA.batch)]
        lanes[episode.lane] = [a.detach().clone() for a in down]
    assert len(lanes) == 2


def test_batches_whose_documents_have_ended_shrink_and_score_the_same():
    lengths = (60, *range(11, 30))
    tokens, lora = documents(lengths), replace(LORA, batch=32, chunks=(), chunk=6, lanes=1)
    one = prepared(lora, tokens)
    rows = [one.cuts(later.windows)[0].shape[0] for later in one.schedule[0].episodes[0].rounds]
    assert (rows[0], rows[-1]) == (32, 8) and rows == sorted(rows)[::-1]
    many = run(lora, tokens)
    np.testing.assert_allclose(many, run(replace(lora, batch=20), tokens), atol=1e-9)
    np.testing.assert_allclose(many[:60], run(replace(lora, batch=1), tokens)[:60], atol=1e-9)


def test_it_gains_where_documents_repeat_themselves():
    tokens = documents((60, 70, 80, 90))
    lora = replace(LORA, rate=0.05, chunks=(), chunk=4, context=32)
    assert run(lora, tokens).mean() < 0.93 * run(replace(lora, rate=1e-12), tokens).mean()


def test_phases_of_sgd_are_one_pass_over_what_is_finished():
    lora = replace(LORA, phases=2, prefix=6, base_rate=0.05, base_batch=64, base_clip=0.5)
    tokens, model = documents(), fresh_model(dtype=torch.float32)
    one = prepared(lora, tokens, model=model)
    one.run()
    found = [p.detach().clone() for p in model.parameters()]
    one.adapter.restore()
    other = fresh_model(dtype=torch.float32)
    trainer, ids, steps = WeightTrainer(other, capability(CPU), World(0, 1, CPU), 0.9, 0.5), tokens.astype(np.int64), 0
    edges = [*starts_of(tokens[:-1]), len(tokens) - 1]
    for finished in (3, 6):
        done = sorted(np.argsort([-length for length in LENGTHS], kind="stable")[:finished].tolist())
        joined = np.concatenate([*(ids[edges[d] : edges[d + 1]] for d in done), ids[:1]])
        sequences = (len(joined) - 1) // 32
        x = torch.from_numpy(joined[: sequences * 32]).view(-1, 32)
        y = torch.from_numpy(joined[1 : sequences * 32 + 1]).view(-1, 32)
        count = math.ceil(sequences / 2)
        for velocity in trainer.velocity:
            velocity.zero_()
        for step in range(count):
            at = min(2 * step, sequences - 2)
            trainer.step(x[at : at + 2], y[at : at + 2], 0.05 * (1 + math.cos(math.pi * step / count)) / 2)
        steps += count
    assert one.adapter.summary()["base_steps"] == steps > 3
    for theirs, ours in zip(trainer.parameters, found, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("phases", [0, 2])
def test_the_weights_come_back_to_the_bit_and_can_be_trained_again(phases):
    model = fresh_model()
    before = {leaf.name: view.clone() for leaf, view in leaf_views(model)}
    one = prepared(replace(LORA, phases=phases, prefix=6, base_rate=0.05), documents(), model=model)
    one.run()
    now = {leaf.name: view for leaf, view in leaf_views(model)}
    assert all(torch.equal(now[name], before[name]) for name in before) == (phases == 0)
    one.adapter.restore()
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("phases", [0, 2])
def test_the_warm_up_learns_nothing_and_forecasts(phases):
    lora = replace(LORA, phases=phases, prefix=6, base_rate=0.05)
    one = prepared(lora, documents())
    assert one.warm_up() > 0
    one.run()
    np.testing.assert_array_equal(-one.logp_NK[: one.targets, 0].numpy(), run(lora, documents()))


def test_what_the_budget_leaves_over_is_scored_plainly():
    one = prepared(LORA, documents())
    one.evaluation = replace(one.evaluation, seconds=1e-9)
    one.warm_up()
    scored = one.run()[0][1]
    assert scored.facts["plainly_scored"] > 0 and np.isfinite(scored.nats_N).all()


def test_what_the_warm_up_has_compiled_serves_all_lengths_and_numbers_of_rows():
    node = replace(BASE, positions=(QKNorm(), Rotary()), layers=1, sequence=128, head=(FinalNorm(), TiedHead()))
    lora = replace(LORA, batch=16, lanes=1, context=128, chunk=24)
    tokens, graphs = documents((150, 100, *range(10, 25), *range(1, 9), *range(40, 60))), []
    one = prepared(lora, tokens, model=fresh_model(node, torch.float32))
    rounds = [later for episode in one.schedule[0].episodes for later in episode.rounds]
    shapes = {one.cuts(later.windows)[0].shape for later in rounds}
    assert shapes >= {(8, 64, 2), (8, 128, 24), (16, 64, 5)} and len(shapes) > 5

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    one.commit.commit = torch.compile(one.commit.commit, backend=backend, fullgraph=True)
    one.warm_up()
    compiled = len(graphs)
    one.run()
    assert compiled == len(graphs) == 3  # 8 rows, any number of them, and plain scoring
    eager = run(lora, tokens, model=fresh_model(node, torch.float32))
    np.testing.assert_allclose(-one.logp_NK[: one.targets, 0].numpy(), eager, atol=1e-3)


def test_a_layout_finds_every_use():
    layout = find_products(fresh_model(), ("query", "mlp", "head"))
    # Blocks 0, then 1 and 2 twice; the head once.
    assert layout.shapes == {"query": (5, 16, 16), "mlp": (5, 16, 16), "head": (1, VOCAB, 16)}
    assert layout.sources == {f"blocks.{i}.mlp.up": f"blocks.{i}.mlp.down" for i in range(3)}


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"rank": 0}, "rank is 0"), ({"rate": 0.0}, "rate is 0"), ({"betas": (0.0, 1.0)}, "betas"), ({"decay": -1}, "decay"),
        ({"targets": ("query", "queries")}, "queries"), ({"targets": ()}, "nothing"), ({"context": 40}, "largest chunk, 48"),
        ({"chunks": ((200, 8), (100, 4))}, "shortest first"), ({"phases": 3, "prefix": 2}, "prefix is 2"),
        ({"base_clip": 0.0}, "base_clip is 0"), ({"lanes": 0}, "lanes is 0"), ({"base_momentum": 1.0}, "base_momentum 1"),
    ],
)  # fmt: skip
def test_a_senseless_value_is_one_line(fields, named):
    with pytest.raises(Problem, match=named) as raised:
        DocumentLoRA(**fields)
    assert "\n" not in str(raised.value)


def test_what_the_model_or_the_stream_cannot_give_is_one_line():
    model = fresh_model()
    with pytest.raises(Problem, match="context is 33, longer than"):
        adapting(replace(LORA, context=33), model)
    with pytest.raises(Problem, match="targets names head, of which the model has none"):
        adapting(LORA, randomise(replace(NODE, head=(FinalNorm(),)).build()))
    with pytest.raises(Problem, match="the stream has 11 documents"):
        prepared(replace(LORA, phases=1, prefix=11), documents())
