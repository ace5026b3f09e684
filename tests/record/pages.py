"""Run folders for tests of the report, made of small files whose figures agree with each other."""

import json
import math

import numpy as np

from fairway.data.dataset import open_dataset, validation_tokens
from fairway.node import digest, override, show
from fairway.recipes.demo import demo

VERDICTS = [("A1", "size", "PASS"), ("C1", "causality", "PASS"), ("C1", "causality", "NOT TESTED"), ("T1", "time", "FAIL")]
OWNERS = [("blocks.0.mlp.up", "q", 300), ("blocks.1.mlp.up", "q", 200), ("token.table", "value", 400), ("a.py", "code", 99)]
MODEL_HASH = "b" * 64


def audit_json(verdicts=VERDICTS):
    rows = []
    for at, (rule, about, verdict) in enumerate(verdicts):
        row = {"rule": rule, "condition": f"{about} holds", "severity": "fail", "verdict": verdict, "source": "#1"}
        row |= {"measured": {"bytes": 1234 + at}, "expected": 16_000_000, "tolerance": 0}
        rows.append(row | {"evidence": f"evidence {at} of {rule}"})
    return {"policy": "as-practised", "verdicts": rows, "summary": {}, "run": "r", "full": False, "seconds": 1.0}


def trained_run(folder, seed, data=None, steps=40, settings=(), **facts):
    """A run folder after training: run.json, recipe.py, metrics.jsonl. `data`: a data folder, if the test has one."""
    folder.mkdir(parents=True)
    recipe = override(demo(), settings)
    run = {
        "fairway": "0.1.0", "torch": "2.13.0", "recipe": recipe.name, "recipe_hash": digest(recipe), "source_hash": "5" * 16,
        "data": str(data or folder / "gone"), "data_hash": open_dataset(data).data_hash if data else "d" * 16, "seed": seed,
        "tokenizer_sha256": "7" * 64, "began": "2026-11-21T14:32:16+00:00", "versions": {"python": "3.11.7"},
        "parameters": 2_095_513, "parent": "demo", "changes": {}, "device": "cpu x1", "threads": 1, "world_size": 1,
        "steps": steps, "tokens": 4096 * steps, "phases": {"compile": 3.0, "train": 41.25, "validate": 4.5},
        "averages": [], "qat": [], "bpb": {"weights": 2.5}, "sha256": {},
    }  # fmt: skip
    write(folder / "run.json", run | facts)
    (folder / "recipe.py").write_text(show(recipe))
    rows = [
        {"step": at + 1, "tokens": 4096 * (at + 1), "loss": 7 - 3 * (at + 1) / steps, "seconds": 1.0} for at in range(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def scored_run(folder, seed, data=None, audit=VERDICTS, bpb=2.0, **facts):
    """A run folder after all stages; with `data`, nats.npy has nats of its validation targets, and bpb follows from them."""
    trained_run(folder, seed, data, **facts)
    tokens, size = (len(validation_tokens(open_dataset(data))) - 1, 3000) if data else (1000, 3000)
    nats_N = np.random.default_rng(seed).gamma(4.0, 1.0, tokens).astype(np.float32)
    if not data:
        nats_N *= bpb * math.log(2) * size / nats_N.sum(dtype=np.float64)
    nats = float(nats_N.sum(dtype=np.float64))
    bpb = nats / math.log(2) / size
    run = json.loads((folder / "run.json").read_text())
    run["phases"] |= {"compile": 8.0, "calibrate": 10.5, "quantise": 0.5, "encode": 1.5, "decode": 0.25, "score": 16.0}
    run["bpb"] = {"weights": bpb + 0.01, "packed": bpb}
    run["sha256"] = {"train_gpt.py": "a" * 64, "model.bin": MODEL_HASH}
    write(folder / "run.json", run)
    stages = [("NonOverlapping", bpb + 0.02, 6.5, None), ("Sliding", bpb, 9.75, [-0.03, -0.01])]
    score = {
        "bpb": bpb, "nats": nats, "tokens": tokens, "bytes": size, "implied_bytes": float(size), "dropped_targets": 0,
        "phases": {"decode": 0.25, "score": 16.0, "compile": 8.0}, "normalised": True, "data_hash": run["data_hash"],
        "model_sha256": MODEL_HASH,
        "stages": [
            {"name": name, "bpb": value, "nats": nats * value / bpb, "seconds": seconds}
            | {"tokens_per_second": 8901, "seconds_budget": 600.0}
            | ({"gain": {"delta_bpb": -0.02, "interval": spread, "draws": 1000, "documents": 11}} if spread else {})
            for name, value, seconds, spread in stages
        ],
    }  # fmt: skip
    write(folder / "score.json", score)
    owners = [
        {"file": "train_gpt.py" if kind == "code" else "model.bin", "owner": name, "kind": kind, "bytes": most + seed % 7}
        for name, kind, most in OWNERS
    ]
    files = {"train_gpt.py": owners[-1]["bytes"], "model.bin": sum(one["bytes"] for one in owners[:-1])}
    write(folder / "ledger.json", {"total": sum(files.values()), "cap": 16_000_000, "files": files, "owners": owners})
    np.save(folder / "nats.npy", nats_N)
    if audit:
        write(folder / "audit.json", audit_json(audit))
    return folder


def write(path, value):
    path.write_text(json.dumps(value))


def change(path, **facts):
    """A JSON file with other values in it; None takes a key out."""
    value = json.loads(path.read_text()) | facts
    write(path, {key: one for key, one in value.items() if one is not None})
