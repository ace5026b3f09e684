"""The demo: embedded corpus, training, packing, scoring, one table. Nothing is downloaded."""

import shlex
from collections import Counter
from pathlib import Path

from .clock import Clock
from .data.build import build_dataset
from .listing import owners_together, plain_stage
from .problem import Problem
from .runfolder import PACKED, read_run
from .stages import pack, score, train
from .terminal import print_table


def free_folder(parent, name):
    """`parent/name-1`, or the first number that is not taken."""
    numbers = {path.name for path in Path(parent).glob(f"{name}-*")}
    return Path(parent) / next(f"{name}-{i}" for i in range(1, len(numbers) + 2) if f"{name}-{i}" not in numbers)


def run_demo(out, steps, terminal):
    """Runs every stage on the interpreter's own documentation; returns what the table shows as a dictionary."""
    out, clock = Path(out), Clock()
    if out.exists() and not out.is_dir():
        raise Problem(f"{out} is a file; give --out a folder")
    with clock.phase("data"):
        # Lossless, so that the bytes counted are the bytes of the files; the contest's own normalisation folds white space.
        build_dataset("python-docs", out / "data", normalization="identity", val_every=40, progress=terminal.note)
    folder = free_folder(out, "demo")
    run = train("demo", out / "data", folder, 42, steps, None, (), terminal)
    ledger = pack(folder, None, "base85", terminal)
    scored = score(folder, None, True, (), False, terminal)
    phases = {**clock.seconds, **read_run(folder, "phases")["phases"]}
    return {"data": str(out / "data"), "run": str(folder), "train": run, "ledger": ledger, "score": scored, "phases": phases}


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
    for (owner, _), size in owners_together(ledger).items():
        sizes[owner] += size
    heavy = {owner: size for owner, size in sizes.most_common() if 100 * size > ledger["files"][PACKED]}
    rest = sizes.total() - sum(heavy.values())
    return heavy | ({"other": rest} if rest else {})
