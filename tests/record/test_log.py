"""Logs of a record, read back by the referee's reader of logs."""

import json
import math

import pytest

from fairway.record.log import MOST_STEP_LINES, log_name, log_text
from fairway.record.measured import read_measured
from fairway.referee.folder import read_folder
from fairway.referee.logs import eval_seconds, read_log
from record.made_runs import BYTES, STEPS, TOKENS, change, put, write_run


@pytest.fixture
def one(tmp_path):
    return read_measured(write_run(tmp_path / "runs" / "a", 314))


def read_back(one, folder):
    """The Log that the referee makes of it."""
    folder.mkdir()
    (folder / log_name(one)).write_text(log_text(one))
    return read_log(read_folder(folder), log_name(one))


def test_the_referee_reads_every_figure_of_a_log(one, tmp_path):
    log = read_back(one, tmp_path / "out")
    assert log.name == "train_seed314.log" and log.seed == 314
    assert (log.world_size, log.val_tokens, log.val_bytes, log.parameters) == (8, TOKENS, BYTES, 2_095_513)
    assert (log.steps, log.train_seconds, log.hessian_seconds, log.pack_seconds) == (STEPS, 12.5, 1.25, 0.75)
    assert log.step_ms == pytest.approx(12_500 / STEPS, abs=0.006)
    files = one.ledger["files"]
    assert [size for size, _ in log.code_bytes] == [files["train_gpt.py"]]
    assert (log.model_bytes, log.total_bytes) == (files["model.bin"], one.total_bytes)
    assert log.headline.name == "Sliding" and log.headline.tokens == TOKENS
    assert log.headline.bpb == pytest.approx(one.bpb, abs=5.1e-9)
    assert log.headline.nats == pytest.approx(one.score["nats"] / TOKENS, abs=5.1e-9)
    assert eval_seconds(log) == (3.25, [1.5, 3.25])
    kinds = {stage.name: stage.diagnostic for stage in log.stages}
    assert kinds == {"pre_quant_weights": True, "NonOverlapping": False, "Sliding": False}


def test_hashes_stand_at_the_head_each_on_a_line(one):
    head = log_text(one).partition("\n\n")[0].splitlines()
    run = one.run
    assert head[:5] == [
        f"code_sha256: {run['sha256']['train_gpt.py']}", f"model_sha256: {run['sha256']['model.bin']}",
        f"recipe_hash: {run['recipe_hash']}", f"source_hash: {run['source_hash']}", f"data_hash: {run['data_hash']}",
    ]  # fmt: skip
    assert "seed: 314" in head


def test_what_an_older_run_does_not_know_is_left_out(one):
    for key in ("began", "parameters", "source_hash"):
        del one.run[key]
    text = log_text(one)
    assert "None" not in text and "began" not in text and "model_params" not in text


def test_of_many_steps_every_kth_stands_there_with_the_first_and_the_last(one):
    steps = 2 * MOST_STEP_LINES + 1
    rows = [{"step": at, "tokens": at, "seconds": at / 10, "loss": 5.0} for at in range(1, steps + 1)]
    (one.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one.run["steps"] = steps
    lines = [line for line in log_text(one).splitlines() if " train_loss:" in line]
    assert 0.6 * MOST_STEP_LINES < len(lines) <= MOST_STEP_LINES + 2
    assert lines[0].startswith("step:1/") and lines[-1].startswith(f"step:{steps}/{steps} ")


def test_dropped_targets_are_targets_that_were_not_scored(tmp_path):
    path = write_run(tmp_path / "runs" / "a")
    change(path / "score.json", put("dropped_targets", 9000))
    log = read_back(read_measured(path), tmp_path / "out")
    assert log.val_tokens == TOKENS + 9000 and log.headline.tokens == TOKENS
    assert math.isclose(log.headline.nats / math.log(2) / log.headline.bpb * TOKENS, BYTES, rel_tol=1e-6)
