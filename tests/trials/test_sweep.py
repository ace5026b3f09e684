"""`fairway sweep`: the space, the halving, the database that workers share, and what becomes of a stopped trial."""

import itertools
import json
import shlex
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from fairway.node import paths
from fairway.problem import DoesNotHold, Interrupted, Problem
from fairway.stages import read_recipe, train
from fairway.train.dist import World
from fairway.trials import study as study_module
from fairway.trials.space import value_at
from fairway.trials.sweep import (
    claim_trial,
    in_best_share,
    plan_sweep,
    print_sweep,
    refuse_ranks,
    rungs_of,
    smoothed_loss,
    take_trials,
)
from fairway.trials.transfer import transfer_of
from train.tiny import SETTINGS, begin, curve, finish, interrupt, rows, tiny
from trials.sweeps import RATE, SILENT, Notes, board_in, climbing, command, plan_in, run, space_of


def words(data, out, *over, **options):
    given = {"steps": 12, "trials": 3, "seed": 5} | options
    flags = itertools.chain(*((f"--{name}", value) for name, value in given.items()))
    return ["sweep", "demo", "--data", data, "--out", out, "--over", *(over or (RATE,)), *flags, "--set", *SETTINGS]


class PressesControlC(Notes):
    """Ctrl-C as soon as a training shows that it is past its first steps."""

    def progress(self, title):
        return nullcontext(lambda done, *_: signal.raise_signal(signal.SIGINT) if 0.2 < done < 1 else None)


# ---- the space


def test_numbers_become_ranges_of_the_field_s_own_kind_and_texts_become_choices():
    assert space_of(RATE, "train.clip=0..1", "model.mlp.expansion=2..3", "average.SWA.every=2..8") == {
        "optim.Muon.rate": FloatDistribution(0.003, 0.1, log=True), "train.clip": FloatDistribution(0.0, 1.0),
        "model.mlp.expansion": FloatDistribution(2.0, 3.0), "average.SWA.every": IntDistribution(2, 8),
    }  # fmt: skip
    assert space_of("average=()|(EMA(decay=0.9),)") == {"average": CategoricalDistribution(["()", "(EMA(decay=0.9),)"])}


@pytest.mark.parametrize(
    "over, says",
    [
        ("optim.Muno.rate=0.1..0.2", "unknown path 'optim.Muno.rate'; nearest is optim.Muon.rate"),
        ("optim.Muon.rate=0.2..0.1", "the low end must be below"),
        ("optim.Muon.rate=0..0.1:log", "above 0 with :log"),
        ("optim.Muon.rate=-1..0.1", "neither may be negative"),
        ("optim.Muon.rate=0.1", "is no space"),
        ("optim.Muon.rate=0.1|0.1", "is no space"),
        ("optim.Muon.rate", "is no space"),
        ("optim.Muon.rate=low..high", "takes float, not 'low'"),
        ("model.head=(TiedHead(),)|(Tied(),)", "nearest is TiedHead"),
        ("average=()..(SWA(),)", "no number"),
        (
            "model.stream.SmearGate.stop_at_bos=true..false",
            "true or false, no range; give model.stream.SmearGate.stop_at_bos=true|f",
        ),
        ("model.heads=2|3", "--over model.heads=2|3: with model.heads=3: "),
        ("model.heads=2..3", "heads 3"),
        ("train.budget.steps=1..5", "same budget"),
        ("train=Training(schedule=WarmDownSteps())|Training(schedule=WarmDownSteps(),clip=1.0)", "same budget"),
        ("mix=()|(TokenTilt(),)", "leaves the trained weights as they are"),
        ("quantize.RowInt.bits=4..6", "leaves the trained weights as they are"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line_before_anything_is_written(tiny_data, tmp_path, over, says):
    with pytest.raises(Problem) as fault:
        run(tiny_data, tmp_path / "out", over)
    assert says in str(fault.value) and "\n" not in str(fault.value)
    assert not (tmp_path / "out").exists()


def test_what_is_quantised_while_training_may_be_swept():
    bits = next(path for path in paths(tiny()) if path.startswith("quantize.") and path.endswith(".bits"))
    assert space_of(f"{bits}=4..6", settings=("qat=(LateQAT(),)",)) == {bits: IntDistribution(4, 6)}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"trials": 0}, "--trials 0"), ({"factor": 1}, "--factor 1"), ({"rungs": -1}, "--rungs -1"),
        ({"tokens": 1000}, "not both"), ({"steps": None}, "by the clock"), ({"steps": 0}, "a budget of 0"),
        ({"steps": None, "tokens": 100}, "less than a step's"), ({"settings": ("train.budget.seconds=5",)}, "train.budget"),
        ({"storage": "sqlite://"}, "in memory"), ({"storage": "sqlite:///:memory:"}, "in memory"),
        ({"storage": "sqlite:///file:x?mode=memory&uri=true"}, "in memory"),
        ({"storage": "nope"}, "cannot be used"), ({"storage": "none://a"}, "none"),
        ({"storage": "sqlite:////no/such/{folder}/x.db"}, "unable to open database file"),
        ({"storage": "mysql+pymysql://me:secret@localhost/x"}, "pip install pymysql"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_work_is_refused_in_one_line(tiny_data, tmp_path, changes, says):
    settings = (*SETTINGS, *changes.pop("settings", ()))
    with pytest.raises(Problem) as fault:
        run(tiny_data, tmp_path / "out", settings=settings, **changes)
    assert says in str(fault.value) and "\n" not in str(fault.value) and "secret" not in str(fault.value)


def test_several_ranks_are_refused(monkeypatch):
    monkeypatch.setattr("fairway.trials.sweep.start_world", lambda: nullcontext(World(0, 2, "cpu")))
    with pytest.raises(Problem, match="here are 2; start it without torchrun"):
        refuse_ranks()


# ---- halving, by objectives that train nothing


def test_one_in_factor_goes_on_and_the_first_always_does():
    assert in_best_share(9.0, [], 3) and not in_best_share(9.0, [8.0], 3) and in_best_share(8.0, [8.0], 3)
    others = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert [in_best_share(loss, others, 3) for loss in (0.5, 1.5, 2.5, 3.5)] == [True, True, True, False]
    assert [in_best_share(loss, others, 4) for loss in (0.5, 1.5, 2.5)] == [True, True, False]


def test_a_trial_is_pruned_at_the_rung_where_it_falls_behind(tmp_path):
    plan, seen = plan_in(tmp_path, trials=6), []
    losses = {0: 5.0, 1: 6.0, 2: 4.0, 3: 4.5, 4: 4.2, 5: 3.0}
    result = take_trials(board_in(tmp_path), plan, climbing(lambda number, _: losses[number], seen), SILENT)
    # Of three to five that reached the first rung one goes on: 3 and 4 are second to 2 there. 5 leads.
    assert [row["state"] for row in result["trials"]] == ["complete", "pruned", "complete", "pruned", "pruned", "complete"]
    assert [spent for number, spent in seen if number == 1] == [3]
    assert [spent for number, spent in seen if number == 5] == [3, 9, 27]
    pruned = result["trials"][1]
    assert (pruned["steps"], pruned["loss"], pruned["bpb"]) == (3, 2.0, None)
    assert result["best"] == {"number": 5, "values": result["trials"][5]["values"], "bpb": 3.0}
    assert result["saved_steps"] == 3 * (81 - 3)
    assert json.loads((tmp_path / "sweep.json").read_text()) == result


def test_losses_of_other_rungs_do_not_count(tmp_path):
    plan, board = plan_in(tmp_path, trials=2), board_in(tmp_path)

    def objective(number, values, judge):
        # The second trial's loss at 9 steps is worse than the first's at 27, and better than that at 9.
        for spent, loss in ((9, 5.0 - number), (27, 1.0 - number)):
            judge(spent, loss, spent, 81)
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    assert [row["state"] for row in take_trials(board, plan, objective, SILENT)["trials"]] == ["complete"] * 2


def test_another_worker_s_losses_count(tmp_path):
    plan, mine, other = plan_in(tmp_path, trials=2), board_in(tmp_path), board_in(tmp_path)
    ahead = claim_trial(other, plan)
    ahead.report(1.0, 3)
    other.note(ahead.number, beat="elsewhere 1")

    def objective(number, values, judge):
        other.note(ahead.number, beat=f"elsewhere {time.monotonic()}")
        judge(3, 2.0, 3, 81)

    notes = Notes()
    with other.beating(ahead.number):
        result = take_trials(mine, plan, objective, notes)
    assert [row["state"] for row in result["trials"]] == ["running", "pruned"]
    assert notes.lines[-1] == "other workers still train: 0; the last of them ends the sweep"


def test_values_are_drawn_by_seed_and_number_and_never_twice(tmp_path):
    over = ("average.SWA.every=2..4", "model.head=(TiedHead(),)|(TiedHead(),Softcap())")
    plans = [plan_in(tmp_path / name, *over, trials=9, rungs=()) for name in ("one", "two")]
    notes = Notes()
    drawn = [
        [row["values"] for row in take_trials(board_in(plan.out), plan, climbing(lambda *_: 1.0, []), notes)["trials"]]
        for plan in plans
    ]
    assert drawn[0] == drawn[1]
    assert sorted(map(str, drawn[0])) == sorted(
        str({"average.SWA.every": every, "model.head": head})
        for every in (2, 3, 4)
        for head in ("(TiedHead(),)", "(TiedHead(),Softcap())")
    )
    assert notes.lines[-1] == "every point of the space was tried"


def test_later_draws_learn_from_earlier_trials(tmp_path):
    plan = plan_in(tmp_path, "train.clip=0..1", trials=20, rungs=())

    def objective(number, values, judge):
        return {"bpb": abs(values["train.clip"] - 0.2), "loss": 1.0, "steps": 81}

    bpb = [row["bpb"] for row in take_trials(board_in(tmp_path), plan, objective, SILENT)["trials"]]
    assert sum(bpb[10:]) < sum(bpb[:10]) / 2


def test_a_trial_that_cannot_end_is_failed_with_its_reason_and_the_sweep_goes_on(tmp_path):
    faults = {1: DoesNotHold("loss nan at step 4: lower the rates"), 2: Problem("heads do not divide")}

    def objective(number, values, judge):
        if number in faults:
            raise faults[number]
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    result = take_trials(board_in(tmp_path), plan_in(tmp_path), objective, SILENT)
    assert [row["state"] for row in result["trials"]] == ["complete", "failed", "failed", "complete"]
    assert [row["reason"] for row in result["trials"]] == [None, *map(str, faults.values()), None]


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_what_is_no_fault_of_its_values_gives_a_trial_back(tmp_path, kind):
    plan, other, tries = plan_in(tmp_path, trials=2), board_in(tmp_path), []

    def objective(number, values, judge):
        tries.append((number, values))
        judge(3, 9.0 - len(tries), 3, 81)
        if len(tries) == 1:
            # Meanwhile another worker's trial is better at the rung, and ends.
            claim_trial(other, plan).report(1.0, 3)
            other.study.tell(1, 1.0)
            if kind is OSError:
                raise Problem("cannot write: the disk is full") from OSError(28, "full")
            raise kind("stopped")
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    with pytest.raises(Problem if kind is OSError else Interrupted, match="full" if kind is OSError else "goes on"):
        take_trials(board_in(tmp_path), plan, objective, SILENT)
    result = take_trials(board_in(tmp_path), plan, objective, SILENT)
    assert tries[0] == tries[1] and len(tries) == 2
    # At the rung that it had reached it is not judged again, nor is its loss there replaced.
    assert board_in(tmp_path).trials()[0].intermediate_values == {3: 8.0}
    assert [row["state"] for row in result["trials"]] == ["complete"] * 2


def test_an_error_of_ours_is_shown_and_is_not_met_again(tmp_path):
    def objective(number, values, judge):
        if number == 0:
            raise ZeroDivisionError("a bug")
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    plan = plan_in(tmp_path, trials=2)
    with pytest.raises(ZeroDivisionError):
        take_trials(board_in(tmp_path), plan, objective, SILENT)
    assert [row["state"] for row in take_trials(board_in(tmp_path), plan, objective, SILENT)["trials"]] == [
        "failed",
        "complete",
    ]


def test_a_trial_beyond_the_number_is_given_back(tmp_path):
    plan, board = plan_in(tmp_path, trials=2), board_in(tmp_path)
    numbers = [claim_trial(board, replace(plan, trials=3)).number for _ in range(3)]
    board.release(2)
    assert numbers == [0, 1, 2] and claim_trial(board, plan) is None
    assert board.trials()[2].state == TrialState.WAITING
    # Nor is it taken by a worker that began to look before the others had begun theirs.
    late = SimpleNamespace(study=board.study, trials=list, release=board.release)
    assert claim_trial(late, plan) is None and board.trials()[2].state == TrialState.WAITING
    assert claim_trial(board, replace(plan, trials=4)).number == 2


def test_rungs_are_whole_steps_or_tokens_none_below_one():
    assert rungs_of(81, 3, 3) == (3, 9, 27) and rungs_of(100, 3, 2) == (12, 34) and rungs_of(81, 3, 0) == ()
    assert rungs_of(12, 2, 10**7) == (1, 2, 3, 6) and rungs_of(1, 2, 5) == ()


# ---- with training


@pytest.fixture(scope="module")
def done(tiny_data, tmp_path_factory):
    """(folder, result) of a sweep that has ended: 3 trials of 24 steps. Not to be written to."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, run(tiny_data, out, RATE, "average.SWA.every=2|4", steps=24, rungs=2)


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("trial-*/*")}


def test_every_trial_is_a_run_folder_and_the_table_says_what_is_in_it(done):
    out, result = done
    assert json.loads((out / "sweep.json").read_text()) == result
    assert (result["recipe"], result["steps"], result["tokens"]) == ("demo", 24, None)
    assert [row["number"] for row in result["trials"]] == [0, 1, 2]
    for row in result["trials"]:
        folder = out / f"trial-{row['number']:04}"
        recipe, about, metrics = read_recipe(folder / "recipe.py"), facts(folder), rows(folder)
        assert (about["seed"], recipe.train.budget.steps, len(metrics)) == (5, 24, row["steps"])
        assert value_at(recipe, "optim.Muon.rate") == row["values"]["optim.Muon.rate"]
        assert str(value_at(recipe, "average.SWA.every")) == row["values"]["average.SWA.every"]
        assert row["state"] in ("complete", "pruned") and (row["state"] == "pruned") == (len(metrics) < 24)
        if row["state"] == "complete":
            assert row["bpb"] == about["bpb"]["weights"]
            assert row["loss"] == pytest.approx(sum(one["loss"] for one in metrics[-10:]) / 10)
        assert set(about["changes"]) >= set(row["values"]) or row["values"]["average.SWA.every"] == "2"
    complete = [row for row in result["trials"] if row["state"] == "complete"]
    assert result["best"]["bpb"] == min(row["bpb"] for row in complete)
    assert result["saved_steps"] == sum(24 - row["steps"] for row in result["trials"])


def test_the_loss_at_a_rung_is_that_of_the_same_step_in_every_trial(done):
    out, _ = done
    for trial in board_in(out).trials():
        metrics = rows(out / f"trial-{trial.number:04}")
        # Rungs at 24/9 and 24/3 steps, though the metrics are written at steps 1, 11 and 21.
        assert trial.intermediate_values == {
            step: pytest.approx(sum(one["loss"] for one in metrics[:step]) / step)
            for step in (3, 8)
            if step in trial.intermediate_values
        }
        assert 3 in trial.intermediate_values


def test_the_smoothed_loss_ends_at_the_step_it_is_asked_for(done):
    folder = done[0] / f"trial-{done[1]['best']['number']:04}"
    losses = [row["loss"] for row in rows(folder)]
    assert smoothed_loss(folder, 15) == pytest.approx(sum(losses[5:15]) / 10)
    assert smoothed_loss(folder, 1) == losses[0]


def test_a_trial_is_what_train_would_have_made_of_the_next_step_s_settings(done, tiny_data, tmp_path):
    out, result = done
    line = shlex.split(result["next"])
    assert line[:7] == ["fairway", "train", "demo", "--data", str(tiny_data), "--out", str(out / "best")]
    settings = line[line.index("--set") + 1 :]
    assert len({setting.partition("=")[0] for setting in settings}) == len(settings)
    train("demo", tiny_data, tmp_path / "run", int(line[line.index("--seed") + 1]), 24, None, settings, SILENT)
    folder = out / f"trial-{result['best']['number']:04}"
    assert curve(tmp_path / "run") == curve(folder)
    assert facts(tmp_path / "run")["bpb"]["weights"] == result["best"]["bpb"]


def test_given_again_nothing_is_trained_twice_and_more_trials_join(done, tiny_data, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    before = stamps(out)
    over = (RATE, "average.SWA.every=2|4")
    notes = Notes()
    again = run(tiny_data, out, *over, steps=24, rungs=2, terminal=notes)
    assert {**again, "next": None} == {**done[1], "next": None} and stamps(out) == before and notes.lines == []
    more = run(tiny_data, out, *over, steps=24, rungs=2, trials=4)
    assert more["trials"][:3] == done[1]["trials"] and len(more["trials"]) == 4
    assert stamps(out).items() >= before.items()


def test_without_its_database_a_sweep_reads_the_runs_that_are_there(tiny_data, tmp_path):
    over, out = ("average.SWA.every=2|4",), tmp_path / "out"
    first = run(tiny_data, out, *over, trials=2, rungs=0)
    (out / "sweep.db").unlink()
    before, notes = stamps(out), Notes()
    assert run(tiny_data, out, *over, trials=2, rungs=0, terminal=notes) == first
    assert "knows no trial" in notes.lines[0] and sum("knows no trial" in line for line in notes.lines) == 1
    assert stamps(out) == before
    (out / "sweep.db").unlink()
    with pytest.raises(Problem, match=r"trial-0000 is a run with recipe \w+, this one is \w+; choose another --out"):
        run(tiny_data, out, *over, trials=2, rungs=0, seed=6)
    assert stamps(out) == before and json.loads((out / "sweep.json").read_text()) == first


@pytest.mark.parametrize(
    "change, says",
    [
        ({"steps": 30}, "steps 24, this one has 30"),
        ({"factor": 4}, "factor 3, this one has 4"),
        ({"seed": 6}, "seed 5, this one has 6"),
        ({"over": ("train.clip=0.1..1",)}, "with over"),
        ({"settings": (*SETTINGS, "train.clip=0.5")}, "with recipe demo"),
    ],
)
def test_another_command_on_the_same_database_is_refused(done, tiny_data, change, says):
    given = {"steps": 24, "rungs": 2, "over": (RATE, "average.SWA.every=2|4")} | change
    with pytest.raises(Problem) as fault:
        run(tiny_data, done[0], *given.pop("over"), **given)
    assert says in str(fault.value) and "give the same command" in str(fault.value)


def test_a_model_that_does_not_run_is_a_failed_trial(tiny_data, tmp_path):
    over = "model.head=(TiedHead(),)|(TiedHead(),TiedHead())"
    result = run(tiny_data, tmp_path / "out", over, steps=2, rungs=0)
    by_state = {row["state"]: row for row in result["trials"]}
    assert sorted(by_state) == ["complete", "failed"] and len(result["trials"]) == 2
    assert "the model does not run" in by_state["failed"]["reason"]


def test_a_budget_of_tokens_is_spent_in_steps_of_each_batch(tiny_data, tmp_path):
    plan = plan_sweep(command(tiny_data, tmp_path, steps=None, tokens=3100), ("train.batch_tokens=256|512",), (*SETTINGS,))
    assert plan.rungs == (115, 345, 1034)
    small, large = (plan.variant((f"train.batch_tokens={batch}",)) for batch in (256, 512))
    assert (small.train.budget.steps, large.train.budget.steps) == (12, 6) and large.train.budget.seconds == 0
    assert [plan.steps_at(rung, small) for rung in plan.rungs] == [1, 1, 4]
    assert [plan.steps_at(rung, large) for rung in plan.rungs] == [1, 1, 2]


def test_an_interrupted_trial_is_resumed_and_ends_as_if_it_had_not_been(done, tiny_data, tmp_path):
    out = tmp_path / "out"
    over = (RATE, "average.SWA.every=2|4")
    with pytest.raises(Interrupted, match="trial-0000; the same command goes on"):
        run(tiny_data, out, *over, steps=24, rungs=2, terminal=PressesControlC())
    assert (out / "trial-0000" / "checkpoint.pt").exists()
    assert board_in(out).trials()[0].state == TrialState.WAITING
    result = run(tiny_data, out, *over, steps=24, rungs=2)
    assert {**result, "next": None} == {**done[1], "next": None}
    assert curve(out / "trial-0000") == curve(done[0] / "trial-0000")


def test_a_killed_worker_s_trial_is_taken_over(tiny_data, tmp_path, monkeypatch):
    out, notes = tmp_path / "out", Notes()
    process = begin(*words(tiny_data, out, trials=1, rungs=0))
    interrupt(process, out / "trial-0000", 0, signal.SIGKILL)
    monkeypatch.setattr(study_module, "GRACE_SECONDS", 0.2)
    result = run(tiny_data, out, trials=1, rungs=0, terminal=notes)
    assert "trial 0 has lost its worker: it goes on here" in notes.lines
    assert [(row["number"], row["state"], row["steps"]) for row in result["trials"]] == [(0, "complete", 12)]
    assert [row["step"] for row in rows(out / "trial-0000")] == list(range(1, 13))


def test_workers_at_once_take_no_trial_twice_and_none_too_many(tmp_path):
    plan, taken = plan_in(tmp_path, trials=12, rungs=()), []

    def objective(number, values, judge):
        taken.append((number, values["optim.Muon.rate"]))
        time.sleep(0.02)
        return {"bpb": 1.0, "loss": 1.0, "steps": 81}

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda board: take_trials(board, plan, objective, SILENT), [board_in(tmp_path) for _ in range(3)]))
    assert sorted(number for number, _ in taken) == list(range(12)) and len({rate for _, rate in taken}) == 12
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["state"] for row in result["trials"]] == ["complete"] * 12


@pytest.mark.slow
def test_two_processes_at_once_share_the_trials(tiny_data, tmp_path):
    out, notes = tmp_path / "out", Notes()
    process = begin(*words(tiny_data, out, trials=5, rungs=1))
    end = time.monotonic() + 60
    while not (out / "sweep.db").exists() and time.monotonic() < end:
        time.sleep(0.01)
    run(tiny_data, out, trials=5, rungs=1, terminal=notes)
    code, _, err = finish(process)
    taken = [line.split()[1] for line in (*notes.lines, *err.splitlines()) if line.startswith("trial ")]
    assert code == 0 and sorted(taken) == list("01234")
    result = json.loads((out / "sweep.json").read_text())
    assert [row["number"] for row in result["trials"]] == list(range(5))
    assert {row["state"] for row in result["trials"]} <= {"complete", "pruned"}
    assert len({row["values"]["optim.Muon.rate"] for row in result["trials"]}) == 5


# ---- what is said


def test_the_table_has_the_best_what_was_saved_what_transfers_and_the_next_step(capsys):
    values = {"optim.Muon.rate": 0.0123456, "model.heads": 4}
    trials = [
        {"number": n, "values": values, "state": "complete", "bpb": 2.0 - n / 100, "loss": 3.0, "steps": 81, "reason": None}
        for n in range(12)
    ]
    trials += [
        {"number": 12, "values": values, "state": "pruned", "bpb": None, "loss": 3.0, "steps": 9, "reason": None},
        {"number": 13, "values": values, "state": "failed", "bpb": None, "loss": None, "steps": None, "reason": "loss nan"},
    ]
    print_sweep({
        "recipe": "demo", "steps": 81, "tokens": None, "saved_steps": 72, "trials": trials, "best": {},
        "transfer": [transfer_of(path) for path in values], "next": "fairway train demo",
    })  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "the best 10 of 14 trials" in lines[0]
    assert lines[3].split() == ["trial", "11", "1.8900", "3.0000", "0.01235", "4"]
    assert [line.split()[1] for line in lines[3:13]] == [str(n) for n in range(11, 1, -1)]
    text = "\n".join(lines)
    assert "12 complete, 1 pruned, 1 failed; pruning saved 72 steps" in text and "trial 13 failed: loss nan" in text
    assert "optim.Muon.rate: does NOT transfer" in text and "model.heads: transfers" in text
    assert lines[-1].strip() == "fairway train demo"
