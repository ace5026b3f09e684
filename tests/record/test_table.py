"""`fairway runs`: folders made of small files, listed, sorted, filtered, exported; and two thousand of them in time."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest

from fairway.problem import Problem
from fairway.record.measured import read_measured
from fairway.record.runfiles import glance_at, run_folders
from fairway.record.table import list_runs, print_runs
from train.tiny import environment

OWNERS = [{"file": "model.bin", "owner": f"blocks.{index}.mlp.up", "kind": "q", "bytes": index} for index in range(200)]
VERDICTS = [{"rule": f"A{index}", "condition": "c", "verdict": "PASS", "evidence": "e" * 200} for index in range(50)]


def run_json(seed, **facts):
    return {
        "recipe": "demo", "recipe_hash": "r" * 16, "data_hash": "0123456789abcdef", "seed": seed, "device": "cpu x1",
        "began": f"2026-01-0{seed % 9 + 1}T10:00:00+00:00", "parent": "demo", "changes": {}, **facts,
    }  # fmt: skip


def score_json(bpb, stages=("NonOverlapping", "Sliding")):
    rows = [
        {"name": name, "bpb": bpb + 0.01 * (len(stages) - 1 - at), "nats": 10.0, "seconds": 5.5}
        for at, name in enumerate(stages)
    ]
    return {"bpb": bpb, "nats": 10.0, "tokens": 5, "bytes": 12, "stages": rows}


def make(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return folder


def scored(folder, seed, bpb, **facts):
    trained = {"steps": 40, "phases": {"train": 12.25}, "bpb": {"weights": bpb + 0.1, "packed": bpb}}
    return make(
        folder,
        {
            "run.json": run_json(seed, **trained, **facts),
            "ledger.json": {"total": 1000 + seed, "cap": 16_000_000, "files": {}, "owners": OWNERS},
            "score.json": score_json(bpb),
        },
    )


@pytest.fixture
def runs(tmp_path):
    """Four runs: two scored ones (one audited, with another rate), one interrupted, one in training."""
    folder = tmp_path / "runs"
    scored(folder / "a", 1, 2.0)
    scored(folder / "deep" / "b", 2, 1.5, changes={"optim.Muon.rate": ["0.02", "0.03"], "train.clip": ["0.3", "1.0"]})
    audit = {"policy": "strict", "verdicts": VERDICTS, "summary": {"pass": 9, "fail": 2, "not_tested": 0}, "run": "b"}
    (folder / "deep" / "b" / "audit.json").write_text(json.dumps(audit, indent=2))
    make(folder / "c", {"run.json": run_json(3, device="cpu x2"), "checkpoint.pt": ""})
    make(folder / "d", {"run.json": run_json(4)})
    return folder


def listed(folder, column="run", sort="run", where=()):
    rows = list_runs([folder], sort, where, None)["runs"]
    return [os.path.basename(row["run"]) if column == "run" else row[column] for row in rows]


def test_a_line_says_what_was_run_and_what_came_of_it(runs):
    result = list_runs([runs], "run", (), None)
    assert result["columns"] == [
        "run", "recipe", "changes", "seed", "data", "device", "steps", "bpb.weights", "bpb.NonOverlapping", "bpb.Sliding",
        "bpb.packed", "bytes", "train_seconds", "score_seconds", "state", "fails", "began", "fault",
    ]  # fmt: skip
    assert result["runs"][-1] == {
        "run": str(runs / "deep" / "b"), "recipe": "demo", "changes": ["optim.Muon.rate 0.02->0.03", "train.clip 0.3->1.0"],
        "seed": 2, "data": "01234567", "device": "cpu x1", "steps": 40, "bpb.weights": 1.6, "bpb.NonOverlapping": 1.51,
        "bpb.Sliding": 1.5, "bpb.packed": 1.5, "bytes": 1002, "train_seconds": 12.25, "score_seconds": 5.5,
        "state": "audited", "fails": 2, "began": "2026-01-03T10:00:00+00:00", "fault": None,
    }  # fmt: skip


def test_the_state_is_the_last_stage_that_left_its_file(runs):
    assert listed(runs, "state") == ["scored", "interrupted", "training", "audited"]
    (runs / "a" / "score.json").unlink()
    assert listed(runs, "state")[0] == "packed"
    (runs / "a" / "ledger.json").unlink()
    assert listed(runs, "state")[0] == "trained"


def test_rows_are_sorted_either_way_and_those_without_a_value_come_last(runs):
    assert listed(runs, sort="bpb.packed") == ["b", "a", "c", "d"]
    assert listed(runs, sort="-bpb.packed") == ["a", "b", "c", "d"]
    assert listed(runs, sort="-seed") == ["d", "c", "b", "a"]
    assert listed(runs, sort="began") == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("where", "left"),
    [
        (["bpb.packed<1.9"], ["b"]),
        (["bpb.packed>1.5"], ["a"]),
        (["seed=3"], ["c"]),
        (["changes=muon.RATE"], ["b"]),
        (["run=deep"], ["b"]),
        (["device=cpu", "seed>1", "seed<4"], ["c", "b"]),
        (["state=scored"], ["a"]),
        (["began<2026-01-03"], ["a"]),
        (["fails>0"], ["b"]),
        (["seed > 9"], []),
    ],
)
def test_conditions_leave_the_rows_of_which_all_hold(runs, where, left):
    assert listed(runs, where=where) == left


@pytest.mark.parametrize(
    ("sort", "where", "wrong"),
    [
        ("bpb", (), "no column 'bpb'; there are run, recipe, changes, seed,"),
        ("run", ["bpb.Slidin<2"], "no column 'bpb.Slidin'; there are .*bpb.Sliding"),
        ("run", ["seed"], "--where 'seed' is none of column=text"),
        ("run", ["seed=four"], "seed is a number, 'four' is none"),
    ],
)
def test_what_is_no_column_or_no_condition_is_refused(runs, sort, where, wrong):
    with pytest.raises(Problem, match=wrong):
        list_runs([runs], sort, where, None)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(Problem, match=r"no run in .*`fairway train` makes run folders"):
        list_runs([tmp_path], "run", (), None)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("run.json", "{", "run.json is not valid JSON"),
        ("run.json", "[]", "run.json holds a list"),
        ("run.json", {"recipe": "demo"}, "names no data_hash"),
        ("run.json", run_json(1, bpb={"packed": "low"}), "bpb takes dict[str, float], not {'packed': 'low'}"),
        ("run.json", run_json(1, bpb={"packed": True}), "bpb takes dict[str, float], not"),
        ("run.json", run_json(1, changes=["x"]), "changes takes dict[str, list[str]], not ['x']"),
        ("run.json", run_json(1, recipe=7), "recipe takes str, not 7"),
        ("score.json", "{", "score.json is not valid JSON"),
        ("score.json", {"stages": [{}]}, "KeyError: 'name'"),
        ("ledger.json", "", "ledger.json is not valid JSON"),
        ("ledger.json", {"cap": 3}, "KeyError: 'total'"),
        ("audit.json", {"summary": 3}, "TypeError"),
    ],
)
def test_a_broken_run_is_a_line_that_says_what_is_wrong_and_stops_no_other(runs, name, content, fault):
    (runs / "a" / name).write_text(content if isinstance(content, str) else json.dumps(content))
    rows = list_runs([runs], "run", (), None)["runs"]
    assert [row["state"] for row in rows] == ["broken", "interrupted", "training", "audited"]
    assert fault in rows[0]["fault"]


def test_csv_holds_the_table_with_numbers_in_full(runs, tmp_path):
    result = list_runs([runs], "run", (), tmp_path / "new" / "table.csv")
    with open(tmp_path / "new" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == result["columns"]
    assert [row["seed"] for row in rows] == ["1", "3", "4", "2"]
    assert rows[3]["changes"] == "optim.Muon.rate 0.02->0.03; train.clip 0.3->1.0"
    assert float(rows[0]["bpb.weights"]) == result["runs"][0]["bpb.weights"]
    assert rows[1]["bpb.packed"] == ""


def test_a_glance_finds_what_the_whole_files_say(runs):
    whole, glance = read_measured(runs / "deep" / "b"), glance_at(runs / "deep" / "b")
    assert glance.ledger == {"total": whole.total_bytes}
    assert glance.audit == {"summary": whole.audit["summary"]}
    assert (glance.run, glance.score, glance.staircase) == (whole.run, whole.score, whole.staircase)


def test_a_glance_reads_files_of_another_order_whole(runs):
    folder = runs / "deep" / "b"
    (folder / "ledger.json").write_text(json.dumps({"owners": OWNERS, "total": 77}))
    audit = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps({"summary": audit["summary"], **audit}))
    glance = glance_at(folder)
    assert (glance.total_bytes, glance.audit["summary"]["fail"]) == (77, 2)


def test_a_run_is_found_once_by_whatever_name(runs, monkeypatch):
    monkeypatch.chdir(runs / "deep")
    (runs / "link").symlink_to(runs / "deep")
    assert list(map(str, run_folders([".", "b", "../link", runs / "a"]))) == ["b", str(runs / "a")]


def test_changes_that_all_share_stand_in_the_title(tmp_path, capsys):
    for name, rate in (("a", "0.03"), ("b", "0.04")):
        scored(tmp_path / name, 1, 2.0, changes={"train.clip": ["0.3", "1.0"], "optim.Muon.rate": ["0.02", rate]})
    print_runs(list_runs([tmp_path], "run", (), None))
    title, head, _, first, second = capsys.readouterr().out.splitlines()
    assert title == "2 runs, all with train.clip 0.3->1.0"
    assert "fault" not in head.split()
    assert "train.clip" not in first
    assert "optim.Muon.rate 0.02->0.03" in first
    assert "optim.Muon.rate 0.02->0.04" in second


def test_long_changes_are_counted_not_printed(tmp_path, capsys):
    changes = {f"model.field{index}": ["1", "2" * 90] for index in range(5)}
    scored(tmp_path / "a", 1, 2.0, changes=changes)
    scored(tmp_path / "b", 2, 2.0)
    print_runs(list_runs([tmp_path], "run", (), None))
    title, _, _, first, second = capsys.readouterr().out.splitlines()
    assert title == "2 runs"
    assert f"model.field0 1->{'2' * 21}... +4 " in first
    assert " none " in second


def test_the_command_prints_the_table_or_json(runs, fairway_here):
    code, out, _ = fairway_here("runs", runs, "--sort=-bpb.packed", "--where", "bpb.packed<9", "state=d")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "2 runs"
    assert [line.split()[0] for line in lines[3:]] == [str(runs / "a"), str(runs / "deep" / "b")]
    code, out, _ = fairway_here("runs", runs, "--json")
    assert (code, len(json.loads(out)["runs"])) == (0, 4)
    code, _, err = fairway_here("runs", runs, "--sort", "nothing")
    assert (code, len(err)) == (2, 1)


def test_the_table_needs_no_torch():
    code = "import sys, fairway.cli, fairway.record.table; print([one for one in ('torch', 'numpy') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "[]\n"


def test_two_thousand_runs_are_listed_within_a_second(runs, tmp_path):
    model = runs / "deep" / "b"
    for number in range(2000):
        folder = tmp_path / "many" / f"sweep{number // 100}" / f"{number:04}"
        folder.mkdir(parents=True)
        for name in ("run.json", "score.json", "ledger.json", "audit.json"):
            os.link(model / name, folder / name)
    begin = time.process_time()
    result = list_runs([tmp_path / "many"], "-bpb.packed", ["seed<9"], None)
    spent = time.process_time() - begin
    assert len(result["runs"]) == 2000
    assert spent < 1.0, f"{spent:.2f} s"


def test_a_table_replaces_a_table_and_nothing_else(runs, tmp_path):
    own = runs / "a" / "run.json"
    before = own.read_bytes()
    with pytest.raises(Problem, match=r"run\.json stands there already and is no table of runs; name another file"):
        list_runs([runs], "run", (), own)
    assert own.read_bytes() == before
    (tmp_path / "t.csv").touch()
    for _ in range(2):
        list_runs([runs], "run", (), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().startswith("run,recipe,")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_a_condition_takes_a_finite_number(runs, number):
    with pytest.raises(Problem, match=f"seed is a number, '{number}' is none"):
        list_runs([runs], "run", [f"seed={number}"], None)


def test_a_name_of_two_lines_is_one_line_of_the_table(tmp_path, capsys):
    for name in (b"one", b"two\nlines", b"no\xff"):
        scored(tmp_path / os.fsdecode(name), 1, 2.0)
    print_runs(list_runs([tmp_path], "run", (), tmp_path / "t.csv"))
    assert len(capsys.readouterr().out.splitlines()) == 3 + 3
    with open(tmp_path / "t.csv", newline="") as file:
        assert [row[0].rpartition("/")[2] for row in csv.reader(file)][1:] == ["no?", "one", "two\nlines"]
