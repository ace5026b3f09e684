"""What every stage shares about a run folder: the names of its files and how `run.json` grows."""

from pathlib import Path
from typing import get_args, get_origin

from .files import read_json, write_json
from .problem import Problem

RECIPE, RUN, METRICS, CHECKPOINT = "recipe.py", "run.json", "metrics.jsonl", "checkpoint.pt"
WEIGHTS = "weights.pt"
PROGRAM, READABLE, PACKED, LEDGER = "train_gpt.py", "train_gpt.readable.py", "model.bin", "ledger.json"
SCORE, NATS, AUDIT = "score.json", "nats.npy", "audit.json"
MOST = 1e20  # of a number in these files: all that is counted or measured is below, and what is computed from it is finite
# Of run.json: what is read of it. A key may be absent: older runs have fewer. Over the cap a packed file has no hash.
RUN_KINDS = {
    "fairway": str, "torch": str, "recipe": str, "recipe_hash": str, "source_hash": str, "data": str, "data_hash": str,
    "seed": int, "tokenizer_sha256": str, "began": str, "versions": dict[str, str], "parameters": int, "parent": str | None,
    "changes": dict[str, list[str]], "device": str, "threads": int, "world_size": int, "steps": int, "tokens": int,
    "phases": dict[str, float], "averages": list[str], "qat": list[str], "bpb": dict[str, float],
    "sha256": dict[str, str | None],
}  # fmt: skip


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
        if key in run and not fits_kind(run[key], kind):
            name = kind.__name__ if isinstance(kind, type) else kind
            raise Problem(f"{path}: {key} takes {name}, not {run[key]!r:.40}; restore it, or start a new run")
    if any(len(pair) != 2 for pair in run.get("changes", {}).values()):
        raise Problem(f"{path}: changes takes pairs of texts; restore it, or start a new run")
    return run


def fits_kind(value, kind):
    """Whether a JSON value is of a kind: int and float are numbers from 0 to MOST, a float may be whole; a list and a dict
    may name what they hold, as in dict[str, float]."""
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value < MOST
    holder, inner = get_origin(kind), get_args(kind)
    if holder in (list, dict):
        return isinstance(value, holder) and all(
            fits_kind(one, inner[-1]) for one in (value if holder is list else value.values())
        )
    return isinstance(value, kind)


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
