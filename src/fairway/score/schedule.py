"""In which order windows are scored: what may learn when, and which rank does what.

A round is scored before anything learns from it; rounds of an episode follow each other on one rank; the episodes of a group
do not know of each other; after a group all ranks meet. The order group, episode, round, window is the order of scoring.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Round:
    """Windows scored from one state of what adapts: indices into the WindowPlan, int64 [W]."""

    windows: np.ndarray


@dataclass(frozen=True, eq=False)
class Episode:
    """Rounds one after the other, and the lane they belong to. State that outlives an episode stays within its lane, and
    a rank takes whole lanes, so that nothing depends on the number of ranks."""

    rounds: tuple[Round, ...]
    lane: int = 0


@dataclass(frozen=True, eq=False)
class Group:
    """Episodes between two meetings of all ranks."""

    episodes: tuple[Episode, ...]

    def of_rank(self, rank, size):
        """The episodes that a rank takes, in order."""
        return [episode for episode in self.episodes if episode.lane % size == rank]

    def windows(self):
        """All windows of the group, in the order of scoring."""
        return np.concatenate([one.windows for episode in self.episodes for one in episode.rounds])


def shared_out(plan, windows, size):
    """A Group from whose state nothing is learned: contiguous shares of `windows`, of about as many inputs, one a rank."""
    read = np.cumsum(plan.length[windows])
    cuts = np.searchsorted(read, read[-1] * np.arange(1, size) / size, side="right") if len(windows) else []
    return Group(tuple(Episode((Round(part),), lane) for lane, part in enumerate(np.split(windows, cuts))))


def order_of_scoring(schedule):
    """Indices of windows in the order in which they are scored, int64 [W]."""
    return np.concatenate([group.windows() for group in schedule] or [np.zeros(0, np.int64)])


def prove_schedule(schedule, plan):
    """Raises ValueError unless the schedule scores every window of the plan exactly once."""
    order = order_of_scoring(schedule)
    if not np.array_equal(np.sort(order), np.arange(len(plan))):
        raise ValueError(f"the schedule scores {schedule_fault(order, len(plan))} of {len(plan)} windows")


def schedule_fault(order, count):
    """What is wrong with an order of scoring `count` windows."""
    seen, times = np.unique(order, return_counts=True)
    twice, missing = seen[times > 1], np.setdiff1d(np.arange(count), seen)
    return f"window {twice[0]} more than once" if len(twice) else f"not window {missing[0]}" if len(missing) else "more"


def scoring_rank(schedule, plan):
    """The place of each target in the order of scoring: int64 [N], a permutation of 0..N - 1."""
    order = order_of_scoring(schedule)
    begin, count = plan.begin[order], (plan.end - plan.begin)[order]
    first = np.cumsum(count) - count
    targets = np.arange(int(count.sum())) - np.repeat(first - begin, count)
    rank = np.empty(len(targets), np.int64)
    rank[targets] = np.arange(len(targets))
    return rank
