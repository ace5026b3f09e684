"""The promise of `make demo`: whole, as a newcomer runs it."""

import json
import resource
import shlex
import subprocess
import sys
import time

import pytest

from fairway.artifact.ledger import make_ledger
from fairway.demo import heavy_owners, print_demo, refuse_other_score
from fairway.listing import count_parameters
from fairway.node import override
from fairway.problem import DoesNotHold
from fairway.recipes.demo import demo as demo_recipe


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
    result = {one.split("  ")[0]: one.split()[-1] for one in out.splitlines() if one.strip()}
    assert result.keys() >= {"weights", "packed file", "packed file, sliding windows", "train_gpt.py", "model.bin", "total"}
    assert result.keys() >= {"data", "compile", "train", "quantise", "encode", "decode", "score"}
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'demo-1'} holds the run; next: fairway train demo --data ")


@pytest.mark.slow
def test_the_full_demo_ends_with_a_folder_that_passes_review_and_scores_the_same_elsewhere(tmp_path):
    begin = time.monotonic()
    code, out, errors = demo("--full", "--json", "--out", tmp_path / "runs")
    seconds = time.monotonic() - begin
    assert code == 0, errors
    result, home = json.loads(out), tmp_path / "runs" / "full-1"
    assert result["run"] == str(home) and result["review"]["fail"] == 0 and result["review"]["pass"] > 60
    told = json.loads((home / "record" / "submission.json").read_text())
    assert told["seeds"] == [42, 314, 1234] and "exceptions" not in told
    assert told["compliance"]["three_seeds"] is told["compliance"]["artifact_under_16mb"] is True
    runs = [row["bpb"] for row in result["comparison"]["runs"]["runs"]]
    assert told["val_bpb"] == pytest.approx(sum(runs) / 3, abs=1e-7)
    assert result["comparison"]["test"] == "Welch t" and result["comparison"]["delta"]["bpb"] != 0
    page = (home / "report.html").read_text()
    assert len(page.encode()) == result["report"]["bytes"] < 2_000_000
    assert f"{told['val_bpb']:.4f}" in page
    assert "the folder's own program" in result["phases"]
    assert seconds < 480


RESULT = {
    "data": "my runs/data",
    "run": "my runs/demo-1",
    "train": {"bpb": {"weights": 1.8}},
    "score": {"stages": [{"name": "NonOverlapping", "bpb": 1.81}, {"name": "Sliding", "bpb": 1.75}]},
    "phases": {"data": 9.5, "train": 150.0, "quantise": 0.25, "encode": 0.25},
    "ledger": make_ledger(
        {
            "train_gpt.py": [{"owner": "fairway/node.py", "kind": "code", "bytes": 70_000}],
            "model.bin": [
                {"owner": "matrix.key", "kind": "codes", "bytes": 9_000},
                {"owner": "matrix.key", "kind": "scale", "bytes": 600},
                {"owner": "scalar", "kind": "values", "bytes": 101},
                {"owner": "container", "kind": "header", "bytes": 100},
                {"owner": "projection", "kind": "values", "bytes": 199},
            ],
        },
        16_000_000,
    ),
}


def test_the_owners_are_those_above_a_hundredth_and_sum_exactly():
    owners = heavy_owners(RESULT["ledger"])
    assert list(owners.items()) == [("matrix.key", 9_600), ("projection", 199), ("scalar", 101), ("other", 100)]
    assert sum(owners.values()) == RESULT["ledger"]["files"]["model.bin"] == 10_000
    assert "other" not in heavy_owners(make_ledger({"model.bin": [{"owner": "a", "kind": "b", "bytes": 3}]}, 9))


def test_the_table_is_one_fits_a_screen_and_ends_with_what_is_next(capsys):
    print_demo(RESULT)
    _, head, rule, *rows, blank, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["stage", "bpb"] and set(rule) == {"-", " "} and blank == ""
    assert [row for row in rows if row == ""] == ["", ""] and len(rows) < 40
    assert len({len(row) for row in (head, rule, *rows) if row}) == 1, "all figures end in one column"
    figures = dict(row.rsplit(maxsplit=1) for row in rows if row)
    assert figures["  other"] == "100" and figures["left of 16,000,000"] == "15,920,000"
    assert figures["packed file, sliding windows"] == "1.7500" and figures["data"] == "9.5" and figures["encode"] == "0.2"
    assert [row.split()[-1] for row in rows if row.startswith("total")] == ["80,000", "160.0"]
    where, _, command = last.partition(" holds the run; next: fairway ")
    assert where == "my runs/demo-1"
    assert shlex.split(command)[:6] == ["train", "demo", "--data", "my runs/data", "--out", "my runs/wider"]


def test_the_next_command_names_a_recipe_that_can_be_built(capsys):
    print_demo(RESULT)
    setting = capsys.readouterr().out.split()[-1]
    assert count_parameters(override(demo_recipe(), [setting]).model) > count_parameters(demo_recipe().model)


def test_a_record_that_scores_otherwise_is_no_end_of_a_demo(tmp_path):
    (tmp_path / "train_gpt.py").write_text("import pathlib\npathlib.Path('score.json').write_text('{\"bpb\": 1.5}')")
    (tmp_path / "model.bin").write_bytes(b"")
    refuse_other_score(tmp_path, tmp_path, 1.5)
    with pytest.raises(DoesNotHold, match=r"gives 1\.5, the run 1\.25 bpb"):
        refuse_other_score(tmp_path, tmp_path, 1.25)
    (tmp_path / "train_gpt.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(DoesNotHold, match=r"gives no such thing"):
        refuse_other_score(tmp_path, tmp_path, 1.5)
