"""Steps of a Trainer under watch: training's own loop, held in one phase of the plan, with marks on the device's time."""

import math
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from ..optim.schedule import Budget
from ..problem import DoesNotHold, Interrupted
from ..train.dist import Done
from ..train.loop import run_steps

QUIET_CALLS = ("largest", "gather_objects", "synchronize", "leave")  # of a World: they do not use the device's own wires


def time_mark(device):
    """This place on the device's time line: an event in a GPU's queue, which nobody waits for, or a CPU's seconds."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def ms_between(begin, end):
    """Milliseconds between two marks, once the device has passed both."""
    return 1000 * (end - begin) if isinstance(begin, float) else begin.elapsed_time(end)


class WatchedTrainer:
    """What `run_steps` drives in a Trainer's place: `steps` steps, all of one phase, at the full rate.

    `marks` has one before the first step and one after each; `queued_ms` what the host took to queue each step. With
    `alone` a step is queued only when the device has finished the one before.
    """

    def __init__(self, trainer, phase, steps, alone):
        self.recipe = replace(trainer.recipe, train=replace(trainer.recipe.train, budget=Budget(steps, 0.0)))
        self.trainer, self.world, self.phase, self.alone = trainer, trainer.world, phase, alone
        self.elapsed, self.steps_done, self.marks, self.queued_ms = 0.0, 0, [], []

    def step(self, progress, multiplier, phase):
        """One step as the Trainer does it, but in the phase of this watch."""
        if self.alone:
            self.world.synchronize()
        begin = time.perf_counter()
        if not self.marks:
            self.marks.append(time_mark(self.world.device))
        found = self.trainer.step(0.0, 1.0, self.phase)
        self.marks.append(time_mark(self.world.device))
        self.queued_ms.append(1000 * (time.perf_counter() - begin))
        self.steps_done += 1
        return found


class LastLoss:
    """Takes the place of Metrics: writes nothing, and reads nothing from the device before the last step."""

    def add(self, facts, loss, norm):
        """Keeps the loss."""
        self.loss = loss

    def flush(self):
        """DoesNotHold if the last loss is not finite."""
        if not math.isfinite(self.loss.item()):
            raise DoesNotHold(f"the loss is {self.loss.item()}: no pace of such a run is worth knowing")


class Stopper:
    """Takes the place of training's Keeper: an interrupt ends all ranks between two steps."""

    def __init__(self, interrupt):
        self.interrupt = interrupt

    @property
    def asked(self):
        """Whether this process has been asked to stop."""
        return self.interrupt.asked

    def stop(self, trainer, metrics):
        """Raises Interrupted."""
        raise Interrupted("interrupted; nothing was written")

    def keep(self):
        """Leaves the pace alone."""


def watch_steps(trainer, phase, steps, interrupt, alone=False):
    """The WatchedTrainer of `steps` steps that have all ended on the device. Interrupted, DoesNotHold."""
    watched = WatchedTrainer(trainer, phase, steps, alone)
    run_steps(watched, LastLoss(), Stopper(interrupt))
    return watched


@contextmanager
def watched_parts(trainer):
    """Yields two lists that get a mark for each step of one micro-batch: where its forward pass ends, its update begins."""
    loss, update, ends, begins = trainer.loss, trainer.optimizer.step, [], []

    def marked_loss(*arguments):
        found = loss(*arguments)
        ends.append(time_mark(trainer.world.device))
        return found

    def marked_update(moment):
        begins.append(time_mark(trainer.world.device))
        return update(moment)

    trainer.loss, trainer.optimizer.step = marked_loss, marked_update
    try:
        yield ends, begins
    finally:
        trainer.loss = loss
        del trainer.optimizer.step  # the method is there again


class TimedWorld:
    """A World that, while `timed`, lets each collective run alone: all ranks come to it with nothing queued, wait for its
    end, and `spent_ms` grows by what it took on this device."""

    def __init__(self, world):
        self.inner, self.timed, self.spent_ms = world, False, 0.0

    def __getattr__(self, name):
        found = getattr(self.inner, name)
        return partial(self._alone, found) if self.timed and name not in QUIET_CALLS and callable(found) else found

    def _alone(self, collective, *arguments, **named):
        self.inner.synchronize()
        self.inner.largest([0.0])
        begin = time_mark(self.inner.device)
        found = collective(*arguments, **named)
        parts = [found] if not isinstance(found, tuple) else list(found)
        for index, part in enumerate(parts):
            if hasattr(part, "wait") and not isinstance(part, torch.Tensor):
                part.wait()
                parts[index] = Done()
        end = time_mark(self.inner.device)
        self.inner.synchronize()
        self.spent_ms += ms_between(begin, end)
        return tuple(parts) if isinstance(found, tuple) else parts[0]
