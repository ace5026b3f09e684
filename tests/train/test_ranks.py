"""Several processes on the CPU (gloo) must learn what one learns.

Measured in float32 between 1 and 2 ranks over 60 steps: losses 2e-7 apart, gradient norms 8e-7, weights 2e-5 of the
largest of their tensor. The tolerances allow more than ten times as much, as other machines sum in another order.
"""

import json
import multiprocessing
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from fairway.data.shards import open_shard, write_shard
from fairway.model.roles import Part, parameter_roles
from fairway.optim.adamw import AdamW
from fairway.optim.muon import Muon
from fairway.optim.optimizer import Optimizer
from fairway.optim.schedule import Moment
from fairway.train.dist import Done, World
from train.ranks import GROUPS, build, optimise_rank, optimised
from train.tiny import IN_ORDER, begin, curve, fairway, interrupt, rows, torchrun, train_arguments

STEPS, LOSSES, NORMS, WEIGHTS = 60, 1e-5, 1e-4, 5e-4


def apart(one, other):
    """The largest difference of two tensors, relative to the largest value."""
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-12)).item()


@pytest.fixture(scope="module")
def two(tiny_data, tmp_path_factory):
    """A run of two ranks."""
    run = tmp_path_factory.mktemp("ranks") / "two"
    code, out, errors = fairway(*train_arguments(tiny_data, run, IN_ORDER, steps=STEPS), launcher=torchrun(2))
    assert code == 0, errors
    assert "Traceback" not in errors and "FutureWarning" not in errors
    assert out.count("seconds of train") == 1, "one rank speaks for all"
    return run


def test_two_ranks_learn_what_one_learns(two, tiny_data, tmp_path, fairway_here):
    one = tmp_path / "one"
    assert fairway_here(*train_arguments(tiny_data, one, IN_ORDER, steps=STEPS))[0] == 0
    facts, alone = (json.loads((run / "run.json").read_text()) for run in (two, one))
    assert (facts["world_size"], alone["world_size"]) == (2, 1)
    assert facts["tokens"] == alone["tokens"]
    for row, expected in zip(rows(two), rows(one), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=LOSSES)
        assert row["norm"] == pytest.approx(expected["norm"], rel=NORMS)
    found, expected = (torch.load(run / "weights.pt", weights_only=True) for run in (two, one))
    assert found.keys() == expected.keys()
    assert all(apart(value, expected[name]) < WEIGHTS for name, value in found.items())
    assert facts["bpb"]["weights"] == pytest.approx(alone["bpb"]["weights"], rel=LOSSES)


def test_an_interrupt_of_two_ranks_leaves_one_checkpoint_from_which_they_go_on(two, tiny_data, tmp_path):
    run = tmp_path / "run"
    process = begin(*train_arguments(tiny_data, run, IN_ORDER, steps=STEPS), launcher=torchrun(2))
    code, _, errors = interrupt(process, run, 10, signal.SIGTERM)
    assert code != 0 and errors.count("go on with `fairway train --resume") == 1
    assert len(rows(run)) < STEPS and (run / "checkpoint.pt").exists()
    code, _, errors = fairway("train", "--resume", run, launcher=torchrun(2))
    assert code == 0, errors
    assert curve(run) == curve(two)
    assert (run / "weights.pt").read_bytes() == (two / "weights.pt").read_bytes()


def stopped(errors, reason, other):
    """The faulty rank's line is there, the other's refers to it, and no rank ends in a traceback."""
    lines = {line for line in errors.splitlines() if line.startswith("fairway: ")}
    assert f"fairway: {reason}" in lines and lines <= {f"fairway: {reason}", f"fairway: {other}"}
    assert not re.search(r"^\[rank\d\]: Traceback", errors, re.M)


def test_what_stops_only_the_second_rank_is_said(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    shard = data / "train_000001.bin"  # the second rank's own: ShuffledWindows deals shards out
    write_shard(shard, np.full(len(open_shard(shard)), 65535))
    code, out, errors = fairway(*train_arguments(data, tmp_path / "run"), launcher=torchrun(2))
    assert code != 0 and out == ""
    reason = f"token 65535 in {shard} but the model has 300 rows: data and recipe differ in vocabulary"
    stopped(errors, reason, "another rank has ended; its own line says why")


def test_a_rank_that_is_refused_leaves_no_folder_that_looks_taken(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    write_shard(data / "train_000001.bin", np.array([1, 7, 8]))
    code, out, errors = fairway(*train_arguments(data, tmp_path / "run"), launcher=torchrun(2))
    assert code != 0 and out == "" and not (tmp_path / "run").exists()
    reason = "rank 1 owns 3 tokens at most but a window takes 33; lower model.sequence"
    stopped(errors, reason, "another rank was refused; its own line says why")


SIZES = (1, 2, 3, 8)


@pytest.fixture(scope="module")
def meetings(tmp_path_factory):
    """A folder with what each rank of 1, 2, 3 and 8 has: the same few processes meet in turn, as each imports torch."""
    folder, spawn = tmp_path_factory.mktemp("meetings"), multiprocessing.get_context("spawn")
    ranks = range(max(SIZES))
    processes = [spawn.Process(target=optimise_rank, args=(rank, SIZES, str(folder)), daemon=True) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0 for _ in ranks]
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_ranks_update_uneven_banks_as_one_process_does(meetings, size):
    ranks = [torch.load(meetings / f"{rank}of{size}.pt", weights_only=True) for rank in range(size)]
    expected = optimised(World(0, 1, torch.device("cpu")), range(size))
    for found in ranks:
        torch.testing.assert_close(found["norms"], expected["norms"], rtol=1e-6, atol=0)
        for name, value in found["parameters"].items():
            assert torch.equal(value, ranks[0]["parameters"][name]), "ranks drift apart"
            assert apart(value, expected["parameters"][name]) < 1e-5
        for part, whole in zip(found["state"], expected["state"], strict=True):
            assert part.keys() == whole.keys()
            if isinstance(next(iter(whole.values())), torch.Tensor):  # Muon's momentum: whole on every rank
                assert all(apart(part[name], whole[name]) < 1e-6 for name in whole)


class NotingWorld(World):
    """Two ranks of which the other one has what this one has; notes what is communicated."""

    def __init__(self):
        super().__init__(0, 2, torch.device("cpu"))
        self.notes = []

    def all_reduce_sum(self, tensor):
        self.notes.append(("sum", tensor.numel()))
        return tensor.mul_(2)

    def all_reduce_mean(self, tensor):
        self.notes.append(("mean", tensor.numel()))
        return Done()

    def reduce_scatter_mean(self, whole_PRC):
        self.notes.append(("scatter", whole_PRC.numel()))
        return whole_PRC.chunk(2)[0].clone(), Done()

    def all_gather(self, part_SRC):
        self.notes.append(("gather", 2 * part_SRC.numel()))
        return torch.cat([part_SRC, part_SRC]), Done()


ONE_OF_EACH = (AdamW(roles=("embedding", "table", "scalar"), rate=0.03), Muon())


@pytest.mark.parametrize("groups", [ONE_OF_EACH, GROUPS, GROUPS[::-1]], ids=["two", "five", "five backwards"])
def test_a_step_has_one_all_reduce_of_gradients_however_many_groups_there_are(groups):
    model, world = build(), NotingWorld()
    optimizer = Optimizer(model, groups, world, torch.float32, clip=5.0)
    banks = [p.numel() for name, p in model.named_parameters() if parameter_roles(model)[name] == "matrix"]
    rest = sum(p.numel() for p in model.parameters()) - sum(banks)
    for step in range(2):
        world.notes.clear()
        optimizer.step(Moment(step, 0.0, 1.0))
        assert [number for kind, number in world.notes if kind == "mean"] == [rest]
        # Banks start first, the largest before the others; the one sum is that of the squares for clipping.
        assert [kind for kind, _ in world.notes] == ["scatter"] * len(banks) + ["mean", "sum"] + ["gather"] * len(banks)
        assert [number for _, number in world.notes[: len(banks)]] == sorted(banks, reverse=True)


def test_a_model_of_banks_only_has_no_all_reduce_of_gradients():
    bank = Part()
    bank.own_bank("bank_NRC", torch.ones(2, 3, 4), "matrix", [("a", "matrix", 0), ("b", "matrix", 1)])
    world = NotingWorld()
    Optimizer(bank, (Muon(),), world, torch.float32, clip=5.0).step(Moment(0, 0.0, 1.0))
    assert [kind for kind, _ in world.notes] == ["scatter", "sum", "gather"]
