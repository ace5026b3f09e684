"""What every stage shares about a run folder: the names of its files and how `run.json` grows."""

from pathlib import Path

from .files import read_json, write_json
from .problem import Problem

RECIPE, RUN, METRICS, CHECKPOINT = "recipe.py", "run.json", "metrics.jsonl", "checkpoint.pt"
WEIGHTS, CODES = "weights.safetensors", "codes.safetensors"
PROGRAM, PACKED, LEDGER, SCORE, NATS = "train_gpt.py", "model.bin", "ledger.json", "score.json", "nats.npy"


def need(folder, name, stage):
    """The path of a run folder's file; Problem names the stage that writes it when it is absent."""
    path = Path(folder) / name
    if not path.is_file():
        raise Problem(f"{path} is not there; `fairway {stage}` writes it")
    return path


def update_run(folder, facts):
    """Merges `facts` into run.json; dictionaries inside it (phases, bpb) are merged key by key. Returns the whole."""
    path = Path(folder) / RUN
    whole = read_json(path) if path.exists() else {}
    for key, value in facts.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    write_json(path, whole)
    return whole
