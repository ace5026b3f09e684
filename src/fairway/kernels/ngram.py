"""Exact causal statistics of a token stream's n-grams, and the hashed cache that was once published in their place.

N targets: target i is token i + 1 of tokens [N + 1], its context of length k is tokens i - k + 1..i. M occurrences of
contexts that stand more than once, P and K of a question, S sampled targets, V vocabulary.

rank_N (None: as they stand) is each target's place in the order of scoring, a permutation of 0..N - 1; floor_N (None: zeros)
the first token that may stand in its context: contexts that reach beyond it do not exist. What is said of a target follows
from targets of a smaller rank and their contexts of that length. Counts are exact: contexts are told apart by their tokens
(kernels/ngram_groups.py), never by a hash. All run where the tokens are, without a loop over targets.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from .ngram_groups import (
    Occurrences,
    context_classes,
    group_of,
    grouped,
    occurrences,
    scoring_order,
    since_first,
    token_bits,
)


@dataclass(frozen=True, eq=False)
class Continuations:
    """What followed each target's context before, int32 [N].

    best_N: the token that was the first to have followed as often as any; -1 where the context is new or does not exist.
    best_count_N: how often it followed. count_N: how often the context stood.
    """

    best_N: torch.Tensor
    best_count_N: torch.Tensor
    count_N: torch.Tensor


def continuations(tokens, length, rank_N=None, floor_N=None):
    """The Continuations of contexts of one length: `tokens` int [N + 1].

    The best one by #1514's rule: at each occurrence the token's count rises by one, and a token takes the place of the
    best only when its count is greater. ValueError for senseless arguments.
    """
    return next(continuations_of_lengths(tokens, [length], rank_N, floor_N))[1]


def continuations_of_lengths(tokens, lengths, rank_N=None, floor_N=None):
    """Yields (length, Continuations), lengths ascending, each once; longer contexts are built from the shorter."""
    order_N = scoring_order(rank_N, max(len(tokens) - 1, 0))
    bits = token_bits(tokens)
    for length, class_N in context_classes(tokens, lengths):
        found = occurrences(class_N, length, order_N, floor_N)
        del class_N
        yield length, _followed(tokens, bits, found)


def _followed(tokens, bits, found):
    """The Continuations of all targets from the Occurrences of one length.

    A token's count rises by one at a time, so an occurrence sets a record, a count that no token had in its group, exactly
    when it is the group's first with its count; and the record's token is the best until the next record.
    """
    first_M = found.first_M
    before_M = _times_before(found, tokens, bits)
    place_M = torch.arange(len(first_M), dtype=torch.int32, device=tokens.device)
    count_M = since_first(first_M)
    # A group with c occurrences has counts up to c: count n of it gets the n-th of the group's own places.
    slot_M = (place_M - count_M).add_(before_M).long()
    count_N = found.spread(count_M, 0)
    del count_M
    earliest_M = torch.full_like(place_M, len(first_M)).scatter_reduce_(0, slot_M, place_M, "amin")
    record_M = earliest_M[slot_M] == place_M
    del slot_M, earliest_M, place_M
    token_R = tokens[1:].index_select(0, found.target_M[record_M]).int()
    times_R = before_M[record_M].add_(1)
    del before_M
    last_M = group_of(record_M)
    del record_M
    best_N = found.spread(_of_last_record(token_R, last_M, first_M, -1), -1)
    best_count_M = _of_last_record(times_R, last_M, first_M, 0)
    del token_R, times_R, last_M
    return Continuations(best_N, found.spread(best_count_M, 0), count_N)


def _of_last_record(value_R, last_M, first_M, fill):
    """What the last record before each occurrence has, int32 [M]; `fill` where the group has none yet."""
    value_M = torch.full_like(last_M, fill)
    value_M[1:] = value_R.index_select(0, last_M[:-1])
    return value_M.masked_fill_(first_M, fill)


def _pairs(found, tokens, bits):
    """Sorts the Occurrences by group, then target's token, then order of scoring: order_M, first_M of each such pair."""
    key_M = group_of(found.first_M).long()
    key_M <<= bits
    key_M |= tokens[1:].index_select(0, found.target_M)
    return grouped(key_M)


def _times_before(found, tokens, bits):
    """int32 [M]: how often each occurrence's token has followed in its group before."""
    order_M, first_M = _pairs(found, tokens, bits)
    before_M = since_first(first_M)
    return torch.empty_like(before_M).index_copy_(0, order_M, before_M)


class ContextCounts:
    """How often each target's context of one length stood before, and what followed it then.

    Before means in an earlier epoch: an epoch is `every` targets one after the other in the order of scoring, all of which
    see the same counts. ValueError for senseless arguments.

    context_N int32: occurrences of the target's context; 0 where it is new or does not exist.
    """

    def __init__(self, tokens, length, rank_N=None, floor_N=None, every=1):
        if every < 1:
            raise ValueError(f"an epoch of {every} targets: it takes 1 or more")
        targets = max(len(tokens) - 1, 0)
        order_N = scoring_order(rank_N, targets)
        self._bits, self._every, self._rank_N = token_bits(tokens), every, rank_N
        ((_, class_N),) = context_classes(tokens, [length])
        found = occurrences(class_N, length, order_N, floor_N)
        del class_N, order_N
        group_M = group_of(found.first_M)
        self._group_N = found.spread(group_M, -1)
        rank_M = (found.target_M if rank_N is None else rank_N.index_select(0, found.target_M)).int()
        self.context_N = found.spread(self._earlier(found.first_M, rank_M), 0)
        order_M, first_M = _pairs(found, tokens, self._bits)
        self._rank_M = rank_M.index_select(0, order_M)
        found = Occurrences(found.target_M.index_select(0, order_M), first_M, targets)
        self._of_targets_N = found.spread(self._earlier(first_M, self._rank_M), 0)
        # Sorted by pair and then by rank: what followed a context, where arbitrary questions are looked up.
        self._pair_M = group_M.index_select(0, order_M).long() << self._bits
        self._pair_M |= tokens[1:].index_select(0, found.target_M)

    def _earlier(self, first_M, rank_M):
        """int32 [M]: how many elements of its group are of an earlier epoch, groups being in the order of rank."""
        epoch_M = rank_M // self._every
        fresh_M = first_M.clone()
        fresh_M[1:] |= epoch_M[1:] != epoch_M[:-1]
        return since_first(first_M) - since_first(fresh_M)

    def of_targets(self):
        """int32 [N]: occurrences among context_N's that the target's own token followed."""
        return self._of_targets_N

    def of(self, index_P, ids_PK):
        """int32 [P, K]: occurrences among those that context_N counts for targets index_P that tokens ids_PK followed.

        The counts of all V tokens sum to context_N. Takes memory for P * K numbers, and log2 N looks at each.
        """
        group_P = self._group_N[index_P].long()
        known_PK = (group_P[:, None] >= 0) & (ids_PK >= 0) & (ids_PK < 1 << self._bits)
        pair_PK = torch.where(known_PK, (group_P[:, None] << self._bits) + ids_PK, -1)
        low_PK, high_PK = (torch.searchsorted(self._pair_M, pair_PK, right=right) for right in (False, True))
        begin_PK = low_PK
        rank_P = index_P if self._rank_N is None else self._rank_N[index_P]
        limit_P1 = (rank_P // self._every * self._every)[:, None]
        longest = int((high_PK - low_PK).max()) if low_PK.numel() else 0
        for _ in range(longest.bit_length()):  # bisects [low, high): the first that is not of an earlier epoch
            middle_PK = (low_PK + high_PK) // 2
            inside_PK = low_PK < high_PK
            earlier_PK = inside_PK & (self._rank_M[middle_PK.clamp(max=len(self._rank_M) - 1)] < limit_P1)
            low_PK = torch.where(earlier_PK, middle_PK + 1, low_PK)
            high_PK = torch.where(inside_PK & ~earlier_PK, middle_PK, high_PK)
        return (low_PK - begin_PK).int()


@dataclass(frozen=True, eq=False)
class HashedBackoff:
    """The look-ups of #864: ratio_N float64, 0 where no order matched; order_N int8, the one that did, or 0.

    total_S float64: the ratios that all V tokens would have got at the sampled targets, summed; 1 were they probabilities.
    """

    ratio_N: torch.Tensor
    order_N: torch.Tensor
    total_S: torch.Tensor


HASH_PRIMES = (36313, 27191, 51647, 81929, 131071, 174763, 233017, 283721, 347237)  # of #864
LEAST_MATCH = 2  # how often a context's bucket must have been hit


def hashed_backoff(tokens, orders, buckets, every, vocab, sampled):
    """The HashedBackoff of `tokens` int [N + 1], as #864 published it: a ratio of two hashed counts, no probability.

    For each order n two tables of `buckets` counts, of hashed contexts (n - 1 tokens) and of contexts with the target hashed
    in. They collide on their own, so that once they are full any target finds both of its buckets hit: the ratio then says
    how full the tables are, not what followed. Highest order first; tables learn after each `every` targets, in the stream's
    order. `sampled`: int64 [S] targets. ValueError for orders outside of 2..9, which have no primes.
    """
    if not set(orders) <= set(range(2, len(HASH_PRIMES) + 1)):
        raise ValueError(f"orders {tuple(orders)}: #864 names primes for 2 to {len(HASH_PRIMES)}")
    if min(buckets, every) < 1:
        raise ValueError(f"{buckets} buckets, {every} targets at a time: both take 1 or more")
    targets, device = max(len(tokens) - 1, 0), tokens.device
    falling = sorted(set(orders), reverse=True)
    tables = {order: torch.zeros(2, buckets, dtype=torch.int32, device=device) for order in falling}
    ratio_N = torch.zeros(targets, dtype=torch.float64, device=device)
    order_N = torch.zeros(targets, dtype=torch.int8, device=device)
    asked_S, place_S = torch.as_tensor(sampled, dtype=torch.int64).to(device).sort()
    total_S = torch.zeros(len(asked_S), dtype=torch.float64, device=device)
    if len(asked_S) and not 0 <= int(asked_S[0]) <= int(asked_S[-1]) < targets:
        raise ValueError(f"sampled targets {int(asked_S[0])}..{int(asked_S[-1])}, there are {targets}")
    lows = range(0, targets, every)
    cuts = torch.searchsorted(asked_S, torch.tensor([*lows, targets], device=device)).tolist()
    for low, one, other in zip(lows, cuts, cuts[1:], strict=False):
        for order, table_2B in tables.items():
            first, high = max(low, order - 2), min(low + every, targets)  # the first target with a whole context
            if first >= high:
                continue
            context_C = _hashed_contexts(tokens, order, first, high)
            slot_2C = (
                torch.stack([context_C, context_C ^ tokens[first + 1 : high + 1].long() * HASH_PRIMES[order - 1]]) % buckets
            )
            count_C, hits_C = table_2B.gather(1, slot_2C)
            take_C = (count_C >= LEAST_MATCH) & (order_N[first:high] == 0)
            order_N[first:high].masked_fill_(take_C, order)
            ratio_C = torch.minimum(hits_C, count_C).double() / count_C
            ratio_N[first:high] = torch.where(take_C, ratio_C, ratio_N[first:high])
            if one < other:
                mine_S = (order_N[asked_S[one:other]] == order).nonzero().flatten() + one
                at_S = asked_S[mine_S] - first
                total_S[mine_S] = _total_ratio(context_C[at_S], count_C[at_S], table_2B[1], order, vocab)
            table_2B.scatter_add_(1, slot_2C, torch.ones_like(slot_2C, dtype=torch.int32))
    return HashedBackoff(ratio_N, order_N, torch.empty_like(total_S).index_copy_(0, place_S, total_S))


def _hashed_contexts(tokens, order, first, high):
    """int64 [high - first]: #864's hash of the contexts of targets first..high - 1; the oldest token has the first prime."""
    hash_C = torch.zeros(high - first, dtype=torch.int64, device=tokens.device)
    for back, prime in zip(range(order - 2, -1, -1), HASH_PRIMES, strict=False):
        hash_C ^= tokens[first - back : high - back].long() * prime
    return hash_C


def _total_ratio(context_S, count_S, hits_B, order, vocab):
    """float64 [S]: the ratios that all tokens of the vocabulary get after these hashed contexts, summed."""
    hits_S = torch.zeros_like(context_S)
    for ids_V in torch.arange(vocab, device=context_S.device).split(max(1, (1 << 22) // max(1, len(context_S)))):
        slot_SV = (context_S[:, None] ^ ids_V * HASH_PRIMES[order - 1]) % len(hits_B)
        hits_S += torch.minimum(hits_B[slot_SV], count_S[:, None]).sum(1)
    return hits_S.double() / count_S


def _contexts(tokens, length, rank_N, floor_N):
    """Yields (rank, target, its context as a tuple or None, its token) in the order of scoring."""
    stream = tokens.tolist()
    rank = list(range(len(stream) - 1)) if rank_N is None else rank_N.tolist()
    floor = [0] * len(rank) if floor_N is None else floor_N.tolist()
    for i in sorted(range(len(rank)), key=rank.__getitem__):
        start = i - length + 1
        yield rank[i], i, tuple(stream[start : i + 1]) if start >= max(floor[i], 0) else None, stream[i + 1]


def reference_continuations(tokens, length, rank_N=None, floor_N=None):
    """`continuations` by a walk over dictionaries."""
    targets = max(len(tokens) - 1, 0)
    best_N, best_count_N, count_N = [-1] * targets, [0] * targets, [0] * targets
    followed, best = defaultdict(Counter), {}
    for _, i, context, token in _contexts(tokens, length, rank_N, floor_N):
        if context is None:
            continue
        counts = followed[context]
        if context in best:
            best_N[i], best_count_N[i], count_N[i] = best[context], counts[best[context]], counts.total()
        counts[token] += 1
        if context not in best or counts[token] > counts[best[context]]:
            best[context] = token
    return Continuations(*(torch.tensor(part, dtype=torch.int32) for part in (best_N, best_count_N, count_N)))


def reference_counts(tokens, length, rank_N=None, floor_N=None, every=1):
    """`ContextCounts` by a walk over dictionaries: a list with, for each target, the Counter of the tokens that followed."""
    following = [Counter() for _ in range(max(len(tokens) - 1, 0))]
    followed, waiting = defaultdict(Counter), []
    for rank, i, context, token in _contexts(tokens, length, rank_N, floor_N):
        if rank % every == 0:
            for earlier, what in waiting:
                followed[earlier][what] += 1
            waiting = []
        if context is not None:
            following[i] = followed[context].copy()
            waiting.append((context, token))
    return following
