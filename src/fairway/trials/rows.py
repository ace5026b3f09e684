"""What is on record of a folder of seeds: a row a seed in a file of its own, seeds.json of all rows, and the locks by which
several machines can write them."""

import fcntl
import re
from contextlib import contextmanager
from pathlib import Path

from ..files import file_sha256, owning, read_json, write_json, write_text
from ..node import differences, digest, show
from ..problem import Problem
from ..runfolder import AUDIT, CHECKPOINT, NATS, PACKED, PROGRAM, RECIPE, RUN, SCORE, WEIGHTS, read_run
from ..score.stage import SCORING
from ..stages import read_recipe

SEEDS_FILE, SEEDS_LOCK = "seeds.json", ".seeds.lock"
SEED_STAGES = ("train", "pack", "score", "audit")


def settle_seeds(out, recipe, data, dataset, until, seeds):
    """Writes recipe.py, seeds.json and a file a seed where they are missing. Problem where they say something else."""
    out.mkdir(parents=True, exist_ok=True)
    with holding(out / SEEDS_LOCK, wait=True):
        if not (out / RECIPE).exists():
            write_text(out / RECIPE, show(recipe))
        elif (found := read_recipe(out / RECIPE)) != recipe:
            path, (before, after) = next(iter(differences(found, recipe).items()))
            raise Problem(f"{out / RECIPE} has {path}={before!r}, not {after!r}: choose another --out for another recipe")
        head = {"recipe": recipe.name, "recipe_hash": digest(recipe), "data": str(Path(data).resolve())}
        head |= {"data_hash": dataset.data_hash, "until": until}
        known = read_json(out / SEEDS_FILE) if (out / SEEDS_FILE).exists() else head
        if known["data_hash"] != dataset.data_hash:
            raise Problem(
                f"{out} has runs on data {known['data_hash']}, {data} is {dataset.data_hash}: choose another --out"
            )
        for seed in seeds:
            write_json(seed_file(out, seed), seed_row(out, seed))
        write_json(out / SEEDS_FILE, head | {"seeds": all_rows(out)})


def seed_row(out, seed):
    """A seed's row: what is known of it, or that nothing is."""
    blank = {"seed": seed, "folder": f"seed{seed}", "reached": None, "bpb": None, "bpb_weights": None, "job": None}
    blank |= {"attempts": []}
    return blank | (read_json(seed_file(out, seed)) if seed_file(out, seed).exists() else {})


def seed_file(out, seed):
    """Where a seed's row is kept."""
    return out / f"seed{seed}.json"


def all_rows(out):
    """The rows of all seeds that were ever asked for, in order of number."""
    found = [re.fullmatch(r"seed(\d+)\.json", path.name) for path in out.iterdir()]
    return [seed_row(out, seed) for seed in sorted(int(match[1]) for match in found if match)]


def update_row(out, seed, **facts):
    """Changes a seed's row and, with it, seeds.json, one process at a time."""
    with holding(out / SEEDS_LOCK, wait=True):
        write_json(seed_file(out, seed), seed_row(out, seed) | facts)
        write_json(out / SEEDS_FILE, read_json(out / SEEDS_FILE) | {"seeds": all_rows(out)})


def record_reached(out, seed):
    """Writes into a seed's row how far its run has got and what it scored; returns the stage."""
    folder = out / f"seed{seed}"
    reached = reached_stage(folder)
    bpb = read_run(folder).get("bpb", {}) if reached else {}
    packed = bpb.get("packed") if at_least(reached, "score") else None
    update_row(out, seed, reached=reached, bpb=packed, bpb_weights=bpb.get("weights"))
    return reached


def reached_stage(folder):
    """The last stage that a run folder has been through, or None: what stands there is looked at, not what was done."""
    if not all((folder / name).is_file() for name in (RUN, RECIPE, WEIGHTS)) or (folder / CHECKPOINT).exists():
        return None
    run, recipe = read_run(folder, "data_hash"), read_recipe(folder / RECIPE)
    hashes = run.get("sha256", {})
    if any(not (folder / name).is_file() or file_sha256(folder / name) != hashes.get(name) for name in (PROGRAM, PACKED)):
        return "train"
    score = read_json(folder / SCORE) if (folder / SCORE).is_file() and (folder / NATS).is_file() else {}
    # A score by other settings or on other data is not the run's.
    wanted = {
        "evaluation": {name: repr(getattr(recipe, name)) for name in SCORING},
        "data_hash": run["data_hash"],
        "model_sha256": hashes[PACKED],
    }
    if any(score.get(key) != value for key, value in wanted.items()):
        return "pack"
    return "audit" if (folder / AUDIT).is_file() else "score"


def at_least(reached, stage):
    """Whether a stage, or None, is `stage` or one after it."""
    return reached is not None and SEED_STAGES.index(reached) >= SEED_STAGES.index(stage)


def close_lost(out, seed):
    """Says of an attempt whose process is no more, and could not say so itself, that it was killed."""
    attempts = seed_row(out, seed)["attempts"]
    if attempts and attempts[-1]["outcome"] is None:
        attempts[-1] |= {"outcome": "killed", "reason": "it ended without a word"}
        update_row(out, seed, attempts=attempts)


@contextmanager
def holding(path, wait=False):
    """Yields whether this process alone holds the lock of a file, which is made if need be; dies with us. The file is open
    for writing, or a network's file system would not lock it for other machines."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def in_use(folder):
    """Whether a process works in a run folder: one that was started by hand, or that has outlived who started it."""
    if not folder.is_dir():
        return False
    try:
        with owning(folder):
            return False
    except Problem:
        return True
