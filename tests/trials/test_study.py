"""The database that a sweep's workers share, and how they find out who has died."""

import sqlite3
import time

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from fairway.files import owning
from fairway.problem import Problem
from fairway.trials import study as study_module
from fairway.trials.study import Lookout, shown_url
from fairway.trials.sweep import (
    claim_trial,
    take_trials,
)
from trials.sweeps import SILENT, Notes, board_in, climbing, plan_in, run

# ---- the database


def test_a_path_that_a_url_cannot_hold_is_refused(tiny_data, tmp_path):
    with pytest.raises(Problem, match="choose an --out without"):
        run(tiny_data, tmp_path / "what?")
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_no_sweep_s_is_left_alone(tiny_data, tmp_path):
    for number, directions in enumerate((["minimize", "minimize"], ["maximize"], ["minimize"])):
        url = f"sqlite:///{tmp_path}/{number}.db"
        study = optuna.create_study(storage=url, study_name="fairway", directions=directions)
        if directions == ["minimize"]:
            study.tell(study.ask({"x": FloatDistribution(0, 1)}), 0.0)
        with pytest.raises(Problem, match=r"holds a study 'fairway' that is no sweep's; give another --storage"):
            run(tiny_data, tmp_path / "out", storage=url)
        assert not study.user_attrs and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("table", ["trial_params", "trial_values", "trial_user_attributes", "study_user_attributes"])
def test_a_database_that_lost_a_table_is_refused(tmp_path, table):
    plan = plan_in(tmp_path, trials=2)
    board = board_in(tmp_path)
    board.settle({"seed": 5}, plan.space)
    take_trials(board, plan, climbing(lambda number, _: number + 1.0, []), SILENT)
    board_in(tmp_path).settle({"seed": 5}, plan.space)
    board.storage.remove_session()
    with sqlite3.connect(tmp_path / "sweep.db") as connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(Problem, match=r"has lost values of trial|no sweep's"):
        board_in(tmp_path).settle({"seed": 5}, plan.space)


# ---- who has died


def running(number, beat):
    trial = create_trial(state=TrialState.RUNNING, user_attrs={"beat": beat})
    trial.number = number
    return trial


def test_only_a_trial_whose_beat_stands_still_for_the_time_of_grace_is_lost(monkeypatch):
    clock = iter((0.0, 50.0, 70.0, 100.0, 120.0))
    monkeypatch.setattr(study_module.time, "monotonic", lambda: next(clock))
    lookout = Lookout()
    assert lookout.look([running(0, "a 1"), running(1, "b 1"), running(2, None)]) == []
    assert lookout.unsure == [0, 1, 2]
    assert lookout.look([running(0, "a 1"), running(1, "b 2"), running(2, None)]) == []
    assert lookout.unsure == [0, 2]
    assert lookout.look([running(0, "a 1"), running(1, "b 2"), running(2, None)]) == [0, 2]
    assert lookout.look([running(1, "b 2")]) == []
    assert lookout.look([running(1, "b 2"), running(0, "a 1")]) == [1]


def test_a_worker_beats_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "BEAT_SECONDS", 0.01)
    plan, board, heard = plan_in(tmp_path, trials=1, rungs=()), board_in(tmp_path), set()

    def objective(number, values, judge):
        end = time.monotonic() + 5
        while len(heard) < 3 and time.monotonic() < end:
            heard.add(board.study.get_trials()[0].user_attrs.get("beat"))
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    take_trials(board, plan, objective, SILENT)
    assert len(heard - {None}) > 1


def test_a_silent_trial_is_taken_over_unless_its_folder_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "GRACE_SECONDS", 0.5)
    plan, board = plan_in(tmp_path, trials=2, rungs=()), board_in(tmp_path)
    for number in (0, 1):
        assert claim_trial(board, plan).number == number
    plan.folder(1).mkdir()
    trained = []

    def objective(number, values, judge):
        trained.append(number)
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    notes = Notes()

    def nap(seconds):
        if trained:  # the holder of the other folder speaks, so that nobody waits for it
            board.note(1, beat="elsewhere 2")

    monkeypatch.setattr("fairway.trials.sweep.time.sleep", nap)
    with owning(plan.folder(1)):
        result = take_trials(board, plan, objective, notes)
    assert trained == [0] and [row["state"] for row in result["trials"]] == ["complete", "running"]
    assert "trial 0 has lost its worker: it goes on here" in notes.lines


def test_a_url_is_shown_without_its_password():
    assert shown_url("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    assert shown_url("nope") == "nope"
