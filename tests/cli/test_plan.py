"""The forecast of `fairway plan`, against figures worked out by hand and against what a real run would do."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fairway import forecast
from fairway.artifact.bundle import bundle
from fairway.artifact.container import write_container
from fairway.forecast import forecast_weights, plan_run, steps_in_budget
from fairway.model.plan import Straight
from fairway.node import digest, drop, override
from fairway.optim.schedule import Budget
from fairway.quantize.policy import assign_rules, quantise
from fairway.recipes.demo import demo
from fairway.stages import find_recipe, model_leaves
from train.tiny import MODEL, SETTINGS, tiny


@pytest.fixture(scope="module")
def pr162():
    return plan_run("pr162", (), 8, 250.0)


def test_matrix_flops_of_pr162_are_six_for_each_weight_that_a_token_meets(pr162):
    # Nine blocks of 2 x 512 x 512 + 2 x 256 x 512 + 2 x 1536 x 512, the bigram's projection, the tied head.
    weights = 9 * (2 * 512 * 512 + 2 * 256 * 512 + 2 * 1536 * 512) + 512 * 128 + 1024 * 512
    assert weights == 21_233_664 + 65_536 + 524_288
    flops = pr162["flops_per_token"]
    assert flops["plain"] == flops["looped"] == 6 * weights


def test_attention_flops_are_counted_apart_at_half_a_window_of_keys(pr162):
    products = 2  # q k^T and the sum over values
    by_hand = 9 * products * 3 * 2 * (2049 / 2) * 8 * 64
    flops = pr162["flops_per_token"]
    assert flops["attention_plain"] == flops["attention_looped"] == by_hand


def test_parameters_sum_to_the_total_by_role_and_by_refined_role(pr162):
    parameters = pr162["parameters"]
    assert parameters["total"] == 22_368_841
    assert parameters["by_role"] == {
        "embedding": 524_288, "table": 524_288, "projection": 65_536, "scalar": 21_065, "matrix": 21_233_664,
    }  # fmt: skip
    assert sum(parameters["by_role"].values()) == sum(parameters["refined"].values()) == parameters["total"]
    assert parameters["refined"]["matrix.key"] == 9 * 256 * 512


def test_memory_of_pr162_on_eight_ranks_is_that_of_padded_bank_shards(pr162):
    # 18 slices over 8 ranks are 3 on each, 9 are 2; the projection is no bank, and AdamW holds two moments whole.
    muon = 3 * 512 * 512 + 3 * 256 * 512 + 2 * 2 * 1536 * 512 + 512 * 128
    adamw = 2 * (524_288 + 524_288 + 21_065)
    held = pr162["memory"]
    assert held["optimiser"] == 4 * (muon + adamw)
    assert held["parameters"] == held["gradients"] == held["averages"] == 4 * 22_368_841
    assert held["total"] == sum(count for name, count in held.items() if name != "total")


def test_one_rank_holds_every_moment_and_each_average_adds_a_copy():
    recipe = find_recipe("pr162")
    model = recipe.model.build()
    assert forecast.forecast_memory(recipe, model, 1)["optimiser"] == 4 * (22_368_841 + 524_288 + 524_288 + 21_065)
    bare = replace(recipe, average=())
    assert forecast.forecast_memory(bare, model, 1)["averages"] == 0
    twice = replace(recipe, average=recipe.average * 2)
    assert forecast.forecast_memory(twice, model, 1)["averages"] == 2 * 4 * 22_368_841


def test_scoring_reads_every_window_forward_through_every_weight(pr162):
    windows = 1 + (62_021_632 - 2048) // 64
    assert pr162["evaluation"] == {"targets": 62_021_632, "tokens_read": windows * 2048, "tokens_trained": 0}
    by_hand = windows * 2048 * (2 * 21_823_488 + 2 * 2049 * 512 * 9) / (8 * 250e12)
    assert pr162["eval_seconds"] == pytest.approx(by_hand)


def test_test_time_training_is_counted_and_what_goes_by_documents_is_not_known():
    plan = plan_run("pr1523", (), 8, 250.0)
    read, trained = 633_409 * 2048, 3 * 1237 * 32_768
    assert plan["evaluation"] == {"targets": 40_540_160, "tokens_read": read, "tokens_trained": trained}
    looped = plan["flops_per_token"]["looped"] + plan["flops_per_token"]["attention_looped"]
    assert plan["eval_seconds"] == pytest.approx(looped * (read / 3 + trained) / (8 * 250e12))
    by_document = plan_run("pr1523", ("adapt=()", "evaluate.windows=Documents()"), 8, 250.0)
    assert by_document["eval_seconds"] is None and "Documents" in by_document["notes"][-1]


def test_a_step_takes_its_flops_at_the_assumed_rate(pr162):
    seconds = (6 * 21_823_488 + 6 * 2049 * 512 * 9) * 98_304 / 250e12
    assert pr162["step_seconds"]["plain"] == pytest.approx(seconds)
    assert pr162["steps"] == math.ceil(600 / seconds)
    assert plan_run("pr162", (), 4, 500.0)["steps"] == pr162["steps"]


@pytest.mark.parametrize(
    "name, logged, plain, looped, packed",
    [
        ("pr162", 7_385, 130.9, 130.9, 15_988_337),
        ("pr864", 6_772, 159.5, 159.5, 15_996_856),
        ("pr1205", 5_562, 176.9, 176.9, 15_976_362),
        ("pr1514", 4_912, 215.5, 319.3, 15_966_112),
        ("pr1523", 4_713, 215.5, 319.3, 15_969_048),
    ],
)
def test_all_five_have_their_flops_and_bytes_and_about_the_steps_of_their_public_logs(name, logged, plain, looped, packed):
    """Weights in products by hand: six FLOPs each, those of layers 3 to 5 three times in the loop. Bytes: of short runs
    that were packed on a GPU (LOG.md)."""
    plan = plan_run(name, (), 8, 250.0)
    assert plan["bytes"]["forecast"] == pytest.approx(packed, rel=0.02)
    if name == "pr1523":  # before its dial was turned, once trained for 1,500 steps
        assert plan["bytes"]["unfitted"] == pytest.approx(15_453_871, rel=0.02)
    assert round(plan["flops_per_token"]["plain"] / 1e6, 1) == plain
    assert round(plan["flops_per_token"]["looped"] / 1e6, 1) == looped
    assert plan["steps"] == pytest.approx(logged, rel=0.15)


def test_a_loop_attends_as_often_as_it_runs_blocks():
    plan = plan_run("pr1523", (), 8, 250.0)
    attention = plan["flops_per_token"]
    assert attention["attention_looped"] * 11 == attention["attention_plain"] * 17


class TwoPhases(Straight):
    """Another pace from 0.4 on."""

    def phase(self, progress):
        return int(progress >= 0.4)


def walked(budget, plan, paces):
    """Steps and seconds, one step at a time: what a run does."""
    step = elapsed = 0
    while (done := budget.progress(step, elapsed)) < 1:
        step, elapsed = step + 1, elapsed + paces[plan.phase(done)]
    return step, elapsed


@pytest.mark.parametrize(
    "budget, by_hand",
    [
        (Budget(0, 100.0), (70, 100)),  # 40 s of 1 s, 60 s of 2 s
        (Budget(0, 100.0, 20.0), (56, 80)),
        (Budget(100, 0.0), (100, 160)),
        (Budget(1000, 100.0), (70, 100)),
        (Budget(50, 100.0), (50, 80)),  # 20 steps of 1 s are two fifths of the steps
        (Budget(60, 90.0), (57, 90)),  # 24 steps of 1 s, then the clock ends first
    ],
)
def test_steps_in_the_budget_weigh_each_phase_by_its_share_of_the_clock(budget, by_hand):
    paces = (1.0, 2.0)
    steps, seconds = steps_in_budget(budget, TwoPhases(), paces)
    assert (steps, seconds) == pytest.approx(by_hand, rel=1e-9)
    assert (steps, seconds) == pytest.approx(walked(budget, TwoPhases(), paces), abs=2)


def gaussian_container(recipe, leaves):
    draw = torch.Generator().manual_seed(7)
    weights = {leaf.name: torch.randn(leaf.shape, generator=draw) * 0.05 for leaf in leaves}
    rules = assign_rules(leaves, recipe.quantize)
    plain = {leaf.name: torch.eye(leaf.shape[-1]) for leaf in leaves if rules[leaf.name].calibrated}
    data, _ = write_container(quantise(weights, leaves, rules, plain), recipe.codec, digest(recipe))
    return len(data)


@pytest.mark.parametrize("recipe, sample", [(tiny(), 2**19), (demo(), 2**19), (demo(), 2**16)])
def test_forecast_weights_are_those_of_a_real_pack_of_gaussian_weights(monkeypatch, recipe, sample):
    monkeypatch.setattr(forecast, "SAMPLE_WEIGHTS", sample)
    leaves = model_leaves(recipe)
    tolerance = 0.01 if sample == 2**19 else 0.05
    rules = assign_rules(leaves, recipe.quantize)
    assert forecast_weights(recipe, leaves, rules) == pytest.approx(gaussian_container(recipe, leaves), rel=tolerance)


def test_bytes_are_the_program_as_built_and_the_weights_against_the_cap(fairway_here):
    recipe = override(find_recipe("demo"), ["cap=1000000"])
    code, out, errors = fairway_here("plan", "demo", "--json", "--set", "cap=1000000")
    size = json.loads(out)["bytes"]
    assert (code, errors) == (0, [])
    assert size["code"] == pytest.approx(len(bundle(recipe).program), rel=0.02)
    assert size["forecast"] == size["code"] + size["weights"] == 1_000_000 - size["left"]
    code, out, _ = fairway_here("plan", "demo", "--set", "cap=1000000")
    assert code == 0 and f"over the cap by {-size['left']:,} bytes" in out


def test_json_has_the_keys_that_scripts_may_rely_on(fairway_here):
    # More than one --set counts.
    arguments = [
        "plan",
        "demo",
        "--json",
        "--ranks",
        1,
        "--tflops",
        1e-3,
        "--set",
        *SETTINGS,
        "--set",
        "train.budget.steps=0",
    ]
    code, out, errors = fairway_here(*arguments)
    assert (code, errors) == (0, [])
    plan = json.loads(out)
    assert plan["parameters"].keys() >= {"total", "by_role"} and plan["bytes"].keys() >= {"forecast", "code"}
    assert plan["flops_per_token"].keys() >= {"plain", "looped"}
    # 150 s of 10^9 FLOP/s.
    flops = plan["flops_per_token"]
    assert plan["steps"] == math.ceil(150e9 / ((flops["plain"] + flops["attention_plain"]) * 256))
    assert plan["eval_seconds"] is None and "300" in plan["notes"][-1]


def test_the_tables_name_what_was_assumed(fairway_here):
    short = "evaluate.windows=Sliding(length=32, stride=16)"
    code, out, errors = fairway_here("plan", "demo", "--ranks", 2, "--tflops", 100, "--set", *MODEL, short)
    assert (code, errors) == (0, [])
    lines = out.splitlines()
    assert lines[0] == "demo" and "MiB on each of 2 GPUs, without activations" in lines
    assert any(line.startswith("assumed: 2 GPUs at 100 TFLOP/s each") for line in lines)
    assert any(line.startswith("240 steps of 4,096 tokens in ") for line in lines)
    assert any(
        line.startswith("does not train on 2 ranks as it is: train.batch_tokens=4096 is not a mult") for line in lines
    )
    assert lines[-1].startswith("no forecast of scoring: ")


def head_without(name):
    kept = [type(node) for node in demo().model.head if type(node).__name__ != name]
    return "model.head=(" + "".join(f"{kind.__name__}()," for kind in kept) + ")"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--ranks", 0], "--ranks 0 --tflops 250: give 1 or more GPUs"),
        (["--tflops", 0], "more than 0 TFLOP/s"),
        (["--tflops", "nan"], "more than 0 TFLOP/s"),
        (["--set", head_without("TiedHead")], "the head gives 160 numbers a token, not a logit for each of 1024 pieces"),
        (["--set", "model.inputs=()", "model.head=()"], "model.inputs and model.head must hold something"),
        (["--set", "quantize=(KeepFloat16(role='scalar'),)"], "no rule quantises token.table"),
        (["--set", "train.batch_tokens=0"], "train.batch_tokens=0 is not a multiple"),
        (["--set", "qat=(LateQAT(), LateQAT(below=0.1))"], "2 nodes stand in `qat`"),
        (["--set", "qat=(LateQAT(roles=('matrices',)),)"], "LateQAT.roles names 'matrices', no role"),
        (["--set", "qat=(LateQAT(roles=('scalar',)),)"], "LateQAT finds no parameter"),
        (["--set", "model.taps=(HeadGate(), HeadGate())"], "of HeadGate and of HeadGate; the model can hold one of them"),
        (["--set", "optim.Muon.roles=('matrix',)"], "0 optimiser groups take"),
    ],
)
def test_a_recipe_that_cannot_be_planned_is_one_line(fairway_here, arguments, says):
    code, out, errors = fairway_here("plan", "demo", *arguments)
    assert (code, out, len(errors)) == (2, "", 1) and says in errors[0]


def test_products_are_seen_wherever_they_are_taken():
    whole, model = find_recipe("demo"), find_recipe("demo").model
    bigram = type(model.inputs[1])
    with_it, less = (plan["flops_per_token"]["plain"] for plan in (plan_of(whole), plan_of(drop(whole, bigram))))
    assert with_it - less == 6 * 128 * 160


def plan_of(recipe):
    model = recipe.model.build()
    return {"flops_per_token": {"plain": 6 * sum(forecast.products_of(recipe.model, model, 0).values())}}
