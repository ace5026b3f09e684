"""Probes of a scorer that is only called: what a text costs, and what it costs when some of it is changed.

A subject is a function of a text, uint16 [N + 1], that gives the nats of its N targets (target i is token i + 1), float64;
fewer where it drops the last ones. It may be the scorer in this process or a submitted file in a box. Where documents begin
(the places of `bos`) is known beforehand to all that go by documents, so no probe moves, adds or removes one. It raises
Problem where it cannot answer; the rule that was to be tested is NOT TESTED then.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch

from ..data.tokenizer import BOS_ID
from ..model.context import Carry
from ..problem import Problem
from .streams import ONE_IN_A_MILLION

ROUNDING = 1e-6  # of a target's nats that is no change: float32's last digit
SAFETY = 4.0  # times what an honest repeat was seen to move
DRIFTING = 8.0  # times the mean that it was seen to move: one draw says little of the next
REPEATS = 5  # where two runs differ: so many draws of how far
HIDING = 1e-3  # nats a target: where that much could hide in noise, nothing is proved
NEGATIVE = -1e-4  # nats: a float32 softmax may round a probability so far above 1
FLIPS = (0.03, 0.37, 0.71, 0.985)  # places in the order of scoring from which all tokens are replaced
ONE_FLIPPED = (0.22, 0.58)  # places where one token is
CUTS = (0.45, 0.9)  # places where the text ends


@dataclass(frozen=True, eq=False)
class Spread:
    """How far nats of one text lie apart although nothing has changed: of one target at most, root mean square, and on
    average over all targets."""

    each: float = 0.0
    rms: float = 0.0
    drift: float = 0.0

    def joined(self, other):
        """The wider of both."""
        return Spread(max(self.each, other.each), max(self.rms, other.rms), max(self.drift, other.drift))

    def each_bound(self, nats_N):
        """Nats that each target may move [N]."""
        return np.maximum(SAFETY * self.each + DRIFTING * self.drift, last_digits(nats_N))

    def sum_bound(self, nats_N):
        """Nats that the sum of these targets may move: single moves go either way, a drift adds up."""
        single = SAFETY * self.rms * math.sqrt(len(nats_N)) + math.sqrt(float((last_digits(nats_N) ** 2).sum()))
        return single + DRIFTING * self.drift * len(nats_N)


@dataclass(frozen=True, eq=False)
class Repeated:
    """A text, its nats, and what repeating them moves: `same` the same run again, `other` an honest change (another size of
    batches), None if there was none to see."""

    tokens: np.ndarray
    nats_N: np.ndarray
    same: Spread
    other: Spread | None = None


@dataclass(frozen=True, eq=False)
class Moved:
    """How nats that should stand have moved: the largest change for its bound `each`, its target, and the sum of all."""

    largest: float
    target: int
    total: float
    each: float
    bound: float
    count: int

    @property
    def holds(self):
        """Whether all of it may be rounding."""
        return self.largest <= self.each and abs(self.total) <= self.bound

    def said(self):
        """The figures in words."""
        return (
            f"target {self.target} moved {self.largest:.3g} nats (bound {self.each:.2g}), the sum over {self.count:,} "
            f"targets {self.total:+.3g} (bound {self.bound:.2g})"
        )


def last_digits(nats_N):
    """What float32 cannot tell of nats [N]; of what is not finite, that of 1."""
    return ROUNDING * np.maximum(1.0, np.where(np.isfinite(nats_N), np.abs(nats_N), 0.0))


def nats_from(subject, tokens):
    """What a subject gives for a text, float64 [N or fewer]; Problem where it is no list of numbers of that length."""
    nats_N = np.asarray(subject(tokens), np.float64)
    if nats_N.ndim != 1 or not 0 < len(nats_N) < len(tokens):
        raise Problem(f"the scorer gave nats of shape {list(nats_N.shape)} for {len(tokens) - 1} targets; give one a target")
    return nats_N


def changes(before_N, after_N):
    """after - before; infinite where either is no number and they are not the same."""
    with np.errstate(invalid="ignore"):
        moved_N = np.where(before_N == after_N, 0.0, after_N - before_N)
    return np.where(np.isnan(moved_N), np.where(np.isnan(before_N) & np.isnan(after_N), 0.0, np.inf), moved_N)


def spread_between(before_N, after_N):
    """The Spread of two runs of one text; what is infinite in one of them counts as no noise at all, so it will show."""
    moved_N = changes(before_N, after_N)
    moved_N = moved_N[np.isfinite(moved_N)]
    if not len(moved_N):
        return Spread()
    return Spread(float(np.abs(moved_N).max()), float(np.sqrt(np.mean(moved_N**2))), abs(float(moved_N.mean())))


def moved_between(before_N, after_N, spread, targets):
    """The Moved of nats at `targets` (int64, where before_N and after_N stand in the text)."""
    moved_N = changes(before_N, after_N)
    each_N = spread.each_bound(before_N)
    at = int((np.abs(moved_N) / each_N).argmax())
    total = float(moved_N.sum()) if np.isfinite(moved_N).all() else math.inf
    bounds = float(each_N[at]), spread.sum_bound(before_N)
    return Moved(float(np.abs(moved_N[at])), int(targets[at]), total, *bounds, len(moved_N))


def judge_repeat(findings, subject, tokens, noise_of=None):
    """A/A: the same text again gives the tolerance of all other probes. Returns a Repeated, or None where there is none.

    `noise_of`: a subject that scores the same by an honestly different path, another size of batches. Where two runs are
    alike to the bit nothing is forgiven but float32's last digit; else more runs say how wide the noise is. No rule asks for
    a scorer that repeats itself: only what cannot be told apart from noise is said (C1, NOT TESTED).
    """
    try:
        nats_N = nats_from(subject, tokens)
        same = spread_between(nats_N, nats_from(subject, tokens))
        for _ in range(REPEATS - 1 if same.each else 0):
            same = same.joined(spread_between(nats_N, nats_from(subject, tokens)))
        other = None if noise_of is None else spread_between(nats_N, nats_from(noise_of, tokens))
    except Problem as fault:
        findings.untested("C1", f"the text could not be scored twice: {fault}")
        return None
    if same.sum_bound(nats_N) > HIDING * len(nats_N):
        findings.untested("C1", f"two runs of one text lie {same.each:.3g} nats apart: a leak could hide in that")
    return Repeated(tokens, nats_N, same, other)


def flipped_text(tokens, changed_N, draw, bos=BOS_ID, alike=False):
    """The text with other tokens at targets changed_N (bool): any that occur in it, or with `alike` one and the same.

    Document starts stay where they are, and none is added. Problem where a text has fewer than two ids to choose from.
    """
    pool = np.setdiff1d(tokens, [bos])
    if len(pool) < 2:
        raise Problem(f"a text of {len(pool)} different tokens: there is nothing to replace one by; take a longer text")
    at = np.flatnonzero(changed_N) + 1
    at = at[tokens[at] != bos]
    place = np.searchsorted(pool, tokens[at])
    shift = draw.integers(1, len(pool), len(at))
    if alike:
        shift = np.where(place == 0, 1, len(pool) - place)
    other = tokens.copy()
    other[at] = pool[(place + shift) % len(pool)]
    return other


def flips_of(rank_N, movable_N):
    """[(first place in the order of scoring that changes, targets that change)]: movable_N are no document starts.

    Places are odd: windows, chunks and batches are of even sizes, and at the edge of one a leak within it would not show.
    """
    count, found = len(rank_N), []
    for share in FLIPS:
        first = min(count - 1, int(share * count) | 1)
        found.append((first, movable_N & (rank_N >= first)))
    order = rank_N.argsort()
    for share in ONE_FLIPPED:
        later = order[min(count - 1, int(share * count) | 1) :]
        later = later[movable_N[later]]
        if len(later):
            one_N = np.zeros(count, bool)
            one_N[later[0]] = True
            found.append((int(rank_N[later[0]]), one_N))
    return [(first, changed_N) for first, changed_N in found if first > 0 and changed_N.any()]


def judge_flip(findings, subject, repeated, rank_N=None, bos=BOS_ID):
    """C1 by changing the future: tokens from a place in the order of scoring on are replaced by others (from a few places,
    near the beginning and in the last 2 % among them), and single ones; what is scored before must keep its nats.

    `rank_N`: the place of each target in the order of scoring (None: as they stand).
    """
    tokens, before_N = repeated.tokens, repeated.nats_N
    rank_N = np.arange(len(before_N)) if rank_N is None else np.asarray(rank_N)[: len(before_N)]
    draw, seen, moved = np.random.default_rng(0), [], False
    flips = flips_of(rank_N, tokens[1 : len(before_N) + 1] != bos)
    if not flips:
        return findings.untested(
            "C1", f"a text of {len(before_N)} targets is too short to change its future; take a longer one"
        )
    for number, (first, changed_N) in enumerate(flips):
        try:
            other = flipped_text(
                tokens, np.append(changed_N, [False] * (len(tokens) - 1 - len(changed_N))), draw, bos, number % 2
            )
            after_N = nats_from(subject, other)
            if len(after_N) != len(before_N):
                raise Problem(f"other tokens, and it scores {len(after_N)} targets, not {len(before_N)}")
        except Problem as fault:
            return findings.untested("C1", f"the changed text could not be scored: {fault}")
        kept_N = rank_N < first
        seen.append(
            (moved_between(before_N[kept_N], after_N[kept_N], repeated.same, np.flatnonzero(kept_N)), first, changed_N)
        )
        moved |= bool((changes(before_N, after_N)[~kept_N] != 0).any())
        if not seen[-1][0].holds:
            break
    return say_flips(findings, seen, len(before_N), moved)


def say_flips(findings, seen, count, moved):
    """The verdict on [(Moved, first place changed, targets changed)]."""
    one, first, changed_N = max(seen, key=lambda row: (not row[0].holds, row[0].largest, row[1]))
    what = "the token" if changed_N.sum() == 1 else f"{int(changed_N.sum()):,} tokens from there on"
    where = f"{len(seen)} changed texts; scored before place {first:,} of {count:,}, {what} replaced: {one.said()}"
    holds = one.holds
    if holds and not moved:
        holds, where = None, f"no nats depend on the text at all: {where}"
    elif holds and all(row[0].bound > HIDING * row[0].count for row in seen):
        holds, where = None, f"a leak could hide in the noise of repeats: {where}"
    findings.say("C1", holds, one.largest, 0.0, one.each, f"future flip: {where}")


def judge_truncation(findings, subject, repeated, reach, learns=False):
    """C1 by ending the text sooner: targets more than `reach` (the windows' length) before its end must keep their nats.

    `learns`: what is learned follows the length of the text (rates, chunks, the order of documents), which is public; then a
    difference is told, and the future flip decides. Batches are cut otherwise in a shorter text: what that moves is
    measured by the A/A's `noise_of`; without one a difference proves nothing.
    """
    tokens, before_N = repeated.tokens, repeated.nats_N
    # Batches of another shape round otherwise, if only a little.
    least = Spread(5 * ROUNDING, ROUNDING)
    spread, worst = repeated.same.joined(repeated.other or least).joined(least), None
    for share in CUTS:
        cut = int(share * len(tokens)) | 1
        try:
            after_N = nats_from(subject, tokens[:cut])
        except Problem as fault:
            return findings.untested("C1", f"the shorter text could not be scored: {fault}")
        count = min(len(after_N), len(before_N)) - reach
        if count > 0:
            one = moved_between(before_N[:count], after_N[:count], spread, np.arange(count))
            worst = max([one] + ([worst] if worst else []), key=lambda row: (not row.holds, row.largest))
    if worst is None:
        return findings.untested("C1", f"{len(tokens)} tokens are too few to end them {reach} before a place to compare")
    holds, where = worst.holds, f"truncation: {worst.said()}"
    if not holds and learns:
        holds = None if findings.failed("C1") else True
        where += "; what it learns follows the length of the text, which is public: the future flip tells"
    elif not holds and repeated.other is None:
        holds, where = None, where + "; what other batches do to rounding has not been measured"
    return findings.say("C1", holds, worst.largest, 0.0, worst.each, where)


def noise_text(vocab, targets, draw, ids=None, bos=BOS_ID):
    """(a text of uniform noise over `ids` ids (None: all) with 4 document starts, uint16 [targets + 1]; how many ids)."""
    pool = np.setdiff1d(np.arange(vocab), [bos])
    pool = pool if ids is None else draw.permutation(pool)[:ids]
    tokens = draw.choice(pool, targets + 1).astype(np.uint16)
    tokens[np.arange(4) * (targets + 1) // 4] = bos
    return tokens, len(pool)


def judge_noise(findings, subject, vocab, targets=2048, narrow=16, bos=BOS_ID):
    """C2 (C1 where a flip has shown that it looks ahead): what uniform noise costs, over all ids and over `narrow` of them.

    Whatever a code knows and learns, it spends N ln K nats on N tokens that are uniform over K ids, but for a nats less in
    one of e^a texts (Kraft's inequality): so many as are not distributions, or have seen the token, save more. Places of
    document starts are known and do not count.
    """
    draw, rows = np.random.default_rng(0), []
    for ids in (None, narrow):
        tokens, kinds = noise_text(vocab, targets, draw, ids, bos)
        try:
            nats_N = nats_from(subject, tokens)
        except Problem as fault:
            return findings.untested("C2", f"noise could not be scored: {fault}")
        free_N = tokens[1 : len(nats_N) + 1] != bos
        rows.append((*kraft_deficit(nats_N[free_N], kinds), int(free_N.sum()), kinds))
    short, mean, count, kinds = max(rows)
    rule = "C1" if short > 0 and findings.failed("C1") else "C2"
    told = "; ".join(
        f"{row[3]:,} ids: {row[1]:.6g} of {math.log(row[3]):.6g} nats a token ({row[2]:,} tokens)" for row in rows
    )
    where = f"uniform noise, {told}; {max(short, 0.0):.4g} nats below what any code spends"
    return findings.say(rule, short <= 0, mean, math.log(kinds), ONE_IN_A_MILLION / count, where)


def kraft_deficit(nats_N, kinds):
    """(nats under the floor of noise over `kinds` ids (above 0: no code does that), mean nats). No numbers: all of it."""
    count, spent = len(nats_N), float(nats_N.sum())
    floor = count * math.log(kinds) - ONE_IN_A_MILLION - 1e-5 * count
    return (floor - spent, spent / count) if math.isfinite(spent) else (-math.inf if spent > 0 else math.inf, spent)


def judge_coverage(findings, nats_N, targets, times_N=None, dropped=0, tail=0):
    """D7: a finite cost for each of `targets` targets, each scored once (`times_N`, where the pass counts); `dropped`
    targets at the end, up to `tail` (a sequence less one), are left out in practice. C2 where a target costs less than
    nothing: that is more than certain."""
    nats_N, faults = np.asarray(nats_N, np.float64), []
    if len(nats_N) + dropped != targets:
        faults.append(f"nats of {len(nats_N):,} targets and {dropped:,} dropped, there are {targets:,}")
    if dropped > tail:
        faults.append(f"{dropped:,} targets at the end are left out, more than {tail:,}")
    if (bad := np.flatnonzero(~np.isfinite(nats_N))).size:
        faults.append(f"target {bad[0]} has no finite cost")
    if times_N is not None and (bad := np.flatnonzero(np.asarray(times_N)[: len(nats_N)] != 1)).size:
        faults.append(f"{bad.size:,} targets are not scored once: target {bad[0]} {int(np.asarray(times_N)[bad[0]])} times")
    where = "; ".join(faults) or f"one cost for each target, {dropped:,} dropped at the end, sum {nats_N.sum():.8g} nats"
    findings.say("D7", not faults, len(nats_N), targets, tail, f"coverage: {where}")
    least = float(nats_N[np.isfinite(nats_N)].min(initial=0.0))
    if least < NEGATIVE:
        at = int(np.flatnonzero(nats_N == least)[0])
        findings.say("C2", False, least, 0.0, -NEGATIVE, f"target {at} costs less than nothing: a probability above 1")


@torch.no_grad()
def judge_bos(findings, model, vocab, learns=False, bos=BOS_ID):
    """E16: whether what stands before a document start changes the vectors from it on, before any attention.

    The model's `inputs` and `stream` alone (a GPTModule's), on texts that differ before the BOS only. `learns`: the model
    learns while it is scored, so what is zero now (a fresh table) is filled with noise first.
    """
    length, texts = 8, 16  # tokens before the BOS, and from it on
    inputs, stream = copy.deepcopy((model.inputs, model.stream))
    draw = torch.Generator().manual_seed(0)
    for parameter in (*inputs.parameters(), *stream.parameters()) if learns else ():
        if not bool(parameter.any()):
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    ids_BT = torch.randint(vocab - 1, (texts, 2 * length), generator=draw)
    ids_BT += ids_BT >= bos  # any id but BOS
    ids_BT[:, length] = bos
    ids_BT[:, length:] = ids_BT[:1, length:]
    carry = Carry(ids_BT.to(next(inputs.parameters()).device), model.dtype)
    x_BTD = sum(part(carry) for part in inputs)
    for part in stream:
        x_BTD = part(x_BTD, carry)
    later_BTD = x_BTD[:, length:].double()
    moved_T = (later_BTD - later_BTD[:1]).abs().amax((0, 2)) / later_BTD.abs().max().clamp(min=1e-30)
    moved, masked = float(moved_T.max()), findings.limit("E16")
    reached = int((moved_T > 0).sum())
    where = f"embedding stage: {texts} texts that differ before BOS move {reached} of the {length} vectors from it on"
    if moved and not masked:
        where += "; causal, and allowed under this policy"
    return findings.say(
        "E16", not (moved and masked), moved, 0.0, "none" if masked else "any", f"{where} (largest, relative)"
    )
