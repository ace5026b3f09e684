"""Forged runs are refused, and a forged record folder fails the review by name."""

import json
import re
import shutil

import pytest

from fairway.problem import DoesNotHold
from fairway.record.folder import write_record
from fairway.referee.review import static_rows
from record.made_runs import ABOUT, PROGRAM, change, put, write_run, write_seeds
from referee.stated_folder import log_again


def record(runs, out, against=(1.2,)):
    write_record(runs, out, ABOUT, (), against, True, lambda line: None)
    return out


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A record folder of three runs, and one of three others; not to be written to."""
    folder = tmp_path_factory.mktemp("honest")
    record(write_seeds(folder / "runs"), folder / "own")
    others = [write_run(folder / "others" / f"seed{seed}", seed, train=13.5, scoring=4.25) for seed in (7, 8, 1234)]
    return record(others, folder / "other").parent


@pytest.fixture
def forged(honest, tmp_path):
    """A copy of the record folder, with the other one beside it."""
    shutil.copytree(honest / "other", tmp_path / "other")
    return shutil.copytree(honest / "own", tmp_path / "own")


def failures(folder):
    rows = [row for row in static_rows(folder, "as-practised", None) if row["verdict"] == "FAIL"]
    return {row["rule"] for row in rows}, "\n".join(f"{row['measured']} {row['evidence']}" for row in rows)


def swap_logs(folder):
    one, other = folder / "train_seed42.log", folder / "train_seed314.log"
    texts = one.read_text(), other.read_text()
    one.write_text(texts[1])
    other.write_text(texts[0])


def take_another_log(folder):
    """The log of the same seed of another record, its hash stated."""
    log_again(folder, 1234, (folder.parent / "other" / "train_seed1234.log").read_text())


def type_another_recipe(folder):
    text = (folder / "train_seed314.log").read_text()
    log_again(folder, 314, re.sub(r"recipe_hash: \w{4}", "recipe_hash: 0000", text))


def copy_a_seed(folder):
    log_again(folder, 1234, (folder / "train_seed42.log").read_text().replace("seed: 42\n", "seed: 1234\n"))


def change_the_program(folder):
    (folder / "train_gpt.py").write_bytes(PROGRAM.replace(b"torch)", b"numpy)"))


def take_other(folder, name):
    shutil.copy(folder.parent / "other" / name, folder)


FORGERIES = {
    "swapped logs": (swap_logs, {"G3", "S3"}, "train_seed42.log is another file than submission.json states"),
    "the log of another record": (take_another_log, {"G3", "G4"}, "eval_seconds of each seed"),
    "a log of another recipe": (type_another_recipe, {"S3"}, "recipe_hash differs"),
    "one log for two seeds": (copy_a_seed, {"S3"}, "one run under two names"),
    "no log": (lambda folder: (folder / "train_seed42.log").unlink(), {"G1"}, "seed 42, of which there is no log"),
    "a byte of the program": (change_the_program, {"G5"}, "train_gpt.py is other code"),
    "the README of another": (lambda folder: take_other(folder, "README.md"), {"G4"}, "seed 1234: 2250.00 README.md"),
    "the claims of another": (lambda folder: take_other(folder, "submission.json"), {"G1", "G3"}, "names seed 7"),
    "a model of no seed": (lambda folder: take_other(folder, "model.bin"), {"G3"}, "model.bin is of none of the seeds"),
}  # fmt: skip


def test_the_honest_folder_fails_nothing(forged):
    assert failures(forged) == (set(), "")


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record_folder_fails_by_name(forged, name):
    forge, rules, words = FORGERIES[name]
    forge(forged)
    found, told = failures(forged)
    assert rules <= found and words in told, told


def test_the_model_of_another_seed_is_told_by_the_readme(forged, honest):
    shutil.copy(honest / "runs" / "seed314" / "model.bin", forged)
    assert failures(forged)[1] == "[42] README.md: the seed that model.bin is of"


@pytest.mark.parametrize("name", ["submission.json", "README.md"])
def test_a_changed_figure_of_a_record_folder_fails(forged, name):
    """The last printed digit of every figure; submission.json states the README's hash, so one digit of it is enough."""
    path = forged / name
    text, unseen = path.read_text(), []
    for found in re.finditer(r"(?<![\w.#-])\d[\d,]*(?:\.\d+)?(?=[,\s*)]|$)", text):
        # What is computed has more digits than the logs prove: the sixth.
        at = [at for at, digit in enumerate(found[0], found.start()) if digit.isdigit()][:6][-1]
        path.write_text(text[:at] + str((int(text[at]) + 4) % 10) + text[at + 1 :])
        line = text[text.rfind("\n", 0, at) + 1 : at + 12]
        if not failures(forged)[0] and '"blurb"' not in line:  # its author's own words
            unseen.append(line)
    assert unseen == []


RUN_FIGURES = {
    "score.json": [("bpb",), ("nats",)],
    "run.json": [("bpb", "packed"), ("phases", "train"), ("phases", "calibrate"), ("steps",), ("tokens",)],
    "ledger.json": [("total",), ("files", "model.bin"), ("files", "train_gpt.py")],
    "audit.json": [("verdicts", at, "measured") for at in range(4)],
}


@pytest.mark.parametrize(("name", "keys"), [(name, keys) for name, rows in RUN_FIGURES.items() for keys in rows])
def test_a_run_with_a_changed_figure_is_refused(tmp_path, name, keys):
    runs = write_seeds(tmp_path / "runs")
    value = json.loads((runs[1] / name).read_text())
    for key in keys:
        value = value[key]
    change(runs[1] / name, put(*keys, value + 1 if isinstance(value, int) else value * 1.001))
    with pytest.raises(DoesNotHold, match="seed314"):
        record(runs, tmp_path / "out")


def test_a_borrowed_seed_is_refused(tmp_path):
    """A run's folder under another name, with another seed typed into run.json."""
    runs = write_seeds(tmp_path / "runs")
    shutil.rmtree(runs[2])
    shutil.copytree(runs[0], runs[2])
    change(runs[2] / "run.json", put("seed", 1234))
    with pytest.raises(DoesNotHold, match="S3"):
        record(runs, tmp_path / "out")


@pytest.mark.parametrize("name", ["score.json", "audit.json", "nats.npy", "model.bin", "ledger.json"])
def test_a_file_of_another_run_is_refused(tmp_path, name):
    runs = write_seeds(tmp_path / "runs")
    shutil.copy(runs[0] / name, runs[1] / name)
    with pytest.raises(DoesNotHold, match="seed314"):
        record(runs, tmp_path / "out")
