"""`fairway ablate`: the table of leave-one-out runs, and what happens when it is stopped and called again."""

import json
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from fairway.ablation import ablate, chosen_techniques, print_ablation, technique_kinds, without
from fairway.data.dataset import open_dataset
from fairway.listing import count_parameters
from fairway.model.inputs import BigramHash
from fairway.model.stream import InputNorm, SmearGate
from fairway.node import drop, override
from fairway.problem import DoesNotHold, Interrupted, Problem
from fairway.quantize.qat import LateQAT
from fairway.stages import read_recipe, resume_training, train
from fairway.terminal import Terminal
from fairway.train.dist import World
from train.tiny import SETTINGS, curve, rows, tiny

ONLY = ("TiedHead", "SmearGate", "BigramHash")


def run(data, out, only=ONLY, settings=SETTINGS, seed=5, steps=4, terminal=None):
    return ablate("demo", data, out, seed, steps, None, settings, only, terminal or Terminal(quiet=True))


@pytest.fixture(scope="module")
def done(tiny_data, tmp_path_factory):
    """(folder, table) of an ablation that has ended. Not to be written to."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, run(tiny_data, out)


@pytest.fixture
def again(done, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(done[0], tmp_path / "out")


def stamps(folder):
    names = ("weights.pt", "metrics.jsonl")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for name in names for path in folder.glob(f"*/{name}")}


def test_techniques_are_the_nodes_in_tuples_each_once_in_order():
    names = [kind.__name__ for kind in technique_kinds(tiny())]
    assert names == [
        "TokenEmbedding", "BigramHash", "InputNorm", "SmearGate", "QKNorm", "Rotary", "QKGain", "ResidualMix",
        "LayerScale", "FinalNorm", "TiedHead", "Softcap",
    ]  # fmt: skip
    twice = replace(tiny(), model=replace(tiny().model, stream=(InputNorm(), SmearGate(), InputNorm())), qat=(LateQAT(),))
    assert [kind.__name__ for kind in technique_kinds(twice)] == [*names, "LateQAT"]


def test_the_table_has_the_whole_first_and_its_figures_are_those_of_the_runs(done):
    out, table = done
    assert [row["technique"] for row in table["rows"]] == ["whole", "BigramHash", "SmearGate", "TiedHead"]
    assert (table["recipe"], table["steps"], table["seconds"], table["seed"]) == ("demo", 4, None, 5)
    assert json.loads((out / "ablation.json").read_text()) == table
    for row in table["rows"][:3]:
        folder = out / row["technique"]
        facts, metrics = json.loads((folder / "run.json").read_text()), rows(folder)
        ends = [one["seconds"] for one in metrics]
        assert (facts["seed"], facts["steps"], len(metrics)) == (5, 4, 4)
        assert (row["bpb"], row["loss"]) == (facts["bpb"]["weights"], metrics[-1]["loss"])
        # Of three times the median is the middle one.
        assert row["ms_per_step"] == pytest.approx(
            1000 * sorted([ends[1] - ends[0], ends[2] - ends[1], ends[3] - ends[2]])[1]
        )
        assert row["reason"] is None
    whole, *others = table["rows"][:3]
    assert whole["delta_bpb"] is None
    assert [row["delta_bpb"] for row in others] == [row["bpb"] - whole["bpb"] for row in others]


def test_every_run_is_the_recipe_without_one_technique(done):
    out, table = done
    whole = override(tiny(), ["train.budget.steps=4", "train.budget.seconds=0"])
    assert read_recipe(out / "whole" / "recipe.py") == whole
    for row, kind in zip(table["rows"][1:3], (BigramHash, SmearGate), strict=True):
        recipe = drop(whole, kind)
        assert read_recipe(out / kind.__name__ / "recipe.py") == read_recipe(out / f"{kind.__name__}.recipe.py") == recipe
        assert row["parameters"] == count_parameters(recipe.model)
    # Left out at their place in the pair: two tables and a projection, and one gate.
    sizes = [row["parameters"] for row in table["rows"][:3]]
    assert (sizes[0] - sizes[1], sizes[0] - sizes[2]) == (128 * 16 + 16 * 32 + 1, 32)


def test_a_run_is_what_train_would_have_made(done, tiny_data, tmp_path):
    train("demo", tiny_data, tmp_path / "run", 5, 4, None, (*SETTINGS, "model.stream=(InputNorm(),)"), Terminal(quiet=True))
    assert curve(tmp_path / "run") == curve(done[0] / "SmearGate")


def test_what_cannot_be_left_out_is_a_row_that_says_why(done):
    out, table = done
    row = table["rows"][3]
    assert row["reason"].startswith("cannot be left out: ") and "32 numbers a token" in row["reason"]
    assert {row[name] for name in ("parameters", "bpb", "delta_bpb", "loss", "ms_per_step")} == {None}
    assert not (out / "TiedHead").exists()


GROUPS = (
    "optim=(AdamW(roles=('table',),rate=0.03),AdamW(roles=('embedding','scalar'),rate=0.02),"
    "Muon(roles=('matrix','projection'),rate=0.02))"
)


@pytest.mark.parametrize(
    "technique, settings, says",
    [
        ("TokenEmbedding", (), "TokenEmbedding"),
        ("BigramHash", (GROUPS,), "AdamW for roles ('table',) has no parameters"),
        ("BigramHash", ("model.inputs=(BigramHash(),)", "model.head=(Softcap(),)"), ""),
    ],
)
def test_every_refusal_of_what_is_left_is_a_reason(tiny_data, technique, settings, says):
    recipe, dataset = override(tiny(), settings), open_dataset(tiny_data)
    (kind,) = chosen_techniques(recipe, (technique,))
    variant, reason = without(recipe, kind, dataset)
    assert variant is None and reason and says in reason and "\n" not in reason


def test_a_recipe_that_does_not_run_as_it_is_is_refused_before_anything_is_written(tiny_data, tmp_path):
    with pytest.raises(Problem, match="the model does not run"):
        run(tiny_data, tmp_path / "out", settings=(*SETTINGS, "model.head=(TiedHead(),TiedHead())"))
    assert not (tmp_path / "out").exists()


def test_what_has_ended_is_not_run_again(done, again, tiny_data):
    before = stamps(again)
    assert run(tiny_data, again) == done[1]
    assert stamps(again) == before and len(before) == 6


def test_more_techniques_join_the_runs_that_are_there(done, again, tiny_data):
    before = stamps(again)
    table = run(tiny_data, again, (*ONLY, "Softcap"))
    assert [row["technique"] for row in table["rows"]] == ["whole", "BigramHash", "SmearGate", "TiedHead", "Softcap"]
    assert table["rows"][:4] == done[1]["rows"] and (again / "Softcap" / "weights.pt").exists()
    assert stamps(again).items() >= before.items()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"seed": 6}, "is a run with seed 5, this one is 6; choose another --out"),
        ({"settings": (*SETTINGS, "train.clip=0.5")}, "is a run with recipe "),
        ({"steps": 5}, "is a run with recipe "),
    ],
)
def test_another_run_in_the_folder_is_refused_before_anything_runs(again, tiny_data, change, says):
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    with pytest.raises(Problem, match=says):
        run(tiny_data, again, (*ONLY, "Softcap"), **change)
    assert {path: path.read_bytes() for path in again.rglob("*") if path.is_file()} == before


class Impatient(Terminal):
    """Presses Ctrl-C when the second training reports its first step."""

    def __init__(self):
        super().__init__(quiet=True)
        self.trainings = 0

    @contextmanager
    def progress(self, title):
        self.trainings += title.startswith("train")
        press = title.startswith("train") and self.trainings == 2
        yield lambda done, total, text="": signal.raise_signal(signal.SIGINT) if press else None


def test_an_interrupted_ablation_goes_on_by_the_same_command(done, tiny_data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="BigramHash; the same command goes on"):
        run(tiny_data, out, terminal=Impatient())
    assert (out / "BigramHash" / "checkpoint.pt").exists() and not (out / "SmearGate").exists()
    assert [row["technique"] for row in json.loads((out / "ablation.json").read_text())["rows"]] == ["whole"]
    # As if it had been killed while it ended: the checkpoint still decides.
    shutil.copy(out / "whole" / "weights.pt", out / "BigramHash")
    before = stamps(out)["whole/weights.pt"]
    table = run(tiny_data, out)
    assert stamps(out)["whole/weights.pt"] == before
    for name in ("whole", "BigramHash", "SmearGate"):
        assert curve(out / name) == curve(done[0] / name)
    assert [row["bpb"] for row in table["rows"]] == [row["bpb"] for row in done[1]["rows"]]


def test_a_run_whose_score_was_interrupted_is_scored_and_not_trained_again(done, again, tiny_data):
    facts = json.loads((again / "SmearGate" / "run.json").read_text())
    del facts["bpb"]
    (again / "SmearGate" / "run.json").write_text(json.dumps(facts))
    before = stamps(again)
    assert run(tiny_data, again) == done[1]
    assert stamps(again) == before
    assert "weights" in json.loads((again / "SmearGate" / "run.json").read_text())["bpb"]


def test_resume_scores_weights_that_were_not_and_trains_again_where_it_is_not_known_how_long(again):
    silent, path = Terminal(quiet=True), again / "SmearGate" / "run.json"
    before, facts = stamps(again), json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in facts.items() if key != "bpb"}))
    assert resume_training(again / "SmearGate", silent)["bpb"] == {"weights": facts["bpb"]["weights"]}
    assert stamps(again) == before
    with pytest.raises(Problem, match="has ended"):
        resume_training(again / "SmearGate", silent)
    path.write_text(json.dumps({key: value for key, value in facts.items() if key not in ("bpb", "steps")}))
    run = resume_training(again / "SmearGate", silent)
    assert (run["steps"], run["bpb"]) == (4, facts["bpb"]) and stamps(again) != before


def test_a_technique_without_which_it_diverges_is_a_row_and_the_others_go_on(tiny_data, tmp_path, monkeypatch):
    def diverge(name, *others):
        if "BigramHash" in name:
            raise DoesNotHold("loss nan at step 2")
        return train(name, *others)

    monkeypatch.setattr("fairway.ablation.train", diverge)
    table = run(tiny_data, tmp_path / "out", steps=1)
    by_name = {row["technique"]: row for row in table["rows"]}
    assert by_name["BigramHash"]["reason"] == "did not end: loss nan at step 2" and by_name["BigramHash"]["bpb"] is None
    assert by_name["SmearGate"]["delta_bpb"] is not None


def test_a_recipe_that_diverges_whole_ends_the_command(tiny_data, tmp_path, monkeypatch):
    def diverge(*arguments):
        raise DoesNotHold("loss nan at step 2")

    monkeypatch.setattr("fairway.ablation.train", diverge)
    with pytest.raises(DoesNotHold, match="loss nan"):
        run(tiny_data, tmp_path / "out")


def test_data_without_validation_give_losses_and_no_bpb(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "val_000000.bin").unlink()
    for _ in range(2):
        whole, less = run(data, tmp_path / "out", ("SmearGate",), steps=1)["rows"]
        assert whole["bpb"] is less["bpb"] is less["delta_bpb"] is None and less["loss"] > 0


def test_the_table_is_printed_with_differences_and_reasons(done, again, tiny_data, fairway_here):
    arguments = ["ablate", "demo", "--data", tiny_data, "--out", again, "--seed", 5, "--steps", 4]
    code, out, errors = fairway_here(*arguments, "--only", *ONLY, "--set", *SETTINGS)
    assert code == 0 and errors == ["1 of 4: whole", "2 of 4: without BigramHash", "3 of 4: without SmearGate",
                                    "4 of 4: without TiedHead"]  # fmt: skip
    title, head, _, whole, bigram, smear, blank, reason, warning = out.splitlines()
    assert title.startswith("demo seed 5: ") and head.split("  ")[-1].strip() == "last loss" and blank == ""
    first, second = done[1]["rows"][0], done[1]["rows"][2]
    assert whole.split() == [
        "whole", f"{first['parameters']:,}", f"{first['bpb']:.4f}", "-", f"{first['ms_per_step']:.1f}",
        f"{first['loss']:.4f}",
    ]  # fmt: skip
    assert smear.split()[:5] == ["without", "SmearGate", "-32", f"{second['bpb']:.4f}", f"{second['delta_bpb']:+.4f}"]
    assert bigram.split()[2] == "-2,561"
    assert reason.startswith("TiedHead cannot be left out: ") and "proves nothing" in warning
    code, out, _ = fairway_here(*arguments, "--json", "--only", "SmearGate", "--only", "BigramHash", "--set", *SETTINGS)
    assert (code, json.loads(out)["rows"]) == (0, done[1]["rows"][:3])


def test_a_table_without_reasons_ends_with_the_warning(done, capsys):
    print_ablation({**done[1], "rows": done[1]["rows"][:2]})
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "",
        "one seed: a difference below the spread between seeds proves nothing",
    ]


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--only", "SmearGat"], "no such technique in its model or qat; nearest is SmearGate"),
        (["--only", "Muon"], "--only Muon: demo has no such technique"),
        (["--steps", 3, "--seconds", 3], "--steps or --seconds, not both"),
        (["--seed", -1], "--seed -1 is outside of 0 to"),
        (["--set", "train.clip=abc"], "train.clip takes float"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(fairway_here, tiny_data, tmp_path, flags, says):
    code, out, errors = fairway_here("ablate", "demo", "--data", tiny_data, "--out", tmp_path / "out", *flags)
    assert (code, out, len(errors)) == (2, "", 1) and says in errors[0]
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(tiny_data, tmp_path, monkeypatch):
    @contextmanager
    def two():
        yield World(0, 2, torch.device("cpu"))

    monkeypatch.setattr("fairway.ablation.start_world", two)
    with pytest.raises(Problem, match="start it without torchrun"):
        run(tiny_data, tmp_path / "out")
