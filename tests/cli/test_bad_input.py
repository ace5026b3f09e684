"""What a user gets wrong: one line that names the value, exit code 2 (or 1), and nothing half-written."""

import json
import resource
import shutil
import subprocess

import numpy as np
import pytest

from fairway.data.shards import SHARD_HEADER_BYTES, open_shard, write_shard
from fairway.node import override, show
from fairway.stages import read_recipe
from train.tiny import IN_ORDER, MODEL, begin, finish, lines, train_arguments

NAMED = ("--name", "n", "--author", "a", "--github", "g")


@pytest.fixture
def data(tiny_data, tmp_path):
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def refused(fairway_here, tmp_path):
    """`refused(says, *arguments, code=2)`: the last line of error is the only one of its kind and holds `says`."""

    def check(says, *arguments, code=2):
        found, out, errors = fairway_here(*arguments)
        assert (found, out) == (code, ""), errors
        endings = [line for line in errors if line.startswith("fairway: ")]
        assert endings == errors[-1:] and says in errors[-1], errors
        assert not list(tmp_path.rglob("*.part"))
        return errors

    return check


def train(data, out, *settings, steps=2):
    return train_arguments(data, out, *settings, steps=steps)


@pytest.mark.parametrize(
    "settings, says",
    [
        (
            (IN_ORDER, "train.batch_tokens=300"),
            "train.batch_tokens=300 is not a multiple of train.micro_tokens=128",
        ),
        (("train.micro_tokens=100",), "train.micro_tokens=100 is not a multiple of model.sequence=32"),
        (("model.vocab=512",), "512 rows; --set model.vocab=300"),
        (("model.heads=5",), "width 32, heads 5, kv_heads 1: each must divide the one before it"),
        (("model.depth=3",), "unknown path 'model.depth'; nearest is model."),
        (("train.clip=abc",), "train.clip takes float, not 'abc'"),
        (("train.clip=nan",), "train.clip takes float"),
        (("model.layers=2.5",), "model.layers takes int, not 2.5"),
        (("model.mlp=Swiglu()",), "unknown node Swiglu"),
        (("train.clip",), "'train.clip' is not path=value"),
        (("evaluate.windows=Sliding(length=32,",), "evaluate.windows='Sliding(length=32,': not a recipe: line 1: "),
        (("train.budget.steps=0",), "a budget of 0 steps"),
        (("train.schedule.fraction=0",), "WarmDownFraction.fraction is 0.0"),
        (("train.schedule=WarmDownSteps(steps=0)",), "WarmDownSteps.steps is 0"),
        (("optim.Muon.momentum.steps=0",), "Ramp.steps is 0"),
        (("average.SWA.every=0",), "SWA.every is 0"),
    ],
)
def test_a_recipe_that_cannot_be_trained_leaves_no_folder(refused, tiny_data, tmp_path, settings, says):
    errors = refused(says, *train(tiny_data, tmp_path / "run", *settings))
    assert len(errors) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["train", "nope", "--data", "d", "--out", "o"], "no recipe 'nope': there are demo, pr162"),
        (["train", "nope.py", "--data", "d", "--out", "o"], "cannot read nope.py"),
        (["train", "demo", "--data", "no-data", "--out", "o"], "no-data is no data folder"),
        (["train", "demo", "--out", "o"], "give a recipe, --data FOLDER and --out RUN, or --resume RUN"),
        (["train"], "give a recipe"),
        (["train", "demo", "--data", "d", "--out", "o", "--steps", "3", "--seconds", "3"], "--steps or --seconds, not both"),
        (["train", "demo", "--data", "d", "--out", "o", "--steps", "-3"], "a budget of -3"),
        (["train", "demo", "--data", "d", "--out", "o", "--seconds", "nan"], "nan s: give"),
        (["train", "demo", "--data", "d", "--out", "o", "--seconds", "inf"], "inf s: give"),
        (["pack", "no-run"], "no-run/recipe.py is not there; `fairway train` writes it"),
        (["score", "no-run"], "no-run/recipe.py is not there; `fairway train` writes it"),
        (["recipes", "nope"], "no recipe 'nope'"),
        (["recipes", "demo", "--diff", "nope"], "no recipe 'nope'"),
        (["recipes", "--diff", "pr162"], "--diff pr162 compares with a recipe: name it"),
        (
            ["train", "demo", "--data", "d", "--out", "o", "--seed", "-1"],
            "--seed -1 is outside of 0 to 18446744073709551615",
        ),
        (["train", "demo", "--data", "d", "--out", "o", "--seed", str(2**64)], f"--seed {2**64} is outside of 0 to"),
        (["data", "build", "no-source", "--out", "o"], "no-source is not there"),
        (["data", "build", "python-docs", "--out", "o", "--shards", "2"], "--shards and --caseops belong to fineweb"),
        (["data", "check", "no-data"], "no-data is no data folder"),
        (["compare"], "no run is named; give run folders"),
        (["report", "--out", "page.html"], "no run is named; give run folders"),
        (["record", "--out", "out", *NAMED], "no run is named; give run folders"),
        (["record", "r", "--out", "", *NAMED], "--out . is empty or names no folder of its own"),
        (["record", "r", "--out", "out", *NAMED, "--record"], "--record is empty; give it a value, or leave it out"),
        (["record", "r", "--out", "out", *NAMED, "--record", "nan"], "--record nan is no bpb; give a number above 0"),
        (["record", "r", "--out", "out", *NAMED, "--track", "a b"], "--track 'a b' takes letters"),
        (["compare", "r", "--record"], "--record is empty"),
        (["compare", "r", "--against"], "--against is empty"),
        (["runs", ".", "--where"], "--where is empty"),
        (["review", ".", "--record", "nan"], "--record nan is no bpb"),
        (["review", ".", "--record", "-3"], "--record -3.0 is no bpb"),
        (["review", ".", "--seconds", "nan"], "--seconds nan is no time; give a number above 0"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(refused, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    errors = refused(says, *arguments)
    assert len(errors) == 1 or errors[:-1] == ["reading no-source"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["nonsense"], ["train", "--nonsense"], ["train", "demo", "--steps", "many"], []])
def test_usage_that_cannot_be_parsed_is_exit_code_2(fairway_here, arguments):
    with pytest.raises(SystemExit) as ending:
        fairway_here(*arguments)
    assert ending.value.code == 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def change_magic(path):
    path.write_bytes(b"\x01" + path.read_bytes()[1:])


def behead(path):
    path.write_bytes(path.read_bytes()[: SHARD_HEADER_BYTES // 2])


def add_unknown_token(path):
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\xff")


SHARD_FAULTS = [
    (truncate, "is truncated"),
    (change_magic, "its magic number is"),
    (behead, "less than a header"),
    (lambda path: path.unlink(), "No such file"),
]


@pytest.mark.parametrize("damage, says", SHARD_FAULTS)
def test_a_broken_training_shard_stops_training_before_it_begins(refused, data, tmp_path, damage, says):
    damage(data / "train_000001.bin")
    (error,) = refused(says, *train(data, tmp_path / "run"))
    assert "train_000001.bin" in error
    assert not (tmp_path / "run").exists()


def test_a_token_that_the_model_has_no_row_for_stops_training(refused, data, tmp_path):
    add_unknown_token(data / "train_000000.bin")
    (error,) = refused("token 65535 in", *train(data, tmp_path / "run", IN_ORDER, "train.micro_tokens=8192",
                       "train.batch_tokens=16384"))  # fmt: skip
    assert "train_000000.bin" in error


@pytest.mark.parametrize("damage, says", SHARD_FAULTS[:3])
def test_a_broken_validation_shard_costs_the_score_but_not_the_weights(refused, data, tmp_path, damage, says):
    damage(data / "val_000000.bin")
    (error,) = refused(says, *train(data, tmp_path / "run"))
    assert "val_000000.bin" in error
    assert (tmp_path / "run" / "weights.pt").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 2


@pytest.mark.parametrize("damage, says", SHARD_FAULTS)
def test_a_broken_validation_shard_stops_the_score(refused, run, data, damage, says):
    damage(data / "val_000000.bin")
    (error,) = refused(says, "score", run, "--data", data)
    assert "val_000000.bin" in error
    assert not (run / "score.json").exists()


@pytest.mark.parametrize("damage", [truncate, change_magic, behead, add_unknown_token])
def test_the_check_of_a_damaged_folder_is_exit_code_1(fairway_here, data, damage):
    assert fairway_here("data", "check", data)[0] == 0
    damage(data / "train_000002.bin")
    code, out, _ = fairway_here("data", "check", data, "--json")
    assert code == 1
    assert any("train_000002.bin" in failure for failure in json.loads(out)["failures"])


def test_a_manifest_that_is_no_json_is_one_line(refused, data, tmp_path):
    (data / "manifest.json").write_text("{")
    assert len(refused("is not valid JSON", *train(data, tmp_path / "run"))) == 1


def test_a_run_folder_is_not_overwritten(refused, tiny_data, run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused("already holds a run; choose another folder, or go on with `fairway train --resume", *train(tiny_data, run))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_line(refused, tiny_data, tiny_corpus, tmp_path):
    # Below a file: root may write into any folder, but not there.
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    assert len(refused(f"cannot write {below}", *train(tiny_data, below))) == 1
    refused("Not a directory; ", "data", "build", tiny_corpus, "--out", below, "--vocab", 300)
    assert len(refused("is a file; give --out a folder", "demo", "--out", tmp_path / "file")) == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_corpus_is_read(fairway_here, tiny_corpus, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = fairway_here("data", "build", tiny_corpus, "--out", tmp_path / "file" / "data", "--vocab", 300)
    assert code == 2 and len(errors) == 1 and "Not a directory; free space" in errors[0]


def test_a_tokenizer_and_another_vocabulary_contradict_each_other(refused, tiny_data, tiny_corpus, tmp_path, fairway_here):
    build = ["data", "build", tiny_corpus, "--out", tmp_path / "new", "--tokenizer", tiny_data / "tokenizer.model"]
    assert len(refused("has 300 pieces, not 5000; leave vocab out", *build, "--vocab", 5000)) == 1
    assert not (tmp_path / "new").exists()
    assert fairway_here(*build)[0] == 0
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["vocab"] == 300


@pytest.mark.parametrize("content", ["[]", "5", '{"phases": 5, "bpb": []}', '{"data": 5}', "{"])
def test_a_run_file_that_is_none_is_one_line_and_nothing_is_packed(refused, run, content):
    (run / "run.json").write_text(content)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for command in (["pack", run], ["score", run], ["train", "--resume", run]):
        assert "run.json" in refused("", *command)[-1]
    kept = {path.name: path.read_bytes() for path in run.iterdir()}
    assert kept == before


@pytest.mark.parametrize("name", ["val_000000.bin", "tokenizer.model"])
def test_what_was_swapped_after_the_build_is_not_scored(refused, run, data, tiny_corpus, tmp_path, fairway_here, name):
    if name == "tokenizer.model":  # the corpus is ASCII: the same pieces, another normalisation
        assert fairway_here("data", "build", tiny_corpus, "--out", tmp_path / "other", "--vocab", 300)[0] == 0
        shutil.copy(tmp_path / "other" / name, data / name)
    else:
        write_shard(data / name, np.roll(open_shard(data / name).copy(), 1))
    (error,) = refused("is another file than manifest.json names", "score", run, "--data", data)
    assert name in error and not (run / "score.json").exists()


def test_stages_come_in_order(refused, run):
    for name in ("model.bin", "weights.pt"):
        (run / name).unlink()
    assert len(refused("model.bin is not there; `fairway pack` writes it", "score", run)) == 1
    refused("weights.pt is not there; `fairway train` writes it", "pack", run)


def test_a_flipped_byte_of_the_packed_model_is_found_anywhere(refused, run):
    whole = (run / "model.bin").read_bytes()
    for place in range(0, len(whole), len(whole) // 12):
        (run / "model.bin").write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refused("model file: ", "score", run)
    assert not (run / "score.json").exists()


def test_a_recipe_that_changed_after_packing_is_found(refused, run):
    recipe = override(read_recipe(run / "recipe.py"), ["train.clip=0.7"])
    (run / "recipe.py").write_text(show(recipe))
    assert len(refused("this one is", "score", run)) == 1


@pytest.mark.parametrize("text", ["", "Recipe(", "Zstd(level=3)", "Recipe(name='x')", "__import__('os').getcwd()", "\0"])
@pytest.mark.parametrize("command", ["pack", "score"])
def test_a_recipe_file_that_is_none_is_one_line(refused, run, text, command):
    (run / "recipe.py").write_text(text)
    assert len(refused("", command, run)) == 1


def test_weights_of_another_model_cannot_be_packed(refused, run):
    recipe = override(read_recipe(run / "recipe.py"), ["model.layers=2"])
    (run / "recipe.py").write_text(show(recipe))
    refused("", "pack", run)


def test_data_of_another_vocabulary_cannot_be_scored(refused, run, tiny_corpus, tmp_path, fairway_here):
    other = tmp_path / "other"
    assert fairway_here("data", "build", tiny_corpus, "--out", other, "--vocab", 310)[0] == 0
    assert len(refused("310 pieces, the model 300", "score", run, "--data", other)) == 1


def test_over_the_cap_there_is_a_ledger_but_nothing_to_submit(refused, tiny_data, tmp_path, fairway_here):
    run = tmp_path / "run"
    assert fairway_here(*train(tiny_data, run, "cap=1000"))[0] == 0
    refused("over the cap of 1,000; give up some of: ", "pack", run, code=1)
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["cap"] == 1000 < ledger["total"] == sum(one["bytes"] for one in ledger["owners"])
    assert not (run / "model.bin").exists() and not (run / "train_gpt.py").exists()


def test_a_foreign_folder_is_not_taken_for_data(refused, tiny_corpus, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    refused("is not empty and no data folder (it has dear.txt)", "data", "build", tiny_corpus, "--out", tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]


@pytest.fixture
def full_disk(tmp_path):
    """`full_disk(kilobytes)` mounts a disk of that size."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk takes root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def kilobytes(folder):
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.iterdir())


def test_a_full_disk_is_one_line_for_every_command(full_disk, refused, tiny_data, tiny_run, tiny_corpus):
    disk = full_disk(60)
    refused("weights.pt: No space left on device; free space", *train(tiny_data, disk / "run"))
    assert not (disk / "run" / "weights.pt").exists()
    refused(
        "No space left on device; free space", "data", "build", tiny_corpus, "--out", full_disk(60) / "data", "--vocab", 300
    )
    packing = full_disk(kilobytes(tiny_run) - 100)
    (packing / "run").mkdir()
    for name in ("recipe.py", "run.json", "weights.pt"):
        shutil.copy(tiny_run / name, packing / "run")
    refused("No space left on device; free space", "pack", packing / "run")
    assert not {path.name for path in (packing / "run").iterdir()} >= {"model.bin", "train_gpt.py"}
    scoring = full_disk(kilobytes(tiny_run))
    shutil.copytree(tiny_run, scoring / "run")
    with pytest.raises(OSError, match="No space"):
        (scoring / "rest").write_bytes(bytes(1024 * kilobytes(tiny_run)))
    refused("score.json: No space left on device; free space", "score", scoring / "run")


def test_a_checkpoint_that_does_not_fit_is_one_line_and_leaves_no_part_of_itself(tiny_data, tmp_path):
    run = tmp_path / "run"
    process = begin(*train(tiny_data, run, *MODEL, steps=3000))
    while process.poll() is None and not ((run / "metrics.jsonl").exists() and lines(run)):
        pass
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    process.terminate()
    code, out, errors = finish(process)
    assert (code, out, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith(f"fairway: cannot write {run / 'checkpoint.pt'}: ")
    assert {path.name for path in run.iterdir()} == {"recipe.py", "run.json", "metrics.jsonl"}


def test_a_folder_in_use_is_refused(fairway_here, tiny_run, tmp_path):
    from fairway.files import owning

    run = shutil.copytree(tiny_run, tmp_path / "run")
    for stage in ("pack", "score"):
        with owning(run):
            code, out, errors = fairway_here(stage, run)
        assert (code, out) == (2, "") and errors == [
            f"fairway: {run} is in use by another fairway; wait for it, or choose another folder"
        ]
    assert fairway_here("pack", run)[0] == 0


def test_another_tokenizer_of_the_same_size_cannot_be_scored(fairway_here, tiny_run, tiny_data, tiny_corpus, tmp_path):
    from fairway.data.build import build_dataset

    build_dataset(tiny_corpus, tmp_path / "other", vocab=300)
    code, out, errors = fairway_here("score", tiny_run, "--data", tmp_path / "other")
    assert (code, out) == (2, "") and "has another tokenizer than" in errors[0] and len(errors) == 1


def test_every_set_counts(fairway_here, tiny_data, tmp_path):
    from train.tiny import SETTINGS

    more = ["--set", *SETTINGS, "--set", "optim.Muon.rate=0.5"]
    assert fairway_here("train", "demo", "--data", tiny_data, "--out", tmp_path / "r", "--steps", 1, *more)[0] == 0
    assert "rate=0.5" in (tmp_path / "r" / "recipe.py").read_text()


@pytest.mark.parametrize(
    "setting, says",
    [
        ("model.head=()", "model.head must hold something"),
        ("loader.seed=-1", "ShuffledWindows.seed is -1"),
        ("optim.AdamW:0.epsilon=-1.0", "AdamW.epsilon is -1.0"),
        ("optim.Muon.momentum.start=1e300", "Ramp goes from 1e+300"),
        ("model.head.Softcap.cap=0.0", "Softcap.cap is 0.0"),
    ],
)
def test_a_value_that_cannot_train_is_one_line(fairway_here, tiny_data, tmp_path, setting, says):
    code, out, errors = fairway_here("train", "demo", "--data", tiny_data, "--out", tmp_path / "r", "--set", setting)
    assert (code, out, len(errors)) == (2, "", 1) and says in errors[0]
    assert not (tmp_path / "r").exists()


def test_a_name_too_long_for_the_disk_is_one_line(fairway_here, tmp_path):
    code, out, errors = fairway_here("pack", tmp_path / ("n" * 300))
    assert (code, out, len(errors)) == (2, "", 1)
