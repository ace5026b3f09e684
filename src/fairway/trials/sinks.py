"""Metrics for TensorBoard and Weights & Biases, by their own packages; a run neither waits for them nor fails by them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..problem import Problem
from ..runfolder import METRICS, read_run
from ..terminal import Terminal

WANDB_PROJECT = "fairway"
ROW_STEP = "step"  # of a row of metrics.jsonl: its place on the axis


@contextmanager
def open_sinks(names, folder):
    """Yields `watch(row)` for stages.train, to be called by the one rank that writes; None where `names` is empty.

    `names`: "tensorboard" (event files in FOLDER/tensorboard) and "wandb" (as the user has set it up, online or offline, its
    files in FOLDER/wandb). Each call sends the rows of FOLDER/metrics.jsonl that have not been sent, the end run.json's
    bpb; nothing is made before the first row. A resumed run sends all of its rows again, over those sent before.
    Problem for a package that is not installed, and for wandb without an account. What fails later is noted once and left.
    """
    if not names:
        yield None
        return
    sinks = [TensorBoardSink() if name == "tensorboard" else WandbSink() for name in dict.fromkeys(names)]
    feed, ended = Feed(sinks, Path(folder)), False
    # In a thread: opening a connection may take minutes, and the run is on a clock.
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            yield lambda row: pool.submit(feed.send) and None
            ended = True
        finally:
            fault = pool.submit(feed.close, ended).exception()
            if fault is not None:
                Terminal().note(f"not all metrics were sent ({fault})")


class Feed:
    """What goes to the sinks of one run: the rows of its metrics, each once, then its bpb."""

    def __init__(self, sinks, folder):
        self.sinks, self.folder, self.sent, self.last, self.told = sinks, folder, 0, None, False

    def send(self):
        """Sends the whole lines that metrics.jsonl has beyond the bytes already sent; opens the sinks at the first."""
        self.told = True
        with open(self.folder / METRICS, "rb") as file:
            file.seek(self.sent)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in lines.splitlines()]
        if rows and self.last is None:
            run = read_run(self.folder)
            self._each(lambda sink: sink.open(self.folder, run, rows[0][ROW_STEP]))
        if rows:
            self.last, self.sent = rows[-1], self.sent + len(lines)
            self._each(lambda sink: sink.add(rows))

    def close(self, ended):
        """Sends what is left; nothing where no row was told of: what lies there may be another run's. `ended`: whether the
        run has come to its end."""
        if not self.told:
            return
        self.send()
        bpb = read_run(self.folder).get("bpb", {})
        self._each(lambda sink: sink.close(bpb, self.last[ROW_STEP], ended))

    def _each(self, call):
        for sink in list(self.sinks):
            try:
                call(sink)
            except Exception as error:  # whatever another package raises, the run is worth more
                self.sinks.remove(sink)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                Terminal().note(f"{sink.name} failed ({reason}); the run goes on without it")


class TensorBoardSink:
    """Event files by torch's writer, which needs the package tensorboard."""

    name = "tensorboard"

    def __init__(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_package(self.name) from error
        self.kind = SummaryWriter

    def open(self, folder, run, step):
        """Begins a file. TensorBoard forgets what earlier files of the folder say of `step` and later ones."""
        self.writer = self.kind(str(folder / self.name), purge_step=step)

    def add(self, rows):
        """Rows of numbers, then at once to the disk, where they are waited for."""
        for step, figures in map(step_and_figures, rows):
            for key, value in figures.items():
                self.writer.add_scalar(f"train/{key}", value, step)
        self.writer.flush()

    def close(self, bpb, step, ended):
        """The bpb beside the last step, and the end of the file."""
        for stage, value in bpb.items():
            self.writer.add_scalar(f"bpb/{stage}", value, step)
        self.writer.close()


class WandbSink:
    """A run of Weights & Biases: rows as history, run.json as config, bpb in the summary."""

    name = "wandb"

    def __init__(self):
        try:
            import wandb
        except ImportError as error:
            raise missing_package(self.name) from error
        # It would ask for an account in the middle of training.
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise Problem("wandb has no account here; run `wandb login`, or `wandb offline` to keep its files here")
        self.package = wandb

    def open(self, folder, run, step):
        """Begins the run, or goes on with it: its id is of what was run and when."""
        facts = json.dumps([run.get(key) for key in ("recipe_hash", "data_hash", "seed", "began")])
        self.run = self.package.init(
            project=WANDB_PROJECT, dir=str(folder), name=folder.resolve().name, config=run, resume="allow",
            id=hashlib.sha256(facts.encode()).hexdigest()[:16], settings=self.package.Settings(console="off"),
        )  # fmt: skip

    def add(self, rows):
        """Rows of numbers; steps that the run has already are passed over there."""
        for step, figures in map(step_and_figures, rows):
            self.run.log(figures, step=step)

    def close(self, bpb, step, ended):
        """The bpb, and the end of the run, as failed unless it `ended`."""
        self.run.summary.update({f"bpb.{stage}": value for stage, value in bpb.items()})
        self.run.finish(exit_code=0 if ended else 1)


def step_and_figures(row):
    """A row of metrics.jsonl as its step and its other numbers."""
    return row[ROW_STEP], {key: value for key, value in row.items() if key != ROW_STEP}


def missing_package(name):
    """The Problem of a sink whose package is not installed."""
    return Problem(f"--sink {name} needs the package {name}; pip install 'fairway[{name}]', or leave it out")
