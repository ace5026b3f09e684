"""What is on record of a folder of seeds: a row a seed in a file of its own, seeds.json of all rows, and the locks by which
several machines can write them."""

import fcntl
import re
from contextlib import contextmanager
from pathlib import Path

from ..ablation import refuse_other_run
from ..data.dataset import open_dataset
from ..files import file_sha256, owning, read_json, write_json, write_text
from ..node import differences, digest, show
from ..problem import Problem
from ..runfolder import AUDIT, CHECKPOINT, NATS, PACKED, PROGRAM, RECIPE, RUN, SCORE, WEIGHTS, read_run
from ..score.stage import SCORING
from ..stages import read_recipe, unscored, weights_there

SEEDS_FILE, SEEDS_LOCK = "seeds.json", ".seeds.lock"
SEED_STAGES = ("train", "pack", "score", "audit")
ROW_KINDS = {"bpb": float | int | None, "bpb_weights": float | int | None, "job": str | None, "attempts": list}
ATTEMPT_KINDS = {"began": str, "ended": str | None, "outcome": str | None, "reason": str | None, "folder": str}


def settle_seeds(out, recipe, data, dataset, until, seeds):
    """Writes recipe.py, seeds.json and a file a seed where they are missing, or where nothing has begun by them. Problem
    where they say something else, and where a seed's folder holds another run."""
    if (out / RUN).exists():
        raise Problem(f"{out} is itself a run; --out takes the folder in which seeds get folders of their own")
    out.mkdir(parents=True, exist_ok=True)
    with holding(out / SEEDS_LOCK, wait=True):
        known = read_head(out) if (out / SEEDS_FILE).exists() else None
        if not (out / RECIPE).exists() or (known and not any(has_begun(out, row) for row in all_rows(out))):
            known = None
        elif (found := read_recipe(out / RECIPE)) != recipe:
            path, (before, after) = next(iter(differences(found, recipe).items()))
            raise Problem(f"{out / RECIPE} has {path}={before!r}, not {after!r}: choose another --out for another recipe")
        head = {"recipe": recipe.name, "recipe_hash": digest(recipe), "data": str(Path(data).resolve())}
        head |= {"data_hash": dataset.data_hash, "until": until}
        if known and known["data_hash"] != dataset.data_hash:
            raise Problem(
                f"{out} has runs on data {known['data_hash']}, {data} is {dataset.data_hash}: choose another --out"
            )
        for seed in seeds:
            refuse_other_run(out / f"seed{seed}", recipe, seed, dataset)
        if known is None:
            write_text(out / RECIPE, show(recipe))
        for seed in seeds:
            write_json(seed_file(out, seed), seed_row(out, seed))
        write_json(out / SEEDS_FILE, head | {"seeds": all_rows(out)})


def seed_row(out, seed):
    """A seed's row: what is known of it, or that nothing is. Problem for a file that holds something else."""
    blank = {"seed": seed, "folder": f"seed{seed}", "reached": None, "bpb": None, "bpb_weights": None, "job": None}
    blank |= {"attempts": []}
    path = seed_file(out, seed)
    if not path.exists():
        return blank
    found = read_json(path)
    row = blank | found if isinstance(found, dict) else {}
    own = all(row.get(key) == blank[key] for key in ("seed", "folder")) and row["reached"] in (None, *SEED_STAGES)
    if not own or not is_of(row, ROW_KINDS) or not all(is_of(one, ATTEMPT_KINDS) for one in row["attempts"]):
        raise Problem(f"{path} is no row of seed {seed}; restore it, or remove it: then only its attempts are forgotten")
    return row


def is_of(content, kinds):
    """Whether something is an object whose values are of these kinds."""
    return isinstance(content, dict) and all(isinstance(content.get(key, ...), kind) for key, kind in kinds.items())


def read_head(out):
    """seeds.json's content. Problem where it is none; its rows are those of the seeds' own files."""
    head = read_json(out / SEEDS_FILE)
    if not is_of(head, dict.fromkeys(("recipe", "recipe_hash", "data", "data_hash", "until"), str)):
        raise Problem(f"{out / SEEDS_FILE} is no list of seeds; restore it, or remove it: it is made again")
    return head


def has_begun(out, row):
    """Whether anything was done for a seed: an attempt, a job, a folder."""
    return bool(row["attempts"] or row["job"] or (out / row["folder"]).exists())


def refuse_other_ranks(out, seeds, ranks):
    """Problem for a seed that left a checkpoint on another number of processes, on which alone it can go on."""
    for folder in (out / f"seed{seed}" for seed in seeds):
        if (folder / CHECKPOINT).exists() and (folder / RUN).exists():
            found = read_run(folder).get("world_size", ranks)
            if found != ranks:
                raise Problem(f"{folder} was interrupted on {found} processes: give --ranks {found}, or another --out")


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
        write_json(out / SEEDS_FILE, read_head(out) | {"seeds": all_rows(out)})


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
    if not all((folder / name).is_file() for name in (RUN, RECIPE, WEIGHTS)):
        return None
    run = read_run(folder, "data", "data_hash")
    if not weights_there(folder, run) or ("weights" not in run.get("bpb", {}) and unscored(run, open_dataset(run["data"]))):
        return None
    recipe = read_recipe(folder / RECIPE)
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


def close_lost(out, seed, complete):
    """Says of an attempt whose process is no more, and could not say so itself, that it was killed; a run that its child
    has completed lacks nothing for it."""
    attempts = seed_row(out, seed)["attempts"]
    if attempts and attempts[-1]["outcome"] is None:
        attempts[-1] |= {"outcome": "killed", "reason": None if complete else "it ended without a word"}
        update_row(out, seed, attempts=attempts)


@contextmanager
def holding(path, wait=False):
    """Yields a file, which is made if need be, once this process alone holds its lock; None if another does. The lock dies
    with us and with those to whom we gave the open file. It is open for writing, or a network's file system would not lock
    it for other machines."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file
            # Children of ours have ended, though what they left behind may have the file; after an error they may live.
            fcntl.flock(file, fcntl.LOCK_UN)


def in_use(folder):
    """Whether a process works in a run folder: one that was started by hand, or that has outlived who started it."""
    if not folder.is_dir():
        return False
    try:
        with owning(folder):
            return False
    except Problem:
        return True
