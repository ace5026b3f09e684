"""Which targets are scored with which context: a plan of windows that covers every target exactly once.

Target i (from 0) is token i + 1 of the stream, predicted from tokens up to i. A window reads the inputs
[start, start + length) and scores its positions first..length - 1, so targets [start + first, start + length).
"""

from dataclasses import dataclass

import numpy as np

from ..problem import Problem
from ..sites import EvaluationSite, WindowSite
from .batches import Collator
from .packed import DocumentCollator


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Windows in the order of what they score: int64 arrays [W]."""

    start: np.ndarray  # index of the first input token
    length: np.ndarray  # number of input tokens
    first: np.ndarray  # offset of the first scored position

    floor = None  # the stream is one text

    def collator(self, stream, length=None):
        """A Collator of this plan, of rows of `length` positions (None: its longest window's)."""
        return Collator(stream, self, length)

    def __len__(self):
        return len(self.start)

    @property
    def begin(self):
        """First scored target of every window [W]."""
        return self.start + self.first

    @property
    def end(self):
        """One past the last scored target of every window [W]."""
        return self.start + self.length


@dataclass(frozen=True, eq=False)
class DocumentPlan(WindowPlan):
    """Windows that stay within documents."""

    floor: np.ndarray  # the first token of the window's document [W]

    def collator(self, stream, length=None):
        return DocumentCollator(stream, self, length)


@dataclass(frozen=True)
class Sliding(WindowSite):
    """Overlapping windows: the first scores all its positions, every later one its last `stride`.

    A target sees min(its index + 1, more than length - stride) tokens. The last window is moved left to end with
    the last target, at full length, and scores only what is left (PR #162 scored its tail 32 times).
    """

    length: int = 2048
    stride: int = 64

    def __post_init__(self):
        if not 0 < self.stride <= self.length:
            raise Problem(f"Sliding.stride takes 1 to length ({self.length}), not {self.stride}")

    def plan(self, targets, starts=None):
        """The WindowPlan of `targets` targets; fewer than a window make one shorter window."""
        if targets < 1:
            raise Problem(f"{targets} targets to score: the validation stream needs at least 2 tokens")
        length = min(self.length, targets)
        later = -(-(targets - length) // self.stride)
        end = np.minimum(length + self.stride * np.arange(later + 1, dtype=np.int64), targets)
        start = end - length
        first = np.concatenate([[0], end[:-1] - start[1:]])
        return WindowPlan(start, np.full_like(start, length), first)


@dataclass(frozen=True)
class NonOverlapping(WindowSite):
    """Windows side by side, all positions scored; only the last one overlaps, to end with the last target."""

    length: int = 2048

    def __post_init__(self):
        if self.length < 1:
            raise Problem(f"NonOverlapping.length takes 1 or more, not {self.length}")

    def plan(self, targets, starts=None):
        """The WindowPlan of `targets` targets."""
        return Sliding(self.length, self.length).plan(targets)


@dataclass(frozen=True)
class Documents(WindowSite):
    """Every document by itself: in one window where it has at most `length` inputs, else sliding inside of it.

    A document is tokens starts[d]..starts[d + 1]: its last target is the next one's first token, so every target is
    scored once, and its inputs never include another document's. Tokens before the first start are a document too.
    """

    by_document = True

    length: int = 2048
    stride: int = 64

    def __post_init__(self):
        if not 0 < self.stride <= self.length:
            raise Problem(f"Documents.stride takes 1 to length ({self.length}), not {self.stride}")

    def plan(self, targets, starts=None):
        """The WindowPlan of `targets` targets; `starts` int64 [documents], ascending, those from `targets` on without
        effect; None is none."""
        if targets < 1:
            raise Problem(f"{targets} targets to score: the validation stream needs at least 2 tokens")
        starts = np.zeros(0, np.int64) if starts is None else np.asarray(starts, np.int64)
        floor_D = np.union1d(starts[starts < targets], [0])
        inputs_D = np.diff(floor_D, append=targets)
        length_D = np.minimum(inputs_D, self.length)
        count_D = 1 - (length_D - inputs_D) // self.stride
        floor, inputs, length = (np.repeat(part_D, count_D) for part_D in (floor_D, inputs_D, length_D))
        place = np.arange(len(floor)) - np.repeat(np.cumsum(count_D) - count_D, count_D)  # of a window in its document
        scored = length + self.stride * (place - 1)  # inputs of the document whose targets the windows before score
        end = np.minimum(scored + self.stride, inputs)
        first = np.where(place > 0, scored - (end - length), 0)
        return DocumentPlan(floor + end - length, length, first, floor)


@dataclass(frozen=True)
class Evaluation(EvaluationSite):
    """How a stream is scored. `multiple_of` drops the last targets beyond a multiple (the contest's recipes: 2048).

    `seconds` is the budget of one pass with all that adapts in it; where it runs out, the rest is scored plainly.
    """

    windows: WindowSite
    multiple_of: int = 1
    batch_windows: int = 32  # windows in one forward pass; changes speed and memory, not the score
    seconds: float = 600.0

    def __post_init__(self):
        for name in ("multiple_of", "batch_windows"):
            if getattr(self, name) < 1:
                raise Problem(f"Evaluation.{name} takes 1 or more, not {getattr(self, name)}")
        if not self.seconds > 0:
            raise Problem(f"Evaluation.seconds is {self.seconds:g}: a budget of none; give more than 0")

    def scored_targets(self, tokens):
        """How many targets of a stream of `tokens` tokens are scored; Problem when none is."""
        if tokens < 2:
            raise Problem(f"the validation stream has {tokens} tokens, a score needs at least 2; build the data again")
        targets = (tokens - 1) // self.multiple_of * self.multiple_of
        if not targets:
            raise Problem(f"{tokens - 1} targets are fewer than multiple_of={self.multiple_of}; set multiple_of to 1")
        return targets


def prove_coverage(plan, targets):
    """Raises ValueError unless the plan scores every target 0..targets - 1 exactly once, in order, and no window reads
    what stands before its document."""
    begin, end = plan.begin, plan.end
    # The end of each window is the beginning of the next, from 0 to the last.
    joined = np.array_equal(np.append(begin, targets), np.insert(end, 0, 0))
    within = (plan.start >= 0) & (plan.first >= 0) & (begin < end) & (plan.floor is None or plan.start >= plan.floor)
    if not joined or not len(plan) or not within.all():
        raise ValueError(coverage_fault(plan, targets))


def coverage_fault(plan, targets):
    """The first thing that is wrong with a plan."""
    begin, end = plan.begin, plan.end
    if not len(plan) or begin[0] != 0 or end[-1] != targets:
        covered = f"{begin[0]}..{end[-1] - 1}" if len(plan) else "nothing"
        return f"the windows score targets {covered}, not 0..{targets - 1}"
    if (bad := np.flatnonzero((plan.start < 0) | (plan.first < 0) | (begin >= end))).size:
        return f"window {bad[0]} is empty or reads outside of the stream"
    if plan.floor is not None and (bad := np.flatnonzero(plan.start < plan.floor)).size:
        at = bad[0]
        return f"window {at} reads from token {plan.start[at]}, its document starts at {plan.floor[at]}"
    at = np.flatnonzero(begin[1:] != end[:-1])[0] + 1
    fault = "scores again" if begin[at] < end[at - 1] else "leaves out"
    return f"window {at} {fault} targets: it begins at {begin[at]}, the one before ends at {end[at - 1]}"
