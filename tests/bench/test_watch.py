"""What watches a trainer's steps: it sees them all, in the phase that it wants, and leaves the trainer as it was."""

import pytest
import torch

from fairway.bench.measure import synthetic_dataset, with_one_micro_batch
from fairway.bench.watch import TimedWorld, ms_between, watch_steps, watched_parts
from fairway.kernels.capability import capability
from fairway.problem import Interrupted
from fairway.train.dist import Done, World
from fairway.train.interrupt import Interrupt
from fairway.train.trainer import Trainer
from train.tiny import tiny


@pytest.fixture
def trainer(tmp_path):
    device = torch.device("cpu")
    recipe = with_one_micro_batch(tiny(), 64, 1)
    trainer = Trainer(recipe, synthetic_dataset(tmp_path, recipe, 1), 42, World(0, 1, device), capability(device))
    yield trainer
    trainer.batches.close()


def test_steps_are_real_ones_of_the_wanted_phase(trainer, monkeypatch):
    seen, step = [], trainer.step
    monkeypatch.setattr(trainer, "step", lambda *arguments: (seen.append(arguments), step(*arguments))[1])
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    watched = watch_steps(trainer, 0, 3, Interrupt())
    assert seen == [(0.0, 1.0, 0)] * 3 and trainer.steps_done == 3
    assert len(watched.marks) == 4 and watched.marks == sorted(watched.marks) and len(watched.queued_ms) == 3
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_a_step_that_is_to_be_alone_waits_for_the_one_before(trainer, monkeypatch):
    waits = []
    monkeypatch.setattr(trainer.world, "synchronize", lambda: waits.append(trainer.steps_done))
    watch_steps(trainer, 0, 3, Interrupt(), alone=True)
    assert waits == [0, 1, 2, 3]  # run_steps itself waits once, at its end
    waits.clear()
    watch_steps(trainer, 0, 3, Interrupt())
    assert waits == [6]


def test_parts_lie_within_their_step_and_the_trainer_is_as_before(trainer):
    loss, attributes = trainer.loss, set(vars(trainer.optimizer))
    with watched_parts(trainer) as (ends, begins):
        marks = watch_steps(trainer, 0, 3, Interrupt()).marks
    assert len(ends) == len(begins) == 3
    for begin, end_of_forward, begin_of_update, end in zip(marks, ends, begins, marks[1:], strict=False):
        assert begin < end_of_forward < begin_of_update < end
    assert trainer.loss == loss and set(vars(trainer.optimizer)) == attributes


def test_an_interrupt_ends_between_two_steps(trainer):
    interrupt = Interrupt()
    interrupt.asked = True
    with pytest.raises(Interrupted, match="nothing was written"):
        watch_steps(trainer, 0, 3, interrupt)
    assert trainer.steps_done == 0


def test_marks_of_a_gpu_are_asked_for_their_own_difference():
    class Event:
        def elapsed_time(self, end):
            return 7.5

    assert ms_between(Event(), Event()) == 7.5 and ms_between(1.0, 1.25) == 250.0


def test_random_text_is_of_the_models_vocabulary_and_uneven(trainer):
    x_BT, y_BT = trainer.batches.next()
    assert x_BT.shape == y_BT.shape == (2, 32) and x_BT.max() < trainer.recipe.model.vocab
    assert (x_BT < 10).float().mean() > 0.2


class NotedWorld(World):
    """Notes what is called, and hands out a handle that notes who waits."""

    def __init__(self):
        super().__init__(0, 2, torch.device("cpu"))
        self.calls = []

    def wait(self):
        self.calls.append("wait")

    def all_reduce_mean(self, tensor):
        self.calls.append("reduce")
        return self

    def all_gather(self, part_SRC):
        self.calls.append("gather")
        return part_SRC, self

    def all_reduce_sum(self, tensor):
        self.calls.append("sum")
        return tensor

    def largest(self, numbers):
        self.calls.append("meet")
        return numbers


def test_collectives_are_awaited_one_by_one_only_while_they_are_timed():
    inner, x = NotedWorld(), torch.ones(2)
    world = TimedWorld(inner)
    assert (world.size, world.rank, world.device) == (2, 0, inner.device)
    assert world.all_reduce_mean(x) is inner and world.all_gather(x)[1] is inner
    assert inner.calls == ["reduce", "gather"] and world.spent_ms == 0
    world.timed = True
    inner.calls.clear()
    assert isinstance(world.all_reduce_mean(x), Done)
    whole, pending = world.all_gather(x)
    assert whole is x and isinstance(pending, Done) and world.all_reduce_sum(x) is x and world.largest([1.0]) == [1.0]
    assert inner.calls == ["meet", "reduce", "wait", "meet", "gather", "wait", "meet", "sum", "meet"]
    assert world.spent_ms > 0
