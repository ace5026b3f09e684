"""What a pass does while it scores: every scoring and every lesson, and what they did to the state that scores.

State: the bits of all tensors of the model and of its adapter. Time is the number of targets that have been scored so far.
N targets.
"""

import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch

from ..score.adapter import Revealed
from ..score.schedule import scoring_rank
from ..score.watched import WatchedPass

DEEPEST_STATE = 6  # objects in objects that are looked through for tensors
NO_STATE = (str, bytes, int, float, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)


@dataclass(frozen=True, eq=False)
class TracedMoment:
    """Something that happened: `kind` is "begin" (of an episode), "score", "round" or "group" (lessons). `scored`: targets
    that had been scored when it began. `before`, `after`: digests of the state, (model, adapter). targets_N: what was
    scored, ascending.
    `handed`: ranges of targets (begin, end) that the scorer handed to a lesson. `positions`: of the model's passes with
    gradients inside of a lesson."""

    kind: str
    scored: int
    before: tuple
    after: tuple
    targets_N: np.ndarray
    handed: tuple
    positions: int


class TracedPass(WatchedPass):
    """A Pass that writes down what happens in it: `moments`. It scores like any other.

    `model`: the module whose parameters and buffers are part of the state (None: its adapter's, if any).
    """

    def __init__(self, *arguments, model=None, **more):
        self.moments, self.fault, self.handed, self.positions, self.last = [], None, [], 0, None
        super().__init__(*arguments, **more)
        self.owned = model if model is not None or self.adapter is None else self.adapter.context.model
        self.seen_N = np.full(self.targets, np.nan)  # nats as they first stood
        self.scored_N = np.zeros(self.targets, np.int64)  # how often
        self.rescored = 0  # targets whose nats are others in the end than when they first stood
        if self.lessons:
            self.lessons.revealed = TracedRevealed(self.stream, self.handed)
            self.lessons = TracedLessons(self.lessons, self)

    def run(self, progress=None):
        """What a pass gives; None where it could not end, `fault` then says why."""
        watch = watch_passes(self.owned, self.passed)
        self.last = self.state()
        try:
            return super().run(progress)
        except Exception as fault:  # whatever an adapter does, the referee goes on
            self.fault = f"{type(fault).__name__}: {fault}"
            return None
        finally:
            for handle in watch:
                handle.remove()

    def score(self, batch, commit):
        with self.moment("score", batch.target_N[batch.live_N]):
            logp_SK = super().score(batch, commit)
        targets_N = batch.target_N[batch.live_N].cpu().numpy()
        nats_N = -logp_SK[batch.live_N, 0].detach().double().cpu().numpy()
        first_N = self.scored_N[targets_N] == 0
        self.seen_N[targets_N[first_N]] = nats_N[first_N]
        self.scored_N += np.bincount(targets_N, minlength=self.targets)
        return logp_SK

    def results(self):
        self.rescored = int((-self.logp_NK[: self.targets, 0].cpu().numpy() != self.seen_N).sum())
        return super().results()

    def passed(self, ids_BT):
        """The model has been run with gradients, on ids_BT."""
        self.positions += ids_BT.numel()

    def state(self):
        """Digests of the state: (model, adapter)."""
        return digest_of(self.owned), digest_of(self.adapter)

    @contextmanager
    def moment(self, kind, targets_N=None):
        """Writes down what happens in the block."""
        scored, before, handed, positions = int((self.scored_N > 0).sum()), self.last, len(self.handed), self.positions
        # Nothing but what is written down may change the state: what did so in between shows as a change here.
        try:
            yield
        finally:
            self.last = self.state()
            targets_N = np.zeros(0, np.int64) if targets_N is None else np.sort(targets_N.cpu().numpy())
            facts = targets_N, tuple(self.handed[handed:]), self.positions - positions
            self.moments.append(TracedMoment(kind, scored, before, self.last, *facts))


class TracedRevealed(Revealed):
    """A Revealed that writes down what it is asked for: (begin, end)."""

    def __init__(self, stream, handed):
        super().__init__(stream)
        self._handed = handed

    def tokens(self, begin, end):
        self._handed.append((begin, end))
        return super().tokens(begin, end)


class TracedLessons:
    """Stands before a Pass's Lessons and writes down when they are called."""

    def __init__(self, lessons, one):
        self.lessons, self.one = lessons, one

    def begin(self, episode):
        with self.one.moment("begin"):
            self.lessons.begin(episode)

    def commit(self, batch, ids_NK, entropy=False):
        return self.lessons.commit(batch, ids_NK, entropy)

    def after_batch(self, batch, logp_SK):
        with self.one.moment("round"):
            self.lessons.after_batch(batch, logp_SK)

    def after_group(self, group):
        with self.one.moment("group"):
            return self.lessons.after_group(group)


def watch_passes(model, passed):
    """Handles to remove: from now on `passed(ids_BT)` is called when the model is run with gradients."""
    parts = getattr(model, "inputs", None)
    if not parts:
        return []

    def look(module, arguments):
        if torch.is_grad_enabled():
            passed(arguments[0].ids_BT)

    return [parts[0].register_forward_pre_hook(look)]


def digest_of(thing):
    """An int that changes when any tensor or array in a thing does: modules, containers, and objects with attributes."""
    found, check = [], 0
    collect_tensors(thing, found, set(), 0)
    for part in found:
        tensor = torch.as_tensor(part).detach()
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
        check = zlib.crc32(repr((tuple(part.shape), flat.dtype)).encode(), check)
        check = zlib.crc32(flat.view(torch.uint8).numpy(), check)
    return check


def collect_tensors(thing, found, known, depth):
    """Appends the tensors and arrays of numbers in a thing, each once, to `found`, always in the same order."""
    if thing is None or id(thing) in known or depth > DEEPEST_STATE or isinstance(thing, NO_STATE):
        return
    known.add(id(thing))
    if isinstance(thing, torch.Tensor) or (isinstance(thing, np.ndarray) and thing.dtype.kind in "biuf"):
        found.append(thing)
        return
    if isinstance(thing, torch.nn.Module):
        parts = (*thing.parameters(), *thing.buffers())
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, (list, tuple)):
        parts = thing
    else:
        # What an adapter was built with (the machine, the world, the model again) and the pass are not its own.
        own = getattr(thing, "__dict__", {})
        parts = [part for name, part in own.items() if name not in ("context", "one")]
    for part in parts:
        collect_tensors(part, found, known, depth + 1)


def frontiers_of(traced, most=3):
    """Places in the order of scoring from which to change the text for `judge_trace`: right after what a lesson may know.

    The first lesson that changes the state, the last, and some in between; the middle of the text where there is none.
    """
    lessons = [one for one in traced.moments if one.kind in ("round", "group") and one.before != one.after]
    places = sorted({one.scored for one in lessons if 0 < one.scored < traced.targets})
    if not places:
        return [traced.targets // 2]
    return sorted({places[int(at)] for at in np.linspace(0, len(places) - 1, most)})


def judge_trace(findings, traced, flipped=()):
    """C3, C4, E3 and E19 of a TracedPass that has run.

    `flipped`: the same pass over texts with another future (probes.flipped_text from each of `frontiers_of`), which have run
    as well: until a target in which the texts differ is scored, both must have been in the same states.
    """
    judge_updates(findings, traced, flipped)
    judge_times(findings, traced)
    judge_epochs(findings, traced)
    judge_order(findings, traced)


def judge_updates(findings, traced, flipped):
    """C3: nothing learns from a target before its nats stand."""
    faults, lessons = [], [one for one in traced.moments if one.kind in ("round", "group")]
    rank_N = scoring_rank(traced.schedule, traced.plan)
    for one in traced.moments:
        if one.kind == "score" and one.before != one.after:
            faults.append(f"the state changes while {len(one.targets_N)} targets from {one.targets_N[0]} on are scored")
        for begin, end in one.handed:
            ahead = rank_N[max(0, begin) : end] >= one.scored
            if ahead.any():
                faults.append(f"after {one.scored:,} scored targets a lesson asks for target {begin + int(ahead.argmax())}")
    compared = flipped if traced.stream.device.type == "cpu" else ()  # elsewhere bits may differ for no reason
    faults += [parted for other in compared if (parted := parting(traced, other, rank_N))]
    if faults:
        return findings.say("C3", False, len(faults), 0, 0, f"updates: {faults[0]}")
    if traced.fault:
        return findings.untested("C3", f"the pass did not end: {traced.fault}")
    changed = sum(one.before != one.after for one in lessons)
    where = f"updates: {changed} of {len(lessons)} lessons change the state; they were handed nothing that was unscored"
    where += f"; with {len(compared)} other futures all states are the same until they are scored" if compared else ""
    return findings.say("C3", True, 0, 0, 0, where)


def parting(traced, flipped, rank_N):
    """How the states of two passes part before any target in which their texts differ has been scored; None if not."""
    differ_N = (traced.stream[1:] != flipped.stream[1:]).cpu().numpy()
    first = int(rank_N[differ_N].min(initial=len(rank_N)))
    for one, other in zip(traced.moments, flipped.moments, strict=False):
        if one.scored > first:
            return None
        if (one.kind, one.scored) != (other.kind, other.scored):
            return f"after {one.scored:,} scored targets what is done next depends on targets from place {first:,} on"
        if one.after != other.after:
            return f"the state after {one.scored:,} scored targets ({one.kind}) depends on targets from place {first:,} on"
    return None


def judge_times(findings, traced):
    """C4: each target once, none again after an update, and what stood first is what is reported."""
    more = np.flatnonzero(traced.scored_N > 1)
    if more.size:
        where = f"{more.size:,} targets are scored more than once, target {more[0]} {int(traced.scored_N[more[0]])} times"
        findings.say("C4", False, int(traced.scored_N.max()), 1, 0, where)
    elif traced.fault:
        findings.untested("C4", f"the pass did not end: {traced.fault}")
    elif traced.rescored:
        findings.say("C4", False, traced.rescored, 0, 0, "targets whose nats were changed after they stood")
    else:
        scorings = sum(one.kind == "score" for one in traced.moments)
        where = f"{traced.targets:,} targets in {scorings} forward passes, each once; none changed afterwards"
        findings.say("C4", True, int(traced.scored_N.max(initial=0)), 1, 0, where)


def epochs_of(traced):
    """(epochs by round, epochs by group): how often some target went through a gradient step at least, of either kind; None
    for the second where weights changed without the model being seen to run on what had been handed out.

    By group: positions run with gradients over targets handed out, of each lesson and of all: some target has had so many.
    """
    rounds_N, scored_N = np.zeros(traced.targets), np.zeros(0, np.int64)
    ever_N, positions, most, unseen = np.zeros(traced.targets, bool), 0, 0.0, False
    for one in traced.moments:
        if one.kind == "score":
            scored_N = one.targets_N
        if one.kind == "round" and one.before != one.after:
            # The forward pass was the scoring itself; more of them are more steps.
            rounds_N[scored_N] += 1 + one.positions // max(1, len(scored_N))
        if one.kind == "group" and (one.positions or one.before[0] != one.after[0]):
            asked_N = np.zeros(traced.targets, bool)
            for begin, end in one.handed:
                asked_N[begin:end] = True
            unseen |= not one.positions or not asked_N.any()
            ever_N |= asked_N
            positions += one.positions
            most = max(most, one.positions / max(1, asked_N.sum()), positions / max(1, ever_N.sum()))
    return float(rounds_N.max(initial=0.0)), None if unseen else float(most)


def judge_epochs(findings, traced):
    """E3: how often scored targets went through gradient steps, of the weights or of a document's own adapter."""
    most = findings.limit("E3")
    by_round, by_group = epochs_of(traced)
    if traced.fault or by_group is None:
        return findings.untested(
            "E3", traced.fault or "weights changed, but not by running the model on what was handed out"
        )
    epochs = max(by_round, by_group)
    where = f"gradient steps over a scored target: {by_group:.3g} on weights, {by_round:.3g} within rounds"
    return findings.say("E3", epochs <= most + 0.01, round(epochs, 3), f"at most {most}", 0.01, where)


def judge_order(findings, traced):
    """E19: in the order of the stream; or else nothing that was learned is carried from one document into another."""
    rank_N = scoring_rank(traced.schedule, traced.plan)
    if (np.diff(rank_N) > 0).all():
        return findings.say("E19", True, "the stream's order", evidence=f"{traced.targets:,} targets in the stream's order")
    states, began = [], True
    for one in traced.moments:
        began |= one.kind == "begin"
        if one.kind == "score" and began:
            states.append(one.before)
            began = False
    carried = len(set(states)) > 1 or bool(traced.mixture)
    how = "something learned is carried from document to document" if carried else "each begins from the same state"
    where = f"documents are scored in another order than the stream's, in {len(states)} episodes; {how}"
    return findings.say("E19", not carried, "another order", evidence=where)
