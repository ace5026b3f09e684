"""submission.json: figures, spreads, promises and tests."""

from dataclasses import replace
from statistics import mean, stdev

import pytest
from scipy.stats import ttest_1samp, ttest_ind

from fairway.recipes.demo import demo
from fairway.record.log import log_name
from fairway.record.measured import measured_runs, read_measured
from fairway.record.submission import compliance_of, hardware, submission_of, technique_summary
from fairway.score.averaged_sgd import AveragedSGD
from record.made_runs import ABOUT, BYTES, SEEDS, TOKENS, change, put, verdict, write_run, write_seeds


@pytest.fixture
def paths(tmp_path):
    return write_seeds(tmp_path)


def told(paths, record=(), **about):
    runs = [read_measured(path) for path in paths]
    return submission_of(runs, ABOUT | about, record, {log_name(one): "0" * 64 for one in runs}, ())


def test_means_deviations_and_the_worst_of_the_seeds(paths):
    found, runs = told(paths), measured_runs(paths)
    bpb, totals = [one.bpb for one in runs], [one.total_bytes for one in runs]
    assert found["val_bpb"] == pytest.approx(mean(bpb), abs=2e-8)
    assert found["val_bpb_std"] == pytest.approx(stdev(bpb), abs=2e-8)
    assert found["val_loss"] == pytest.approx(mean(one.score["nats"] / TOKENS for one in runs), abs=2e-8)
    assert found["pre_quant_val_bpb"] == pytest.approx(mean(bpb) * 0.99, abs=2e-8)
    assert (found["bytes_total"], found["artifact_bytes_max"]) == (max(totals), max(totals))
    assert (
        found["artifact_bytes_mean"] == round(mean(totals))
        and found["bytes_code"] == runs[0].ledger["files"]["train_gpt.py"]
    )
    assert found["seeds"] == list(SEEDS) and list(found["seed_results"]) == ["42", "314", "1234"]
    row = found["seed_results"]["314"]
    assert row["val_bpb"] == round(bpb[1], 8) and row["model_sha256"] == runs[1].run["sha256"]["model.bin"]
    assert (row["steps"], row["train_seconds"], row["eval_seconds"], row["artifact_bytes"]) == (6, 12.5, 3.25, totals[1])
    assert found["date"] == "2026-11-21T10:00:42+00:00" and found["github_id"] == "author"
    assert found["hardware"] == "8x NVIDIA H100 80GB HBM3"
    assert found["blurb"].startswith("Recipe demo, amended in 2 fields: TokenEmbedding + ")
    assert told(paths, blurb="Mine.")["blurb"] == "Mine."


def test_the_times_told_are_those_of_the_slowest_seed(tmp_path):
    paths = [write_run(tmp_path / str(seed), seed, train=seed / 10, scoring=seed / 20) for seed in (50, 90, 70)]
    found = told(paths)
    assert (found["wallclock_seconds"], found["eval_time_seconds"]) == (9.0, 4.5)


def test_devices_that_differ_are_all_told(paths):
    change(paths[2] / "run.json", put("world_size", 1))
    change(paths[1] / "run.json", put("device", "cpu x2"))
    change(paths[1] / "run.json", put("world_size", 1))
    assert told(paths)["hardware"] == "8x NVIDIA H100 80GB HBM3; cpu x2; 1x NVIDIA H100 80GB HBM3"
    assert hardware(read_measured(paths[1])) == "cpu x2"


PROOFS = [
    ("T1", "train_under_600s"), ("T2", "train_under_600s"), ("T4", "eval_under_600s"), ("A1", "artifact_under_16mb"),
    ("D1", "no_pre_quant_ttt"), ("A9", "no_pre_quant_ttt"),
]  # fmt: skip


@pytest.mark.parametrize("rule, key", PROOFS)
def test_a_promise_is_true_false_or_absent_as_the_audits_say(paths, rule, key):
    assert compliance_of(measured_runs(paths))[key] is True
    change(paths[1] / "audit.json", verdict(rule, "NOT TESTED"))
    before = compliance_of(measured_runs(paths))
    assert key not in before and len(before) == 4
    change(paths[2] / "audit.json", verdict(rule, "FAIL"))
    assert compliance_of(measured_runs(paths))[key] is False


def test_without_an_audit_only_the_number_of_seeds_is_promised(paths):
    (paths[0] / "audit.json").unlink()
    assert compliance_of(measured_runs(paths)) == {"three_seeds": True}
    assert compliance_of(measured_runs(paths[1:]))["three_seeds"] is False


def test_nothing_is_promised_of_learning_where_the_recipe_learns_nothing(paths, tmp_path):
    assert "score_first_ttt" not in compliance_of(measured_runs(paths))
    learning = replace(demo(), adapt=(AveragedSGD(),))
    path = write_run(tmp_path / "learning", recipe=learning)
    assert compliance_of(measured_runs([path]))["score_first_ttt"] is True
    change(path / "audit.json", verdict("C3", "FAIL"))
    assert compliance_of(measured_runs([path]))["score_first_ttt"] is False


def test_one_record_figure_is_tested_by_one_sample_and_several_by_welch(paths):
    own = [one["val_bpb"] for one in told(paths)["seed_results"].values()]
    alone = told(paths, (0.9,))
    wanted = ttest_1samp(own, 0.9, alternative="less")
    assert (alone["t_statistic"], alone["p_value"]) == pytest.approx((wanted.statistic, wanted.pvalue))
    assert alone["record_val_bpb"] == 0.9
    several = told(paths, (0.9, 0.91, 0.89))
    wanted = ttest_ind(own, [0.9, 0.91, 0.89], equal_var=False, alternative="less")
    assert (several["t_statistic"], several["p_value"]) == pytest.approx((wanted.statistic, wanted.pvalue))
    assert several["record_val_bpb"] == [0.9, 0.91, 0.89]
    token, byte, bits = (several["margin"][unit] for unit in ("nats_per_token", "nats_per_byte", "bpb"))
    assert token["bpb"] == pytest.approx(0.005 / 0.6931471805599453 * TOKENS / BYTES)
    assert byte["bpb"] == pytest.approx(0.005 / 0.6931471805599453) and bits["bpb"] == 0.005
    wanted = ttest_ind([one + 0.005 for one in own], [0.9, 0.91, 0.89], equal_var=False, alternative="less")
    assert bits["p_value"] == pytest.approx(wanted.pvalue)


def test_without_any_spread_nothing_is_tested(paths):
    bpb = told(paths)["seed_results"]["42"]["val_bpb"]
    for path in paths:
        for name in ("score.json", "run.json"):
            (path / name).write_text((paths[0] / name).read_text())
    assert told(paths)["val_bpb_std"] == 0
    found = told(paths, (bpb + 0.1,))
    assert found["record_val_bpb"] == bpb + 0.1 and not {"p_value", "t_statistic", "margin"} & set(found)


def test_the_step_that_training_stopped_at_is_the_seeds_mean(paths):
    for path, steps in zip(paths, (6, 9, 12), strict=True):
        change(path / "run.json", put("steps", steps))
    assert told(paths)["step_stop"] == 9


def test_one_seed_is_not_tested(paths):
    found = told(paths[:1], (0.9,))
    assert found["record_val_bpb"] == 0.9 and not {"p_value", "t_statistic", "margin", "val_bpb_std"} & set(found)


def test_the_summary_names_every_technique_once():
    words = technique_summary(demo()).split(" + ")
    assert {"SmearGate", "FinalNorm", "ReluSquared"} <= set(words) and len(set(words)) == len(words)
