"""Budgets and schedules: which fraction of a run is over, and the factors on every group's rate and decay."""

import math
from dataclasses import dataclass
from itertools import pairwise

from ..node import Node
from ..problem import Problem
from ..sites import ScheduleSite


@dataclass(frozen=True)
class Budget(Node):
    """What a run may spend: steps, or seconds on the clock, or what comes first; 0 is no limit.

    `reserve` seconds at the end belong to what follows training but counts as it does (GPTQ's calibration, PR #1514):
    training ends, and every fraction of the budget is taken, without them.
    """

    steps: int = 20_000
    seconds: float = 600.0
    reserve: float = 0.0

    def __post_init__(self):
        if self.steps < 0 or not 0 <= self.seconds < math.inf or not (self.steps or self.seconds):
            raise Problem(
                f"a budget of {self.steps} steps, {self.seconds:g} s: give more than 0 of one, 0 (no limit) or more of both"
            )
        if self.reserve < 0 or (self.seconds and self.reserve >= self.seconds):
            raise Problem(f"Budget.reserve is {self.reserve:g} s of {self.seconds:g}; take less, and not under 0")

    @property
    def training_seconds(self):
        """The seconds in which steps are taken; 0 is no limit."""
        return self.seconds - self.reserve if self.seconds else 0.0

    def progress(self, step, elapsed):
        """The fraction that is over after `step` steps and `elapsed` seconds, 0 to 1."""
        by_clock = elapsed / self.training_seconds if self.seconds else 0.0
        by_steps = step / self.steps if self.steps else 0.0
        return min(1.0, max(by_clock, by_steps))

    def total_steps(self, step, elapsed):
        """Steps of the whole run; under the clock an estimate from the pace so far."""
        if not self.seconds:
            return self.steps
        pace = elapsed / max(step, 1)
        return self.training_seconds / pace if pace else float("inf")

    def remaining_steps(self, step, elapsed):
        """Steps left; under the clock an estimate from the pace so far."""
        if not self.seconds:
            return self.steps - step
        pace = elapsed / max(step, 1)
        return max(self.training_seconds - elapsed, 0.0) / pace if pace else float("inf")


@dataclass(frozen=True)
class WarmDownSteps(ScheduleSite):
    """1, then linearly to 0 over the last `steps` steps; under the clock they are counted at the pace so far (PR #162).

    In a run of fewer steps they are the whole run, so that it begins at 1. Never under `floor` (0.05 in PR #1205).
    """

    steps: int = 3000
    floor: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise Problem(f"WarmDownSteps.steps is {self.steps}; take 1 or more")
        check_floor(self)

    def multiplier(self, step, elapsed, budget):
        """The factor on the rate of 0-based step `step`."""
        length = min(self.steps, budget.total_steps(step, elapsed))
        return max(self.floor, min(1.0, max(budget.remaining_steps(step, elapsed), 0.0) / length))


@dataclass(frozen=True)
class WarmDownFraction(ScheduleSite):
    """1, then linearly to 0 over the last `fraction` of the budget (PR #1514). Never under `floor` (0.1 in PR #1787)."""

    fraction: float = 0.667
    floor: float = 0.0

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise Problem(f"WarmDownFraction.fraction is {self.fraction}; take more than 0, at most 1")
        check_floor(self)

    def multiplier(self, step, elapsed, budget):
        """The factor on the rate of 0-based step `step`."""
        return max(self.floor, min(1.0, (1.0 - budget.progress(step, elapsed)) / self.fraction))


@dataclass(frozen=True)
class DecaySchedule(Node):
    """The factor on a group's weight decay: through `points` (progress of the run, factor) by straight lines.

    W <- W (1 - rate decay factor), where `rate` is the group's own. With `follows_rate` the factor is also multiplied by
    the schedule's factor on rates, as decay that is part of a step is; without, it falls only as `points` say. PR #1729
    tapers from 1 to 0.5 after 0.7 of the run: points ((0.0, 1.0), (0.7, 1.0), (1.0, 0.5)). Problem for points whose
    progress does not go up from 0.0 to 1.0, and for negative factors.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 1.0))
    follows_rate: bool = True

    def __post_init__(self):
        where = [progress for progress, _ in self.points]
        if where[:1] != [0.0] or where[-1:] != [1.0] or not all(one < two for one, two in pairwise(where)):
            raise Problem(f"DecaySchedule.points is {self.points}; the first of each must go up from 0.0 to 1.0")
        if not all(0 <= factor < math.inf for _, factor in self.points):
            raise Problem(f"DecaySchedule.points is {self.points}; the second of each, a factor, must be 0 or more")

    def at(self, progress):
        """What `points` say once a fraction of the run is over."""
        for (begin, first), (end, last) in pairwise(self.points):
            if progress <= end:
                return first + (last - first) * (progress - begin) / (end - begin)
        return self.points[-1][1]

    def factor(self, moment):
        """The factor on the product of the group's rate and its weight decay."""
        return self.at(moment.progress) * (moment.multiplier if self.follows_rate else 1.0)


@dataclass(frozen=True)
class Ramp(Node):
    """A value that moves linearly from `start` to `end` over the first `steps` steps: Muon's momentum."""

    start: float = 0.92
    end: float = 0.99
    steps: int = 1500

    def __post_init__(self):
        if self.steps < 1:
            raise Problem(f"Ramp.steps is {self.steps}; take 1 or more")
        if not (0 <= self.start < 1 and 0 <= self.end < 1):
            raise Problem(f"Ramp goes from {self.start} to {self.end}; a momentum is a fraction from 0, under 1")

    def at(self, step):
        """The value at 0-based step `step`."""
        return self.start + min(step / self.steps, 1.0) * (self.end - self.start)


@dataclass(frozen=True)
class Moment:
    """Where a step stands: its 0-based number, the fraction of the budget that is over, the factor on every rate."""

    step: int
    progress: float
    multiplier: float


def check_rates(group):
    """Problem for an optimiser group whose rate or decay is negative."""
    if group.rate < 0 or group.weight_decay < 0:
        kind = type(group).__name__
        raise Problem(f"{kind}.rate is {group.rate}, {kind}.weight_decay {group.weight_decay}; neither may be negative")


def check_floor(schedule):
    """Problem for a schedule whose floor is no fraction, or leaves nothing to fall."""
    if not 0 <= schedule.floor < 1:
        raise Problem(f"{type(schedule).__name__}.floor is {schedule.floor}; a factor on rates is from 0, under 1 here")
