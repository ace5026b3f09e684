"""Whether one scoring is better than another of the same targets: paired, with whole documents drawn again.

N targets, D documents.
"""

import math

import numpy as np

from ..problem import Problem

RESAMPLED_AT_ONCE = 1 << 21  # documents drawn at once: 16 MiB of indices


def paired_bootstrap(nats_a_N, nats_b_N, bytes_N_or_total, document_N, draws=1000, seed=0):
    """How much a's bits per byte are above b's, and between which values 95 % of `draws` resamplings of documents lie.

    nats_a_N, nats_b_N: nats of the same targets under both. bytes_N_or_total: bytes of each target, or their sum, which is
    then shared out among documents by their targets. document_N: int, the document of each target, from 0. Returns
    {delta_bpb, interval: [low, high] or None with fewer than two documents, draws, documents}; delta_bpb < 0: a is better.
    Problem for arrays of different lengths, no targets, no bytes, nats that are not finite.
    """
    delta_D, bytes_D = _document_sums(np.asarray(nats_a_N), np.asarray(nats_b_N), bytes_N_or_total, np.asarray(document_N))
    if draws < 1:
        raise Problem(f"a bootstrap of {draws} draws: give 1 or more, 1000 for an interval")
    documents, interval = len(delta_D), None
    if documents > 1:
        interval = np.percentile(_resampled(delta_D, bytes_D, draws, seed), [2.5, 97.5]).tolist()
    whole = float(delta_D.sum() / bytes_D.sum() / math.log(2))
    return {"delta_bpb": whole, "interval": interval, "draws": draws, "documents": documents}


def document_of_targets(starts, targets):
    """The document of each target, int64 [targets] from 0: target i is predicted from token i, and belongs to its document.

    `starts` are ascending places of document starts in the stream; what stands before the first is document 0.
    """
    begins = np.zeros(targets, np.int64)
    starts = np.asarray(starts, dtype=np.int64)
    np.add.at(begins, starts[(starts > 0) & (starts < targets)], 1)
    return np.cumsum(begins)


def _document_sums(nats_a_N, nats_b_N, size, document_N):
    """Nats of a less those of b, and bytes, of each document that has targets: float64 [D] each."""
    lengths = [len(nats_a_N), len(nats_b_N), len(document_N)]
    if len(set(lengths)) > 1:
        raise Problem(
            f"nats of {lengths[0]} and {lengths[1]} targets, documents of {lengths[2]}: score the same targets twice"
        )
    if not lengths[0]:
        raise Problem("no targets to compare: score first, and keep the nats")
    if document_N.min() < 0:
        raise Problem(f"document {document_N.min()}: count documents from 0")
    targets_D = np.bincount(document_N)
    used_D = targets_D > 0
    delta_D = np.bincount(document_N, nats_a_N.astype(np.float64) - nats_b_N)[used_D]
    if not np.isfinite(delta_D).all():
        raise Problem("nats that are NaN or infinite cannot be compared: score again")
    if np.ndim(size):
        if len(size) != lengths[0]:
            raise Problem(f"bytes of {len(size)} targets for nats of {lengths[0]}: give one number a target, or their sum")
        bytes_D = np.bincount(document_N, size)[used_D]
    else:
        bytes_D = targets_D[used_D] * (float(size) / lengths[0])
    if not bytes_D.sum() > 0:
        raise Problem(f"the targets stand for {bytes_D.sum():g} bytes of text; check that the tokenizer is the data's own")
    return delta_D, bytes_D


def _resampled(delta_D, bytes_D, draws, seed):
    """delta bpb of `draws` times D documents, drawn with replacement: float64 [draws]."""
    chance, documents, parts = np.random.default_rng(seed), len(delta_D), []
    # One row a document: both numbers come from one place in memory.
    both_D2 = np.stack([delta_D, bytes_D], axis=1)
    block = max(1, RESAMPLED_AT_ONCE // documents)
    for low in range(0, draws, block):
        drawn = chance.integers(documents, size=(min(block, draws - low), documents))
        parts.append(both_D2[drawn].sum(axis=1))
    delta, size = np.concatenate(parts).T
    # A draw may hit only documents without bytes (no text of their own): it says nothing.
    return delta[size > 0] / size[size > 0] / math.log(2)
