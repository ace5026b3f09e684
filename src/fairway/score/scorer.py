"""The scorer: it owns the tokens, hands out windows of inputs, and turns logits into nats, bytes and bits per byte.

Shapes: N targets, B windows in a batch, T inputs of a window, S scored positions of it, V vocabulary, W windows.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..problem import Problem
from .windows import prove_coverage

CHECK_EVERY = 64  # batches between two looks at the results: each look makes the host wait for the device
NORMALISE_ELEMENTS = 1 << 24  # float64 logits held at once while normalising (128 MiB)


@dataclass(frozen=True, eq=False)
class Scored:
    """A score: `nats` is the float64 sum over `tokens` targets, `bytes` the bytes of text that they stand for."""

    nats: float
    tokens: int
    bytes: int
    dropped: int  # targets at the end of the stream that `multiple_of` left out
    windows: int
    nats_N: np.ndarray  # float32, one a target, in order

    @property
    def bpb(self):
        """Bits per byte."""
        return self.nats / math.log(2) / self.bytes

    @property
    def implied_bytes(self):
        """The bytes that nats and bpb imply: the check that a reader of two published numbers can make."""
        return self.nats / math.log(2) / self.bpb if self.nats else float(self.bytes)

    def as_json(self):
        """The figures without the array."""
        return {name: getattr(self, name) for name in ("bpb", "nats", "tokens", "bytes", "implied_bytes")} | {
            "dropped_targets": self.dropped,
            "windows": self.windows,
        }


@torch.no_grad()
def score_stream(predict, tokens, evaluation, count, vocab, world, progress=None):
    """Scores a token stream: every target once, each from the same context whatever the batch size and ranks.

    `predict(ids_BT int64 on the device, first)` returns logits_BSV for positions first..T - 1, any float dtype. They
    are normalised here, in float64 from the logits as given, so a score differs between batch sizes or ranks
    only where the logits do; the sum is float64 over the targets in order.
    `tokens` is a 1-D integer array, `count` the bytes of text that its scored targets stand for. `world` has `rank`, `size`,
    `device` and `all_reduce_sum(tensor)`, which returns the sum over the ranks; ranks take contiguous shares of the
    windows and all get the whole result. `progress(windows done, windows in this share)` is called now and then.
    Raises Problem for an empty stream, ids outside the vocabulary, no bytes, and logits of the wrong shape or not finite.
    """
    targets = evaluation.scored_targets(len(tokens))
    plan = evaluation.windows.plan(targets)
    prove_coverage(plan, targets)
    _check_stream(tokens, vocab)
    if count < 1:
        raise Problem(f"the {targets} targets stand for {count} bytes of text; check that the tokenizer is the data's own")
    share = len(plan) * world.rank // world.size, len(plan) * (world.rank + 1) // world.size
    stream = torch.from_numpy(np.asarray(tokens[: targets + 1]).astype(np.int32)).to(world.device)
    nats_N = _score_share(predict, stream, plan, share, evaluation.batch_windows, vocab, progress)
    nats_N = world.all_reduce_sum(nats_N).cpu().numpy()
    _check_finite(nats_N, plan)
    total = float(nats_N.sum())
    return Scored(total, targets, count, len(tokens) - 1 - targets, len(plan), nats_N.astype(np.float32))


@torch.no_grad()
def warm_shapes(predict, evaluation, targets, device):
    """Calls `predict` once for each shape of batch that scoring `targets` targets will need: compilation happens here."""
    plan = evaluation.windows.plan(targets)
    for length, first in sorted({*zip(plan.length.tolist(), plan.first.tolist(), strict=True)}):
        predict(torch.zeros(evaluation.batch_windows, length, dtype=torch.int64, device=device), first)


def _score_share(predict, stream, plan, share, batch, vocab, progress):
    """float64 nats_N on the stream's device: this share's targets filled in, zero elsewhere.

    Every batch has `batch` rows, the last one of a shape repeated if need be: one compiled graph serves a shape.
    """
    nats_N = torch.zeros(len(stream) - 1, dtype=torch.float64, device=stream.device)
    start_W = torch.from_numpy(plan.start).to(stream.device)
    offset_T = torch.arange(int(plan.length.max()), device=stream.device)
    row_B = torch.arange(batch, device=stream.device)
    begin, end, checked_to = plan.begin, plan.end, None
    for number, (low, high) in enumerate(plan.batches(*share, batch), 1):
        length, first = int(plan.length[low]), int(plan.first[low])
        # Neighbours score neighbouring targets (prove_coverage), so a batch fills one span.
        span = slice(int(begin[low]), int(end[high - 1]))
        ids_BT = stream[start_W[(low + row_B).clamp(max=high - 1), None] + offset_T[:length]].long()
        logits_BSV = predict(ids_BT, first)
        _check_logits(logits_BSV, (batch, length - first, vocab))
        logits_NV = logits_BSV[: high - low].flatten(0, 1)
        nats_N[span] = _target_nats(logits_NV, stream[span.start + 1 : span.stop + 1].long())
        checked_to = span.start if checked_to is None else checked_to
        if number % CHECK_EVERY == 0 or high == share[1]:
            # A fault ends this share early; it is raised after the ranks have met, on all of them, so that none hangs.
            if not nats_N[checked_to : span.stop].isfinite().all():
                break
            checked_to = span.stop
            if progress:
                progress(high - share[0], share[1] - share[0])
    return nats_N


def _target_nats(logits_NV, target_N):
    """-ln softmax(logits)[target] in float64, a bounded number of rows at a time."""
    rows = max(1, NORMALISE_ELEMENTS // logits_NV.shape[1])
    parts = []
    for logits, target in zip(logits_NV.split(rows), target_N.split(rows), strict=True):
        logits = logits.double()
        parts.append(logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0])
    return torch.cat(parts)


def _check_stream(tokens, vocab):
    if not (int(tokens.min()) >= 0 and int(tokens.max()) < vocab):
        at = int(np.flatnonzero((tokens < 0) | (tokens >= vocab))[0])
        raise Problem(
            f"token {at} of the validation stream is {tokens[at]}, not in 0..{vocab - 1}; take this vocabulary's data"
        )


def _check_logits(logits, shape):
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != shape or not logits.is_floating_point():
        found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise Problem(f"the predictor gave {found}, not float logits [windows, positions, vocabulary] = {list(shape)}")


def _check_finite(nats_N, plan):
    if math.isfinite(nats_N.sum()):
        return
    target = int(np.flatnonzero(~np.isfinite(nats_N))[0])
    window = int(np.searchsorted(plan.end, target, side="right"))
    raise Problem(
        f"window {window} (tokens {plan.start[window]}..{plan.end[window] - 1}): the logits for target {target} are NaN, "
        "infinite or give it no chance; look for overflow in the weights"
    )
