"""What the submitted program does when it is run, against what the command line does: the same bits."""

import json
import sys

import pytest
import torch

from fairway.program import run_program
from fairway.stages import score, train
from fairway.terminal import Terminal
from train.tiny import SETTINGS, curve, tiny

EVERYTHING = (
    "evaluate.windows=Sliding(length=32, stride=16)",
    "adapt=(ScoreFirstSGD(rate=0.01, chunk=256, fresh=(HashEmbedding(buckets=64),)),)",
    "mix=(TokenTilt(rules=((2, 0.5, 2),)), BackoffCache(every=64))",
    "average=(EMA(decay=0.9), LastWeights())",
    "qat=(LateQAT(after=0.5),)",
)


@pytest.fixture
def program(monkeypatch, tmp_path, tiny_data, capsys):
    """`program(recipe, *arguments)`: (exit code, standard output, standard error) of a program that holds the recipe."""
    path = tmp_path / "train_gpt.py"
    path.write_text("# the program\n")

    def run(recipe, *arguments, out=tmp_path / "run"):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(path), "--data", str(tiny_data), "--out", str(out), *map(str, arguments)])
        return run_program(recipe), *capsys.readouterr()

    return run


@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["plain", "everything"])
def test_it_trains_packs_and_scores_as_the_command_line_does(program, settings, tiny_data, tmp_path):
    run, command, silent = tmp_path / "run", tmp_path / "command", Terminal(quiet=True)
    code, out, err = program(tiny(*settings, "train.budget=Budget(steps=12, seconds=0.0)"))
    assert (code, err) == (0, "")
    train("demo", tiny_data, command, 42, 12, None, (*SETTINGS, *settings), silent)
    assert curve(run) == curve(command) and len(curve(run)) == 12
    one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (run, command))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    # Its own model.bin, as the command line scores it.
    (command / "model.bin").write_bytes((run / "model.bin").read_bytes())
    hashes = json.loads((run / "run.json").read_text())["sha256"]
    facts = json.loads((command / "run.json").read_text())
    (command / "run.json").write_text(json.dumps(facts | {"sha256": hashes}))
    expected, scored = score(command, None, False, (), True, silent), json.loads((run / "score.json").read_text())
    assert scored == {name: expected[name] for name in ("bpb", "nats", "tokens", "bytes")}
    assert out.splitlines()[-1] == f"bpb {expected['bpb']}"
    assert (run / "train_gpt.py").read_text() == "# the program\n"


def test_one_stage_at_a_time_comes_to_the_same(program, tmp_path):
    recipe, whole = tiny(*EVERYTHING[:3]), tmp_path / "whole"
    for stage in ("train", "pack", "score"):
        assert program(recipe, "--stage", stage, "--steps", 7)[0] == 0
    assert program(recipe, "--steps", 7, out=whole)[0] == 0
    for name in ("weights.pt", "model.bin", "score.json", "train_gpt.py"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_the_seed_and_the_budget_are_what_is_asked_for(program, tmp_path):
    assert program(tiny(), "--stage", "train", "--steps", 3, "--seed", 7)[0] == 0
    assert program(tiny(), "--stage", "train", "--steps", 3, out=tmp_path / "other")[0] == 0
    assert curve(tmp_path / "run")[0]["loss"] != curve(tmp_path / "other")[0]["loss"]
    assert json.loads((tmp_path / "run" / "run.json").read_text()).items() >= {"seed": 7, "steps": 3}.items()
    assert program(tiny(), "--stage", "train", "--seconds", 0.3, out=tmp_path / "clock")[0] == 0
    assert json.loads((tmp_path / "clock" / "run.json").read_text())["phases"]["train"] < 3


def test_a_fault_is_one_line_and_its_own_exit_code(program):
    code, out, err = program(tiny("model.vocab=512"), "--steps", 3)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "--set model.vocab=300" in err
    code, _, err = program(tiny("optim.AdamW:0.rate=1e30"), "--stage", "train", "--steps", 60)
    assert code == 1 and err.count("\n") == 1 and "lower the rates" in err
    code, out, err = program(tiny(), "--steps", -3)
    assert (code, out) == (2, "") and "a budget of -3 steps" in err
    code, out, err = program(tiny(), "--stage", "score")
    assert (code, out) == (2, "") and "model.bin" in err and err.count("\n") == 1
