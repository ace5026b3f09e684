"""Record folders: what they hold, what is refused, what may be allowed and is then said."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from fairway.node import override
from fairway.problem import DoesNotHold, Problem
from fairway.recipes.demo import demo
from fairway.record.admission import SEEDS_FILE, metrics_faults
from fairway.record.folder import write_record
from fairway.record.measured import read_measured
from fairway.referee.review import static_rows
from fairway.stages import score
from fairway.terminal import Terminal
from record.made_runs import ABOUT, PROGRAM, SETTINGS, change, put, sha256, verdict, write, write_run, write_seeds
from train.tiny import environment

ALL = ("recipes", "code", "data", "cap", "time", "seeds", "audit")


@pytest.fixture
def runs(tmp_path):
    return write_seeds(tmp_path / "runs")


def record(runs, out, allow=(), against=(), with_model=True):
    return write_record(runs, out, ABOUT, allow, against, with_model, lambda line: None)


def refused(runs, tmp_path, allow=()):
    """The line of a refusal, which leaves nothing behind."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises((DoesNotHold, Problem)) as caught:
        record(runs, tmp_path / "refused", allow)
    assert sorted(os.listdir(tmp_path)) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_folder_holds_the_files_of_a_submission_and_no_others(runs, tmp_path):
    result = record(runs, tmp_path / "deep" / "out", against=(1.3,))
    out = tmp_path / "deep" / "out"
    logs = {f"train_seed{seed}.log" for seed in (42, 314, 1234)}
    names = {"README.md", "submission.json", "train_gpt.py", "model.bin", "requirements.txt", *logs}
    assert set(os.listdir(out)) == names == set(result["files"])
    assert (out / "train_gpt.py").read_bytes() == PROGRAM
    assert (out / "model.bin").read_bytes() == (runs[0] / "model.bin").read_bytes()
    assert (out / "requirements.txt").read_text() == "numpy==2.4.6\nsentencepiece==0.2.3\ntorch==2.13.0\n"
    assert result["review"]["fail"] == 0 and result["seeds"] == [42, 314, 1234] and result["exceptions"] == []
    assert os.listdir(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == (tmp_path / "runs").stat().st_mode & 0o777
    rows = static_rows(out, "as-practised", [1.3])
    assert [row for row in rows if row["verdict"] == "FAIL"] == []
    passed = {row["rule"] for row in rows if row["verdict"] == "PASS"}
    assert {"A1", "T1", "T2", "T4", "D7", "M1", "S1", "S2", "S3", "S8", "G1", "G2", "G3", "G4", "G5"} <= passed


def test_the_model_can_be_left_out_and_the_readme_says_so(runs, tmp_path):
    result = record(runs, tmp_path / "out", with_model=False)
    assert "model.bin" not in result["files"] and result["model_of_seed"] is None
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`model.bin` is not in this folder" in text and "--no-model" in text and "--stage score" not in text


def test_a_folder_that_is_there_is_not_touched(runs, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(Problem, match="already there"):
        record(runs, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def anew(path, **facts):
    """Another run in the place of one, of the same seed."""
    shutil.rmtree(path)
    write_run(path, int(path.name[4:]), **facts)


def judged(at, figure):
    """An `amend` of an audit by which a verdict has another figure."""
    return put("verdicts", at, "measured", figure)


OTHER = override(demo(), [*SETTINGS, "train.clip=0.5"])
BREACHES = {
    "recipes": ("recipes", lambda path: anew(path, recipe=OTHER), "seed314 has recipe "),
    "code": ("code", lambda path: anew(path, program=PROGRAM + b"#"), "train_gpt.py"),
    "sources": ("code", lambda path: change(path / "run.json", put("source_hash", "0" * 16)), "source hash 0000"),
    "tokenizer": ("data", lambda path: change(path / "run.json", put("tokenizer_sha256", "0" * 64)), "tokenizer 0000"),
    "cap": ("cap", lambda path: anew(path, model=bytes(16_000_000)), "the cap is 16,000,000"),
    "training": ("time", lambda path: anew(path, train=601.5), "601.5 s of training, the limit is 600 s"),
    "calibration": (
        "time", lambda path: anew(path, calibrate=588.0), "600.5 s of train and cal",
    ),
    "scoring": ("time", lambda path: anew(path, scoring=600.3), "600.3 s of scoring"),
    "no audit": ("audit", lambda path: (path / "audit.json").unlink(), "no audit"),
    "a failed rule": ("audit", lambda path: change(path / "audit.json", verdict("C2", "FAIL")), "its audit fails C2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_refused_and_allowed_it_stands_in_the_readme(runs, tmp_path, name):
    kind, spoil, words = BREACHES[name]
    spoil(runs[1])
    line = refused(runs, tmp_path)
    assert words in line and "seed314" in line and f"--allow {kind}" in line
    assert words in refused(runs, tmp_path, [one for one in ALL if one != kind])
    result = record(runs, tmp_path / "out", (kind,))
    text = (tmp_path / "out" / "README.md").read_text()
    assert len(result["exceptions"]) == 1 and words in result["exceptions"][0]
    assert "## Exceptions" in text and f"- {result['exceptions'][0]}\n" in text
    assert json.loads((tmp_path / "out" / "submission.json").read_text())["exceptions"] == result["exceptions"]
    assert f"--allow {kind}" in text


def test_all_kinds_of_breaches_are_named_at_once(runs, tmp_path):
    anew(runs[0], train=601.5)
    (runs[1] / "audit.json").unlink()
    assert "(also refused: seeds, audit)" in refused(runs[:2], tmp_path)


def test_an_audit_is_held_to_the_phases_that_its_own_policy_counts(runs, tmp_path):
    for path in runs:
        change(path / "audit.json", put("policy", "strict"))
    assert "judged 13.75 under T2, the run says 14.5" in refused(runs, tmp_path, ALL)
    for path in runs:
        change(path / "audit.json", judged(2, 14.5))
    assert record(runs, tmp_path / "strict")["exceptions"] == []
    for path in runs:  # 599.9 s of training and calibration, and packing over the limit
        shutil.rmtree(path)
        write_run(path, int(path.name.removeprefix("seed")), train=598.65)
        change(path / "audit.json", put("policy", "strict"))
        change(path / "audit.json", judged(2, 600.65))
    assert "600.6 s of train and calibrate and quantise and encode" in refused(runs, tmp_path)


def test_limits_are_kept_by_what_ends_within_the_last_step(runs, tmp_path):
    for path in runs:
        anew(path, train=600.1, calibrate=0.0, scoring=600.2)
    assert record(runs, tmp_path / "out")["exceptions"] == []


def test_fewer_than_three_seeds_are_said(runs, tmp_path):
    assert "2 of 3 seeds (42, 1234)" in refused([runs[0], runs[2]], tmp_path)
    record(runs[:1], tmp_path / "out", ("seeds",))
    told = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert told["compliance"]["three_seeds"] is False and "val_bpb_std" not in told


def attempts(folder, *rows):
    """A seeds.json: rows of (seed, [(folder, outcome)])."""
    found = [
        {"seed": seed, "folder": f"seed{seed}", "reached": "audit", "attempts": [
            {"began": "2026-11-21T09:00:00", "ended": None, "outcome": word, "reason": "a | b", "folder": name}
            for name, word in some]}
        for seed, some in rows
    ]  # fmt: skip
    write(folder / SEEDS_FILE, {"seeds": found})


def test_a_seed_that_was_begun_with_the_others_may_not_be_left_out(runs, tmp_path):
    known = [(int(path.name[4:]), [(path.name, "done")]) for path in runs]
    attempts(tmp_path / "runs", *known, (7, [("seed7", "failed")]), (8, []))
    line = refused(runs, tmp_path)
    assert "runs/seeds.json: seed 7 was begun and is not among the runs" in line and "--allow seeds" in line
    record(runs, tmp_path / "out", ("seeds",))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| 7 | seed7 | 2026-11-21T09:00:00 | - | failed: a \\| b |" in text and "| 42 | seed42 |" in text


def test_a_run_that_was_put_aside_is_disclosed_and_is_no_seed(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "runs" / "seed42.attempt1")
    first = (42, [("seed42.attempt1", "does not hold"), ("seed42", "done")])
    attempts(tmp_path / "runs", first, (314, [("seed314", "done")]), (1234, [("seed1234", "done")]))
    assert record([tmp_path / "runs"], tmp_path / "out")["seeds"] == [42, 314, 1234]
    assert "| 42 | seed42.attempt1 |" in (tmp_path / "out" / "README.md").read_text()
    assert "both of seed 42" in refused([tmp_path / "runs", tmp_path / "runs" / "seed42.attempt1"], tmp_path, ALL)


FALSE = {
    "a digit of the score": lambda path: change(path / "score.json", lambda one: one.update(bpb=one["bpb"] - 0.0001)),
    "nats of another run": lambda path: shutil.copy(path.parent / "seed42" / "nats.npy", path),
    "metrics of another run": lambda path: (path / "metrics.jsonl").write_text(
        (path / "metrics.jsonl").read_text().replace('"step": 6', '"step": 7')
    ),
    "seconds of training": lambda path: change(path / "run.json", put("phases", "train", 5.0)),
    "steps": lambda path: change(path / "run.json", put("steps", 5)),
    "bpb of run.json": lambda path: change(path / "run.json", put("bpb", "packed", 1.0)),
    "another model.bin": lambda path: (path / "model.bin").write_bytes(b"x" * 20_314),
    "another train_gpt.py": lambda path: (path / "train_gpt.py").write_bytes(PROGRAM.replace(b"torch", b"torsh")),
    "bytes of the ledger": lambda path: change(path / "ledger.json", put("files", "model.bin", 1)),
    "the audit of another run": lambda path: shutil.copy(path.parent / "seed42" / "audit.json", path),
    "another total": lambda path: change(path / "audit.json", judged(0, 5)),
    "seconds that were judged": lambda path: change(path / "audit.json", judged(1, 9.9)),
    "bpb that was judged": lambda path: change(path / "audit.json", judged(-1, {"bpb": 0.700001})),
    "a verdict": lambda path: change(path / "audit.json", lambda one: one["verdicts"][0].update(verdict="FAIL")),
    "no score": lambda path: (path / "score.json").unlink(),
    "no probability": lambda path: change(path / "score.json", put("normalised", False)),
    "a broken score": lambda path: change(path / "score.json", put("stages", [{"name": "x"}])),
    "a broken audit": lambda path: change(path / "audit.json", put("verdicts", [3])),
    "another recipe": lambda path: change(path / "run.json", put("recipe_hash", "0" * 16)),
    "no tokens": lambda path: change(path / "score.json", put("tokens", 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_what_does_not_agree_with_itself_is_never_allowed(runs, tmp_path, name):
    FALSE[name](runs[1])
    assert "seed314" in refused(runs, tmp_path, ALL)


def test_a_rule_that_the_review_fails_is_named_unless_a_breach_explains_it(tmp_path):
    runs = [write_run(tmp_path / "runs" / f"seed{seed}", seed, program=b"def f(:\n") for seed in (42, 314, 1234)]
    assert "fails G6" in refused(runs, tmp_path, ALL)


def test_runs_of_earlier_versions_lack_some_keys_and_are_taken(runs, tmp_path):
    for path in runs:
        change(
            path / "run.json", lambda one: [one.pop(key) for key in ("parent", "changes", "versions", "began", "parameters")]
        )
    record(runs, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert "date" not in told and (tmp_path / "out" / "requirements.txt").read_text().startswith("numpy\nsentencepiece\n")
    assert "--set train.budget.steps=6" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_takes_a_folder_of_runs(runs, tmp_path, fairway_here):
    words = ("--name", "x", "--author", "a", "--github", "g", "--out", tmp_path / "out")
    code, out, _ = fairway_here("record", tmp_path / "runs", *words)
    assert code == 0 and "seeds 42, 314, 1234" in out and "0 FAIL" in out
    assert fairway_here("record", tmp_path / "runs", *words)[0] == 2
    (runs[0] / "audit.json").unlink()
    code, _, errors = fairway_here("record", tmp_path / "runs", *words[:-1], tmp_path / "other")
    assert code == 1 and errors == [errors[0]] and "--allow audit" in errors[0]


@pytest.mark.slow
def test_the_program_of_the_folder_gives_the_same_score_from_an_empty_directory(tiny_run, tiny_data, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    found = score(run, tiny_data, False, (), True, Terminal(quiet=True))
    record([run], tmp_path / "out", ("seeds", "audit"))
    command = [sys.executable, "train_gpt.py", "--stage", "score", "--data", str(tiny_data), "--out", "."]
    ended = subprocess.run(command, cwd=tmp_path / "out", env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "out" / "score.json").read_text())["bpb"] == found["bpb"]


@pytest.mark.parametrize(("later", "refused"), [(4.9, False), (5.1, True)])
def test_training_ends_soon_after_its_last_step(tmp_path, later, refused):
    run = write_run(tmp_path / "seed42")
    path, seconds = run / "metrics.jsonl", 12.5
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["seconds"] = seconds - later - seconds / len(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    change(run / "run.json", put("sha256", "metrics.jsonl", sha256(path.read_bytes())))
    faults = metrics_faults(read_measured(run))
    assert bool(faults) == refused and (not refused or "ends after" in faults[0])


ODD = {
    "name": ["", "  ", "two\nlines", "bell\a", os.fsdecode(b"\xff")], "author": ["", "a\u2028b"], "github": ["", "a\tb"],
    "track": ["", "a b", "../x", "é"], "blurb": ["# head", "a\n# head", " | cell", "\0"],
}  # fmt: skip


@pytest.mark.parametrize(("option", "text"), [(option, text) for option, texts in ODD.items() for text in texts])
def test_words_that_the_files_cannot_hold_are_refused_before_any_work(tmp_path, option, text):
    with pytest.raises(Problem, match=f"--{option} ") as caught:
        write_record([tmp_path / "none"], tmp_path / "out", ABOUT | {option: text}, (), (), True, None)
    assert str(caught.value).isprintable()


def test_where_a_record_cannot_be_written_is_found_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for out, says in ((tmp_path / "file" / "out", "cannot write"), ("", "--out . is empty")):
        with pytest.raises(Problem, match=says):
            record([tmp_path / "none"], out)


@pytest.mark.parametrize("figure", ["nan", "inf", "0", "-1"])
def test_a_record_that_is_no_bpb_is_refused_before_any_work(tmp_path, figure):
    with pytest.raises(Problem, match=r"--record \S+ is no bpb; give a number above 0"):
        record([tmp_path / "none"], tmp_path / "out", against=(1.2, float(figure)))
