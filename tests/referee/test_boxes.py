"""What boxed runs prove, on runs of our own making; and what a program may leave behind."""

import os
import time
from threading import Event as Signal
from threading import Timer

import numpy as np
import pytest

from fairway.referee.boxes import (
    judge_boxed_future,
    judge_bytes_counted,
    judge_figure,
    judge_pack_run,
    judge_score_run,
    judge_train_run,
)
from fairway.referee.heard import Event
from fairway.referee.probes import Spread
from fairway.referee.rules import read_policy
from fairway.referee.sandbox import Boxed, run_boxed, sandbox_fault
from fairway.referee.submitted import BoxedScore, Submitted, read_nats
from fairway.referee.verdict import Findings

COUNT = 400
NATS_N = np.linspace(1.0, 5.0, COUNT)


def boxed(*read, code=0):
    return Boxed(code, None, 1.0, "", tuple(Event(0.0, 1, "read", what) for what in read))


def scored(nats_N=NATS_N, bpb=1.0, read=()):
    nats = None if nats_N is None else float(nats_N.sum())
    return BoxedScore(nats_N, {"nats": nats, "bpb": bpb}, boxed(*read))


def failed(judge, *arguments):
    """Rules that fail."""
    findings = Findings(read_policy())
    judge(findings, *arguments)
    return {row["rule"] for row in findings.rows if row["verdict"] == "FAIL"}


def test_a_run_that_asks_for_training_shards_while_it_scores_fails_though_it_ends():
    shards = ("/data/train_000000.bin",)
    honest, asking = scored(read=("/box/data/val.bin",)), scored(read=("/box/data/train_000000.bin",))
    assert failed(judge_score_run, honest, NATS_N, Spread(), "a text", shards) == set()
    assert failed(judge_score_run, asking, NATS_N, Spread(), "a text", shards) == {"D2"}
    stopped = BoxedScore(None, {}, boxed("/box/data/train_000000.bin", code=1))
    assert failed(judge_score_run, stopped, NATS_N, Spread(), "a text", shards) == {"A8", "D2"}


def test_making_weights_or_the_artifact_that_asks_for_validation_fails():
    val = ("/data/val_000000.bin",)
    assert failed(judge_pack_run, "ab", boxed("/box/data/train.bin"), "ab", "here", val) == set()
    assert failed(judge_pack_run, "ab", boxed("/x/val_000000.bin"), "ab", "here", val) == {"D1", "E14"}
    assert failed(judge_train_run, True, boxed(), 2, val) == set()
    assert failed(judge_train_run, True, boxed("/box/data/val_000000.bin"), 2, val) == {"D1"}


def test_files_whose_nats_follow_the_future_fail_causality_and_not_otherwise():
    kept_N = np.arange(COUNT) < COUNT // 2
    other_N = np.where(kept_N, NATS_N, 9.0)
    leaky_N = other_N.copy()
    leaky_N[COUNT // 2 - 1] -= 0.01
    assert failed(judge_boxed_future, scored(), scored(other_N), kept_N, Spread()) == set()
    assert failed(judge_boxed_future, scored(), scored(leaky_N), kept_N, Spread()) == {"C1"}
    assert failed(judge_boxed_future, scored(), scored(None), kept_N, Spread()) == set()


def implied(rate_bytes):
    """A run whose nats and bpb imply so many bytes."""
    return scored(bpb=float(NATS_N.sum() / np.log(2) / rate_bytes))


@pytest.mark.parametrize(
    "first, second, rules",
    ((500, 440, set()), (520, 457.6, {"M1"}), (470, 470, {"M1", "M7"})),
    ids=("counted", "too many", "a constant"),
)
def test_bytes_that_are_miscounted_are_told_from_a_constant(first, second, rules):
    runs = [(implied(first), 500, "one text"), (implied(second), 440, "another")]
    assert failed(judge_bytes_counted, runs) == rules


@pytest.mark.parametrize("bpb", ("x", None, [1], float("nan")))
def test_a_program_that_states_no_figure_does_not_stop_the_audit(bpb):
    assert failed(judge_figure, scored(bpb=bpb), {"bpb": 1.0}) == {"G3"}
    assert failed(judge_bytes_counted, [(scored(bpb=bpb), 500, "a text")]) == set()
    assert failed(judge_figure, scored(), {"bpb": 1.0}) == set()


def test_nats_are_read_for_what_is_there_and_no_more(tmp_path):
    path = tmp_path / "nats.npy"
    np.save(path, NATS_N.astype(np.float32))
    assert read_nats(tmp_path, COUNT) == pytest.approx(NATS_N, rel=1e-6)
    assert read_nats(tmp_path, 1) is not None, "a small file is read whole"
    for shape in ((10**12,), (COUNT + 1,), (20, 20)):
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
            file.write(NATS_N.tobytes())
        assert read_nats(tmp_path, COUNT) is None
    np.save(path, np.array([{}], object), allow_pickle=True)
    assert read_nats(tmp_path, COUNT) is None
    np.save(path, np.arange(5))
    assert read_nats(tmp_path, COUNT) is None
    path.unlink()
    assert read_nats(tmp_path, COUNT) is None
    os.mkfifo(path)
    assert read_nats(tmp_path, COUNT) is None


def test_data_of_boxes_hide_the_other_split_and_are_made_before_boxes_start(tiny_data, tmp_path):
    from fairway.data.dataset import open_dataset

    dataset = open_dataset(tiny_data)
    one = Submitted(tmp_path, dataset, tmp_path, 5.0, 1)
    assert all((one.training / path.name).stat().st_mode & 0o777 == 0 for path in dataset.val)
    assert all((one.training / path.name).read_bytes() == path.read_bytes() for path in dataset.train)


@pytest.mark.skipif(sandbox_fault() is not None, reason=str(sandbox_fault()))
def test_a_box_ends_when_another_thread_says_so(tmp_path):
    halt, begin = Signal(), time.monotonic()
    Timer(0.4, halt.set).start()
    one = run_boxed(["sleep", "60"], tmp_path, halt=halt)
    assert one.stopped == "halt" and time.monotonic() - begin < 20
