"""Seeds: one configuration, logs of their own, and a margin in three units."""

import math

import pytest

from fairway.referee.claims import read_claims
from fairway.referee.folder import read_folder
from fairway.referee.logs import read_log
from fairway.referee.rules import read_policy
from fairway.referee.seeds import better_by, judge_seeds
from fairway.referee.verdict import Findings


def write(path, seed, name=None, bpb=None, lr="0.02", parameters=100, code=1000, world=8, extra=()):
    lines = [
        f"model_params:{parameters}", f"world_size:{world}", f"matrix_lr:{lr} run_id:{seed * 7} warmdown:3000",
        f"seed:{seed}", f"master_port:{29500 + seed}", *extra,
        f"step:900/1000 train_loss:3 train_time:{590000 + seed}ms", f"Code size: {code} bytes",
        f"Serialized model int6+zstd: {15_000_000 + seed} bytes",
        f"final_exact val_loss:{2.8 + seed / 1000:.8f} val_bpb:{bpb or f'{1.08 + seed / 1e5:.8f}'}",
    ]  # fmt: skip
    (path / (name or f"train_seed{seed}.log")).write_text("\n".join(lines) + "\n")


def judged(path, claims="{}", record=None):
    (path / "submission.json").write_text(claims)
    folder = read_folder(path)
    findings = Findings(read_policy())
    judge_seeds(findings, [read_log(folder, name) for name in folder.logs()], read_claims(folder), record)
    return findings


def verdicts(findings):
    return {row["rule"]: row["verdict"] for row in sorted(findings.rows, key=lambda row: row["verdict"] == "FAIL")}


def test_three_seeds_of_one_configuration_pass(tmp_path):
    for seed in (1, 2, 3):
        write(tmp_path, seed)
    assert verdicts(judged(tmp_path)) == {"S2": "PASS", "S3": "PASS"}


def test_fewer_than_three_seeds_are_for_people(tmp_path):
    write(tmp_path, 1)
    assert verdicts(judged(tmp_path)) == {"S2": "NOT TESTED"}


@pytest.mark.parametrize(
    "change", [{"lr": "0.03"}, {"parameters": 165}, {"code": 1001}, {"world": 4}, {"extra": ["ema:True"]}]
)
def test_a_seed_of_another_configuration_fails(tmp_path, change):
    write(tmp_path, 1, extra=["ema:False"])
    write(tmp_path, 2, **{"extra": ["ema:False"], **change})
    assert verdicts(judged(tmp_path))["S3"] == "FAIL"


def test_a_copied_log_under_another_seed_fails(tmp_path):
    write(tmp_path, 1)
    text = (tmp_path / "train_seed1.log").read_text().replace("seed:1\n", "seed:2\n")
    (tmp_path / "train_seed2.log").write_text(text)
    findings = judged(tmp_path)
    assert verdicts(findings)["S3"] == "FAIL" and any("one run under two names" in row["evidence"] for row in findings.rows)


def test_figures_of_few_digits_may_be_equal_by_chance(tmp_path):
    for seed in (1, 2, 3):
        write(tmp_path, seed)
        text = (tmp_path / f"train_seed{seed}.log").read_text().splitlines()[:-1]
        (tmp_path / f"train_seed{seed}.log").write_text("\n".join([*text, "final val_loss:2.8001 val_bpb:1.0801"]))
    assert verdicts(judged(tmp_path))["S3"] == "PASS"


def test_other_runs_in_the_folder_are_not_seeds_of_the_submission(tmp_path):
    for seed in (1, 2, 3):
        write(tmp_path, seed)
    write(tmp_path, 9, name="ablation.log", lr="0.5", parameters=7)
    write(tmp_path, 1, name="rescored.log", lr="0.5")
    assert verdicts(judged(tmp_path, '{"seeds": [1, 2, 3]}')) == {"S2": "PASS", "S3": "PASS"}


def test_a_seed_that_is_named_and_has_no_log_is_missing(tmp_path):
    for seed in (1, 2):
        write(tmp_path, seed)
    assert verdicts(judged(tmp_path, '{"seeds": [1, 2, 3]}'))["G1"] == "FAIL"
    (tmp_path / "train.log").write_text("final val_bpb: 1.1\n")
    assert verdicts(judged(tmp_path, '{"seeds": [1, 2, 3]}'))["G1"] == "NOT TESTED"


def margin_of(path, record):
    findings = judged(path, record=record)
    return next(row for row in findings.rows if row["rule"] == "S1")


def test_the_margin_is_told_in_three_units(tmp_path):
    for seed in (1, 2, 3):
        write(tmp_path, seed)
    row = margin_of(tmp_path, 1.10)
    assert row["verdict"] == "PASS" and len(row["measured"]) == 3
    assert row["measured"]["nats a byte"].endswith("0.00721 bpb") and row["measured"]["bpb"].endswith("0.00500 bpb")
    per_token = 0.005 / math.log(2) / (2.802 / math.log(2) / 1.08002)
    assert row["measured"]["nats a token"].endswith(f"{per_token:.5f} bpb")
    between = margin_of(tmp_path, 1.0835)
    assert between["verdict"] == "NOT TESTED" and "the unit decides" in between["evidence"]
    assert margin_of(tmp_path, 1.0801)["verdict"] == "NOT TESTED"


def test_p_values_are_those_of_the_textbook():
    # One-sample t = (mean - m) / (s / sqrt n) = -2 / (1 / sqrt 3), two degrees of freedom: p = 1/2 - t / (2 sqrt(2 + t^2)).
    t = 2 * math.sqrt(3)
    assert better_by([-3.0, -2.0, -1.0], [0.0], 0.0) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert better_by([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.0) == pytest.approx(0.5)
    assert better_by([1.0, 1.0], [2.0], 0.5) == 0.0 and better_by([1.0, 1.0], [2.0], 1.5) == 1.0


def test_a_setting_that_is_the_seed_under_another_name_may_differ(tmp_path):
    for seed in (7, 21, 99):
        write(tmp_path, seed, extra=[f"rng={seed} width=512"])
    assert verdicts(judged(tmp_path))["S3"] == "PASS"
    write(tmp_path, 99, extra=["rng=21 width=512"])
    assert verdicts(judged(tmp_path))["S3"] == "FAIL"
