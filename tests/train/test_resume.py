import json
import shutil
import signal

import pytest
import torch

from train.tiny import IN_ORDER, begin, curve, interrupt, rows, train_arguments

STEPS = 160


def weights(run):
    return (run / "weights.pt").read_bytes()


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory):
    """(folder, what its process gave) of a run that SIGINT ended after 11 steps or more. Not to be written to."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    return run, interrupt(begin(*train_arguments(tiny_data, run, steps=STEPS)), run, 10)


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped[0], tmp_path / "copy")


@pytest.fixture
def whole(fairway_here, tiny_data, tmp_path):
    """`whole(*settings)` is the folder of a run that nothing interrupted."""

    def train(*settings):
        out = tmp_path / "whole"
        assert fairway_here(*train_arguments(tiny_data, out, *settings, steps=STEPS))[0] == 0
        return out

    return train


def refused(fairway_here, run, says, code=2):
    """Resuming is refused in one line, and nothing in the folder's training files changes."""
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.json"}
    found, out, errors = fairway_here("train", "--resume", run)
    assert (found, out, len(errors)) == (code, "", 1), errors
    assert errors[0].startswith("fairway: ") and says in errors[0]
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.json"} == before


def test_ctrl_c_leaves_a_checkpoint_whole_metrics_and_one_line_that_says_how_to_go_on(stopped):
    run, (code, out, errors) = stopped
    done = len(rows(run))
    assert (code, out) == (130, "")
    assert errors == f"fairway: interrupted after step {done}; go on with `fairway train --resume {run}`\n"
    assert {path.name for path in run.iterdir()} == {"recipe.py", "run.json", "metrics.jsonl", "checkpoint.pt"}
    assert torch.load(run / "checkpoint.pt", weights_only=True)["steps"] == done < STEPS


def test_a_resumed_run_ends_as_if_nothing_had_happened(fairway_here, copy, whole):
    code, _, errors = fairway_here("train", "--resume", copy)
    assert (code, errors) == (0, [])
    same = whole()
    assert len(curve(copy)) == STEPS and curve(copy) == curve(same)
    assert weights(copy) == weights(same)
    assert not (copy / "checkpoint.pt").exists()
    run, expected = (json.loads((folder / "run.json").read_text()) for folder in (copy, same))
    for facts in (run, expected):
        facts["phases"] = sorted(facts["phases"])
        # When each began, and the seconds of its steps.
        del facts["began"], facts["sha256"]["metrics.jsonl"]
    assert run == expected
    seconds = [row["seconds"] for row in rows(copy)]
    assert seconds == sorted(seconds)
    refused(fairway_here, copy, "has ended")


def test_sigterm_and_then_ctrl_c_in_the_resumed_run_change_nothing(tiny_data, tmp_path, fairway_here, whole):
    run = tmp_path / "run"
    process = begin(*train_arguments(tiny_data, run, IN_ORDER, steps=STEPS))
    first = interrupt(process, run, 10, signal.SIGTERM)
    stop = len(rows(run))
    second = interrupt(begin("train", "--resume", run), run, stop + 10)
    assert first[0] == second[0] == 130
    assert stop < len(rows(run)) < STEPS
    assert fairway_here("train", "--resume", run, "--json")[0] == 0
    same = whole(IN_ORDER)
    assert curve(run) == curve(same) and weights(run) == weights(same)


# The interrupt comes after some ten of the steps: a loop that has begun, weights that are being rounded.
EVERYTHING = (
    "model.plan=Loop(first=1, last=1, passes=2, starts_at=0.02, skip=LerpSkip())", "qat=(LateQAT(after=0.03),)",
    "average=(EMA(decay=0.9), SWA(below=2.0, every=4, of=EMA(decay=0.9)), LastWeights())",
    "optim.Muon.orthogonaliser=Turbo()", "optim.Muon.decay_last=true",
    "optim.Muon.decay=DecaySchedule(points=((0.0, 1.0), (0.5, 2.0), (1.0, 0.5)), follows_rate=False)",
)  # fmt: skip


def test_recurrence_late_qat_and_averages_of_averages_go_on_to_the_same_bits(fairway_here, tiny_data, tmp_path, whole):
    run = tmp_path / "run"
    code, _, errors = interrupt(begin(*train_arguments(tiny_data, run, *EVERYTHING, steps=STEPS)), run, 10)
    assert code == 130, errors
    assert fairway_here("train", "--resume", run)[0] == 0
    straight = whole(*EVERYTHING)
    assert curve(run) == curve(straight) and weights(run) == weights(straight)
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (run, straight))
    assert one["bpb"] == other["bpb"] and one["bpb"].keys() == {"weights", "SWA", "LastWeights"}
    assert one["qat"] == other["qat"] == ["late QAT from step 6 on"]


def test_lines_written_after_the_checkpoint_are_taken_back(fairway_here, copy):
    done = len(rows(copy))
    with open(copy / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": -1}\n{"st')
    assert fairway_here("train", "--resume", copy)[0] == 0
    assert [row["step"] for row in rows(copy)] == list(range(1, STEPS + 1))
    assert done < STEPS


def test_a_run_that_died_without_a_checkpoint_begins_again(fairway_here, copy, whole):
    (copy / "checkpoint.pt").unlink()
    code, _, lines = fairway_here("train", "--resume", copy)
    assert code == 0 and "begins again" in lines[0]
    assert curve(copy) == curve(whole())


@pytest.mark.parametrize("damage", ["emptied", "cut", "garbled", "flipped"])
def test_a_damaged_checkpoint_is_found(fairway_here, copy, damage):
    path = copy / "checkpoint.pt"
    data, middle = path.read_bytes(), path.stat().st_size // 2
    # 128 bytes, as a single one may fall on the padding between tensors.
    flipped = data[:middle] + bytes(255 - byte for byte in data[middle : middle + 128]) + data[middle + 128 :]
    path.write_bytes({"emptied": b"", "cut": data[:middle], "garbled": b"\x80junk" * 999, "flipped": flipped}[damage])
    refused(fairway_here, copy, "checkpoint.pt cannot be read")


@pytest.mark.parametrize("old, new", [("clip=0.3", "clip=0.4"), ("width=32", "width=64"), ("every=4", "every=5")])
def test_an_edited_recipe_is_refused(fairway_here, copy, old, new):
    recipe = (copy / "recipe.py").read_text()
    assert old in recipe
    (copy / "recipe.py").write_text(recipe.replace(old, new))
    refused(fairway_here, copy, "recipe.py has changed since the run began")


@pytest.mark.parametrize(
    "text, says", [("", "not a recipe"), ("Recipe(", "not a recipe"), ("SequentialShards()", "not a Recipe")]
)
def test_a_recipe_that_is_none_is_refused(fairway_here, copy, text, says):
    (copy / "recipe.py").write_text(text)
    refused(fairway_here, copy, says)


def test_other_data_are_refused(fairway_here, copy, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    run = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**run, "data": str(data)}))
    refused(fairway_here, copy, f"{data} has changed since")
    shutil.rmtree(data)
    refused(fairway_here, copy, f"{data} is no data folder")


def test_another_number_of_ranks_is_refused(fairway_here, copy):
    state = torch.load(copy / "checkpoint.pt", weights_only=True)
    torch.save({**state, "world_size": 4}, copy / "checkpoint.pt")
    refused(fairway_here, copy, "written by 4 ranks, not 1; resume with as many")


def test_nothing_else_may_be_given_with_resume(fairway_here, copy):
    for more in (
        ["demo"],
        ["--data", "d"],
        ["--out", "o"],
        ["--seed", 7],
        ["--steps", 9],
        ["--seconds", 9],
        ["--set", "train.clip=1"],
    ):
        code, out, errors = fairway_here("train", "--resume", copy, *more)
        assert (code, out) == (2, "") and errors == [
            "fairway: --resume RUN takes recipe, data, seed and budget from the run; give nothing else"
        ]


def test_a_folder_without_a_run_cannot_be_resumed(fairway_here, tmp_path):
    refused(fairway_here, tmp_path, "recipe.py is not there; `fairway train` writes it")
