"""The gallery: folders that break one rule each, and folders that break none and look as if they did."""

import os

import pytest

from fairway.referee.review import review_folder, static_rows
from fairway.referee.sandbox import sandbox_fault
from referee.gallery.base import write_submission
from referee.gallery.dynamic_illegal import DYNAMIC_ILLEGAL
from referee.gallery.dynamic_legal import DYNAMIC_LEGAL
from referee.gallery.static_illegal import STATIC_ILLEGAL, control_characters_in_a_name, fifo_in_place_of_a_log
from referee.gallery.static_legal import STATIC_LEGAL

ILLEGAL, LEGAL = (*STATIC_ILLEGAL, *DYNAMIC_ILLEGAL), (*STATIC_LEGAL, *DYNAMIC_LEGAL)


def rows_of(cases):
    """A test for each case; scripts that run take seconds each."""
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.dynamic else []) for case in cases]


def failures(case, folder):
    """The FAIL verdicts on a case's folder. What is only read is read in this process, which saves the start of another."""
    case.build(folder)
    if not case.dynamic:
        rows = static_rows(folder, "as-practised", None)
    elif fault := sandbox_fault():
        pytest.skip(fault)
    else:
        rows = review_folder(folder, dynamic=True)["verdicts"]
    return [row for row in rows if row["verdict"] == "FAIL"]


def told(rows):
    return "\n".join(f"{row['rule']}: {row['measured']}; expected {row['expected']}; {row['evidence']}" for row in rows)


@pytest.mark.parametrize("case", rows_of(ILLEGAL))
def test_the_broken_rule_is_named(case, tmp_path):
    rows = failures(case, tmp_path / "submission")
    named = {row["rule"] for row in rows}
    assert named & case.rules, f"none of {sorted(case.rules)} failed; what failed:\n{told(rows)}"


@pytest.mark.parametrize("case", rows_of(LEGAL))
def test_nothing_fails_that_is_legal(case, tmp_path):
    rows = failures(case, tmp_path / "submission")
    assert not rows, told(rows)


@pytest.mark.parametrize("build", [fifo_in_place_of_a_log, control_characters_in_a_name])
def test_hostile_folders_get_a_whole_report(build, tmp_path):
    build(tmp_path / "submission")
    report = review_folder(tmp_path / "submission")
    assert report["summary"]["fail"] and {"A1", "C1", "G7"} <= {row["rule"] for row in report["verdicts"]}


def test_the_gallery_is_as_large_as_it_should_be():
    names = [case.name for case in (*ILLEGAL, *LEGAL)]
    assert len(set(names)) == len(names), "two cases of one name"
    assert len(STATIC_ILLEGAL) >= 22 and len(DYNAMIC_ILLEGAL) >= 12 and len(STATIC_LEGAL) >= 10 and len(DYNAMIC_LEGAL) >= 8


def test_reading_a_folder_runs_nothing_of_it(tmp_path):
    canary = tmp_path / "canary"
    plant = f"open({str(canary)!r}, 'w').write('sung')\n"
    folder = write_submission(tmp_path / "submission", script=plant)
    for name in ("sitecustomize.py", "conftest.py", "setup.py", "__init__.py", "numpy.py", "train_gpt_mlx.py"):
        (folder / name).write_text(plant)
    (folder / "final_model.pkl").write_bytes(pickle_that_sings(canary))
    (folder / "final_model.pt").write_bytes(pickle_that_sings(canary))
    (folder / "hook.pth").write_text(f"import os; {plant}")
    here = os.getcwd()
    os.chdir(folder)
    try:
        review_folder(folder)
    finally:
        os.chdir(here)
    assert not canary.exists()


def pickle_that_sings(path):
    """A pickle that makes a file when it is loaded."""
    return f"cposix\nsystem\n(S'touch {path}'\ntR.".encode()


def test_the_planted_pickle_would_have_sung(tmp_path):
    import pickle

    pickle.loads(pickle_that_sings(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()
