"""A submission's own two files, run in boxes: without network, without training text when they score, without validation
text when the artifact is made.

N targets.
"""

import io
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.dataset import MANIFEST, MANIFEST_FORMAT
from ..data.shards import write_shard
from ..files import file_sha256, write_json
from ..problem import Problem
from ..runfolder import NATS, PACKED, PROGRAM, SCORE, WEIGHTS
from .folder import read_folder
from .sandbox import Boxed, Limits, run_boxed
from .stated import stated

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
    """The files of a run folder and its dataset, for runs in boxes below `scratch`. `threads`: of `fairway pack` here;
    `halt`: a threading.Event that ends all boxes."""

    def __init__(self, run, dataset, scratch, seconds, threads, halt=None, devices=False):
        self.threads, self.halt = threads, halt
        self.run, self.dataset, self.scratch = Path(run), dataset, Path(scratch)
        self.limits, self.devices = Limits(seconds=seconds, memory=12 << 30, disk=4 << 30), devices
        self.training = training_folder(dataset, self.scratch / "training-data")

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
        try:
            boxed = run_boxed(command, work, {"data": data}, self.limits, environment, devices=self.devices, halt=self.halt)
        except Problem as problem:
            return Boxed(None, str(problem), 0.0, "", ())
        # The card is shared with the probes: that it was too small says nothing of the files.
        return replace(boxed, stopped="memory") if boxed.code and "CUDA out of memory" in boxed.output else boxed

    def score(self, name, tokens, bytes_N=None):
        """Scores a text, uint16 [N + 1], with nothing but the two files, the tokenizer and that text in reach."""
        work = self.box(name, (PROGRAM, PACKED))
        data = val_folder(self.dataset, self.scratch / f"{name}-data", tokens, bytes_N)
        boxed = self.start(work, data, "--stage", "score", "--keep-nats")
        nats_N, claims = None, {}
        if boxed.code == 0:
            nats_N, claims = read_nats(work, len(tokens)), stated(work / SCORE)
        return BoxedScore(nats_N, claims, boxed)

    def pack(self):
        """Makes the artifact again from the trained weights, with no validation text there: (SHA-256 of model.bin or None,
        the run)."""
        work = self.box("pack", (PROGRAM, WEIGHTS))
        boxed = self.start(work, self.training, "--stage", "pack", threads=self.threads)
        made = work / PACKED
        return (file_sha256(made) if boxed.code == 0 and made.is_file() and not made.is_symlink() else None), boxed

    def train(self, steps):
        """Trains so many steps, with no validation text there."""
        work = self.box("train", (PROGRAM,))
        boxed = self.start(work, self.training, "--stage", "train", "--steps", str(steps))
        return (work / WEIGHTS).is_file(), boxed


def training_folder(dataset, folder):
    """A data folder whose training shards are there and whose validation shards cannot be read."""
    folder.mkdir()
    shards, whole = dataset.manifest["shards"], dataset.manifest
    for name in [one["file"] for one in shards if one["split"] == "train"] + [whole["tokenizer"]["file"]]:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        lend(dataset.folder / name, place)
    for one in [*(one for one in shards if one["split"] != "train"), *whole.get("byte_files", ())]:
        forbid(folder / one["file"])
    write_json(folder / MANIFEST, whole)
    return folder


def val_folder(dataset, folder, tokens, bytes_N=None):
    """A data folder whose only text is `tokens`, as validation; training shards are there, but cannot be read. `bytes_N`:
    where the data bring their own counts of bytes, int [N + 1]."""
    folder.mkdir()
    write_shard(folder / VAL_NAME, np.asarray(tokens, np.uint16))
    lend(dataset.tokenizer, folder / TOKENIZER_NAME)
    entry = {"split": "val", "file": VAL_NAME, "tokens": len(tokens), "sha256": file_sha256(folder / VAL_NAME)}
    shards = [shard for shard in dataset.manifest["shards"] if shard["split"] == "train"]
    for shard in shards:
        forbid(folder / shard["file"])
    manifest = {
        "format": MANIFEST_FORMAT, "vocab": dataset.vocab, "shards": [*shards, entry],
        "tokenizer": {"file": TOKENIZER_NAME, "sha256": file_sha256(folder / TOKENIZER_NAME)},
    }  # fmt: skip
    if dataset.byte_files:
        write_shard(folder / BYTES_NAME, np.ones(len(tokens), np.uint16) if bytes_N is None else bytes_N)
        one = {"file": BYTES_NAME, "tokens": len(tokens), "sha256": file_sha256(folder / BYTES_NAME)}
        manifest["byte_files"] = [one]
    write_json(folder / MANIFEST, manifest)
    return folder


def forbid(place):
    """A file that is there and that nobody in a box can open."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch(mode=0)


def lend(source, place):
    """The file under another name: a hard link, or a copy where that cannot be."""
    try:
        os.link(os.path.realpath(source), place)
    except OSError:
        try:
            shutil.copyfile(source, place)
        except OSError as error:
            raise Problem(f"cannot read {source}: {error.strerror}; fetch or build it again") from error


def read_nats(work, most):
    """The nats that a boxed program left behind, float64 [at most `most`], or None for a file that is none. The header of a
    stranger's array is not believed: memory is taken for the bytes that are there."""
    try:
        file = io.BytesIO(read_folder(work).data(NATS, 8 * most + 4096))
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        nats_N = np.frombuffer(file.getvalue(), dtype if dtype.kind == "f" else "V1", offset=file.tell())
    except (Problem, ValueError, TypeError, SyntaxError):
        return None
    return nats_N.astype(np.float64) if dtype.kind == "f" and nats_N.shape == shape else None
