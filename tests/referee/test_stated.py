"""What a run folder states: figures that do not fit are named, and files that are none are no trap."""

import json
import math
import os

import pytest

from fairway.referee.rules import read_policy
from fairway.referee.stated import judge_clock, judge_score_file, stated
from fairway.referee.verdict import Findings

NATS, BYTES, TOKENS = 3000.0, 1200, 1000
BPB = NATS / math.log(2) / BYTES
EVALUATION = {"evaluate": "Evaluation()", "adapt": "()", "mix": "()"}


def score_file(**changed):
    last = {"name": "Sliding", "bpb": BPB, "seconds": 2.0}
    figures = {"bpb": BPB, "nats": NATS, "tokens": TOKENS, "bytes": BYTES, "implied_bytes": float(BYTES), "stages": [last]}
    return figures | {"evaluation": EVALUATION, "data_hash": "same"} | changed


def judged(folder, score, packed=BPB):
    (folder / "score.json").write_text(json.dumps(score))
    findings = Findings(read_policy())
    known = judge_score_file(findings, folder, {"bpb": {"packed": packed}}, EVALUATION, "same", TOKENS, BYTES)
    return known, findings.rows


def test_a_score_file_that_fits_passes(tmp_path):
    known, (row,) = judged(tmp_path, score_file())
    assert row["verdict"] == "PASS" and known["bpb"] == BPB


@pytest.mark.parametrize(
    "changed, name",
    (
        ({"bpb": BPB - 1e-6}, "bpb"),
        ({"tokens": TOKENS - 1}, "tokens"),
        ({"bytes": BYTES + 10}, "bytes"),
        ({"stages": [{"bpb": 2.0}]}, "the last stage's bpb"),
        ({"nats": "3000"}, "bpb"),
        ({"nats": float("nan")}, "bpb"),
    ),
)
def test_a_figure_changed_by_hand_is_named(tmp_path, changed, name):
    _, (row,) = judged(tmp_path, score_file(**changed))
    assert row["rule"] == "G3" and row["verdict"] == "FAIL" and name in row["measured"]


def test_what_is_no_probability_is_not_missed_in_run_json_and_any_other_score_is(tmp_path):
    assert judged(tmp_path, score_file(normalised=False), packed=None)[1][0]["verdict"] == "PASS"
    assert judged(tmp_path, score_file(normalised=True), packed=None)[1][0]["verdict"] == "FAIL"


def test_a_score_by_another_evaluation_is_not_held_against_the_files(tmp_path):
    known, (row,) = judged(tmp_path, score_file(evaluation=EVALUATION | {"mix": "(TokenTilt(),)"}))
    assert known == {} and row["verdict"] == "NOT TESTED" and "another evaluation" in row["evidence"]
    assert judged(tmp_path, score_file(data_hash="other")) == ({}, [])


def test_what_is_no_file_or_no_json_states_nothing_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.json").write_text("[1]")
    with open(tmp_path / "large.json", "w") as file:
        file.truncate(5 << 30)
    for name in ("pipe", "deep", "list", "large", "absent"):
        assert stated(tmp_path / f"{name}.json") == {}


def test_a_negative_time_is_no_time(tmp_path):
    findings = Findings(read_policy())
    judge_clock(findings, tmp_path, {"phases": {"train": -1.0, "calibrate": 0.5}, "world_size": 8, "device": "H100"})
    assert {row["verdict"] for row in findings.rows} == {"NOT TESTED"}
