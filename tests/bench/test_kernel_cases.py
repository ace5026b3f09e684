"""benchmarks/kernels/run.py, on cases of its own: all are timed, one that fails is said, and the others go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "benchmarks" / "kernels"
GOOD = """
import torch

def case(device, tokens=98_304):
    x = torch.ones(tokens, device=device)
    one = {"reference": lambda: x.exp().log(), "fast": lambda: x.add(1), "bytes": 8 * tokens, "flops": tokens}
    return [{"name": "good", **one}, {"name": "better", **one}]
"""
BAD = """
def case(device, tokens=98_304):
    return {"name": "bad", "reference": lambda: 1 / 0, "fast": lambda: None, "bytes": 1, "flops": 1}
"""


@pytest.fixture
def run(tmp_path):
    shutil.copy(KERNELS / "run.py", tmp_path)
    (tmp_path / "good.py").write_text(GOOD)

    def call(*arguments, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, str(tmp_path / "run.py"), "--tokens", "1000", *arguments]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout, done.stderr

    return call


def test_cases_are_timed_and_written(run, tmp_path):
    out = tmp_path / "kernels.jsonl"
    code, text, errors = run("--out", str(out))
    assert code == 0, errors
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["good", "better"] and all(row["tokens"] == 1000 for row in rows)
    for row in rows:
        assert row["fast"]["smallest"] <= row["fast"]["ms"] <= row["fast"]["largest"]
        assert row["ratio"] == row["reference"]["ms"] / row["fast"]["ms"]
        assert row["gb_per_s"] == pytest.approx(8000 / row["fast"]["ms"] / 1e6)
        assert row["name"] in text


def test_a_case_that_fails_is_said_and_the_others_go_on(run, tmp_path):
    code, text, errors = run("--out", str(tmp_path / "k.jsonl"), bad=BAD, broken="import nothing_of_this_name")
    assert code == 1, errors
    assert "ZeroDivisionError" in text and "ModuleNotFoundError" in text and "better" in text
    rows = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert [(row["name"], "error" in row) for row in rows] == [
        ("bad", True), ("broken", True), ("good", False), ("better", False),
    ]  # fmt: skip


def test_a_name_that_is_not_there_is_refused(run):
    code, text, errors = run("nothing")
    assert (code, text) == (2, "") and "no nothing in" in errors and "there are good" in errors


@pytest.mark.parametrize("tokens", ["0", "-5", "3000"])
def test_tokens_that_are_no_rows_are_refused(run, tokens):
    code, text, errors = run("--tokens", tokens)
    assert (code, text) == (2, "") and f"--tokens {tokens}: give 1 to 2048, or a multiple" in errors


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(run, tmp_path):
    code, text, errors = run("--out", str(tmp_path))
    assert (code, text) == (2, "") and "Is a directory" in errors


@pytest.mark.parametrize("body", ["return []", "return None", "raise SystemExit(0)"])
def test_a_file_without_a_case_is_a_failure(run, body):
    code, text, _ = run(empty=f"def case(device, tokens):\n    {body}\n")
    assert code == 1 and "empty" in text and "failed" in text and "better" in text
