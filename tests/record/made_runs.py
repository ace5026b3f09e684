"""Run folders out of small files: packed, scored and audited, without any training."""

import hashlib
import json
import math
import random

import numpy as np

from fairway.node import digest, override, show
from fairway.recipes.demo import demo

SEEDS = (42, 314, 1234)
STEPS, TOKENS, BYTES = 6, 4000, 10_000
SETTINGS = ("train.budget.steps=6", "train.budget.seconds=0.0")
PROGRAM = b"import numpy\nimport sentencepiece\nimport torch\n\nprint(numpy, sentencepiece, torch)\n"
PROVEN = ("C1", "C2", "C3", "C4", "D1", "D2", "A9")
ABOUT = {"name": "Small steps", "author": "A. Author", "github": "author", "blurb": "", "track": "10min_16mb"}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def write_run(folder, seed=42, program=PROGRAM, model=None, train=12.5, calibrate=1.25, scoring=3.25, recipe=None):
    """A whole run folder; bpb by its seed."""
    folder.mkdir(parents=True)
    recipe = override(demo(), SETTINGS) if recipe is None else recipe
    model = random.Random(seed).randbytes(20_000 + seed) if model is None else model
    nats_N = np.random.default_rng(seed).uniform(1.0, 2.0, TOKENS)
    nats = float(nats_N.sum())
    bpb, hashes = nats / math.log(2) / BYTES, {"train_gpt.py": sha256(program), "model.bin": sha256(model)}
    (folder / "train_gpt.py").write_bytes(program)
    (folder / "model.bin").write_bytes(model)
    (folder / "recipe.py").write_text(show(recipe))
    np.save(folder / "nats.npy", nats_N)
    rows = [
        {"step": at, "tokens": at * 64, "seconds": round(at * (train - 0.5) / STEPS, 4), "rate": 1.0, "loss": 7.0 - at / 10}
        for at in range(1, STEPS + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    total = len(program) + len(model)
    owners = [("model.bin", "blocks.0.mlp.up", "q", len(model) - 100), ("model.bin", "token.table", "value", 100)]
    owners.append(("train_gpt.py", "program", "code", len(program)))
    named = [dict(zip(("file", "owner", "kind", "bytes"), one, strict=True)) for one in owners]
    sizes = {"train_gpt.py": len(program), "model.bin": len(model)}
    write(folder / "ledger.json", {"total": total, "cap": 16_000_000, "files": sizes, "owners": named})
    stages = [
        {"name": "NonOverlapping", "bpb": bpb * 1.01, "nats": nats * 1.01, "seconds": 1.5},
        {"name": "Sliding", "bpb": bpb, "nats": nats, "seconds": scoring},
    ]
    score = {
        "bpb": bpb, "nats": nats, "tokens": TOKENS, "bytes": BYTES, "dropped_targets": 0, "stages": stages,
        "normalised": True, "data_hash": "0123456789abcdef", "model_sha256": hashes["model.bin"],
    }  # fmt: skip
    write(folder / "score.json", score)
    told = hashes | {"metrics.jsonl": sha256((folder / "metrics.jsonl").read_bytes())}
    run = {
        "fairway": "0.1.0", "torch": "2.13.0+cpu", "recipe": "demo", "recipe_hash": digest(recipe),
        "source_hash": "fedcba9876543210", "data": "/somewhere/data", "data_hash": "0123456789abcdef", "seed": seed,
        "tokenizer_sha256": "ab" * 32, "began": f"2026-11-21T10:00:{seed % 60:02}+00:00",
        "versions": {"python": "3.11.7", "numpy": "2.4.6", "sentencepiece": "0.2.3"}, "parameters": 2_095_513,
        "parent": "demo", "changes": {"train.budget.steps": ["240", "6"], "train.budget.seconds": ["150.0", "0.0"]},
        "device": "NVIDIA H100 80GB HBM3", "world_size": 8, "threads": 1, "steps": STEPS, "tokens": STEPS * 64,
        "phases": {"train": train, "calibrate": calibrate, "quantise": 0.5, "encode": 0.25, "score": scoring + 1.5},
        "bpb": {"weights": bpb * 0.99, "packed": bpb}, "sha256": told,
    }  # fmt: skip
    write(folder / "run.json", run)
    write(folder / "audit.json", audit_of(run, total, scoring, bpb))
    return folder


def audit_of(run, total, scoring, bpb):
    """An audit in which all that the tests ask for passed."""
    phases = run["phases"]
    figures = [("A1", total, ""), ("T1", phases["train"], ""), ("T2", phases["train"] + phases["calibrate"], "")]
    figures += [("T4", scoring, ""), *((rule, 0, "") for rule in PROVEN)]
    figures += [
        ("G3", {name: one[:12] for name, one in run["sha256"].items()}, "run.json"),
        ("G3", {"bpb": bpb}, "score.json"),
    ]
    limits = {"A1": 16_000_000, "T1": 600.2, "T2": 600.2, "T4": 600.2}
    rows = [
        {
            "rule": rule, "condition": f"{rule}: a | b", "severity": "fail", "measured": measured,
            "verdict": "FAIL" if rule in limits and measured > limits[rule] else "PASS",
            "expected": "", "tolerance": "", "evidence": evidence, "source": "",
        }
        for rule, measured, evidence in figures
    ]  # fmt: skip
    failed = sum(row["verdict"] == "FAIL" for row in rows)
    summary = {"pass": len(rows) - failed, "fail": failed, "not_tested": 0}
    return {"policy": "as-practised", "verdicts": rows, "summary": summary, "run": "seed", "full": False, "seconds": 1.0}


def write_seeds(folder, seeds=SEEDS):
    """Run folders seed42 and so on; returns their paths."""
    return [write_run(folder / f"seed{seed}", seed) for seed in seeds]


def write(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n")


def change(path, amend):
    """Rewrites a JSON file by `amend(content)`."""
    content = json.loads(path.read_text())
    amend(content)
    write(path, content)


def put(*keys_and_value):
    """An `amend` that puts a value under keys, one within the other."""
    *keys, last, value = keys_and_value

    def amend(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return amend


def verdict(rule, word):
    """An `amend` of an audit by which a rule has another verdict."""

    def amend(content):
        for row in content["verdicts"]:
            if row["rule"] == rule:
                row["verdict"] = word
        found = [row["verdict"] for row in content["verdicts"]]
        names = {"pass": "PASS", "fail": "FAIL", "not_tested": "NOT TESTED"}
        content["summary"] = {name: found.count(one) for name, one in names.items()}

    return amend
