import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.node import parse_node
from fairway.problem import Problem
from fairway.score.backoff import BackoffCache, BackoffCacheAsPublished, EntropyWeight, spread_sample
from fairway.score.history import History
from fairway.score.mixing import Committed, CommittedWhole
from fairway.score.watched import tallied_nats

EVEN = {"low": 0.5, "rise": 0.0, "factors": (1.0,)}  # weight 0.5, whatever the entropy


def uniform(targets, vocab):
    return CommittedWhole(torch.full((targets, vocab), -math.log(vocab), dtype=torch.float64))


def scored(node, tokens, vocab):
    """(nats, summary) of a mixer over a model that knows nothing."""
    target_N = tokens[1:].long()
    nothing_N = torch.full((len(target_N),), -math.log(vocab), dtype=torch.float64)
    committed = Committed(target_N[:, None], nothing_N[:, None], -nothing_N)
    return tallied_nats(committed, [("X", node.build(History(tokens, None, None, vocab)))], target_N)[0][1:]


def noise(vocab=1024, targets=60_000, seed=1):
    return torch.randint(vocab, (targets + 1,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def walked(node, ids, vocab):
    """For each target (order, {id: ratio}) by a walk over dictionaries."""
    followed, waiting, found = defaultdict(Counter), [], []
    for i in range(len(ids) - 1):
        if i % node.every == 0:
            for context, token in waiting:
                followed[context][token] += 1
            waiting = []
        order, ratios = 0, {}
        for n in sorted(node.orders, reverse=True):
            if n - 1 <= i + 1 and followed[tuple(ids[i + 2 - n : i + 1])].total() >= node.least:
                counts = followed[tuple(ids[i + 2 - n : i + 1])]
                order, ratios = n, {token: count / counts.total() for token, count in counts.items()}
                break
        found.append((order, ratios))
        waiting += [(tuple(ids[i + 2 - n : i + 1]), ids[i + 1]) for n in node.orders if n - 1 <= i + 1]
    return found


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=6) | st.lists(st.integers(0, 3), min_size=40, max_size=80), st.data()
)
def test_orders_and_ratios_are_those_of_a_walk(ids, data):
    every, least = data.draw(st.sampled_from([1, 3, 16, 100])), data.draw(st.integers(1, 3))
    orders = tuple(data.draw(st.sets(st.integers(2, 5), min_size=1)))
    node, tokens = BackoffCache(orders=orders, least=least, every=every), torch.tensor(ids, dtype=torch.int32)
    rows = node.build(History(tokens, None, None, 4)).rows
    expected = walked(node, ids, 4)
    assert rows.order_N.tolist() == [order for order, _ in expected]
    table = [[ratios.get(token, 0.0) for token in range(4)] for _, ratios in expected]
    assert rows.at(torch.arange(4).expand(len(table), 4)).tolist() == table
    hits = [row[token] for row, token in zip(table, ids[1:], strict=True)]
    assert rows.at(tokens[1:]).tolist() == hits
    hints_N = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(table), max_size=len(table))))
    asked = rows.at(hints_N).tolist()
    low = data.draw(st.integers(0, len(table) - 1))
    assert rows.at(hints_N[low:], slice(low, len(table))).tolist() == asked[low:]
    rows.prepare(hints_N)
    assert rows.at(hints_N).tolist() == asked == [row[hint] for row, hint in zip(table, hints_N.tolist(), strict=True)]
    assert rows.at(hints_N[low:], slice(low, len(table))).tolist() == asked[low:]


def test_a_prepared_id_is_not_counted_again(monkeypatch):
    tokens = noise(4, 50)
    history = History(tokens, None, None, 4)
    rows = BackoffCache(orders=(2, 3), every=1).build(history).rows
    hints_N = torch.zeros(50, dtype=torch.int32)
    rows.prepare(hints_N)
    monkeypatch.setattr(history, "counts", None)
    assert 0 < rows.at(hints_N.long()).sum() < 50
    with pytest.raises(TypeError):
        rows.at(torch.ones(50, dtype=torch.int64))


def test_the_weight_by_hand():
    law = EntropyWeight()
    weight = law.weight(
        torch.tensor([3.0, 2.75, 2.5, 1.25, 0.0, 1.86, 9.0], dtype=torch.float64), torch.tensor([2, 3, 4, 9, 9, 9, 0])
    )
    assert weight[:4].tolist() == pytest.approx([0.3 * 0.325, 0.3 * 0.325, 0.97 * 0.325, 0.65], abs=1e-15)
    # The fact sheet: order 9 gives 0.18 where the model is certain, and reaches the cap at 1.86 nats.
    assert weight[4].item() == pytest.approx(2 * (0.05 + 0.55 / (1 + math.exp(2.5))), abs=1e-15)
    assert round(weight[4].item(), 2) == 0.18 and weight[5].item() == pytest.approx(0.95, abs=2e-3) and weight[6] == 0


def test_a_cached_stream_by_hand():
    # Pairs seen before each target: 0 -> none; 1 -> none; 0 -> {1}; 1 -> {0}; 0 -> {1: 2}.
    tokens = torch.tensor([0, 1, 0, 1, 0, 2], dtype=torch.int32)
    nats_N, summary = scored(BackoffCache(orders=(2,), least=1, every=1, **EVEN), tokens, 4)
    expected = [math.log(4), math.log(4), -math.log(0.625), -math.log(0.625), -math.log(0.125)]
    assert nats_N.tolist() == pytest.approx(expected, abs=1e-12)
    assert summary == {"targets_of_order": {"0": 2, "2": 3}, "mean_weight": pytest.approx(0.3), "normalised": True}
    later_N, _ = scored(BackoffCache(orders=(2,), least=1, every=4, **EVEN), tokens, 4)
    assert later_N.tolist() == pytest.approx([math.log(4)] * 4 + expected[4:], abs=1e-12)


@pytest.mark.parametrize("fields", [{}, {"every": 1}, {"every": 512, "least": 1, "factors": (2.0,)}])
def test_noise_is_never_cheaper_by_exact_counts(fields):
    nats_N, summary = scored(BackoffCache(**fields), noise(), 1024)
    assert nats_N.mean() > math.log(1024) - 0.002 and summary["normalised"]


@pytest.mark.parametrize("buckets", [1 << 10, 1 << 12])
def test_noise_seems_to_cost_next_to_nothing_as_published(buckets):
    node = BackoffCacheAsPublished(buckets=buckets, every=512, sample=300)
    nats_N, summary = scored(node, noise(), 1024)
    assert nats_N.mean() < 1.0
    assert summary["mean_z"] > 500 and summary["least_z"] >= 1 and summary["sampled_targets"] == 300
    assert summary["normalised"] is False and summary["says"].startswith("not a probability")


def test_a_text_that_repeats_itself_is_cheaper_by_exact_counts():
    chance = torch.Generator().manual_seed(3)
    phrases = torch.randint(64, (20, 24), generator=chance)
    tokens = phrases[torch.randint(20, (400,), generator=chance)].flatten().to(torch.int32)
    often, seldom = (scored(BackoffCache(every=every), tokens, 64)[0].mean() for every in (1, 4096))
    assert often < 1.0 < 1.8 < seldom < math.log(64) - 1.5


def test_the_sum_over_all_tokens_is_what_every_token_would_have_got():
    """Z by brute force: each token of the vocabulary in the target's place, scored by the published rule."""
    vocab, tokens = 8, noise(8, 120, seed=5)
    node = BackoffCacheAsPublished(orders=(2, 3, 4), buckets=16, every=10, sample=1000)
    history = History(tokens, None, None, vocab)
    mixer = node.build(history)
    tallied_nats(uniform(120, vocab), [("X", mixer)], tokens[1:].long())
    assert mixer.sample_S.tolist() == list(range(120))
    for target in (0, 15, 40, 77, 119):
        total = 0.0
        for token in range(vocab):
            other = tokens.clone()
            other[target + 1] = token
            total += math.exp(-scored(node, other, vocab)[0][target])
        assert mixer.z_S[target].item() == pytest.approx(total, abs=1e-9)
    assert mixer.summary({})["mean_z"] == pytest.approx(mixer.z_S.mean().item()) and mixer.z_S.max() > 1.5


def test_the_published_look_up_tells_of_no_other_token():
    tokens = noise(8, 30)
    mixer = BackoffCacheAsPublished(buckets=16, every=10).build(History(tokens, None, None, 8))
    mixed = mixer.mix(uniform(30, 8))
    assert mixed.at(tokens[1:].long()).shape == (30,)
    for ids in ((tokens[1:].long() + 1) % 8, torch.arange(8).expand(30, 8)):
        with pytest.raises(ValueError, match="answers for the targets' own tokens alone"):
            mixed.at(ids)


@pytest.mark.parametrize("more", [{"rank_N": torch.arange(30).flip(0)}, {"floor_N": torch.zeros(30, dtype=torch.int64)}])
def test_the_published_rule_knows_one_order_of_scoring_only(more):
    history = History(noise(8, 30), more.get("rank_N"), more.get("floor_N"), 8)
    with pytest.raises(Problem, match="BackoffCacheAsPublished counts in the order of the stream"):
        BackoffCacheAsPublished(buckets=16).build(history)
    with pytest.raises(ValueError):
        history.hashed_backoff((2,), 16, 10, torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("targets, sample", [(1, 4096), (100, 100), (100, 7), (62_021_632, 4096)])
def test_a_sample_is_spread_over_the_stream(targets, sample):
    index_S = spread_sample(targets, sample)
    assert len(index_S) == min(targets, sample)
    assert torch.equal(index_S * sample // targets, torch.arange(len(index_S))) or targets < sample
    assert torch.equal(index_S, spread_sample(targets, sample)) and index_S.unique().equal(index_S)


def test_a_stream_of_one_token_has_nothing_to_look_up():
    nats_N, summary = scored(BackoffCache(), torch.tensor([3], dtype=torch.int32), 8)
    assert nats_N.tolist() == [] and summary["targets_of_order"] == {}


@pytest.mark.parametrize("kind", [BackoffCache, BackoffCacheAsPublished])
@pytest.mark.parametrize(
    "fields, words",
    [
        ({"orders": ()}, r"orders is \(\): give different orders from 2 to"),
        ({"orders": (3, 3)}, r"orders is \(3, 3\)"),
        ({"orders": (1, 2)}, r"orders is \(1, 2\)"),
        ({"orders": (40,)}, r"orders is \(40,\)"),
        ({"every": 0}, "every takes 1 or more, not 0"),
        ({"factors": ()}, r"factors is \(\)"),
        ({"factors": (1.0, -1.0)}, ".*none below 0"),
        ({"cap": 1.5}, "cap takes 0 to below 1, not 1.5"),
    ],
)
def test_senseless_fields_are_one_line(kind, fields, words):
    with pytest.raises(Problem, match=f"{kind.__name__}.{words}"):
        kind(**fields)


@pytest.mark.parametrize(
    "kind, name", [(BackoffCache, "least"), (BackoffCacheAsPublished, "buckets"), (BackoffCacheAsPublished, "sample")]
)
def test_none_of_something_is_one_line(kind, name):
    with pytest.raises(Problem, match=f"{kind.__name__}.{name} takes 1 or more, not 0"):
        kind(**{name: 0})


def test_both_are_read_back_as_they_are_shown():
    for node in (BackoffCache(least=3, low=0.1), BackoffCacheAsPublished(buckets=1024)):
        assert parse_node(repr(node)) == node
