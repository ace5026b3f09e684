"""Sums over logs: the fact sheets' findings where a log can show them, and none that they do not carry."""

import math
from types import SimpleNamespace

import pytest

from fairway.referee.claims import judge_claims, read_claims
from fairway.referee.folder import read_folder
from fairway.referee.logs import read_log
from fairway.referee.rules import read_policy
from fairway.referee.script import read_script
from fairway.referee.seeds import judge_seeds
from fairway.referee.sums import judge_logs, judge_sizes, least_code
from fairway.referee.verdict import Findings
from referee.public_logs import base_log, later_log, pr162, pr864, pr1205, pr1514, pr1523, write_log


def judged(path, policy="as-practised", script=None):
    folder = read_folder(path)
    findings, claims = Findings(read_policy(policy)), read_claims(folder)
    logs = [read_log(folder, name) for name in folder.logs()]
    if script is None and folder.has("train_gpt.py"):
        script = read_script(folder, "train_gpt.py")
    judge_logs(findings, logs, claims)
    judge_sizes(findings, folder, logs, script)
    judge_seeds(findings, logs, claims)
    judge_claims(findings, folder, logs, claims)
    return findings


def failed(findings):
    return {row["rule"] for row in findings.rows if row["verdict"] == "FAIL"}


def rows_of(findings, rule):
    return [row for row in findings.rows if row["rule"] == rule]


@pytest.mark.parametrize(
    ("build", "rules"),
    [(pr162, set()), (pr864, {"S3"}), (pr1205, set()), (pr1514, {"T2", "A2"}), (pr1523, {"T2", "A1", "G4"})],
)
def test_findings_on_public_logs_are_those_of_the_fact_sheets(tmp_path, build, rules):
    build(tmp_path)
    assert failed(judged(tmp_path)) == rules


def test_the_cache_of_864_is_over_the_time_only_if_all_stages_count(tmp_path):
    pr864(tmp_path)
    findings = judged(tmp_path)
    assert [row["measured"] for row in rows_of(findings, "T6")] == pytest.approx([644.565, 636.4, 632.7])
    assert all(row["verdict"] == "NOT TESTED" and "to judge" in row["evidence"] for row in rows_of(findings, "T6"))
    assert all(row["verdict"] == "PASS" for row in rows_of(findings, "T4"))


def test_1514_has_calibration_past_the_limit_and_27030_bytes_of_uncounted_code(tmp_path):
    pr1514(tmp_path)
    findings = judged(tmp_path)
    assert [row["measured"] for row in rows_of(findings, "T2")] == [600.85] * 3
    assert sorted(row["measured"] for row in rows_of(findings, "A2")) == [16_020_025, 16_020_376, 16_021_634]
    assert {row["verdict"] for row in rows_of(findings, "A1")} == {"PASS"}


def test_under_the_strict_policy_files_as_shipped_count(tmp_path):
    pr1514(tmp_path)
    assert {"A1", "A2", "A3", "T2"} <= failed(judged(tmp_path, "strict"))


def text_log(tmp_path, tokens, nats, bpb, name="fineweb10B_sp8192", extra=()):
    lines = base_log(1, (name, tokens), 10, 100, 590_000, "val_loss:3.0 val_bpb:1.2")
    write_log(tmp_path, 1, [*lines, *extra, f"final_exact val_loss:{nats:.8f} val_bpb:{bpb:.8f} eval_time:9000ms"])
    return judged(tmp_path)


def bpb_of(nats, tokens, size):
    return nats / math.log(2) * tokens / size


@pytest.mark.parametrize("size", [157_300_000, 164_600_000, 176_300_000, 141_890_560])
def test_wrong_bytes_of_the_whole_text_fail_the_implied_bytes(tmp_path, size):
    found = failed(text_log(tmp_path, 40_540_160, 2.8, bpb_of(2.8, 40_540_160, size)))
    assert found == {"M1"}


@pytest.mark.parametrize(
    ("tokens", "size"),
    [
        (63_779_840, 155_769_746), (40_540_160, 151_083_092), (47_853_343, 151_084_309), (45_512_346, 151_074_925),
        (152_000_000, 151_080_000),
    ],
)  # fmt: skip
def test_canonical_text_passes_under_any_tokenizer(tmp_path, tokens, size):
    findings = text_log(tmp_path, tokens, 2.8, bpb_of(2.8, tokens, size), "fineweb10B")
    assert not failed(findings) and rows_of(findings, "M1")[0]["verdict"] == "PASS"
    assert rows_of(findings, "D4")[0]["verdict"] == "PASS"


@pytest.mark.parametrize("tokens", [3_000_000, 8_000_000, 36_562_944])
def test_part_of_the_text_fails_coverage_and_not_the_bytes(tmp_path, tokens):
    findings = text_log(tmp_path, tokens, 2.8, bpb_of(2.8, tokens, tokens * 151_078_222 / 40_540_160))
    assert failed(findings) == {"D4", "D7"}


def test_little_text_of_an_unknown_tokenizer_fails_coverage(tmp_path):
    assert failed(text_log(tmp_path, 3_000_000, 3.1, bpb_of(3.1, 3_000_000, 12_900_000), "fineweb10B")) == {"D4", "D7"}


def test_a_log_that_counts_what_it_scored_is_held_to_it(tmp_path):
    tokens, bpb = 40_540_160, bpb_of(2.8, 40_540_160, 151_078_222)
    assert failed(text_log(tmp_path, tokens, 2.8, bpb, extra=["scored_tokens: 5000000"])) == {"D7"}
    assert failed(text_log(tmp_path, tokens, 2.8, bpb, extra=[f"scored_tokens: {tokens * 2}"])) == {"D7"}
    assert not failed(text_log(tmp_path, tokens, 2.8, bpb, extra=[f"scored_tokens: {tokens + 1984}"]))


def test_a_toy_text_is_not_held_to_the_contest(tmp_path):
    findings = text_log(tmp_path, 60_000, 2.8, bpb_of(2.8, 60_000, 150_000), "demo")
    assert not failed(findings)
    assert {row["verdict"] for rule in ("M1", "D4") for row in rows_of(findings, rule)} == {"NOT TESTED"}


def test_a_toy_text_with_its_bytes_printed_is_held_to_them(tmp_path):
    bpb = bpb_of(2.8, 60_000, 150_000)
    assert not failed(text_log(tmp_path, 60_000, 2.8, bpb, "demo", ["val_bytes: 150000"]))
    assert failed(text_log(tmp_path, 60_000, 2.8, bpb, "demo", ["val_bytes: 120000"])) == {"M1"}


def test_stages_of_one_toy_text_that_imply_other_bytes_fail(tmp_path):
    tokens = 9_000_000
    bpb, extra = (
        bpb_of(2.8, tokens, tokens * 3),
        f"roundtrip_exact val_loss:2.9 val_bpb:{bpb_of(2.9, tokens, tokens * 2.5):.8f}",
    )
    assert failed(text_log(tmp_path, tokens, 2.8, bpb, "demo", [extra])) == {"M1"}


def test_marks_of_the_known_leak_are_evidence_and_no_proof(tmp_path):
    lines = later_log(1, 10, 100, 590_000, "val_loss: 3.0 val_bpb: 1.2", 5.0, {"a": 1})
    lines[lines.index("train_shards: 80")] = "train_shards: 1499"
    write_log(tmp_path, 1, [*lines, "path: data/datasets/datasets/fineweb_caseops", "val_tokens: 9662464"])
    rows = rows_of(judged(tmp_path), "D5")
    assert [row["verdict"] for row in rows] == ["NOT TESTED"] and str(rows[0]["measured"]).count(";") == 2


@pytest.mark.parametrize(("ms", "seconds", "fails"), [(600_140, 9, set()), (601_000, 9, {"T1"}), (590_000, 601, {"T4"})])
def test_times_are_held_to_the_limit_with_the_overshoot_of_a_step(tmp_path, ms, seconds, fails):
    lines = base_log(1, ("fineweb10B_sp1024", 62_021_632), 10, 100, ms, "val_loss:3.0 val_bpb:1.2")
    write_log(tmp_path, 1, [*lines, f"final val_bpb:1.1 eval_time:{seconds}s"])
    assert failed(judged(tmp_path)) == fails


def test_a_track_without_limits_has_no_time_to_fail(tmp_path):
    write_log(tmp_path, 1, base_log(1, ("fineweb10B_sp1024", 62_021_632), 10, 100, 9_000_000, "val_loss:3.0 val_bpb:1.2"))
    assert failed(judged(tmp_path)) == {"T1"}
    (tmp_path / "submission.json").write_text('{"track": "non-record-16mb", "name": "x", "github_id": "x", "val_bpb": 1.2}')
    assert not failed(judged(tmp_path))


def sized(tmp_path, script, *lines):
    write_log(tmp_path, 1, ["step:1/1 train_loss:3 train_time:10ms", *lines, "final val_bpb:1.1"])
    return judged(tmp_path, script=script)


def code_of(text, shipped=None):
    unpacked = len(text.encode())
    return SimpleNamespace(
        name="train_gpt.py", size=shipped or unpacked, text=text, unpacked_size=unpacked, siblings={}, native=()
    )


def test_a_compressed_copy_counts_where_the_text_can_be_so_small(tmp_path):
    text = "".join(f"def part_{at}(value):\n    return value * {at * 7919 % 104729} + {at * 31}\n" for at in range(1500))
    script = code_of(text)
    least = least_code(script)
    assert 1000 < least < len(text) / 2
    model = f"Serialized model int6+zstd: {16_000_000 - least - 500} bytes"
    assert not failed(sized(tmp_path, script, model, f"Code size (compressed): {least + 400} bytes"))
    assert failed(sized(tmp_path, script, model, f"Code size (compressed): {least // 2} bytes")) == {"A3", "A1"}


def test_the_size_of_every_log_is_held_to_the_cap(tmp_path):
    script = code_of("x = 1\n" * 1000)
    assert not failed(sized(tmp_path, script, "Serialized model int6+zstd: 15994000 bytes", "Code size: 6000 bytes"))
    two = "Code size (uncompressed): 9000 bytes", "Code size (compressed): 6000 bytes"
    assert not failed(sized(tmp_path, None, "Serialized model int6+zstd: 15994000 bytes", *two))
    assert failed(sized(tmp_path, script, "Serialized model int6+zstd: 15994001 bytes", "Code size: 6000 bytes")) == {"A1"}
    assert failed(sized(tmp_path, script, "Serialized model int6+zstd: 15994001 bytes", "Code size: 9 bytes")) == {"A1"}


def test_an_artifact_in_the_folder_is_weighed(tmp_path):
    write_log(tmp_path, 1, ["final val_bpb:1.1"])
    with open(tmp_path / "final_model.int6.ptz", "wb") as file:
        file.truncate(16_000_001)
    assert failed(judged(tmp_path)) == {"A1"}
