"""The demo: embedded corpus, training, packing, scoring, one table; the full one: seeds, audits, a record folder, a report.

Nothing is downloaded.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from .artifact.ledger import owners_together
from .clock import Clock
from .data.build import build_dataset
from .files import read_json
from .problem import DoesNotHold, Problem
from .record.compare import compare
from .record.folder import write_record
from .record.report import write_report
from .referee.review import review_folder
from .runfolder import PACKED, PROGRAM, SCORE, read_run
from .score.stage import plain_stage
from .stages import pack, score, train
from .terminal import print_table
from .trials.seeds import train_seeds

SEEDS, SHORT_STEPS = (42, 314, 1234), 30
SHORT = ("model.width=96", "model.layers=4", "calibrate.Calibration.tokens=16384")
SMALLER = (*SHORT, "model.width=64")  # what the full demo compares its runs with


def free_folder(parent, name):
    """`parent/name-1`, or the first number that is not taken."""
    numbers = {path.name for path in Path(parent).glob(f"{name}-*")}
    return Path(parent) / next(f"{name}-{i}" for i in range(1, len(numbers) + 2) if f"{name}-{i}" not in numbers)


def run_demo(out, steps, terminal):
    """Runs every stage on the interpreter's own documentation; returns what the table shows as a dictionary."""
    out, clock = Path(out), Clock()
    build_demo_data(out, out / "data", 40, clock, terminal)
    folder = free_folder(out, "demo")
    run = train("demo", out / "data", folder, 42, steps, None, (), terminal)
    ledger = pack(folder, None, "base85", terminal)
    scored = score(folder, None, True, (), False, terminal)
    phases = {**clock.seconds, **read_run(folder, "phases")["phases"]}
    return {"data": str(out / "data"), "run": str(folder), "train": run, "ledger": ledger, "score": scored, "phases": phases}


def build_demo_data(out, folder, val_every, clock, terminal):
    """A data folder of this interpreter's own library; one file in `val_every` is for validation."""
    if out.exists() and not out.is_dir():
        raise Problem(f"{out} is a file; give --out a folder")
    with clock.phase("data"):
        # Lossless, so that the bytes counted are the bytes of the files; the contest's own normalisation folds white space.
        build_dataset("python-docs", folder, normalization="identity", val_every=val_every, progress=terminal.note)


def run_full_demo(out, steps, terminal):
    """Three short seeds of a small model, audited, and two of a smaller one; comparison, record folder, review, report.

    Returns what each gave; DoesNotHold where a seed fails or the review finds fault with the folder.
    """
    out, clock = Path(out), Clock()
    data = out / "data-of-full"
    build_demo_data(out, data, 80, clock, terminal)
    home, budget = free_folder(out, "full"), (steps or SHORT_STEPS, None)
    how = {"ranks": 1, "sinks": (), "submit": None, "cluster": ()}
    with clock.phase("three seeds, audited"):
        run_demo_seeds(data, home / "three", SEEDS, (*budget, SHORT), how | {"until": "audit"}, terminal)
    with clock.phase("two of a smaller model"):
        run_demo_seeds(data, home / "smaller", SEEDS[:2], (*budget, SMALLER), how | {"until": "score"}, terminal)
    about = {"name": "Fairway demo", "author": "Fairway", "github": "fairway", "blurb": "", "track": "non-record-16mb"}
    with clock.phase("comparison, record, review, report"):
        comparison = compare([home / "three"], [home / "smaller"], ())
        record = write_record([home / "three"], home / "record", about, (), (), True, terminal.note)
        review = review_folder(home / "record")
        report = write_report([home / "three"], [home / "smaller"], home / "report.html")
    with clock.phase("the folder's own program"):
        refuse_other_score(home / "record", data, comparison["runs"]["runs"][0]["bpb"])
    if review["summary"]["fail"]:
        raise DoesNotHold(f"the record folder {home / 'record'} did not pass: see fairway review {home / 'record'}")
    return {
        "run": str(home), "comparison": comparison, "record": record, "review": review["summary"], "report": report,
        "phases": dict(clock.seconds),
    }  # fmt: skip


def run_demo_seeds(data, folder, seeds, budget, how, terminal):
    """Takes all seeds as far as `how` says; DoesNotHold names the first that did not come so far."""
    found = train_seeds("demo", data, folder, list(seeds), budget, how, terminal)
    for row in found["seeds"]:
        if row["reached"] != how["until"]:
            raise DoesNotHold(f"seed {row['seed']} of {folder} did not come to {how['until']}: {row['attempts'][-1:]}")


def refuse_other_score(record, data, bpb):
    """Runs the two files of a record folder in an empty one; DoesNotHold unless they score `bpb` to the last digit."""
    with tempfile.TemporaryDirectory() as empty:
        for name in (PROGRAM, PACKED):
            shutil.copy(record / name, empty)
        command = [sys.executable, "-I", PROGRAM, "--stage", "score", "--data", str(data.resolve()), "--out", "."]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
        found = read_json(Path(empty) / SCORE)["bpb"] if done.returncode == 0 else done.stderr.strip()[-200:]
    if found != bpb:
        raise DoesNotHold(f"{record / PROGRAM} alone gives {found}, the run {bpb} bpb")


def print_full_demo(result):
    """What the seeds reached, whether they differ from the smaller model, where the folder and the page are."""
    phases, counts, run = result["phases"], result["review"], result["run"]
    rows = [(name, f"{seconds:.1f}") for name, seconds in phases.items()]
    print_table("the whole way, of several seeds", ("phase", "seconds"), [*rows, ("total", f"{sum(phases.values()):.1f}")])
    print(f"\n{result['comparison']['sentence']}")
    print(f"{run}/record is a submission: {counts['pass']} PASS, {counts['fail']} FAIL, {counts['not_tested']} NOT TESTED")
    print(f"{run}/record/train_gpt.py with model.bin, alone in an empty folder, scores the same to the last digit")
    print(f"{result['report']['path']} shows it all; next: fairway runs {shlex.quote(run)}")


def print_demo(result):
    """The one table: bpb after each stage, bytes by owner, seconds by phase; then where the run is and what is next."""
    ledger, phases = result["ledger"], result["phases"]
    rows = [("weights", f"{result['train']['bpb']['weights']:.4f}")]
    rows += [(plain_stage(stage["name"]), f"{stage['bpb']:.4f}") for stage in result["score"]["stages"]]
    rows += [("", ""), ("owner", "bytes")]
    for name, size in ledger["files"].items():
        owners = heavy_owners(ledger) if name == PACKED else {}
        rows += [(name, f"{size:,}"), *((f"  {owner}", f"{part:,}") for owner, part in owners.items())]
    rows += [("total", f"{ledger['total']:,}"), (f"left of {ledger['cap']:,}", f"{ledger['cap'] - ledger['total']:,}")]
    rows += [("", ""), ("phase", "seconds"), *((name, f"{seconds:.1f}") for name, seconds in phases.items())]
    rows += [("total", f"{sum(phases.values()):.1f}")]
    print_table("A language model of this Python's own library, in bits per byte of held-out files", ("stage", "bpb"), rows)
    another = ["train", "demo", "--data", result["data"], "--out", str(Path(result["run"]).parent / "wider")]
    print(f"\n{result['run']} holds the run; next: fairway {shlex.join([*another, '--set', 'model.width=192'])}")


def heavy_owners(ledger):
    """Owner -> bytes of model.bin, from the largest down; those of 1 % or less together as `other`."""
    sizes = Counter()
    for (owner, kind), size in owners_together(ledger).items():
        if kind != "code":
            sizes[owner] += size
    heavy = {owner: size for owner, size in sizes.most_common() if 100 * size > ledger["files"][PACKED]}
    rest = sizes.total() - sum(heavy.values())
    return heavy | ({"other": rest} if rest else {})
