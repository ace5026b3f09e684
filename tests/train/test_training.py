import dataclasses
import functools
import itertools
import json
import math
import sys
import types

import pytest
import torch

from fairway.clock import Clock
from fairway.data.dataset import open_dataset
from fairway.kernels.capability import capability
from fairway.model.residual import ResidualPart
from fairway.model.roles import leaf_views
from fairway.node import digest, parse_node
from fairway.problem import DoesNotHold, Problem
from fairway.sites import ResidualSite
from fairway.train.dist import World
from fairway.train.metrics import Metrics
from fairway.train.session import nothing_compiled, train_run
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
    assert {path.name for path in out.iterdir()} == {"recipe.py", "run.json", "metrics.jsonl", "weights.pt"}
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
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
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
    assert (one / "weights.pt").read_bytes() == (other / "weights.pt").read_bytes()
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
    *_, facts = train_run(tmp_path, trainer("train.budget=Budget(steps=4, seconds=60.0)"), Clock())
    assert facts["steps"] == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(fairway_here, tiny_data, tmp_path):
    arguments = train_arguments(tiny_data, tmp_path / "run", "optim.AdamW:0.rate=1e30")
    code, out, errors = fairway_here(*arguments)
    assert (code, out, len(errors)) == (1, "", 1)
    assert "at step 2: lower the rates" in errors[0]
    assert len(rows(tmp_path / "run")) == 1 and not (tmp_path / "run" / "weights.pt").exists()


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


LOOP = "model.plan=Loop(first=1, last=1, passes=2, starts_at=0.5, skip=AddSkip())"


@pytest.fixture
def compiling(trainer, monkeypatch):
    """A trainer whose loss is compiled (without a backend's code), on two phases."""
    machine = dataclasses.replace(capability(ALONE.device), compiled=True)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(sys.modules[__name__], "capability", lambda device: machine)
    return trainer(LOOP, "train.warmup_steps=1", "train.budget=Budget(steps=8, seconds=0.0)", "qat=(LateQAT(after=0.7),)")


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_all_graphs_are_compiled_before_the_clock_starts(compiling, tmp_path):
    before = graphs()
    compiling.warm_up()
    warm = graphs()
    assert len(compiling.model.orders) == 2 and warm == before + 2
    with nothing_compiled(True):
        for step in range(8):
            compiling.step(step / 8, 1.0, compiling.recipe.model.plan.phase(step / 8))
    assert graphs() == warm


def test_a_graph_that_warm_up_has_not_seen_ends_the_run_with_one_line(compiling, tmp_path, monkeypatch):
    whole = compiling.model.orders
    compiling.model.orders = whole[:1]  # what warm-up goes by
    compiling.warm_up()
    compiling.model.orders = whole
    monkeypatch.setattr(compiling, "warm_up", lambda: None)
    with pytest.raises(DoesNotHold) as caught:
        train_run(tmp_path, compiling, Clock())
    assert "had to be compiled within the clock" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "weights.pt").exists()


def test_without_a_warm_up_the_steps_compile_as_they_come(trainer, compiling, tmp_path):
    cold = trainer(LOOP, "train.warmup_steps=0", "train.budget=Budget(steps=4, seconds=0.0)")
    before = graphs()
    *_, facts = train_run(tmp_path, cold, Clock())
    assert facts["steps"] == 4 and graphs() == before + 2


def test_another_fault_within_the_clock_is_not_taken_for_a_compilation():
    with pytest.raises(RuntimeError, match="mine"), nothing_compiled(True):
        raise RuntimeError("mine")


def test_the_first_average_is_kept_and_the_others_are_scored_beside_it(fairway_here, tiny_data, tmp_path):
    several = "average=(EMA(decay=0.7), SWA(below=2.0, every=4, of=EMA(decay=0.7)), LastWeights())"
    scores = {}
    for name, setting in (("all", several), ("last", "average=(LastWeights(),)"), ("none", "average=()")):
        assert fairway_here(*train_arguments(tiny_data, tmp_path / name, setting))[0] == 0
        scores[name] = json.loads((tmp_path / name / "run.json").read_text())
    assert scores["all"]["bpb"].keys() == {"weights", "SWA", "LastWeights"}
    assert len(set(scores["all"]["bpb"].values())) == 3
    assert len(scores["all"]["averages"]) == 3 and scores["none"]["averages"] == []
    assert scores["last"]["bpb"] == scores["none"]["bpb"] == {"weights": scores["all"]["bpb"]["LastWeights"]}
    ema = tmp_path / "ema"
    assert fairway_here(*train_arguments(tiny_data, ema, "average=(EMA(decay=0.7),)"))[0] == 0
    assert json.loads((ema / "run.json").read_text())["bpb"]["weights"] == scores["all"]["bpb"]["weights"]
    assert (ema / "weights.pt").read_bytes() == (tmp_path / "all" / "weights.pt").read_bytes()


@dataclasses.dataclass(frozen=True)
class MadeUpDamper(ResidualSite):
    """A learned factor on every MLP delta, as nobody needs it: a node, its module, and a place in a recipe."""

    factor: float = 0.5

    def build(self, context):
        return MadeUpDamperModule(context.layers, self.factor)


class MadeUpDamperModule(ResidualPart):
    def __init__(self, layers, factor):
        super().__init__()
        self.own_per_layer("factor_L", "madeup.factor", torch.full((layers,), factor))

    def fed(self, d_BTD, n_BTD, layer, carry):
        return d_BTD * self.factor_L[layer].to(d_BTD.dtype)


def test_weights_are_scored_without_the_mixers_of_a_recipe_whose_windows_lie_side_by_side(fairway_here, tiny_data, tmp_path):
    out = tmp_path / "run"
    mixed = ("mix=(TokenTilt(),)", "evaluate.windows=NonOverlapping(length=32)")
    code, _, errors = fairway_here(*train_arguments(tiny_data, out, *mixed, steps=2))
    assert code == 0, errors
    assert json.loads((out / "run.json").read_text())["bpb"].keys() == {"weights"}


def test_a_made_up_technique_trains_and_packs_with_nothing_but_its_place_in_a_recipe(fairway_here, tiny_data, tmp_path):
    run = tmp_path / "run"
    setting = "model.residual=(ResidualMix(), LayerScale(), MadeUpDamper(factor=0.25))"
    assert fairway_here(*train_arguments(tiny_data, run, setting))[0] == 0
    weights = torch.load(run / "weights.pt", weights_only=True)
    factors = [value for name, value in weights.items() if name.endswith("madeup.factor")]
    assert len(factors) == 3 and all(0 < abs(factor - 0.25) < 0.2 for factor in factors)
    assert fairway_here("pack", run)[0] == 0
    code, out, _ = fairway_here("score", run, "--json")
    assert code == 0 and json.loads(out)["bpb"] > 0
