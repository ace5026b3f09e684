import itertools
import json
import math
import types

import pytest
import torch
from safetensors.torch import load_file

from fairway.clock import Clock
from fairway.data.dataset import open_dataset
from fairway.kernels.capability import capability
from fairway.model.roles import leaf_views
from fairway.node import digest, parse_node
from fairway.problem import DoesNotHold, Problem
from fairway.train.dist import World
from fairway.train.loop import train_run
from fairway.train.metrics import Metrics
from fairway.train.trainer import Trainer
from train.tiny import IN_ORDER, curve, rows, tiny, train_arguments

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def trainer(tiny_data):
    """`trainer(*settings, seed=)` makes one, whose thread is ended after the test."""
    made = []

    def make(*settings, seed=1):
        made.append(Trainer(tiny(*settings), open_dataset(tiny_data), seed, ALONE, capability(ALONE.device)))
        return made[-1]

    yield make
    for one in made:
        one.batches.close()


@pytest.fixture
def trained(fairway_here, tiny_data, tmp_path):
    """`trained(*settings, steps=)` gives the folder of a run that ended well."""
    numbers = itertools.count()

    def train(*settings, steps=12):
        out = tmp_path / f"run{next(numbers)}"
        code, _, errors = fairway_here(*train_arguments(tiny_data, out, *settings, steps=steps))
        assert (code, errors) == (0, [])
        return out

    return train


def test_losses_fall_from_the_uniform_one(trained):
    losses = [row["loss"] for row in rows(trained(steps=60))]
    assert losses[0] == pytest.approx(math.log(300), abs=0.3)
    assert sum(losses[-5:]) / 5 < losses[0] - 2


def test_metrics_hold_one_line_a_step_with_all_their_keys(trained):
    found = rows(trained(steps=23))  # 1, 10 a flush, and a rest
    assert [row["step"] for row in found] == list(range(1, 24))
    assert [row["tokens"] for row in found] == [256 * step for step in range(1, 24)]
    assert all(row.keys() == {"step", "tokens", "seconds", "rate", "loss", "norm"} for row in found)
    assert [row["seconds"] for row in found] == sorted(row["seconds"] for row in found)
    assert [row["rate"] for row in found] == pytest.approx([min(1.0, (1 - step / 23) / 0.6) for step in range(23)])


def test_the_run_folder_holds_what_the_design_promises_and_nothing_else(trained, tiny_data):
    out = trained()
    assert {path.name for path in out.iterdir()} == {"recipe.py", "run.json", "metrics.jsonl", "weights.safetensors"}
    recipe, run = parse_node((out / "recipe.py").read_text()), json.loads((out / "run.json").read_text())
    assert run["recipe"] == "demo" and run["recipe_hash"] == digest(recipe)
    assert len(run["source_hash"]) == 16 and run["data_hash"] == open_dataset(tiny_data).data_hash
    assert (run["seed"], run["world_size"], run["steps"], run["tokens"]) == (42, 1, 12, 12 * 256)
    assert run["device"].startswith("cpu")
    assert {"compile", "train"} <= run["phases"].keys() and run["phases"]["train"] > 0
    assert 0 < run["bpb"]["weights"] < 8
    assert run["averages"] == ["SWA of 3 snapshots"]


def test_the_weights_are_the_mean_of_the_snapshots_by_canonical_name(trainer, tmp_path):
    one, other = trainer("train.budget=Budget(steps=9, seconds=0.0)"), trainer("train.budget=Budget(steps=9, seconds=0.0)")
    train_run(tmp_path, one, Clock())
    found = load_file(tmp_path / "weights.safetensors")
    snapshots = []
    for step in range(9):
        other.step(0.0, other.recipe.train.schedule.multiplier(step, 0.0, other.recipe.train.budget), 0)
        if step in (3, 7):
            snapshots.append({leaf.name: view.detach().clone() for leaf, view in leaf_views(other.model)})
    assert found.keys() == snapshots[0].keys()
    for name, value in found.items():
        torch.testing.assert_close(value, (snapshots[0][name] + snapshots[1][name]) / 2, rtol=1e-6, atol=1e-7)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(trained, tiny_data, fairway_here, tmp_path):
    one, other = trained(), trained()
    assert curve(one) == curve(other)
    assert (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    arguments = train_arguments(tiny_data, tmp_path / "seed", steps=3)
    assert fairway_here(*arguments[: -len(arguments) + 6], "--seed", 7, *arguments[6:])[0] == 0
    assert rows(tmp_path / "seed")[0]["loss"] != rows(one)[0]["loss"]


def test_gradients_of_micro_batches_average_to_that_of_the_whole_batch(trainer):
    # ShuffledWindows draws window by window, so 4 micro-batches of 2 windows are the 8 windows of one.
    whole, parts = trainer("train.micro_tokens=256"), trainer("train.micro_tokens=64")
    assert (whole.micro_steps, parts.micro_steps) == (1, 4)
    for step in range(3):
        (loss, norm), (loss_of_parts, norm_of_parts) = whole.step(0.0, 1.0, 0), parts.step(0.0, 1.0, 0)
        # Float32 sums in another order; the first updates magnify the difference.
        tolerance = 1e-6 * 30**step
        torch.testing.assert_close(loss_of_parts, loss, rtol=tolerance, atol=0)
        torch.testing.assert_close(norm_of_parts, norm, rtol=10 * tolerance, atol=0)


def test_a_budget_of_seconds_ends_by_the_clock_and_the_rate_follows_it(fairway_here, tiny_data, tmp_path):
    arguments = train_arguments(tiny_data, tmp_path / "run")
    arguments[6:8] = ["--seconds", 0.5]
    code, _, errors = fairway_here(*arguments)
    assert (code, errors) == (0, [])
    found, run = rows(tmp_path / "run"), json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0.5 <= run["phases"]["train"] < 2.0
    assert run["steps"] == len(found) > 3
    assert all(row["seconds"] < 0.5 for row in found[:-1])
    for row, later in itertools.pairwise(found):
        assert later["rate"] == pytest.approx(min(1.0, (1 - row["seconds"] / 0.5) / 0.6), abs=0.02)


def test_the_steps_of_a_budget_of_seconds_are_an_upper_bound(trainer, tmp_path):
    _, facts = train_run(tmp_path, trainer("train.budget=Budget(steps=4, seconds=60.0)"), Clock())
    assert facts["steps"] == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(fairway_here, tiny_data, tmp_path):
    arguments = train_arguments(tiny_data, tmp_path / "run", "optim.AdamW:0.rate=1e30")
    code, out, errors = fairway_here(*arguments)
    assert (code, out, len(errors)) == (1, "", 1)
    assert "at step 2: lower the rates" in errors[0]
    assert len(rows(tmp_path / "run")) == 1 and not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_no_number_that_json_lacks_reaches_the_metrics(tmp_path, loss, norm):
    metrics = Metrics(tmp_path / "metrics.jsonl", ALONE, every=2)
    assert metrics.add({"step": 5}, torch.tensor(1.0), torch.tensor(1.0)) is None
    with pytest.raises(DoesNotHold, match="at step 6"):
        metrics.add({"step": 6}, torch.tensor(loss), torch.tensor(norm))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_losses_of_a_line_are_the_mean_over_ranks(tmp_path):
    world = types.SimpleNamespace(rank=0, size=2, all_reduce_sum=lambda tensor: tensor.add_(2.5))  # the other's 5, halved
    metrics = Metrics(tmp_path / "metrics.jsonl", world)
    assert metrics.add({"step": 1}, torch.tensor(3.0), torch.tensor(1.0))["loss"] == 4.0


def test_a_rewound_file_keeps_the_lines_before_the_checkpoint(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", ALONE)
    for step in (1, 2, 3):
        metrics.add({"step": step}, torch.tensor(1.0), torch.tensor(1.0))
    metrics.flush()
    metrics.rewind(2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    metrics.rewind(0)
    assert rows(tmp_path) == []


@pytest.mark.parametrize(
    "settings, says",
    [
        (("train.micro_tokens=120",), "train.micro_tokens=120 is not a multiple of model.sequence=32"),
        (("train.batch_tokens=300",), "train.batch_tokens=300 is not a multiple of train.micro_tokens=128 x 1 ranks"),
        (("train.batch_tokens=64",), "train.batch_tokens=64 is not a multiple of train.micro_tokens=128 x 1 ranks"),
        (("train.batch_tokens=0",), "train.batch_tokens=0 is not a multiple"),
        (("train.micro_tokens=0",), "train.micro_tokens=0 is not a multiple of model.sequence=32; take one"),
        (("model.vocab=512",), "--set model.vocab=300"),
        ((IN_ORDER, "train.batch_tokens=65536", "train.micro_tokens=65536"), "lower train.micro_tokens"),
        (("model.sequence=16384", "train.batch_tokens=16384", "train.micro_tokens=16384"), "lower model.sequence"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_step(trainer, settings, says):
    with pytest.raises(Problem) as caught:
        trainer(*settings)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_warm_up_leaves_no_trace(trainer):
    machine = capability(ALONE.device)
    warm, cold = trainer("train.warmup_steps=3"), trainer()
    # The steps of a warm-up without their compiler.
    warm.machine = types.SimpleNamespace(**{**machine.__dict__, "compiled": True})
    warm.warm_up()
    assert warm.steps_done == 0
    for _ in range(5):
        assert warm.step(0.0, 1.0, 0) == cold.step(0.0, 1.0, 0)
    for one, other in zip(warm.averages, cold.averages, strict=True):
        assert one.count == other.count == 1
