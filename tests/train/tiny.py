"""A recipe that trains in a second, and the command line in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fairway.recipes.catalogue  # settings may name any node of it
from fairway.node import override
from fairway.recipes.demo import demo

SOURCES = Path(__file__).parents[2] / "src"
VOCAB = 300
MODEL = (
    f"model.vocab={VOCAB}", "model.width=32", "model.layers=3", "model.heads=2", "model.kv_heads=1", "model.sequence=32",
    "model.inputs.BigramHash.buckets=128", "model.inputs.BigramHash.dim=16",
)  # fmt: skip
# The average begins with the first step, so that every interrupt finds it begun.
SETTINGS = (
    *MODEL, "train.batch_tokens=256", "train.micro_tokens=128", "average.SWA.below=2.0", "average.SWA.every=4",
    "evaluate.windows=Sliding(length=32, stride=16)",
)  # fmt: skip
IN_ORDER = "loader=SequentialShards()"


def tiny(*settings):
    """The recipe with more settings."""
    return override(demo(), [*SETTINGS, *settings])


def train_arguments(data, out, *settings, steps=12):
    return ["train", "demo", "--data", data, "--out", out, "--steps", steps, "--set", *SETTINGS, *settings]


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    path = os.pathsep.join(filter(None, (str(SOURCES), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(ranks):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]


def begin(*arguments, launcher=()):
    """Starts `python [launcher] -m fairway ARGUMENTS` and returns the process."""
    return subprocess.Popen(
        [sys.executable, *map(str, launcher), "-m", "fairway", *map(str, arguments)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, seconds=120):
    """(exit code, standard output, standard error) of a process that must end by itself."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def fairway(*arguments, launcher=()):
    return finish(begin(*arguments, launcher=launcher))


def rows(run):
    """The lines of a run's metrics so far."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(run):
    """Loss, gradient norm, rate and tokens of every step: all but the seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(run)]


def interrupt(process, run, after, number=signal.SIGINT, seconds=60):
    """Signals the process as soon as the run's metrics have more than `after` lines; what `finish` gives."""
    end = time.monotonic() + seconds
    while process.poll() is None and (not (run / "metrics.jsonl").exists() or lines(run) <= after):
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"{run} has {lines(run)} lines after {seconds} s")
        time.sleep(0.005)
    assert process.poll() is None, f"ended before the signal: {process.communicate()}"
    process.send_signal(number)
    return finish(process)


def lines(run):
    return (run / "metrics.jsonl").read_bytes().count(b"\n")
