"""A submission's own two files, run in boxes: without network, without training text when they score, without validation
text when the artifact is made.

N targets.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.dataset import MANIFEST, MANIFEST_FORMAT
from ..data.shards import write_shard
from ..files import file_sha256, read_json, write_json
from ..problem import Problem
from ..runfolder import NATS, PACKED, PROGRAM, SCORE, WEIGHTS
from .sandbox import Limits, run_boxed

BOXES = "boxes"  # of the scratch folder: what programs may have left anything in
VAL_NAME, TOKENIZER_NAME, BYTES_NAME = "val.bin", "tokenizer.model", "val_bytes.bin"


@dataclass(frozen=True, eq=False)
class BoxedScore:
    """What a boxed `--stage score` gave: nats of every target (float64 [N], None where it ended otherwise), score.json's
    content, and the run itself."""

    nats_N: object
    claims: dict
    boxed: object


class Submitted:
    """The files of a run folder and its dataset, for runs in boxes below `scratch`. `threads`: of `fairway pack` here."""

    def __init__(self, run, dataset, scratch, seconds, threads, devices=False):
        self.threads = threads
        self.run, self.dataset, self.scratch = Path(run), dataset, Path(scratch)
        self.limits, self.devices = Limits(seconds=seconds, memory=12 << 30, disk=4 << 30), devices

    def box(self, name, files):
        """A working folder with copies of the run's files."""
        work = self.scratch / BOXES / name
        work.mkdir(parents=True)
        for file in files:
            shutil.copyfile(self.run / file, work / file)
        return work

    def start(self, work, data, *arguments, threads=1):
        """Runs train_gpt.py with the arguments in a box. The number of threads changes rounding."""
        command = ["python", PROGRAM, "--data", "/box/data", "--out", "/box/work", *arguments]
        environment = {"OMP_NUM_THREADS": str(threads)}
        return run_boxed(command, work, {"data": data}, self.limits, environment, devices=self.devices)

    def score(self, name, tokens, bytes_N=None):
        """Scores a text, uint16 [N + 1], with nothing but the two files, the tokenizer and that text in reach."""
        work = self.box(name, (PROGRAM, PACKED))
        data = val_folder(self.dataset, self.scratch / f"{name}-data", tokens, bytes_N)
        boxed = self.start(work, data, "--stage", "score", "--keep-nats")
        nats_N, claims = None, {}
        if boxed.code == 0:
            nats_N, claims = read_nats(work / NATS), read_claimed(work / SCORE)
        return BoxedScore(nats_N, claims, boxed)

    def pack(self):
        """Makes the artifact again from the trained weights, with no validation text there: (SHA-256 of model.bin or None,
        the run)."""
        work = self.box("pack", (PROGRAM, WEIGHTS))
        boxed = self.start(work, self.training(), "--stage", "pack", threads=self.threads)
        made = work / PACKED
        return (file_sha256(made) if boxed.code == 0 and made.is_file() and not made.is_symlink() else None), boxed

    def train(self, steps):
        """Trains so many steps, with no validation text there."""
        work = self.box("train", (PROGRAM,))
        boxed = self.start(work, self.training(), "--stage", "train", "--steps", str(steps))
        return (work / WEIGHTS).is_file(), boxed

    def training(self):
        """A data folder with the training shards alone."""
        folder = self.scratch / "training-data"
        if not folder.exists():
            folder.mkdir()
            manifest, dataset = dict(self.dataset.manifest), self.dataset
            manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] == "train"]
            manifest["byte_files"] = []
            names = [shard["file"] for shard in manifest["shards"]] + [manifest["tokenizer"]["file"]]
            for name in names:
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                lend(dataset.folder / name, place)
            write_json(folder / MANIFEST, manifest)
        return folder


def val_folder(dataset, folder, tokens, bytes_N=None):
    """A data folder whose only text is `tokens`, as validation. `bytes_N`: where the data bring their own counts of bytes,
    int [N + 1]."""
    folder.mkdir()
    write_shard(folder / VAL_NAME, np.asarray(tokens, np.uint16))
    lend(dataset.tokenizer, folder / TOKENIZER_NAME)
    entry = {"split": "val", "file": VAL_NAME, "tokens": len(tokens), "sha256": file_sha256(folder / VAL_NAME)}
    manifest = {
        "format": MANIFEST_FORMAT, "vocab": dataset.vocab, "shards": [entry],
        "tokenizer": {"file": TOKENIZER_NAME, "sha256": file_sha256(folder / TOKENIZER_NAME)},
    }  # fmt: skip
    if dataset.byte_files:
        write_shard(folder / BYTES_NAME, np.ones(len(tokens), np.uint16) if bytes_N is None else bytes_N)
        one = {"file": BYTES_NAME, "tokens": len(tokens), "sha256": file_sha256(folder / BYTES_NAME)}
        manifest["byte_files"] = [one]
    write_json(folder / MANIFEST, manifest)
    return folder


def lend(source, place):
    """The file under another name: a hard link, or a copy where that cannot be."""
    try:
        os.link(os.path.realpath(source), place)
    except OSError:
        try:
            shutil.copyfile(source, place)
        except OSError as error:
            raise Problem(f"cannot read {source}: {error.strerror}; fetch or build it again") from error


def read_nats(path):
    """The nats that a boxed program left behind, float64 [N], or None for a file that is none."""
    try:
        nats_N = np.load(path, allow_pickle=False) if not path.is_symlink() else None
    except (OSError, ValueError, EOFError):
        return None
    good = isinstance(nats_N, np.ndarray) and nats_N.ndim == 1 and nats_N.dtype.kind == "f"
    return nats_N.astype(np.float64) if good else None


def read_claimed(path):
    """The score.json that a boxed program left behind, or {} for a file that is none."""
    try:
        found = read_json(path) if not path.is_symlink() else {}
    except Problem:
        return {}
    return found if isinstance(found, dict) else {}
