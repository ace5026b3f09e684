"""What a run folder holds, as measured: the one reader that record, compare, report and `fairway runs` share."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import file_sha256
from ..problem import Problem
from ..runfolder import AUDIT, LEDGER, METRICS, NATS, PACKED, PROGRAM, RECIPE, SCORE, need, read_run
from ..stages import read_recipe
from .runfiles import RunFiles, checked_object, run_folders


@dataclass(frozen=True)
class Measured(RunFiles):
    """A run folder's files, read: see RunFiles. Its recipe needs the models, and so torch; the rest does not."""

    def recipe(self):
        """The run's Recipe."""
        return read_recipe(need(self.folder, RECIPE, "train"))

    def metrics(self):
        """Rows of metrics.jsonl, [] where nothing was trained. Problem for a line that is none."""
        path = self.folder / METRICS
        if not path.is_file():
            return []
        rows = []
        for at, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            known = row if isinstance(row, dict) else {}
            if any(type(known.get(key)) not in (int, float) for key in ("step", "loss", "seconds")):
                raise Problem(f"{path}, line {at} is no step: {line!r:.60}; restore it, or train the run again")
            rows.append(row)
        return rows

    def nats_file(self):
        """nats.npy, or None: it is there after `fairway score --keep-nats`."""
        path = self.folder / NATS
        return path if path.is_file() else None


def read_measured(folder):
    """The Measured of a run folder. Problem for a folder without a run, or with a broken file."""
    folder, found = Path(folder), {}
    run = read_run(folder, "data_hash", "recipe_hash", "seed")
    for name in (SCORE, LEDGER, AUDIT):
        found[name] = checked_object(folder / name) if (folder / name).is_file() else None
    return Measured(folder, run, found[SCORE], found[LEDGER], found[AUDIT])


def measured_runs(paths):
    """The Measured of every run folder among and below `paths`. Problem where there is none."""
    if not paths:
        raise Problem("no run is named; give run folders, which `fairway train` makes")
    folders = run_folders(paths)
    if not folders:
        raise Problem(f"no run in {', '.join(map(str, paths))}; give run folders, which `fairway train` makes")
    return [read_measured(folder) for folder in folders]


def faults_of(one):
    """What is wrong with a scored run's own files, as texts: hashes of the packed files, sums of bytes, the score's own
    arithmetic, nats that do not add up to it. [] for a run that agrees with itself."""
    faults = []
    for name in (PROGRAM, PACKED):
        wanted = one.run.get("sha256", {}).get(name)
        if not (one.folder / name).is_file():
            faults.append(f"{name} is not there")
        elif file_sha256(one.folder / name) != wanted:
            faults.append(f"{name} is not the file that was packed")
        elif one.ledger and one.ledger["files"].get(name) != (one.folder / name).stat().st_size:
            faults.append(f"ledger.json counts {one.ledger['files'].get(name)} bytes of {name}")
    if one.ledger:
        sums = sum(one.ledger["files"].values()), sum(owner["bytes"] for owner in one.ledger["owners"])
        if set(sums) != {one.ledger["total"]}:
            faults.append(f"ledger.json's total of {one.ledger['total']} is not the sum of its files, or of its owners")
    wanted = one.run.get("sha256", {}).get(METRICS)  # older runs do not say
    if wanted and not (one.folder / METRICS).is_file():
        faults.append(f"{METRICS} is not there")
    elif wanted and file_sha256(one.folder / METRICS) != wanted:
        faults.append(f"{METRICS} is not what training wrote")
    if one.score:
        faults += score_faults(one)
    return faults


def score_faults(one):
    """What is wrong with score.json: its own arithmetic, and whether it is of this model, this run's recipe and its data."""
    score, faults = one.score, []
    for name, figures in [("score.json", score), *((f"its stage {stage.get('name')}", stage) for stage in score["stages"])]:
        bpb = figures["nats"] / math.log(2) / score["bytes"]
        if not math.isclose(bpb, figures["bpb"], rel_tol=1e-9):
            faults.append(f"{name} says {figures['bpb']} bpb, its nats and bytes {bpb}")
    if score["stages"] and any(score["stages"][-1][key] != score[key] for key in ("bpb", "nats")):
        faults.append(f"score.json's last stage has {score['stages'][-1]['bpb']} bpb, its head {score['bpb']}")
    if score.get("model_sha256") != one.run.get("sha256", {}).get(PACKED):
        faults.append("score.json is of another model.bin")
    if score.get("data_hash") != one.run["data_hash"]:
        faults.append("score.json is of other data than the run's")
    if one.bpb != score["bpb"]:
        faults.append(f"run.json says {one.bpb} bpb packed, score.json {score['bpb']}")
    if (path := one.nats_file()) is not None:
        try:
            nats_N = np.load(path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            return [*faults, f"nats.npy cannot be read ({error})"]
        if nats_N.ndim != 1 or nats_N.dtype.kind != "f":
            return [*faults, f"nats.npy holds {nats_N.dtype} of the shape {nats_N.shape}, not a number a target"]
        nats = float(nats_N.sum(dtype=np.float64))
        if len(nats_N) != score["tokens"] or not math.isclose(nats, score["nats"], rel_tol=1e-6):
            faults.append(f"nats.npy sums to {nats} over {len(nats_N)} targets, score.json says {score['nats']}")
    return faults
