"""Runs of several seeds. Most tests put a script that writes a run's files in the place of the stages; slow ones train."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fairway.data.dataset import open_dataset
from fairway.files import owning, read_json, write_json
from fairway.node import digest, override, show
from fairway.problem import Interrupted, Problem
from fairway.score.stage import SCORING
from fairway.stages import find_recipe, train, trainer_on_all_ranks, with_budget
from fairway.terminal import Terminal
from fairway.train.dist import World
from fairway.trials import seeds as seeds_module
from fairway.trials.child import ending_of, run_child
from fairway.trials.rows import all_rows, holding, reached_stage, settle_seeds, update_row
from fairway.trials.seeds import SeedWork, print_seeds, train_seeds
from train.tiny import SETTINGS, begin, fairway, finish, interrupt, rows, train_arguments

STAGE = """
import hashlib, json, os, shutil, signal, sys, time
from pathlib import Path
stage, folder, seed, desk = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
way = json.loads((desk / "ways.json").read_text()).get(f"{stage} {seed}")
facts = json.loads((desk / "facts.json").read_text())
resumed = " resumed" if (folder / "run.json").exists() and stage == "train" else ""
with open(desk / "calls", "a") as calls:
    calls.write(f"{stage} {seed}{resumed}\\n")
folder.mkdir(exist_ok=True)
def run(**more):
    path = folder / "run.json"
    whole = json.loads(path.read_text()) if path.exists() else {**facts["run"], "seed": seed, "bpb": {}, "sha256": {}}
    path.write_text(json.dumps({**whole, **more, "bpb": {**whole["bpb"], **more.get("bpb", {})}}))
def stop(number, frame):
    (folder / "checkpoint.pt").write_text("here")
    print("fairway: interrupted after step 3", file=sys.stderr)
    raise SystemExit(130)
signal.signal(signal.SIGTERM, stop)
if stage == "train":
    shutil.copy(folder.parent / "recipe.py", folder)
    run()
print("table of", stage)
print("at work", file=sys.stderr, flush=True)
if way == "refused":
    print("fairway: it does not hold", file=sys.stderr)
    raise SystemExit(1)
if way == "unforeseen":
    raise RuntimeError("no such kernel")
if way == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if way == "waits":
    (desk / "waiting").touch()
    time.sleep(60)
if stage == "train":
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    (folder / "weights.pt").write_text(str(seed))
    run(steps=12, **({} if way == "unscored" else {"bpb": {"weights": 2 + seed / 1000}}))
if way == "ended":
    os.kill(os.getpid(), signal.SIGKILL)
if stage == "pack":
    for name in ("score.json", "nats.npy", "audit.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("train_gpt.py", "model.bin"):
        (folder / name).write_text(f"{name} of {seed}")
    run(sha256={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("train_gpt.py", "model.bin")})
if stage == "score":
    sha = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    (folder / "score.json").write_text(json.dumps({**facts["score"], "model_sha256": sha}))
    (folder / "nats.npy").touch()
    run(bpb={"packed": 1 + seed / 1000})
if stage == "audit":
    (folder / "audit.json").write_text("{}")
    raise SystemExit(1 if way == "fails" else 0)
"""


class Desk:
    """A folder of seeds, in which the stages are played by STAGE in the ways that a test asks for."""

    def __init__(self, data, tmp_path):
        self.data, self.out, self.desk = data, tmp_path / "out", tmp_path / "desk"
        self.desk.mkdir()
        (self.desk / "stage.py").write_text(STAGE)
        self.recipe, dataset = override(with_budget(find_recipe("demo"), 12, None), SETTINGS), open_dataset(data)
        run = {"recipe_hash": digest(self.recipe), "data_hash": dataset.data_hash, "data": str(data)}
        score = {"evaluation": {name: repr(getattr(self.recipe, name)) for name in SCORING}, "data_hash": dataset.data_hash}
        write_json(self.desk / "facts.json", {"run": run, "score": score})

    def __call__(self, *seeds, until="audit", settings=SETTINGS, data=None, submit=None, cluster=(), **ways):
        """train_seeds; `train_7="killed"` is the way in which that stage of that seed goes."""
        write_json(self.desk / "ways.json", {name.replace("_", " "): way for name, way in ways.items()})
        (self.desk / "calls").write_text("")
        how = {"until": until, "ranks": 1, "sinks": (), "submit": submit, "cluster": cluster}
        silent = Terminal(quiet=True)
        return train_seeds("demo", data or self.data, self.out, list(seeds), (12, None, settings), how, silent)

    @property
    def calls(self):
        return (self.desk / "calls").read_text().splitlines()

    def attempts(self, seed):
        return [(one["outcome"], one["folder"]) for one in self.row(seed)["attempts"]]

    def row(self, seed):
        return next(row for row in read_json(self.out / "seeds.json")["seeds"] if row["seed"] == seed)


@pytest.fixture
def desk(tiny_data, tmp_path, monkeypatch):
    def command(self, stage, seed):
        return [
            sys.executable,
            "-S",
            *map(str, (tmp_path / "desk/stage.py", stage, self.folder(seed), seed, tmp_path / "desk")),
        ]

    monkeypatch.setattr(SeedWork, "command", command)
    return Desk(tiny_data, tmp_path)


def reached(result):
    return {row["seed"]: row["reached"] for row in result["seeds"]}


def test_every_seed_goes_through_the_stages_that_were_asked_for(desk, capsys):
    result = desk(42, 7, until="score")
    assert desk.calls == [f"{stage} {seed}" for seed in (42, 7) for stage in ("train", "pack", "score")]
    assert result == read_json(desk.out / "seeds.json")
    assert (desk.out / "recipe.py").read_text() == show(desk.recipe)
    assert {key: result[key] for key in ("recipe", "recipe_hash", "until")} == {
        "recipe": "demo", "recipe_hash": digest(desk.recipe), "until": "score",
    }  # fmt: skip
    assert result["data_hash"] == open_dataset(desk.data).data_hash
    first, last = result["seeds"]
    assert (first["seed"], first["folder"], first["reached"], first["bpb"], first["bpb_weights"]) == (
        7, "seed7", "score", 1.007, 2.007,
    )  # fmt: skip
    (attempt,) = last["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("done", None)
    assert attempt["began"] <= attempt["ended"]
    log = (desk.out / "seed42.log").read_text()
    assert (log.count("at work"), log.count("$ "), log.count("table of")) == (3, 3, 0)
    shown = capsys.readouterr()
    assert shown.err.count("at work") == 6 and "table of" not in shown.out
    print_seeds(result)
    shown = capsys.readouterr().out
    assert "2 of 2 seeds are through score" in shown and "mean 1.0245 bpb, deviation 0.0247, 2 seeds" in shown


def test_given_again_it_runs_what_is_missing_and_touches_nothing_that_is_complete(desk):
    desk(42, until="pack")
    before = {path.name: path.stat().st_mtime_ns for path in (desk.out / "seed42").iterdir()}
    assert reached(desk(42, 7, until="pack")) == {42: "pack", 7: "pack"}
    assert desk.calls == ["train 7", "pack 7"]
    assert {path.name: path.stat().st_mtime_ns for path in (desk.out / "seed42").iterdir()} == before
    assert len(desk.row(42)["attempts"]) == 1
    assert reached(desk(42, until="audit")) == {42: "audit", 7: "pack"}
    assert desk.calls == ["score 42", "audit 42"]


def test_a_seed_that_diverges_leaves_the_others_alone_and_is_kept_when_it_is_run_anew(desk):
    result = desk(1, 2, 3, train_2="refused")
    assert reached(result) == {1: "audit", 2: None, 3: "audit"}
    assert desk.row(2)["attempts"][0]["reason"] == "train: it does not hold"
    assert desk.attempts(2) == [("does not hold", "seed2")]
    desk(1, 2, 3, train_2="refused")
    assert desk.calls == ["train 2"]  # anew, not resumed
    assert reached(desk(1, 2, 3)) == {1: "audit", 2: "audit", 3: "audit"}
    assert desk.attempts(2) == [("does not hold", "seed2.attempt1"), ("does not hold", "seed2.attempt2"), ("done", "seed2")]
    assert all((desk.out / f"seed2.attempt{number}" / "run.json").is_file() for number in (1, 2))


@pytest.mark.parametrize("way, outcome, reason", [
    ("killed", "killed", "train: killed by SIGKILL, as by a machine that runs out of memory"),
    ("unforeseen", "failed", "train: RuntimeError: no such kernel"),
])  # fmt: skip
def test_a_seed_that_is_killed_or_fails_is_resumed_in_its_place(desk, way, outcome, reason):
    assert reached(desk(1, 2, until="train", train_1=way)) == {1: None, 2: "train"}
    assert [(one["outcome"], one["reason"]) for one in desk.row(1)["attempts"]] == [(outcome, reason)]
    assert reached(desk(1, 2, until="train")) == {1: "train", 2: "train"}
    assert desk.calls == ["train 1 resumed"]
    assert desk.attempts(1) == [(outcome, "seed1"), ("done", "seed1")]


def test_an_interrupt_reaches_the_process_which_leaves_its_checkpoint(desk):
    def ctrl_c():
        while not (desk.desk / "waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=ctrl_c)
    watcher.start()
    with pytest.raises(Interrupted, match=r"interrupted in .*seed1; the same command goes on"):
        desk(1, 2, train_1="waits")
    watcher.join()
    assert (desk.out / "seed1" / "checkpoint.pt").exists() and not (desk.out / "seed2").exists()
    assert desk.attempts(1) == [("interrupted", "seed1")]
    assert reached(desk(1, 2, until="train")) == {1: "train", 2: "train"}
    assert desk.calls == ["train 1 resumed", "train 2"]


def test_what_unwinds_us_stops_the_process_and_is_on_record(desk):
    """A job that its cluster warns leaves by an exception out of a signal's handler."""

    def leave(number, frame):
        raise SystemExit(3)

    def warn():
        while not (desk.desk / "waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before, watcher = signal.signal(signal.SIGUSR1, leave), threading.Thread(target=warn)
    watcher.start()
    with pytest.raises(SystemExit):
        desk(1, train_1="waits")
    signal.signal(signal.SIGUSR1, before)
    watcher.join()
    assert (desk.out / "seed1" / "checkpoint.pt").exists()
    assert desk.attempts(1) == [("interrupted", "seed1")]


def test_a_seed_in_work_elsewhere_is_left_alone(desk):
    desk(1, until="train")
    with holding(desk.out / "seed2.log") as held:
        assert held
        assert reached(desk(1, 2, 3, until="train")) == {1: "train", 2: None, 3: "train"}
        assert desk.row(2)["attempts"] == []
    with owning(desk.out / "seed1"):  # started by hand
        desk(1, 2, until="pack")
    assert desk.calls == ["train 2", "pack 2"]


def test_a_seed_with_a_job_is_left_to_it_while_the_job_lives(desk, monkeypatch):
    desk(1, until="train")
    update_row(desk.out, 1, job="slurm 17_0")
    asked = []
    monkeypatch.setattr(seeds_module, "waiting_state", lambda *job: asked.append(job) or "PENDING")
    desk(1, 2, until="pack")
    assert desk.calls == ["train 2", "pack 2"] and asked == [("slurm", desk.out / "jobs", "17_0")]
    monkeypatch.setattr(seeds_module, "waiting_state", lambda *job: None)
    desk(1, 2, until="pack")
    assert desk.calls == ["pack 1"]


def test_an_attempt_that_could_not_say_its_end_is_closed_by_the_next(desk):
    desk(1, until="train")
    lost = {"began": "2026-01-01T00:00:00+00:00", "ended": None, "outcome": None, "reason": None, "folder": "seed1"}
    update_row(desk.out, 1, attempts=[lost])
    desk(1, until="pack")
    assert desk.attempts(1) == [("killed", "seed1"), ("done", "seed1")]


def test_what_does_not_fit_is_packed_again_in_its_place(desk):
    assert reached(desk(1, pack_1="refused")) == {1: "train"}
    assert desk.row(1)["attempts"][0]["reason"] == "pack: it does not hold"
    desk(1)
    assert desk.calls == ["pack 1", "score 1", "audit 1"]


def test_an_audit_that_fails_a_rule_is_complete_and_said(desk):
    assert reached(desk(1, audit_1="fails")) == {1: "audit"}
    assert [(one["outcome"], one["reason"]) for one in desk.row(1)["attempts"]] == [("done", "audit: a rule failed")]
    desk(1)
    assert desk.calls == []


def test_a_stage_counts_only_if_its_files_are_of_this_model_and_this_recipe(desk):
    desk(1)
    folder = desk.out / "seed1"
    assert reached_stage(folder) == "audit"
    (folder / "audit.json").unlink()
    assert reached_stage(folder) == "score"
    score = read_json(folder / "score.json")
    for change in ({"model_sha256": "0"}, {"data_hash": "0"}, {"evaluation": score["evaluation"] | {"mix": "(X(),)"}}):
        write_json(folder / "score.json", score | change)
        assert reached_stage(folder) == "pack"
    write_json(folder / "score.json", score)
    (folder / "nats.npy").unlink()
    assert reached_stage(folder) == "pack"
    (folder / "model.bin").write_text("another")
    assert reached_stage(folder) == "train"
    (folder / "checkpoint.pt").touch()
    assert reached_stage(folder) is None


def test_a_broken_file_of_a_run_fails_its_seed_alone(desk):
    desk(1, 2, until="train")
    (desk.out / "seed1" / "recipe.py").write_text("demo(")
    result = desk(1, 2, until="pack")
    assert reached(result) == {1: "train", 2: "pack"}
    assert "recipe.py: not a recipe" in desk.row(1)["attempts"][-1]["reason"]


def test_another_recipe_other_data_or_another_run_is_refused_before_anything_begins(desk, tmp_path):
    desk(1, until="train")
    with pytest.raises(Problem, match=r"recipe.py has train.clip=0.3, not 0.5: choose another --out"):
        desk(2, settings=(*SETTINGS, "train.clip=0.5"))
    write_json(desk.out / "seeds.json", read_json(desk.out / "seeds.json") | {"data_hash": "0123"})
    with pytest.raises(Problem, match=r"has runs on data 0123"):
        desk(2)
    (desk.out / "seeds.json").unlink()
    run = read_json(desk.out / "seed1" / "run.json")
    (desk.out / "seed3").mkdir()
    write_json(desk.out / "seed3" / "run.json", run)
    with pytest.raises(Problem, match=r"seed3 is a run with seed 1, this one is 3"):
        desk(3)
    with pytest.raises(Problem, match=r"--cluster timeout_min=5 belongs to --submit"):
        desk(1, cluster=("timeout_min=5",))
    assert desk.calls == []


def test_another_recipe_is_named_by_its_field_though_the_seed_is_there(desk):
    desk(1, until="train")
    with pytest.raises(Problem, match=r"recipe.py has train.clip=0.3, not 0.5: choose another --out"):
        desk(1, settings=(*SETTINGS, "train.clip=0.5"))


def test_a_recipe_by_which_nothing_has_begun_binds_nobody(desk):
    dataset = open_dataset(desk.data)
    settle_seeds(desk.out, override(desk.recipe, ("train.clip=0.5",)), desk.data, dataset, "train", [1])
    settle_seeds(desk.out, desk.recipe, desk.data, dataset, "train", [1])
    assert (desk.out / "recipe.py").read_text() == show(desk.recipe)
    (desk.out / "seeds.json").unlink()  # a recipe that we have not written stays
    with pytest.raises(Problem, match=r"recipe.py has train.clip=0.3, not 0.5"):
        settle_seeds(desk.out, override(desk.recipe, ("train.clip=0.5",)), desk.data, dataset, "train", [1])


def test_a_cluster_s_refusal_leaves_nothing_and_has_only_the_user_s_words(desk):
    with pytest.raises(Problem, match=r"--cluster foo=1: .*foo.*as in timeout_min=60") as caught:
        desk(1, submit="local", cluster=("foo=1",))
    assert "gpus_per_node" not in str(caught.value) and not desk.out.exists()


def test_a_checkpoint_of_other_ranks_and_a_run_s_own_folder_are_refused(desk):
    desk(1, until="train")
    folder = desk.out / "seed1"
    (folder / "checkpoint.pt").touch()
    write_json(folder / "run.json", read_json(folder / "run.json") | {"world_size": 8})
    with pytest.raises(Problem, match="seed1 was interrupted on 8 processes: give --ranks 8, or another --out"):
        desk(1)
    assert len(desk.row(1)["attempts"]) == 1 and desk.calls == []
    desk.out = folder
    with pytest.raises(Problem, match="seed1 is itself a run"):
        desk(1)


ROWS = ([], None, {"attempts": None}, {"attempts": [{}]}, {"attempts": [7]}, {"seed": 9}, {"folder": "seed9"}, {"bpb": "1"},
        {"reached": "end"}, {"reached": []})  # fmt: skip


def test_files_of_another_shape_are_refused_in_one_line(desk):
    desk(1, until="train")
    path, before = desk.out / "seed1.json", read_json(desk.out / "seed1.json")
    for content in ROWS:
        write_json(path, before | content if content else content)
        with pytest.raises(Problem, match=r"seed1.json is no row of seed 1; restore it"):
            desk(1, 2)
    write_json(path, before)
    for content in ({}, [], None, {"seeds": []}):
        write_json(desk.out / "seeds.json", content)
        with pytest.raises(Problem, match=r"seeds.json is no list of seeds; restore it"):
            desk(1)
    (desk.out / "seeds.json").unlink()
    assert desk(1, until="train")["seeds"] == [before]


def test_weights_without_the_score_that_they_can_have_are_not_through_train(desk, monkeypatch):
    assert reached(desk(1, until="train", train_1="unscored")) == {1: None}
    assert reached_stage(desk.out / "seed1") is None
    assert reached(desk(1, until="train")) == {1: "train"} and desk.calls == ["train 1 resumed"]
    run = read_json(desk.out / "seed1" / "run.json")
    write_json(desk.out / "seed1" / "run.json", run | {"bpb": {}})
    monkeypatch.setattr("fairway.trials.rows.unscored", lambda *_: False)  # as without validation shards
    assert reached_stage(desk.out / "seed1") == "train"


def test_a_process_that_is_killed_after_all_is_there_lacks_nothing(desk):
    assert reached(desk(1, until="train", train_1="ended")) == {1: "train"}
    assert [(one["outcome"], one["reason"]) for one in desk.row(1)["attempts"]] == [("done", None)]
    lost = {"began": "2026-01-01T00:00:00+00:00", "ended": None, "outcome": None, "reason": None, "folder": "seed1"}
    update_row(desk.out, 1, attempts=[lost])
    desk(1, until="train")
    assert [(one["outcome"], one["reason"]) for one in desk.row(1)["attempts"]] == [("killed", None)]


def test_a_seed_is_its_child_s_when_we_are_killed(tmp_path):
    path, pid = tmp_path / "seed1.log", tmp_path / "pid"
    told = f"import os, time; open({str(tmp_path / 'part')!r}, 'w').write(str(os.getpid()))"
    told += f"; os.rename({str(tmp_path / 'part')!r}, {str(pid)!r}); time.sleep(60)"
    if (parent := os.fork()) == 0:
        with holding(path) as log:
            run_child([sys.executable, "-S", "-c", told], log, SimpleNamespace(asked=False))
        os._exit(0)
    end = time.monotonic() + 30
    while not pid.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with holding(path) as held:
        assert held is None
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with holding(path, wait=True) as held:
        assert held is not None


def test_what_another_process_began_meanwhile_is_not_begun_again(tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def slow(*arguments):
        made = trainer_on_all_ranks(*arguments)
        out.mkdir()
        write_json(out / "run.json", {"theirs": 1})
        return made

    monkeypatch.setattr("fairway.stages.trainer_on_all_ranks", slow)
    with pytest.raises(Problem, match=r"another fairway has trained in .* meanwhile"):
        train("demo", tiny_data, out, 1, 2, None, SETTINGS, Terminal(quiet=True))
    assert [path.name for path in out.iterdir()] == ["run.json"] and read_json(out / "run.json") == {"theirs": 1}


def test_torchrun_and_no_rank_at_all_are_refused(desk, monkeypatch):
    monkeypatch.setattr(seeds_module, "start_world", lambda: nullcontext(World(1, 2, torch.device("cpu"))))
    with pytest.raises(Problem, match="give --ranks 2 in the place of torchrun"):
        desk(1)
    with pytest.raises(Problem, match="--ranks 0: a run has 1 process or more"):
        seeds_module.refuse_launched(0)


def test_rows_that_several_write_at_once_are_all_in_the_end(desk, tiny_data):
    settle_seeds(desk.out, desk.recipe, tiny_data, open_dataset(tiny_data), "train", list(range(8)))

    def write(seed):
        for number in range(5):
            update_row(desk.out, seed, bpb=float(number))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_json(desk.out / "seeds.json")["seeds"] == all_rows(desk.out)
    assert [row["bpb"] for row in all_rows(desk.out)] == [4.0] * 8


TABLE = """
[0]:
  time       : 2026-01-01_00:00:00
  exitcode   : {} (pid: 12)
"""


@pytest.mark.parametrize("code, tail, asked, ending", [
    (1, "note\nfairway: loss nan", False, ("does not hold", "loss nan")),
    (1, "Traceback\nValueError: x", False, ("failed", "ValueError: x")),
    (2, "fairway: no such file", False, ("failed", "no such file")),
    (130, "fairway: interrupted after step 3", False, ("interrupted", "interrupted after step 3")),
    (1, "fairway: interrupted after step 3\nW1121 torchrun leaves", True, ("interrupted", "interrupted after step 3")),
    (-15, "", False, ("killed", "killed by SIGTERM")),
    (3, "", False, ("failed", "exit code 3")),
    (1, "fairway: loss nan\n" + TABLE.format(1), False, ("does not hold", "loss nan")),
    (1, "fairway: too large\n" + TABLE.format(2), False, ("failed", "too large")),
    (1, "note" + TABLE.format(-9), False, ("killed", "killed by SIGKILL, as by a machine that runs out of memory")),
])  # fmt: skip
def test_how_a_process_ended_is_put_into_words(code, tail, asked, ending):
    assert ending_of(code, tail, asked) == ending


def test_stages_are_the_command_line_and_torchrun_is_for_all_but_the_audit(tmp_path):
    work = SeedWork(tmp_path, tmp_path / "data", "audit", 1, ("tensorboard",))
    folder = str(tmp_path / "seed7")
    python, data = [sys.executable, "-m", "fairway"], ["--data", str(tmp_path / "data")]
    assert work.command("train", 7) == [
        *python, "train", str(tmp_path / "recipe.py"), *data, "--out", folder, "--seed", "7", "--sink", "tensorboard",
    ]  # fmt: skip
    assert work.command("score", 7) == [*python, "score", folder, *data, "--keep-nats"]
    (tmp_path / "seed7").mkdir()
    (tmp_path / "seed7" / "run.json").touch()
    assert work.command("train", 7) == [*python, "train", "--resume", folder, "--sink", "tensorboard"]
    several = SeedWork(tmp_path, tmp_path / "data", "audit", 8, ())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8"]
    assert several.command("pack", 7) == [sys.executable, *launcher, "-m", "fairway", "pack", folder, *data]
    assert several.command("audit", 7) == [*python, "audit", folder, *data]


def seeds_arguments(data, out, *more, steps=12):
    return [*train_arguments(data, out, steps=steps), *more]


@pytest.mark.slow
def test_two_machines_share_the_seeds_of_one_folder(tiny_data, tmp_path):
    words = seeds_arguments(tiny_data, tmp_path / "out", "--seeds", "1,2,3", "--until", "pack")
    ends = [finish(one, 300) for one in [begin(*words), begin(*words)]]
    code, out, err = fairway(*words, "--json")
    assert code == 0, (ends, err)
    table = json.loads(out)
    assert [row["reached"] for row in table["seeds"]] == ["pack"] * 3
    assert [[one["outcome"] for one in row["attempts"]] for row in table["seeds"]] == [["done"]] * 3
    assert any("is in work elsewhere" in err for _, _, err in ends)


@pytest.mark.slow
def test_a_run_on_two_ranks_is_interrupted_and_resumed_and_one_that_is_killed_goes_on(tiny_data, tmp_path):
    words = seeds_arguments(tiny_data, tmp_path, "--seeds", "5", "--ranks", "2", steps=300)
    code, _, err = interrupt(begin(*words), tmp_path / "seed5", after=10)
    assert (code, "the same command goes on" in err) == (130, True), err
    assert (tmp_path / "seed5" / "checkpoint.pt").exists()
    process = begin(*words)
    while len(rows(tmp_path / "seed5")) < 40:
        time.sleep(0.05)
    process.kill()
    finish(process)
    assert "seed 5 is in work elsewhere" in fairway(*words)[2]  # the run that has outlived us is left alone
    end = time.monotonic() + 200
    while fairway(*words)[0] == 1 and time.monotonic() < end:
        time.sleep(1)
    assert len(rows(tmp_path / "seed5")) == 300
    outcomes = [one["outcome"] for one in read_json(tmp_path / "seeds.json")["seeds"][0]["attempts"]]
    assert outcomes[:2] == ["interrupted", "killed"]
    assert fairway(*words)[0] == 0
    assert read_json(tmp_path / "seed5" / "run.json")["world_size"] == 2
