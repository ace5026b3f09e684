"""What stood before each target: the only thing a mixer is shown. Its tokens are not public, its statistics are causal.

N targets (target i is token i + 1 of the stream), K ids asked for at each, M and P some of the targets, V vocabulary.
"""

import torch

from ..kernels.ngram import ContextCounts, continuations_of_lengths, hashed_backoff

STATISTICS_SPAN = 1 << 22  # targets worked on at once: temporaries stay small beside the streams of tens of millions


def spans_of(targets):
    """Slices that cover 0..targets - 1, STATISTICS_SPAN targets each."""
    return [slice(low, min(low + STATISTICS_SPAN, targets)) for low in range(0, targets, STATISTICS_SPAN)]


class History:
    """Statistics of a stream for each of its targets, from targets that are scored before it.

    `tokens` int [N + 1] on a device; `rank_N` int64, each target's place in the order of scoring (None: as they stand);
    `floor_N` int64, the first token that may stand in its context (None: the stream's first); `vocab` ids.
    """

    def __init__(self, tokens, rank_N, floor_N, vocab):
        self._tokens, self._rank_N, self._floor_N = tokens, rank_N, floor_N
        self.vocab = vocab
        self.targets = len(tokens) - 1
        self.device = tokens.device
        # Statistics that go by the stream's own order and see all of it ask for this.
        self.plain = rank_N is None and floor_N is None

    def continuations(self, lengths):
        """Yields (length, Continuations) for each context length, in any order: what most often followed so far."""
        yield from continuations_of_lengths(self._tokens, lengths, self._rank_N, self._floor_N)

    def counts(self, length, every=1):
        """ContextCounts of contexts of `length` tokens, brought up to date after each `every` targets."""
        return ContextCounts(self._tokens, length, self._rank_N, self._floor_N, every)

    def backoff(self, orders, least, every):
        """BackoffRows: at each target the highest order whose context has been counted at least `least` times."""
        return BackoffRows(self, self._tokens[1:], orders, least, every)

    def hashed_backoff(self, orders, buckets, every, sampled):
        """PublishedRatios of #864: looked up WITH the target's own token in the key. For the stream's own order only."""
        if not self.plain:
            raise ValueError("the published look-up knows the stream's own order only, and no documents")
        found = hashed_backoff(self._tokens, orders, buckets, every, self.vocab, sampled)
        return PublishedRatios(self._tokens[1:], found)


class BackoffRows:
    """r(v) = count(context, v) / count(context) at each target: a distribution wherever `order_N` is not 0.

    order_N int8: the order n taken (a context of n - 1 tokens), 0 where none was; context_N int32: its context's count.
    What followed the context is kept for the target's own token and for ids named beforehand (`prepare`); for any other id
    it is counted again when asked, slowly: for probes. Memory: 9 bytes a target, and 4 for each prepared id.
    """

    def __init__(self, history, target_N, orders, least, every):
        self._history, self._target_N, self._every = history, target_N, every
        self.order_N = torch.zeros(history.targets, dtype=torch.int8, device=history.device)
        self.context_N = torch.zeros(history.targets, dtype=torch.int32, device=history.device)
        hits_N = torch.zeros_like(self.context_N)
        for order in sorted(orders, reverse=True):
            counts = history.counts(order - 1, every)
            taken_N = (self.order_N == 0) & (counts.context_N >= least)
            self.order_N.masked_fill_(taken_N, order)
            self.context_N = torch.where(taken_N, counts.context_N, self.context_N)
            hits_N = torch.where(taken_N, counts.of_targets(), hits_N)
            # Each order's sorted keys are several times the size of what is kept of them.
            del counts, taken_N
        self._known = [(target_N, hits_N)]

    def prepare(self, ids_N):
        """Counts now what `at` will be asked for at every target: one id each, int [N]."""
        if not any(torch.equal(ids_N, known_N) for known_N, _ in self._known):
            self._known.append((ids_N, self._counted(ids_N.long()[:, None], slice(0, self._history.targets))[:, 0]))

    def at(self, ids, span=None):
        """r of the ids at the targets of `span` (all of them if None): float64, shaped as `ids`, [N] or [N, K].

        0 where no order has been taken.
        """
        span = slice(0, self._history.targets) if span is None else span
        if ids.ndim == 1:
            for known_N, hits_N in self._known:
                if torch.equal(ids.to(known_N.dtype), known_N[span]):
                    return hits_N[span].double() / self.context_N[span].clamp(min=1)
            return self.at(ids[:, None], span)[:, 0]
        return self._counted(ids.long(), span).double() / self.context_N[span].clamp(min=1)[:, None]

    def _counted(self, ids_NK, span):
        hits_NK = torch.zeros(ids_NK.shape, dtype=torch.int32, device=ids_NK.device)
        order_N = self.order_N[span]
        for order in order_N.unique().tolist():
            if order:
                counts = self._history.counts(order - 1, self._every)
                index_M = torch.nonzero(order_N == order)[:, 0]
                for index_P in index_M.split(max(1, STATISTICS_SPAN // ids_NK.shape[1])):
                    hits_NK[index_P] = counts.of(index_P + span.start, ids_NK[index_P]).to(torch.int32)
        return hits_NK


class PublishedRatios:
    """What #864 looks up for the realised token alone. Looking at the token is what makes it no distribution.

    order_N int8: 0 where no order matched; sum_S float64: at each sampled target the sum of r over all V candidates.
    """

    def __init__(self, target_N, found):
        self._target_N = target_N
        place = (torch.as_tensor(part).to(target_N.device) for part in (found.ratio_N, found.order_N, found.total_S))
        self._ratio_N, self.order_N, self.sum_S = place

    def at(self, ids_N, span=None):
        """r float64 [N] of the targets' own tokens; ValueError for any other id, which the tables say nothing of."""
        span = slice(0, len(self._target_N)) if span is None else span
        if ids_N.ndim != 1 or not torch.equal(ids_N.to(self._target_N.dtype), self._target_N[span]):
            raise ValueError("the published look-up answers for the targets' own tokens alone: it is no distribution")
        return self._ratio_N[span]
