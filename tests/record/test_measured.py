"""A run's files against each other: every fault is named, and an honest run has none."""

import json
import math

import numpy as np
import pytest

from fairway.problem import Problem
from fairway.record.measured import faults_of, measured_runs, read_measured
from record.made_runs import write_run


def changed(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def of_another_stage(score):
    score["stages"][0]["bpb"] += 1e-4


def of_another_head(score):
    score["stages"][-1]["nats"] *= 1.001
    score["stages"][-1]["bpb"] *= 1.001


def moved_bytes(ledger):
    ledger["owners"][0]["bytes"] += 1


FORGERIES = {
    "its stage NonOverlapping says": lambda run: changed(run / "score.json", of_another_stage),
    "score.json's last stage has": lambda run: changed(run / "score.json", of_another_head),
    "or of its owners": lambda run: changed(run / "ledger.json", moved_bytes),
    "metrics.jsonl is not what training wrote": lambda run: (run / "metrics.jsonl").open("a").write("\n"),
    "nats.npy cannot be read": lambda run: (run / "nats.npy").write_bytes((run / "nats.npy").read_bytes()[:-50]),
    "targets, score.json says": lambda run: np.save(run / "nats.npy", np.append(np.load(run / "nats.npy"), 0.0)),
    "train_gpt.py is not the file that was packed": lambda run: (run / "train_gpt.py").open("a").write("#"),
    "model.bin is not there": lambda run: (run / "model.bin").unlink(),
}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "seed42", 42)


def test_an_honest_run_agrees_with_itself(run):
    one = read_measured(run)
    assert faults_of(one) == []
    assert one.nats_per_token / math.log(2) / one.bytes_per_token == pytest.approx(one.bpb)
    assert [name for name, _ in one.staircase] == ["weights", "NonOverlapping", "Sliding"]


@pytest.mark.parametrize("said", FORGERIES)
def test_a_changed_file_is_named(run, said):
    FORGERIES[said](run)
    faults = faults_of(read_measured(run))
    assert [fault for fault in faults if said in fault], faults


def test_no_folder_and_a_folder_without_runs_are_one_line(tmp_path):
    with pytest.raises(Problem, match="no run is named; give run folders"):
        measured_runs([])
    with pytest.raises(Problem, match=r"no run in .*; give run folders"):
        measured_runs([tmp_path])


@pytest.mark.parametrize("name, key", [("score.json", "stages"), ("ledger.json", "owners"), ("audit.json", "verdicts")])
def test_a_file_that_lacks_what_is_read_of_it_is_one_line(run, name, key):
    changed(run / name, lambda found: found[key][0].clear())
    with pytest.raises(Problem, match=f"{name} has no .* among its {key}; write it again"):
        read_measured(run)
    changed(run / name, lambda found: found.pop(key))
    with pytest.raises(Problem, match=f"{name} has no {key}; write it again"):
        read_measured(run)
