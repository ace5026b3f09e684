"""Logs are read by what their figures are called, whatever stands in front and however they are spaced."""

import time

import pytest

from fairway.referee.folder import read_folder
from fairway.referee.logs import Printed, eval_seconds, read_log
from referee.public_logs import pr162, pr864, pr1514


def log_of(folder, *lines, name="train.log"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return read_log(read_folder(folder), name)


def test_a_log_of_the_first_script_is_read_whole(tmp_path):
    pr162(tmp_path)
    log = read_log(read_folder(tmp_path), "train_seed42.log")
    assert (log.seed, log.world_size, log.train_shards, log.val_tokens) == (42, 8, 80, 62_021_632)
    assert (log.parameters, log.steps, log.train_seconds) == (22_368_841, 7385, 600.06)
    assert (log.model_bytes, log.total_bytes) == (15_865_061, 15_917_304)
    assert log.code_bytes == [(52_243, 16)]
    assert log.headline.name == "final_int8_zlib_roundtrip_exact" and log.headline.bpb.text == "1.14656085"
    assert log.headline.nats.unit == pytest.approx(1e-8)
    assert log.settings["matrix_lr"] == "0.02" and log.hessian_seconds is None


def test_a_log_of_the_later_scripts_is_read_whole(tmp_path):
    pr1514(tmp_path)
    log = read_log(read_folder(tmp_path), "train_seed0.log")
    assert (log.val_tokens, log.train_seconds, log.hessian_seconds, log.steps) == (40_540_160, 588.05, 12.8, 4911)
    assert log.headline.name == "legal_ttt_exact" and log.headline.seconds == 341.8
    assert [seconds for seconds, _ in log.prepared.values()] == [33.0]
    assert log.settings["ttt_lr"] == "0.005"
    diagnostics = [stage.name for stage in log.stages if stage.diagnostic and not stage.during]
    assert diagnostics == ["pre-quantization post-ema"]


def test_progress_is_no_stage_and_one_figure_is_timed_once(tmp_path):
    pr864(tmp_path)
    log = read_log(read_folder(tmp_path), "train_seed1337.log")
    assert not any("chunk" in stage.name for stage in log.stages)
    assert log.headline.bpb.text == "0.28405290"
    own, everything = eval_seconds(log)
    assert own == 416.328 and sum(everything) == pytest.approx(644.565)


@pytest.mark.parametrize(
    "line",
    [
        "final val_loss:2.0 val_bpb:1.1",
        "[rank0]: Final  VAL_LOSS = 2.0   val_bpb = 1.1",
        "2026-04-01 12:00:00,123 | INFO | final val_loss: 2.0, val_bpb: 1.1",
        '{"event": "final", "val_loss": 2.0, "val_bpb": 1.1}',
        "\x1b[32mfinal\x1b[0m val_loss=2.0; val_bpb=1.1 (3.5s)",
        "final: val_bpb 1.1 val_loss 2.0",
        "final eval_loss:2.0 bits_per_byte:1.1",
    ],
)
def test_a_stage_is_read_in_any_dress(tmp_path, line):
    stage = log_of(tmp_path, "step:5/5 train_loss:3.0 train_time:10ms", line).headline
    assert (stage.name.lower(), float(stage.nats), float(stage.bpb)) == ("final", 2.0, 1.1)


def test_figures_of_few_digits_are_not_taken_for_one_stage(tmp_path):
    log = log_of(tmp_path, "first val_bpb:1.12 eval_time:70s", "second val_bpb:1.1191 eval_time:80s")
    assert eval_seconds(log) == (80.0, [70.0, 80.0])


def test_what_compares_is_no_stage(tmp_path):
    log = log_of(
        tmp_path, "final val_loss:2.0 val_bpb:1.1", "delta val_bpb:0.02", "record val_bpb:1.08", "quant_gap_bpb:0.01",
        "best val_bpb: 1.05",
    )  # fmt: skip
    assert [stage.name for stage in log.stages] == ["final"]


def test_two_figures_of_one_line_are_two_stages(tmp_path):
    log = log_of(tmp_path, "check raw_val_loss:2.0 raw_val_bpb:1.1 quant_val_loss:2.1 quant_val_bpb:1.2")
    assert [(stage.name, float(stage.bpb), stage.diagnostic) for stage in log.stages] == [
        ("check raw", 1.1, True),
        ("check quant", 1.2, False),
    ]


def test_the_later_line_wins_and_a_summary_of_few_digits_does_not_hide_the_figure(tmp_path):
    log = log_of(
        tmp_path, "val_tokens: 5", "val_tokens: 1,000,000", "final val_loss:2.00000000 val_bpb:1.10000000",
        "ttt_exact val_loss:1.90001234 val_bpb:1.05001234", "summary val_bpb:1.0500",
    )  # fmt: skip
    assert log.val_tokens == 1_000_000
    assert log.headline.name == "ttt_exact"


def test_a_score_from_before_the_artifact_was_written_is_a_diagnostic(tmp_path):
    log = log_of(
        tmp_path, "step:9/9 train_loss:3 train_time:10ms", "ema val_bpb:1.05", "Serialized model int6+zstd: 900 bytes",
        "scored val_bpb:1.06",
    )  # fmt: skip
    assert log.headline.name == "scored" and log.stages[0].diagnostic


def test_the_compressed_model_is_told_from_the_checkpoint(tmp_path):
    log = log_of(
        tmp_path, "Serialized model: 87413467 bytes", "Total submission size: 87465710 bytes",
        "Code size (uncompressed): 157868 bytes", "Code size (compressed): 31,999 bytes",
        "Serialized model int8+zlib: 15815847 bytes (payload:17 raw:3)", "Total submission size int8+zlib: 15,847,846 bytes",
    )  # fmt: skip
    assert (log.model_bytes, log.total_bytes, log.compressed_code_bytes) == (15_815_847, 15_847_846, 31_999)
    assert [size for size, _ in log.code_bytes] == [157_868]


def test_a_reserve_is_no_time_spent_and_times_of_one_phase_are_not_added(tmp_path):
    log = log_of(
        tmp_path, "step:9/9 train_loss:3 train_time:588000ms", "gptq:reserving 12s, effective=588000ms",
        "collected 67 Hessians in 4.6s", "calibration took 4.5 s", "GPTQ quantization done in 31.0s",
    )  # fmt: skip
    assert (log.train_seconds, log.hessian_seconds, log.pack_seconds) == (588.0, 4.6, 31.0)


def test_steps_of_test_time_training_do_not_prolong_training(tmp_path):
    log = log_of(
        tmp_path, "step:700/900 train_loss:3 train_time:600000ms", "roundtrip val_loss:2.0 val_bpb:1.10",
        "step:1/40 train_loss:2.2", "step:2/40 train_loss:2.1",
    )  # fmt: skip
    assert log.steps == 700 and log.headline.name == "roundtrip"


def test_seeds_are_read_from_the_name_where_the_log_is_silent(tmp_path):
    assert log_of(tmp_path, "x", name="train_seed314.log").seed == 314
    assert log_of(tmp_path, "x", name="run_s7.log").seed == 7
    assert log_of(tmp_path, "seed: 5", name="train_seed6.log").seed == 5


def test_garbage_costs_little_and_says_nothing(tmp_path):
    start = time.monotonic()
    (tmp_path / "train.log").write_bytes(
        b"a" * 3_000_000 + b"\n" + b"val_bpb:" + b"9" * 100_000 + b"\n" + b"\x00\xff\x1b[2J val_bpb:nan val_loss:inf\n"
        + b"{" * 50_000 + b"}" + b"\n" + b"x=" * 500_000 + b"\n" + b"step:1/2 " * 300_000 + b"\n" + b"- " * 100_000
    )  # fmt: skip
    log = read_log(read_folder(tmp_path), "train.log")
    assert log.headline is None and log.val_tokens is None
    assert time.monotonic() - start < 5


def test_a_log_of_many_lines_keeps_bounded_lists(tmp_path):
    lines = [f"a{at} val_loss:2.0 val_bpb:1.1\nCode size: {at} bytes\nsetting_{at}: 1" for at in range(6000)]
    log = log_of(tmp_path, *lines)
    assert len(log.stages) <= 4000 and len(log.code_bytes) <= 100 and len(log.settings) <= 2000


def test_printed_figures_keep_their_digits():
    assert Printed("1.0810").unit == pytest.approx(1e-4) and Printed("15,990,000") == 15_990_000
    assert Printed("5e-2").unit == pytest.approx(1e-2)


@pytest.mark.parametrize("front", ["2026-04-20 10:00:01,007 - INFO - trainer - ", "trainer - INFO - ", "INFO:trainer:", ""])
def test_loggers_put_their_name_before_a_line_or_not(tmp_path, front):
    lines = [
        "val_tokens: 62,021,632",
        "step 6123/20000 | val_loss 1.9 | val_bpb 1.2 | train_time 616.0s",
        "hessian collection took 4.70 s",
        "final sliding | val_loss = 1.905120 | val_bpb = 1.128320 | took 212.4 s",
    ]
    log = log_of(tmp_path, *(front + line for line in lines))
    assert (log.val_tokens, log.train_seconds, log.hessian_seconds, log.steps) == (62_021_632, 616.0, 4.7, 6123)
    assert (log.headline.name, log.headline.seconds) == ("final sliding", 212.4)


def test_a_log_of_json_objects_tells_steps_and_seconds(tmp_path):
    log = log_of(
        tmp_path,
        '{"event": "config", "train_shards": 80, "val_tokens": 62021632}',
        '{"event": "train", "step": 6123, "loss": 2.2, "train_time_ms": 616000.0}',
        '{"event": "eval", "stage": "final", "step": 6123, "val_loss": 1.9, "val_bpb": 1.1, "seconds": 200.5}',
    )
    assert (log.train_seconds, log.steps, log.val_tokens) == (616.0, 6123, 62_021_632)
    assert (log.headline.name, log.headline.seconds) == ("eval final", 200.5)


def test_a_log_in_sentences_is_read(tmp_path):
    log = log_of(
        tmp_path,
        "Reading 80 training shards and 62,021,632 validation tokens.",
        "Finished training at step 6123 after 616.00 seconds.",
        "Artifact: 15,712,345 bytes of weights + 4,840 bytes of code = 15,717,185 bytes.",
        "Final score: 1.128320 bits per byte (1.905120 nats per token) in 212.4 seconds.",
    )
    assert (log.val_tokens, log.train_seconds) == (62_021_632, 616.0)
    assert (log.model_bytes, log.code_bytes, log.total_bytes) == (15_712_345, [(4840, 3)], 15_717_185)
    stage = log.headline
    assert (stage.name, stage.bpb.text, stage.nats.text, stage.seconds) == ("Final score", "1.128320", "1.905120", 212.4)


@pytest.mark.parametrize(
    "line",
    [
        "training and evaluation took 830.0 s",
        "training shards were loaded in 830 s",
        "training time budget: 830 s",
        "trained tokenizer, training set written after 830 s",
    ],
)
def test_seconds_of_other_work_are_no_training(tmp_path, line):
    assert log_of(tmp_path, "step:10/10 train_time:599000ms", line).train_seconds == 599.0


@pytest.mark.parametrize("line", ["a gain of 0.0040 bpb for 3 seeds", "it is 0.0030 nats and 0.0012 bpb better: gain"])
def test_gains_in_words_are_no_score(tmp_path, line):
    log = log_of(tmp_path, "final val_loss:2.0 val_bpb:1.1", line)
    assert log.headline.bpb.text == "1.1"


def test_a_table_of_stages_is_read_and_one_of_seeds_is_not(tmp_path):
    log = log_of(
        tmp_path,
        "| stage     | loss   | bpb    | seconds |",
        "|-----------|--------|--------|---------|",
        "| pre-quant | 1.9001 | 1.1201 | 90.0    |",
        "| sliding   | 1.9051 | 1.1283 | 688.0   |",
        "",
        "seed   val_bpb",
        "7      1.2283",
    )
    assert (log.headline.name, log.headline.bpb.text, log.headline.nats.text) == ("sliding", "1.1283", "1.9051")
    assert log.headline.seconds == 688.0 and [one.name for one in log.stages if one.diagnostic] == ["pre-quant"]
