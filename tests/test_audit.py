"""The audit of a packed run, whole: what is honest passes, and what was changed by hand is named."""

import json
import shutil

import pytest

from fairway.files import write_json
from fairway.stages import pack, score, train
from fairway.terminal import Terminal
from train.tiny import SETTINGS

HELD = {
    "A1",
    "A2",
    "A3",
    "A8",
    "A9",
    "C1",
    "C2",
    "C3",
    "C4",
    "D1",
    "D2",
    "D3",
    "D5",
    "D7",
    "E3",
    "E14",
    "E19",
    "G3",
    "G5",
    "M1",
    "M2",
}
CACHED = ("mix=(BackoffCache(),)", "mix=(BackoffCacheAsPublished(),)")


@pytest.fixture(scope="module")
def scored_run(tiny_data, tmp_path_factory):
    """A run folder with its score. Not to be written to."""
    run = tmp_path_factory.mktemp("audited") / "run"
    return made_run(tiny_data, run)


def made_run(data, run, *settings):
    silent = Terminal(quiet=True)
    train("demo", data, run, 42, 12, None, (*SETTINGS, *settings), silent)
    pack(run, None, "base85", silent)
    score(run, None, True, (), False, silent)
    return run


@pytest.fixture
def copied(scored_run, tmp_path):
    shutil.copytree(scored_run, tmp_path / "run")
    return tmp_path / "run"


def verdicts(report):
    """rule -> the set of its verdicts."""
    found = {}
    for row in report["verdicts"]:
        found.setdefault(row["rule"], set()).add(row["verdict"])
    return found


def audited(fairway_here, run, *arguments):
    """(exit code, report)."""
    code, out, errors = fairway_here("audit", run, "--json", *arguments)
    assert out, errors
    return code, json.loads(out)


@pytest.mark.slow
def test_an_honest_run_passes_with_everything_tested(fairway_here, copied):
    code, report = audited(fairway_here, copied)
    found = verdicts(report)
    failed = [row for row in report["verdicts"] if row["verdict"] == "FAIL"]
    assert code == 0 and not failed, failed
    assert {rule for rule, seen in found.items() if seen == {"PASS"}} >= HELD
    assert json.loads((copied / "audit.json").read_text()) == report
    assert report["policy"] == "as-practised" and report["seconds"] < 120


@pytest.mark.slow
def test_figures_and_files_that_were_changed_by_hand_are_named(fairway_here, copied):
    scored = json.loads((copied / "score.json").read_text())
    write_json(copied / "score.json", scored | {"bpb": scored["bpb"] - 0.0001})
    program = (copied / "train_gpt.readable.py").read_text()
    told = '"nats": scored.nats,'
    assert told in program
    (copied / "train_gpt.py").write_text(program.replace(told, '"nats": 0.99 * scored.nats,'))
    code, report = audited(fairway_here, copied)
    failed = {(row["rule"], row["evidence"].partition(",")[0]) for row in report["verdicts"] if row["verdict"] == "FAIL"}
    assert code == 1
    assert ("G3", "score.json's bpb against a new score of the whole validation text") in failed
    assert ("G3", "its score.json against the sum of its nats") in failed
    assert ("G3", "run.json") in failed


@pytest.mark.slow
def test_a_program_that_scores_as_the_package_does_not_is_named(fairway_here, copied):
    program = (copied / "train_gpt.readable.py").read_text()
    honest = "        logp_SK = commit(batch, self.ids_NK[batch.target_N].long(), self.entropy)\n"
    assert program.count(honest) == 1
    peek = (
        honest
        + "        logp_SK = logp_SK + 0.02 * (self.stream[(batch.target_N + 2).clamp(max=self.targets)] > 150)[:, None]\n"
    )
    (copied / "train_gpt.py").write_text(program.replace(honest, peek))
    code, report = audited(fairway_here, copied)
    (row,) = [row for row in report["verdicts"] if row["rule"] == "A8" and "whole validation text" in row["evidence"]]
    assert code == 1 and row["verdict"] == "FAIL" and 0.015 < row["measured"] < 0.025


@pytest.mark.slow
@pytest.mark.parametrize("setting, failing", tuple(zip(CACHED, (set(), {"C2"}), strict=True)))
def test_the_published_cache_fails_normalisation_by_its_z_and_exact_counts_pass(
    fairway_here, tiny_data, tmp_path, setting, failing
):
    run = made_run(tiny_data, tmp_path / "run", setting)
    code, report = audited(fairway_here, run)
    rows = [row for row in report["verdicts"] if row["verdict"] == "FAIL"]
    assert {row["rule"] for row in rows} == failing, rows
    assert code == len(failing)
    if failing:
        assert any(row["measured"] > 1.5 and row["expected"] == 1.0 for row in rows), "Z is told"


def test_a_folder_without_a_packed_run_is_one_line(fairway_here, tmp_path):
    code, _, errors = fairway_here("audit", tmp_path)
    assert code == 2 and len(errors) == 1 and "recipe.py is not there" in errors[0]


def test_an_unknown_policy_is_one_line(fairway_here, scored_run):
    code, _, errors = fairway_here("audit", scored_run, "--policy", "lenient")
    assert code == 2 and len(errors) == 1 and "no policy 'lenient'" in errors[0]
