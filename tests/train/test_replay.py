"""Recorded passes: what a Trainer gives them and takes from them, by a stand-in on a CPU; CUDA's own graphs with --gpu."""

from dataclasses import replace

import pytest
import torch

from fairway.data.dataset import open_dataset
from fairway.kernels.capability import capability
from fairway.node import override
from fairway.problem import DoesNotHold
from fairway.recipes.pr1523 import pr1523
from fairway.train import trainer as trainer_file
from fairway.train.dist import World
from fairway.train.loop import finish_training
from fairway.train.trainer import Trainer
from train.tiny import VOCAB, tiny

LOOP = "model.plan=Loop(first=1, last=1, passes=2, starts_at=0.5, skip=AddSkip())"
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs --gpu and a GPU")


class Recorded:
    """In a GradientGraph's place: runs the same passes whenever they are asked for, into the same gradients."""

    def __init__(self, compute, batches, parameters, pool):
        self.compute, self.parameters, self.pool, self.replays = compute, parameters, pool, 0
        self._run(batches)
        self.gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None

    def _run(self, batches):
        for parameter in self.parameters:
            assert parameter.grad is None
        return self.compute(batches)

    def replay(self, batches):
        self.replays += 1
        found = self._run(batches)
        for parameter, kept in zip(self.parameters, self.gradients, strict=True):
            assert (parameter.grad is None) == (kept is None)
            if kept is not None:
                kept.copy_(parameter.grad)
                parameter.grad = kept
        return found


@pytest.fixture
def made(tiny_data):
    """Makes Trainers, which are closed at the end; `changes` of what their machine can do."""
    made = []

    def make(recipe, device="cpu", **changes):
        device = torch.device(device)
        machine = replace(capability(device), **changes)
        made.append(Trainer(recipe, open_dataset(tiny_data), 7, World(0, 1, device), machine))
        return made[-1]

    yield make
    for one in made:
        one.batches.close()


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(trainer_file, "GradientGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")


def test_replayed_steps_are_those_that_are_launched_phase_after_phase_also_bent(made, stand_in):
    recipe = tiny(LOOP, "qat=(LateQAT(after=0.7),)", "train.warmup_steps=1")
    # The warm-up without its compiler.
    plain, recorded = made(recipe), made(recipe, recorded=True)
    recorded.machine = replace(recorded.machine, compiled=True)
    recorded.warm_up()
    assert plain.micro_steps == 2 and sorted(recorded.recorded) == [0, 1]
    assert {one.pool for one in recorded.recorded.values()} == {"pool"}, "one at a time is in use"
    for progress, phase in ((0.0, 0), (0.3, 0), (0.5, 1), (0.8, 1), (0.9, 0), (0.95, 1)):
        loss, norm = plain.step(progress, 1.0, phase)
        again, same = recorded.step(progress, 1.0, phase)
        assert torch.equal(loss, again) and torch.equal(norm, same), (progress, phase)
        assert all(parameter.grad is None for parameter in recorded.model.parameters())
    for one, other in zip(plain.model.parameters(), recorded.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [one.replays for one in recorded.recorded.values()] == [3, 3]


def test_what_is_recorded_ends_with_the_training(made, stand_in, tmp_path):
    trainer = made(tiny(), recorded=True)
    trainer.record()
    assert sorted(trainer.recorded) == [0]
    finish_training(tmp_path, trainer)
    assert not trainer.recorded and (tmp_path / "weights.pt").exists()


def test_a_machine_that_does_not_record_launches(made):
    trainer = made(tiny())
    trainer.record()
    assert not trainer.recorded and not capability(torch.device("cpu")).recorded


@CUDA
def test_a_cards_graphs_give_the_gradients_of_launched_passes_for_other_batches(made):
    """Both phases in turns, since they share their memory. The sums of attention's gradients vary from run to run."""
    small = ("model.kv_heads=1", "model.heads=2", "model.width=64", "model.sequence=32", "model.positions.Rotary.dims=8")
    sizes = (f"model.vocab={VOCAB}", "train.batch_tokens=256", "train.micro_tokens=128")
    trainer = made(override(pr1523(), [*small, *sizes]), "cuda")
    parameters = list(trainer.model.parameters())

    def taken(loss):
        gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        return [loss.reshape(1), *gradients]

    batches = [trainer._next_batches() for _ in range(6)]
    first = taken(trainer._accumulate(batches[0], 0))
    taken(trainer._accumulate(batches[0], 1))
    trainer.record()
    # Weights of another moment than that of recording.
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn_like(parameter))
    launched = [taken(trainer._accumulate(pair, number % 2)) for number, pair in enumerate(batches)]
    assert abs(launched[0][0] - first[0]) > 1e-3
    for number, pair in enumerate(batches):
        replayed = taken(trainer.recorded[number % 2].replay(pair))
        assert len(replayed) == len(launched[number])
        for one, other in zip(replayed, launched[number], strict=True):
            assert ((one - other).norm() / other.norm().clamp(min=1e-12)).item() < 1e-2
    assert not torch.equal(launched[0][0], launched[2][0]), "batches differ"
    trainer.step(0.0, 1.0, 1)
    assert all(parameter.grad is None for parameter in parameters)
    parameters[0].data = parameters[0].data.clone()
    with pytest.raises(DoesNotHold, match="was replaced"):
        trainer.step(0.0, 1.0, 1)
