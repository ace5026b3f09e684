import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairway.kernels.ngram import (
    HASH_PRIMES,
    ContextCounts,
    continuations,
    continuations_of_lengths,
    hashed_backoff,
    reference_continuations,
    reference_counts,
)
from fairway.kernels.ngram_groups import context_classes, grouped

FIELDS = ("best_N", "best_count_N", "count_N")


@st.composite
def streams(draw, longest=60):
    """tokens, rank_N, floor_N: few different tokens, so that contexts come again; at times the greatest ids there are."""
    size = draw(st.integers(0, longest))
    kinds = draw(st.integers(1, 4))
    tokens = torch.tensor(draw(st.lists(st.integers(0, kinds - 1), min_size=size, max_size=size)), dtype=torch.int64)
    if draw(st.booleans()):
        tokens = 65535 - tokens
    tokens = tokens.to(draw(st.sampled_from([torch.int32, torch.int64])))
    targets = max(size - 1, 0)
    rank_N = floor_N = None
    if draw(st.booleans()):
        rank_N = torch.tensor(draw(st.permutations(range(targets))), dtype=torch.int64)
    if draw(st.booleans()):
        floors = st.lists(st.integers(0, max(targets, 1)), min_size=targets, max_size=targets)
        floor_N = torch.tensor(draw(floors), dtype=torch.int64)
    return tokens, rank_N, floor_N


def equal_continuations(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def test_the_best_continuation_is_the_first_to_reach_the_highest_count():
    # After 0 come 1, 2, 2, 1, 1: 2 passes 1 when it is there twice, 1 draws level without effect and passes with its third.
    tokens = torch.tensor([0, 1, 0, 2, 0, 2, 0, 1, 0, 1, 0, 3])
    found = continuations(tokens, 1)
    assert found.best_N[::2].tolist() == [-1, 1, 1, 2, 2, 1]
    assert found.best_count_N[::2].tolist() == [0, 1, 1, 2, 2, 3]
    assert found.count_N[::2].tolist() == [0, 1, 2, 3, 4, 5]
    assert all(getattr(found, name).dtype == torch.int32 for name in FIELDS)
    assert equal_continuations(found, reference_continuations(tokens, 1))


@settings(max_examples=150, deadline=None)
@given(stream=streams(), length=st.integers(1, 16))
@example(stream=(torch.zeros(0, dtype=torch.int64), None, None), length=1)
@example(stream=(torch.zeros(1, dtype=torch.int64), None, None), length=1)
@example(stream=(torch.zeros(50, dtype=torch.int32), None, None), length=16)
def test_continuations_are_those_of_the_walk_over_dictionaries(stream, length):
    tokens, rank_N, floor_N = stream
    before = tokens.clone()
    assert equal_continuations(
        continuations(tokens, length, rank_N, floor_N), reference_continuations(tokens, length, rank_N, floor_N)
    )
    assert torch.equal(tokens, before)


@settings(max_examples=60, deadline=None)
@given(stream=streams(), lengths=st.lists(st.integers(1, 16), min_size=1, max_size=6))
def test_lengths_at_once_are_the_lengths_one_by_one_ascending(stream, lengths):
    tokens, rank_N, floor_N = stream
    found = list(continuations_of_lengths(tokens, lengths, rank_N, floor_N))
    assert [length for length, _ in found] == sorted(set(lengths))
    for length, one in found:
        assert equal_continuations(one, reference_continuations(tokens, length, rank_N, floor_N))


@settings(max_examples=150, deadline=None)
@given(stream=streams(), length=st.integers(1, 8), every=st.sampled_from([1, 3, 64, None]))
@example(stream=(torch.zeros(0, dtype=torch.int64), None, None), length=1, every=1)
@example(stream=(torch.zeros(1, dtype=torch.int64), None, None), length=1, every=1)
def test_counts_are_those_of_the_walk_over_dictionaries(stream, length, every):
    tokens, rank_N, floor_N = stream
    targets = max(len(tokens) - 1, 0)
    every = every or targets + 5
    counts = ContextCounts(tokens, length, rank_N, floor_N, every)
    following = reference_counts(tokens, length, rank_N, floor_N, every)
    assert counts.context_N.tolist() == [one.total() for one in following]
    assert counts.of_targets().tolist() == [one[token] for one, token in zip(following, tokens[1:].tolist(), strict=True)]
    ids_K = torch.cat([tokens.unique().long(), torch.tensor([9, 65536, 1 << 40])])
    index_P = torch.arange(targets).flip(0)
    of_PK = counts.of(index_P, ids_K.expand(targets, -1))
    assert of_PK.tolist() == [[following[i][one] for one in ids_K.tolist()] for i in index_P.tolist()]
    assert torch.equal(of_PK.sum(1).int(), counts.context_N.flip(0))
    assert {part.dtype for part in (of_PK, counts.context_N, counts.of_targets())} == {torch.int32}


def test_a_greater_stream_with_every_rank_moved_agrees_too():
    generator = torch.Generator().manual_seed(5)
    tokens = (torch.rand(4000, generator=generator) ** 4 * 7).int()
    rank_N = torch.randperm(3999, generator=generator)
    floor_N = torch.arange(3999) // 500 * 500
    for length in (1, 3, 6, 11):
        assert equal_continuations(
            continuations(tokens, length, rank_N, floor_N), reference_continuations(tokens, length, rank_N, floor_N)
        )
        counts = ContextCounts(tokens, length, rank_N, floor_N, 64)
        following = reference_counts(tokens, length, rank_N, floor_N, 64)
        assert counts.context_N.tolist() == [one.total() for one in following]
        assert counts.of_targets().tolist() == [
            one[token] for one, token in zip(following, tokens[1:].tolist(), strict=True)
        ]


@settings(max_examples=60, deadline=None)
@given(stream=streams(), length=st.integers(1, 5), every=st.sampled_from([1, 3]), data=st.data())
def test_what_is_scored_later_changes_nothing_for_what_is_scored_before(stream, length, every, data):
    tokens, rank_N, floor_N = stream
    if len(tokens) < 2:
        return
    rank_N = torch.arange(len(tokens) - 1) if rank_N is None else rank_N
    at = data.draw(st.integers(0, len(rank_N) - 1))
    # A token is also the input of the target after it, so only tokens that no earlier target reads may change freely.
    read = {j for i in range(len(rank_N)) if rank_N[i] <= rank_N[at] for j in range(i - length + 1, i + 1)}
    read |= {i + 1 for i in range(len(rank_N)) if rank_N[i] < rank_N[at]}
    changed = tokens.clone()
    for j in range(len(tokens)):
        if j not in read:
            changed[j] = data.draw(st.integers(0, 70000))
    seen = rank_N <= rank_N[at]
    one, other = (continuations(what, length, rank_N, floor_N) for what in (tokens, changed))
    assert all(torch.equal(getattr(one, name)[seen], getattr(other, name)[seen]) for name in FIELDS)
    one, other = (ContextCounts(what, length, rank_N, floor_N, every) for what in (tokens, changed))
    assert torch.equal(one.context_N[seen], other.context_N[seen])
    index_P = seen.nonzero().flatten()
    ids_PK = tokens.unique().long().expand(len(index_P), -1)
    assert torch.equal(one.of(index_P, ids_PK), other.of(index_P, ids_PK))


@settings(max_examples=60, deadline=None)
@given(stream=streams(), data=st.data())
def test_everything_after_a_target_can_change_where_text_is_scored_as_it_stands(stream, data):
    tokens = stream[0]
    if len(tokens) < 2:
        return
    at = data.draw(st.integers(0, len(tokens) - 2))
    changed = torch.cat([tokens[: at + 1], torch.full_like(tokens[at + 1 :], data.draw(st.integers(0, 65535)))])
    for (_, one), (_, other) in zip(
        *(continuations_of_lengths(what, [1, 2, 5, 9]) for what in (tokens, changed)), strict=True
    ):
        assert all(torch.equal(getattr(one, name)[: at + 1], getattr(other, name)[: at + 1]) for name in FIELDS)


@pytest.mark.parametrize("length", [1, 3, 4, 7, 16])
def test_contexts_with_the_greatest_ids_are_told_apart_by_each_of_their_tokens(length):
    """Ids of 16 bits, three to a key: each context differs from the first in one place, by its highest or lowest bit."""
    first = [65535] * length
    tokens = []
    for place in range(length):
        for flip in (1, 32768):
            tokens += [*first[:place], 65535 ^ flip, *first[place + 1 :], 7]
    tokens = torch.tensor([*tokens, *tokens])
    ((_, class_N),) = context_classes(tokens, [length])
    ends = torch.arange(length - 1, 2 * length * (length + 1), length + 1)
    assert len(class_N[ends].unique()) == 2 * length
    assert torch.equal(class_N[ends], class_N[ends + 2 * length * (length + 1)])
    assert equal_continuations(continuations(tokens, length), reference_continuations(tokens, length))


def test_keys_are_sorted_stably_and_groups_marked():
    order_M, first_M = grouped(torch.tensor([5, 1 << 62, 5, 0, 1 << 62]))
    assert order_M.tolist() == [3, 0, 2, 1, 4]
    assert first_M.tolist() == [True, True, False, True, False]


def test_senseless_arguments_are_named():
    tokens = torch.tensor([0, 1, 0, 1])
    for call, words in [
        (lambda: continuations(tokens, 0), "length 0"),
        (lambda: continuations(tokens.float(), 1), "integers"),
        (lambda: continuations(-tokens, 1), "-1 is negative"),
        (lambda: continuations(tokens, 1, torch.tensor([0, 1, 1])), "no permutation"),
        (lambda: continuations(tokens, 1, torch.tensor([0, 1, 3])), "no permutation"),
        (lambda: continuations(tokens, 1, torch.tensor([0, 1])), "3 targets"),
        (lambda: ContextCounts(tokens, 1, every=0), "epoch of 0"),
        (lambda: hashed_backoff(tokens, (2, 10), 8, 1, 2, []), "primes for 2 to 9"),
        (lambda: hashed_backoff(tokens, (2,), 8, 0, 2, []), "0 targets at a time"),
        (lambda: hashed_backoff(tokens, (2,), 8, 1, 2, [0, 3]), "0..3, there are 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def literal_backoff(tokens, orders, buckets, every, vocab):
    """Ratio, order and total of every target, one at a time, as #864's rule reads. p: the place of the target's token."""
    stream = tokens.tolist()
    contexts, pairs = ({order: [0] * buckets for order in orders} for _ in range(2))
    rows, waiting = [], []

    def slots(p, order, token):
        key = 0
        for k in range(order - 1):
            key ^= stream[p - (order - 1) + k] * HASH_PRIMES[k]
        return key % buckets, (key ^ token * HASH_PRIMES[order - 1]) % buckets

    def ratio(p, order, token):
        context, pair = slots(p, order, token)
        return min(pairs[order][pair], contexts[order][context]) / contexts[order][context]

    for p in range(1, len(stream)):
        if (p - 1) % every == 0:
            for order, (context, pair) in waiting:
                contexts[order][context] += 1
                pairs[order][pair] += 1
            waiting = []
        row = (0.0, 0, 0.0)
        for order in sorted(orders, reverse=True):
            if p >= order - 1 and contexts[order][slots(p, order, 0)[0]] >= 2:
                row = ratio(p, order, stream[p]), order, sum(ratio(p, order, token) for token in range(vocab))
                break
        rows.append(row)
        waiting += [(order, slots(p, order, stream[p])) for order in orders if p >= order - 1]
    return rows


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 150),
    orders=st.sampled_from([(2,), (3,), (2, 3, 4, 5, 6, 7, 8, 9), (9, 4, 2)]),
    buckets=st.sampled_from([1, 7, 16, 64, 1 << 14]),
    every=st.sampled_from([1, 3, 16, 1000]),
    seed=st.integers(0, 1 << 30),
)
@example(size=150, orders=(2, 3, 4, 5, 6, 7, 8, 9), buckets=16, every=3, seed=0)
def test_the_hashed_look_up_is_the_published_rule_read_literally(size, orders, buckets, every, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, (size,), generator=generator, dtype=torch.int32)
    targets = max(size - 1, 0)
    sampled = torch.randint(max(targets, 1), (min(targets, 40),), generator=generator)
    found = hashed_backoff(tokens, orders, buckets, every, 5, sampled)
    rows = literal_backoff(tokens, orders, buckets, every, 5)
    assert found.ratio_N.tolist() == [row[0] for row in rows]
    assert found.order_N.tolist() == [row[1] for row in rows]
    assert found.total_S.tolist() == pytest.approx([rows[i][2] for i in sampled.tolist()], rel=1e-12)


def test_full_tables_grant_noise_a_ratio_near_one_and_every_token_with_it():
    tokens = torch.randint(1024, (40_000,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    found = hashed_backoff(tokens, range(2, 10), 1024, 512, 1024, torch.arange(39_000, 39_064))
    assert float(found.ratio_N[-1000:].mean()) > 0.8
    assert float(found.total_S.min()) > 500
    exact = ContextCounts(tokens, 2)
    assert float((exact.of_targets()[-1000:] / exact.context_N[-1000:].clamp(min=1)).mean()) < 0.1
