"""The promise of `make demo`: whole, as a newcomer runs it."""

import json
import resource
import subprocess
import sys
import time

import pytest


def demo(*arguments):
    """(exit code, standard output, standard error) with all the cores that the machine has."""
    done = subprocess.run([sys.executable, "-m", "fairway", "demo", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_demo_learns_packs_and_scores_within_its_minutes_and_memory(tmp_path):
    (tmp_path / "demo-1").mkdir()
    begin = time.monotonic()
    code, out, errors = demo("--json", "--out", tmp_path)
    seconds = time.monotonic() - begin
    assert code == 0, errors
    result = json.loads(out)
    assert result["run"] == str(tmp_path / "demo-2")
    packed, scored = result["score"]["stages"][0]["bpb"], result["score"]["bpb"]
    assert abs(packed - result["train"]["bpb"]["weights"]) < 0.02
    assert scored < packed < 1.9
    assert result["ledger"]["total"] == sum(
        (tmp_path / "demo-2" / name).stat().st_size for name in ("train_gpt.py", "model.bin")
    )
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20  # KiB
    assert seconds < 240


@pytest.mark.slow
def test_the_demo_ends_with_its_table(tmp_path):
    code, out, errors = demo("--steps", 1, "--out", tmp_path)
    assert code == 0, errors
    for words in ("bits per byte of held-out files", "bytes by owner", "seconds by phase", str(tmp_path / "demo-1")):
        assert words in out
