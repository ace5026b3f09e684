"""The log of a run, in the line formats of the contest's logs, from what the run folder holds and nothing else."""

from ..runfolder import PACKED, PROGRAM

MOST_STEP_LINES = 1000  # lines of steps; of more steps every k-th is written, and the last


def log_name(one):
    """The file name of a run's log."""
    return f"train_seed{one.seed}.log"


def log_text(one):
    """A scored run's log: hashes at its head, steps, seconds, bytes, then every stage with nats a token and bpb.

    `one`: a Measured with its score and ledger, and metrics.
    """
    lines = [*head_lines(one), "", *step_lines(one), *phase_lines(one), *size_lines(one), *stage_lines(one)]
    return "\n".join(lines) + "\n"


def head_lines(one):
    """Which code, model, recipe and data the log is of, and on what it was run. What an older run.json lacks is left out."""
    run, score = one.run, one.score
    told = {
        "code_sha256": run["sha256"][PROGRAM], "model_sha256": run["sha256"][PACKED], "recipe_hash": run["recipe_hash"],
        "source_hash": run.get("source_hash"), "data_hash": run["data_hash"],
        "tokenizer_sha256": run.get("tokenizer_sha256"), "seed": one.seed, "began": run.get("began"),
        "fairway": run.get("fairway"), "torch": run["torch"], "device": run["device"], "world_size": run["world_size"],
        "model_params": run.get("parameters"), "val_tokens": score["tokens"] + score.get("dropped_targets", 0),
        "val_bytes": score["bytes"],
    }  # fmt: skip
    return [f"{name}: {value}" for name, value in told.items() if value is not None]


def step_lines(one):
    """Lines of metrics.jsonl, and the end of training by its clock, which the synchronisation of all ranks ends."""
    rows, steps = one.metrics(), one.run["steps"]
    every = -(-len(rows) // MOST_STEP_LINES) or 1
    kept = [row for row in rows if row["step"] % every == 0 or row["step"] in (1, steps)]
    lines = [f"step:{row['step']}/{steps} train_loss:{row['loss']:.4f} {pace(row['seconds'], row['step'])}" for row in kept]
    return [*lines, f"step:{steps}/{steps} ended {pace(one.train_seconds, steps)}"]


def pace(seconds, steps):
    """Time of training so far, and of a step, in milliseconds."""
    return f"train_time:{milliseconds(seconds)} step_avg:{1000 * seconds / steps:.2f}ms"


def milliseconds(seconds):
    """Seconds as whole milliseconds with their unit."""
    return f"{1000 * seconds:.0f}ms"


def phase_lines(one):
    """Seconds of what stands beside training; calibration reads data to set weights, packing does not."""
    phases = one.run["phases"]
    packing = phases.get("quantise", 0.0) + phases.get("encode", 0.0)
    told = {name: phases[name] for name in ("compile", "validate", "decode") if name in phases}
    told |= {"calibration": phases.get("calibrate", 0.0), "packing": packing}
    return [f"{name} time:{milliseconds(seconds)}" for name, seconds in told.items()]


def size_lines(one):
    """Bytes of code, model and both, as they lie on the disk."""
    files = one.ledger["files"]
    return [
        f"Code size: {files[PROGRAM]} bytes",
        f"Serialized model packed: {files[PACKED]} bytes",
        f"Total submission size packed: {one.total_bytes} bytes",
    ]


def stage_lines(one):
    """The trained weights' bpb, which is no score of the artifact, then the stages of score.json; the last is the score."""
    unpacked = {name: bpb for name, bpb in one.run["bpb"].items() if name != "packed"}
    lines = [f"pre_quant_{name} val_bpb:{bpb:.8f}" for name, bpb in unpacked.items()]
    tokens = one.score["tokens"]
    for stage in one.score["stages"]:
        figures = f"val_loss:{stage['nats'] / tokens:.8f} val_bpb:{stage['bpb']:.8f}"
        lines.append(f"{stage['name']} {figures} eval_time:{milliseconds(stage['seconds'])} tokens:{tokens}")
    return lines
