"""What every stage shares about a run folder: the names of its files and how `run.json` grows."""

from pathlib import Path

from .files import read_json, write_json
from .problem import Problem

RECIPE, RUN, METRICS, CHECKPOINT = "recipe.py", "run.json", "metrics.jsonl", "checkpoint.pt"
WEIGHTS = "weights.pt"
PROGRAM, READABLE, PACKED, LEDGER = "train_gpt.py", "train_gpt.readable.py", "model.bin", "ledger.json"
SCORE, NATS, AUDIT = "score.json", "nats.npy", "audit.json"
# Of run.json: what later stages work with. The rest is for readers.
RUN_KINDS = {
    "data": str,
    "data_hash": str,
    "recipe_hash": str,
    "seed": int,
    "threads": int,
    "phases": dict,
    "bpb": dict,
    "sha256": dict,
}


def need(folder, name, stage):
    """The path of a run folder's file; Problem names the stage that writes it when it is absent."""
    path = Path(folder) / name
    if not path.is_file():
        raise Problem(f"{path} is not there; `fairway {stage}` writes it")
    return path


def read_run(folder, *keys):
    """run.json's content; Problem when it is absent, lacks one of `keys` or holds a value of the wrong kind."""
    path = need(folder, RUN, "train")
    run = read_json(path)
    if not isinstance(run, dict):
        raise Problem(f"{path} holds a {type(run).__name__}, not an object; restore it, or start a new run")
    for key in keys:
        if key not in run:
            raise Problem(f"{path} names no {key}: no training began here; start a new run")
    for key, kind in RUN_KINDS.items():
        if key in run and not isinstance(run[key], kind):
            raise Problem(f"{path}: {key} takes {kind.__name__}, not {run[key]!r:.40}; restore it, or start a new run")
    return run


def update_run(folder, facts):
    """Merges `facts` into run.json; dictionaries inside it (phases, bpb) are merged key by key. Returns the whole."""
    path = Path(folder) / RUN
    whole = read_run(folder) if path.exists() else {}
    for key, value in facts.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    write_json(path, whole)
    return whole


def forget_score(folder):
    """Removes what was found of an earlier model.bin: score.json, nats.npy, audit.json, and bpb.packed of run.json."""
    for name in (SCORE, NATS, AUDIT):
        (Path(folder) / name).unlink(missing_ok=True)
    if (Path(folder) / RUN).exists():
        run = read_run(folder)
        if run.get("bpb", {}).pop("packed", None) is not None:
            write_json(Path(folder) / RUN, run)
