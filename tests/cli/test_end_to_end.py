"""The whole way by processes of their own, and what their JSON promises to scripts."""

import json
import shutil
import subprocess
import sys

import pytest

from train.tiny import SETTINGS, environment, fairway

STAGES = ("build", "check", "train", "pack", "score")


@pytest.fixture(scope="module")
def way(tiny_corpus, tmp_path_factory):
    """(folder, {stage: its JSON}) of data build, data check, train, pack and score."""
    folder = tmp_path_factory.mktemp("way")
    data, run = folder / "data", folder / "run"
    commands = (
        ["data", "build", tiny_corpus, "--out", data, "--vocab", 300, "--normalization", "identity"],
        ["data", "check", data],
        ["train", "demo", "--data", data, "--out", run, "--steps", 60, "--seed", 3, "--set", *SETTINGS],
        ["pack", run],
        ["score", run, "--keep-nats"],
    )
    found = {}
    for stage, command in zip(STAGES, commands, strict=True):
        # --json first: --set takes all that follows.
        code, out, errors = fairway(*command[:2], "--json", *command[2:]) if command[0] == "data" else fairway(
            command[0], "--json", *command[1:]
        )  # fmt: skip
        assert code == 0, errors
        found[stage] = json.loads(out)
    return folder, found


def test_every_json_is_what_the_folder_holds(way):
    folder, found = way
    for stage, name in (("build", "data/manifest.json"), ("pack", "run/ledger.json"), ("score", "run/score.json")):
        assert found[stage] == json.loads((folder / name).read_text())
    run = json.loads((folder / "run" / "run.json").read_text())
    assert run["bpb"] == {**found["train"]["bpb"], "packed": found["score"]["bpb"]}
    grown = {name: found["train"][name] for name in ("phases", "bpb", "sha256")}
    assert found["train"].items() <= {**run, **grown}.items()
    assert run["sha256"].items() > grown["sha256"].items() and run["phases"].items() > grown["phases"].items()


def test_json_has_the_keys_that_scripts_may_rely_on(way):
    _, found = way
    run, ledger, scored = found["train"], found["pack"], found["score"]
    assert run.keys() >= {
        "recipe", "recipe_hash", "source_hash", "data_hash", "seed", "device", "world_size", "steps", "tokens", "phases",
        "bpb",
    }  # fmt: skip
    assert run["phases"].keys() >= {"compile", "train"} and run["bpb"].keys() >= {"weights"}
    assert (run["seed"], run["steps"], run["tokens"]) == (3, 60, 60 * 256)
    assert ledger.keys() >= {"total", "cap", "files", "owners"}
    assert ledger["files"].keys() == {"train_gpt.py", "model.bin"}
    assert all(owner.keys() >= {"owner", "kind", "bytes"} for owner in ledger["owners"])
    assert scored.keys() >= {"bpb", "nats", "tokens", "bytes", "implied_bytes", "phases", "stages"}
    assert all(stage.keys() >= {"name", "bpb", "nats", "seconds"} for stage in scored["stages"])
    assert found["check"]["failures"] == []


def test_the_ledger_sums_to_the_sizes_of_the_files(way):
    folder, found = way
    ledger, sums = found["pack"], {"train_gpt.py": 0, "model.bin": 0}
    for owner in ledger["owners"]:
        sums[owner["file"]] += owner["bytes"]
    assert sums == ledger["files"] == {name: (folder / "run" / name).stat().st_size for name in sums}
    assert ledger["total"] == sum(sums.values()) <= ledger["cap"] == 16_000_000


def test_the_score_counts_the_bytes_of_the_documents_and_learned_something(way):
    _, found = way
    scored = found["score"]
    assert scored["bytes"] == found["build"]["original_bytes"]["val"]
    assert scored["tokens"] == found["build"]["tokens"]["val"] - 1
    assert scored["implied_bytes"] == pytest.approx(scored["bytes"], rel=1e-9)
    assert scored["data_hash"] == found["train"]["data_hash"] == found["check"]["data_hash"]
    assert 0.5 < scored["bpb"] < 3.5, "an untrained model has above 6"


def test_packing_costs_little_and_context_gains(way):
    _, found = way
    side_by_side, sliding = found["score"]["stages"]
    assert side_by_side["bpb"] == pytest.approx(found["train"]["bpb"]["weights"], rel=0.01)
    assert side_by_side["bpb"] != found["train"]["bpb"]["weights"], "the packed file is scored, not the weights"
    assert sliding["bpb"] < side_by_side["bpb"] * 1.01


def test_a_second_score_gives_the_same_digits(way):
    folder, found = way
    nats = (folder / "run" / "nats.npy").read_bytes()
    code, out, _ = fairway("score", folder / "run", "--keep-nats", "--json")
    again = json.loads(out)
    assert code == 0 and (folder / "run" / "nats.npy").read_bytes() == nats
    assert {name: again[name] for name in ("bpb", "nats", "tokens")} == {
        name: found["score"][name] for name in ("bpb", "nats", "tokens")
    }


def run_program(folder, *arguments):
    # -I: neither the folder nor PYTHONPATH may lend the package.
    command = [sys.executable, "-I", "train_gpt.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_program_alone_scores_its_model_to_the_same_digits(way, tmp_path):
    folder, found = way
    for name in ("train_gpt.py", "model.bin"):
        shutil.copy(folder / "run" / name, tmp_path)
    said = run_program(tmp_path, "--stage", "score", "--data", folder / "data", "--out", ".")
    scored = json.loads((tmp_path / "score.json").read_text())
    assert said.split() == ["bpb", str(scored["bpb"])]
    assert all(scored[name] == found["score"][name] for name in ("bpb", "nats", "tokens", "bytes"))


def test_scoring_needs_no_training_shards_and_training_no_validation_shards(tiny_data, tiny_run, tmp_path, fairway_here):
    data, run = shutil.copytree(tiny_data, tmp_path / "data"), shutil.copytree(tiny_run, tmp_path / "run")
    for path in data.glob("train_*.bin"):
        path.unlink()
    code, _, errors = fairway_here("score", run, "--data", data)
    assert (code, errors) == (0, [])
    data = shutil.copytree(tiny_data, tmp_path / "other")
    for path in data.glob("val_*.bin"):
        path.unlink()
    code, out, errors = fairway_here(
        "train", "demo", "--data", data, "--out", tmp_path / "new", "--steps", 2, "--set", *SETTINGS
    )
    assert code == 0 and "bpb" not in out
    assert errors == ["no validation shards: the weights are not scored"]
    assert fairway_here("pack", tmp_path / "new")[0] == 0


def test_a_recipe_file_trains_the_same_as_its_name(tiny_data, tmp_path, fairway_here):
    for name, source in (("named", "demo"), ("filed", tmp_path / "named" / "recipe.py")):
        settings = ["--set", *SETTINGS] if name == "named" else []
        code, _, errors = fairway_here(
            "train", source, "--data", tiny_data, "--out", tmp_path / name, "--steps", 2, *settings
        )  # fmt: skip
        assert (code, errors) == (0, [])
    one, other = ((tmp_path / name / "weights.pt").read_bytes() for name in ("named", "filed"))
    assert one == other
