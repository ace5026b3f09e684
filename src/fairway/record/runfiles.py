"""Run folders without torch: finding them among thousands, and what their small files say."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..files import read_json
from ..problem import Problem
from ..runfolder import AUDIT, LEDGER, RUN, SCORE, fits_kind, read_run

SKIPPED = ("__pycache__", ".git", ".venv")
# Where the two long files say their sums: the ledger's total stands first, the audit's summary near its end.
LEDGER_HEAD = re.compile(rb'\{\s*"total": (\d+),')
# What is read of a run's files; a number is above 0, but for the bytes of an owner.
NEEDED_KEYS = {
    SCORE: {"bpb": float, "nats": float, "tokens": int, "bytes": int, "stages": list},
    LEDGER: {"total": int, "cap": int, "files": dict[str, int], "owners": list},
    AUDIT: {"verdicts": list, "summary": dict},
}
NEEDED_ROWS = {
    "stages": {"name": str, "bpb": float, "nats": float, "seconds": float},
    "owners": {"file": str, "owner": str, "kind": str, "bytes": int},
    "verdicts": {"rule": str, "condition": str, "verdict": str, "evidence": str},
}
# What may be absent, of the files and of their rows.
OPTIONAL_KEYS = {
    SCORE: {
        "dropped_targets": int, "normalised": bool, "phases": dict[str, float], "data_hash": str, "model_sha256": str,
    },
    LEDGER: {},
    AUDIT: {"policy": str, "full": bool},
    "stages": {"gain": dict | None, "seconds_forecast": float, "tokens_per_second": float},
    "owners": {},
    "verdicts": {"source": str},
}  # fmt: skip
AUDIT_TAIL = re.compile(rb'"summary": (\{[^{}]*\})')


@dataclass(frozen=True)
class RunFiles:
    """A run folder's files, read: run.json whole, the others None where they are not there yet."""

    folder: Path
    run: dict
    score: dict | None
    ledger: dict | None
    audit: dict | None

    @property
    def name(self):
        return self.folder.absolute().name

    @property
    def seed(self):
        return self.run["seed"]

    @property
    def bpb(self):
        """Bits per byte of the packed file by the recipe's own evaluation, or None."""
        return self.run.get("bpb", {}).get("packed")

    @property
    def nats_per_token(self):
        """Mean nats of a target of the score, or None."""
        return self.score["nats"] / self.score["tokens"] if self.score else None

    @property
    def bytes_per_token(self):
        """Mean bytes of a scored target, or None."""
        return self.score["bytes"] / self.score["tokens"] if self.score else None

    @property
    def staircase(self):
        """[(stage, bpb)] from the trained weights to the score: weights, then the stages of score.json in their order."""
        steps = [("weights", self.run["bpb"]["weights"])] if "weights" in self.run.get("bpb", {}) else []
        return steps + [(stage["name"], stage["bpb"]) for stage in (self.score or {}).get("stages", ())]

    @property
    def train_seconds(self):
        """Seconds of training that the clock counted, or None."""
        return self.run.get("phases", {}).get("train")

    @property
    def artifact_seconds(self):
        """Training and calibration: all that reads data to set weights; None before training has ended."""
        phases = self.run.get("phases", {})
        return phases["train"] + phases.get("calibrate", 0.0) if "train" in phases else None

    @property
    def score_seconds(self):
        """Seconds of the pass that is the score, or None."""
        return self.score["stages"][-1]["seconds"] if self.score and self.score.get("stages") else None

    @property
    def total_bytes(self):
        """Bytes of train_gpt.py and model.bin together, or None."""
        return self.ledger["total"] if self.ledger else None


def run_folders(paths):
    """Run folders among and below `paths`, each path's in order of name, every one once; a run's own folders are not looked
    into. Problem for a path that is not there."""
    found = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise Problem(f"{path} is no folder; give run folders, or a folder of them")
        # Links are not followed below `path`, so that what it resolves to is the head of all that is found there.
        head, length = os.path.realpath(path), len(str(path))
        for place, inner, names in os.walk(path):
            inner[:] = [] if RUN in names else sorted(name for name in inner if name not in SKIPPED)
            if RUN in names:
                found.setdefault(os.path.join(head, place[length:].lstrip(os.sep)).rstrip(os.sep), Path(place))
    return list(found.values())


def glance_at(folder):
    """The RunFiles of a run folder, for lists of thousands: of the ledger only its `total`, of the audit its `summary`.

    Problem for a folder without a run, or with a broken file; what is not read is not checked.
    """
    folder = Path(folder)
    run = read_run(folder, "data_hash", "recipe_hash", "seed")
    names = os.listdir(folder)
    score, ledger, audit = (folder / name if name in names else None for name in (SCORE, LEDGER, AUDIT))
    return RunFiles(
        folder,
        run,
        score and object_in(score),
        ledger and glance_in(ledger, LEDGER_HEAD, "total", 200, os.SEEK_SET),
        audit and glance_in(audit, AUDIT_TAIL, "summary", -4096, os.SEEK_END),
    )


def checked_object(path):
    """A JSON file's object with the keys that are read of it. Problem where it is broken, or lacks one."""
    found = object_in(path)
    if lack := lacking(found, NEEDED_KEYS[path.name], OPTIONAL_KEYS[path.name]):
        raise Problem(f"{path} {lack}; write it again")
    return found


def lacking(content, keys, optional):
    """What an object lacks of `keys` ({key: kind}, and rows of lists by NEEDED_ROWS), or has of another kind, in words, or
    None. `optional` keys may be absent."""
    for key, kind in (keys | {key: kind for key, kind in optional.items() if key in content}).items():
        value = content.get(key)
        zero = type(value) in (int, float) and value == 0
        if not fits_kind(value, kind) or (zero and key in keys and keys is not NEEDED_ROWS["owners"]):
            return f"has no {key}" if value is None else f"has {value!r:.40} as its {key}"
        for row in value if kind is list else ():
            lack = lacking(row, NEEDED_ROWS[key], OPTIONAL_KEYS[key]) if isinstance(row, dict) else f"has {row!r:.40}"
            if lack:
                return f"{lack} among its {key}"
    return None


def refuse_other_file(out, start, what):
    """Problem where `out` is a file that does not begin with the bytes `start`: a run's own file, say, would be lost."""
    try:
        found = b""
        if Path(out).is_file():
            with open(out, "rb") as file:
                found = file.read(len(start))
    except OSError as error:
        raise Problem(f"cannot read {out}, which stands there already: {error.strerror}") from None
    if found not in (b"", start):
        raise Problem(f"{out} stands there already and is no {what}; name another file")


def object_in(path):
    """A JSON file's object. Problem where it is broken, or holds something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise Problem(f"{path} holds a {type(found).__name__}, not an object; write it again")
    return found


def glance_in(path, pattern, key, length, whence):
    """{key: value} of a JSON file, by `pattern` in its first (or with SEEK_END and a negative number, last) `length` bytes;
    from the whole file where it is not found there."""
    with open(path, "rb") as file:
        if whence == os.SEEK_END:
            file.seek(max(0, file.seek(0, whence) + length))
        match = pattern.search(file.read(abs(length)))
    return {key: json.loads(match[1])} if match else {key: object_in(path)[key]}
