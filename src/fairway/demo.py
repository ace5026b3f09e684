"""The demo: embedded corpus, training, packing, scoring, one table. Nothing is downloaded."""

from pathlib import Path

from .data.build import build_dataset
from .problem import Problem
from .stages import pack, score, train
from .terminal import print_table


def free_folder(parent, name):
    """`parent/name-1`, or the first number that is not taken."""
    numbers = {path.name for path in Path(parent).glob(f"{name}-*")}
    return Path(parent) / next(f"{name}-{i}" for i in range(1, len(numbers) + 2) if f"{name}-{i}" not in numbers)


def run_demo(out, steps, terminal):
    """Runs every stage on the interpreter's own documentation; returns what the table shows as a dictionary."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise Problem(f"{out} is a file; give --out a folder")
    # Lossless, so that the bytes counted are the bytes of the files; the contest's own normalisation folds white space.
    build_dataset("python-docs", out / "data", normalization="identity", progress=terminal.note)
    folder = free_folder(out, "demo")
    run = train("demo", out / "data", folder, 42, steps, None, (), terminal)
    ledger = pack(folder, terminal)
    scored = score(folder, None, True, terminal)
    return {"run": str(folder), "train": run, "ledger": ledger, "score": scored}


def print_demo(result):
    """The one table: bpb after each stage, bytes by owner, seconds by phase, and where the run is."""
    run, ledger, scored = result["train"], result["ledger"], result["score"]
    rows = [("weights, windows side by side", f"{run['bpb']['weights']:.4f}")]
    rows += [(f"packed file, {stage['name']}", f"{stage['bpb']:.4f}") for stage in scored["stages"]]
    print_table("bits per byte of held-out files", ("stage", "bpb"), rows)
    sizes = [(f"{name}", f"{size:,}") for name, size in ledger["files"].items()]
    weights = [one for one in ledger["owners"] if one["file"] == "model.bin"]
    sizes += [(f"  {one['owner']} {one['kind']}", f"{one['bytes']:,}") for one in weights]
    print_table("\nbytes by owner", ("owner", "bytes"), [*sizes, ("total", f"{ledger['total']:,}")])
    phases = {**run["phases"], **ledger.get("phases", {}), **scored["phases"]}
    print_table("\nseconds by phase", ("phase", "seconds"), [(name, f"{value:.1f}") for name, value in phases.items()])
    print_table("\nrun", ("folder", ""), [(result["run"], "")])
