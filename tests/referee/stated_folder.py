"""A record folder that states everything: hashes of its files, figures of every seed, a table with all columns."""

import hashlib
import json
import statistics
from pathlib import Path

from referee.gallery.base import HONEST_SCRIPT, RUNS, log_lines, mean

RECIPE, SOURCE, DATA = "39f585d603e80f0b", "fad66e90b0f40c75", "dac87836b11346cd"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def model_of(run):
    """What stands for the packed model of a run."""
    return f"model of seed {run.seed}".encode()


def head_lines(run, script, recipe=RECIPE):
    """The lines that tell which files and data a log is of."""
    return [
        f"code_sha256: {digest(script.encode())}",
        f"model_sha256: {digest(model_of(run))}",
        f"recipe_hash: {recipe}",
        f"source_hash: {SOURCE}",
        f"data_hash: {DATA}",
    ]


def seed_row(run, code, log):
    """What submission.json says of one seed. `log`: its log's bytes."""
    return {
        "val_bpb": round(run.bpb, 8),
        "val_loss": round(run.loss, 8),
        "artifact_bytes": run.model + code,
        "steps": run.steps,
        "train_seconds": run.train_ms / 1000,
        "eval_seconds": run.eval_ms / 1000,
        "log_sha256": digest(log),
        "model_sha256": digest(model_of(run)),
    }


def stated_claims(runs, code, script, logs):
    """submission.json of these runs with all figures. `logs`: {seed: bytes}."""
    totals = [run.model + code for run in runs]
    return {
        "author": "A. Participant",
        "github_id": "a-participant",
        "name": "Nine plain layers",
        "date": "2026-04-02",
        "track": "10min_16mb",
        "val_bpb": round(mean([run.bpb for run in runs]), 8),
        "val_bpb_std": round(statistics.stdev([run.bpb for run in runs]), 8),
        "val_loss": round(mean([run.loss for run in runs]), 8),
        "val_loss_std": round(statistics.stdev([run.loss for run in runs]), 8),
        "bytes_total": max(totals),
        "bytes_code": code,
        "artifact_bytes_mean": round(mean(totals), 1),
        "artifact_bytes_max": max(totals),
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): seed_row(run, code, logs[run.seed]) for run in runs},
        "wallclock_seconds": max(run.train_ms for run in runs) / 1000,
        "eval_time_seconds": max(run.eval_ms for run in runs) / 1000,
        "step_stop": min(run.steps for run in runs),
        "train_gpt_sha256": digest(script.encode()),
        "recipe_hash": RECIPE,
        "source_hash": SOURCE,
        "data_hash": DATA,
    }


def stated_readme(runs, code):
    """README.md of these runs with a column of every kind."""
    bpb, spread = mean([run.bpb for run in runs]), statistics.stdev([run.bpb for run in runs])
    totals = [run.model + code for run in runs]
    rows = [
        f"| {run.seed} | {run.steps} | {run.train_ms / run.steps:.2f} | {run.loss:.8f} | {run.bpb:.8f} | {total:,} "
        f"| {run.train_ms / 1000:.2f} | {run.eval_ms / 1000:.1f} |"
        for run, total in zip(runs, totals, strict=True)
    ]
    average = (
        f"| mean | {mean([run.steps for run in runs]):.1f} | {mean([run.train_ms / run.steps for run in runs]):.2f} "
        f"| {mean([run.loss for run in runs]):.8f} | {bpb:.8f} | {mean(totals):,.1f} "
        f"| {mean([run.train_ms / 1000 for run in runs]):.2f} | {mean([run.eval_ms / 1000 for run in runs]):.1f} |"
    )
    return "\n".join(
        [
            f"# Record: Nine plain layers - val_bpb {bpb:.5f} ({len(runs)}-seed mean)",
            "",
            f"**val_bpb = {bpb:.5f}** ({len(runs)}-seed mean, std {spread:.5f}) | **{max(totals) / 1e6:.2f} MB** | 8xH100",
            "",
            "| seed | steps | ms/step | val_loss | val_bpb | bytes | train s | eval s |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            average,
            "",
            f"`model.bin` is the model of seed {runs[0].seed}.",
            "",
        ]
    )


def write_stated(folder, runs=RUNS, script=HONEST_SCRIPT, recipe=RECIPE):
    """The folder of these runs; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_gpt.py").write_text(script)
    (folder / "model.bin").write_bytes(model_of(runs[0]))
    code, logs = len(script.encode()), {}
    for run in runs:
        logs[run.seed] = ("\n".join(head_lines(run, script, recipe) + log_lines(run, code)) + "\n").encode()
        (folder / f"train_seed{run.seed}.log").write_bytes(logs[run.seed])
    (folder / "submission.json").write_text(json.dumps(stated_claims(runs, code, script, logs), indent=2) + "\n")
    (folder / "README.md").write_text(stated_readme(runs, code))
    return folder


def log_again(folder, seed, text):
    """Writes a seed's log and states its new hash, as a forger would."""
    (Path(folder) / f"train_seed{seed}.log").write_text(text)
    path = Path(folder) / "submission.json"
    claims = json.loads(path.read_text())
    claims["seed_results"][str(seed)]["log_sha256"] = digest(text.encode())
    path.write_text(json.dumps(claims, indent=2) + "\n")
