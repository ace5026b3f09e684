"""Runs a folder's script as a black box: in a sandbox, on streams of known entropy laid out as the contest's data are."""

import hashlib
import json
import os
import re
import stat
import tempfile
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..data.dataset import MANIFEST, MANIFEST_FORMAT
from ..data.shards import write_shard
from ..files import file_sha256
from ..problem import Problem
from .folder import read_folder
from .logs import Log, read_log
from .sandbox import Boxed, Limits, clear_box, run_boxed
from .streams import noise_stream, noise_tokenizer, read_alphabet

TRAIN_TOKENS = 131_072
SEQUENCE = 256  # what scripts that ask their environment are told to train on
TRAIN_SEED = 17
VAL_FILE, TRAIN_FILES = "fineweb_val_000000.bin", ("fineweb_train_000000.bin", "fineweb_train_000001.bin")
MOST_COPIED, MOST_FILES, MOST_HASHED = 512 << 20, 4000, 1 << 30
DEEPEST_FOLDER = 40
RUN_LOG = "run.log"
NO_ARTIFACT = (".py", ".pyc", ".txt", ".log", ".json", ".jsonl", ".csv", ".md", ".so", ".c", ".cpp", ".cu", ".o", ".h")


@dataclass(frozen=True, eq=False)
class Kept:
    """A file that a run wrote: `written` and `read_back` in seconds (None where that was not seen); digest and size of what
    is there at its end, or None."""

    name: str
    written: float | None
    read_back: float | None
    digest: str | None
    size: int | None


@dataclass(frozen=True, eq=False)
class Trial:
    """One run: what it was shown, what came of it, and what its trace says.

    `law`: what it trained on; `stream`: the validation Stream, or None; `kept`: the files that it wrote, in the order of
    their last writing, but for source, texts and logs; `log`: its output as a Log.
    """

    label: str
    law: object
    stream: object
    boxed: Boxed
    log: Log
    kept: tuple[Kept, ...]

    def opened(self, names):
        """Seconds at which files with these last names were opened for reading."""
        return [one.seconds for one in self.boxed.events if one.kind == "read" and Path(one.what).name in names]

    def artifacts(self):
        """The files that were written and then read back."""
        return [one for one in self.kept if one.read_back is not None]


@dataclass(eq=False)
class Laboratory:
    """Everything that the runs of one script share: data, what the script was told, and the time that is left."""

    folder: object
    script: object
    root: Path
    note: object
    deadline: float
    alphabet: object
    environment: dict
    command: list
    variants: tuple
    originals: dict = field(default_factory=dict)
    trials: list = field(default_factory=list)
    forgotten: set = field(default_factory=set)

    def events(self):
        """What all runs were seen to do."""
        return [one for trial in self.trials for one in trial.boxed.events]

    def left(self):
        """Seconds left for runs."""
        return self.deadline - time.monotonic()

    def run(self, label, law, stream, silence=False):
        """The Trial of a run that trains on `law` and is shown `stream` as validation (None: there is none). None when no
        time is left for it."""
        slowest = max((one.boxed.seconds for one in self.trials), default=0.0)
        if self.left() < max(1.3 * slowest, 1.0):
            self.note(f"dynamic: no time left for {label}")
            return None
        self.note(f"dynamic: {label}")
        place = self.root / f"{len(self.trials):03d}"
        data, work, seen = place / "data", place / "work", place / "seen"
        for one in (data, work, seen):
            one.mkdir(parents=True)
        try:
            self.lay_data(data, law, stream)
            self.copy_folder(work)
            # The first run may take half of the time; where it takes more, there is too little left to compare it with.
            limits = Limits(seconds=self.left() * (1.0 if self.trials else 0.5))
            boxed = run_boxed(
                self.command,
                work,
                {"data": data},
                limits,
                self.environment,
                silence_steps=silence,
                devices=torch.cuda.is_available(),
            )
            found = self.written_files(work)
            (seen / RUN_LOG).write_text(boxed.output + written_score(work))
            log = read_log(read_folder(seen), RUN_LOG)
            log.stages = self.remembered(log)
            trial = Trial(label, law, stream, boxed, log, kept_files(boxed.events, found))
        finally:
            clear_box(place)
        self.trials.append(trial)
        return trial

    def forget(self, names):
        """Drops stages of these names, whatever their numbers, from the logs of all runs, those to come too."""
        self.forgotten |= {without_numbers(name) for name in names}
        for trial in self.trials:
            trial.log.stages = self.remembered(trial.log)

    def remembered(self, log):
        """The stages of a log that are not to be forgotten."""
        return [one for one in log.stages if without_numbers(one.name) not in self.forgotten]

    def lay_data(self, data, law, stream):
        """The data folder of a run, by the contest's names and by a manifest."""
        shards = self.training_shards(law)
        first = data / "datasets" / self.variants[0]
        first.mkdir(parents=True)
        for name, path in shards.items():
            os.link(path, first / name)
        if stream is not None:
            write_shard(first / VAL_FILE, stream.tokens)
        for other in self.variants[1:]:
            (data / "datasets" / other).symlink_to(first.name)
        (data / "tokenizers").mkdir()
        model = self.root / "tokenizer.model"
        name = Path(self.environment["TOKENIZER_PATH"]).name
        os.link(model, data / "tokenizers" / name)
        entries = [("train", one, TRAIN_TOKENS) for one in shards]
        if stream is not None:
            entries.append(("val", VAL_FILE, stream.targets + 1))
        manifest = {
            "format": MANIFEST_FORMAT,
            "vocab": self.alphabet.vocab,
            "tokenizer": {"file": f"tokenizers/{name}", "sha256": file_sha256(model), "normalization": None},
            "shards": [
                {
                    "split": split,
                    "file": f"datasets/{first.name}/{one}",
                    "tokens": tokens,
                    "sha256": file_sha256(first / one),
                }
                for split, one, tokens in entries
            ],
        }
        (data / MANIFEST).write_text(json.dumps(manifest))

    def training_shards(self, law):
        """{name: path} of the training shards of a law, written once."""
        folder = self.root / f"train-{law.__name__}"
        shards = {name: folder / name for name in TRAIN_FILES}
        if not folder.exists():
            folder.mkdir()
            for number, path in enumerate(shards.values()):
                drawn = noise_stream(self.alphabet, law(self.alphabet), TRAIN_TOKENS - 1, TRAIN_SEED + number)
                write_shard(path, drawn.tokens)
        return shards

    def copy_folder(self, work):
        """A copy of the folder's regular files, and `data` as a link to the data where the folder has no such name."""
        total = sum(entry.size for entry in self.folder.files())
        if total > MOST_COPIED:  # a part of it might fail for what is missing
            raise Problem(f"the folder holds {total:,} bytes, more than the {MOST_COPIED:,} that a run is given a copy of")
        for entry in self.folder.files():
            target, data = work / entry.name, self.folder.data(entry.name, most=MOST_COPIED)
            with suppress(OSError):  # a name that this file system does not take
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                self.originals[entry.name] = hashlib.sha256(data).hexdigest()
        if not (work / "data").exists():
            (work / "data").symlink_to("/box/data")

    def written_files(self, work):
        """{name: (digest, size)} of regular files that are new or changed; no link is followed."""
        found, left = {}, MOST_FILES
        for folder, folders, names, handle in os.fwalk(work):
            folders[:] = folders[: MOST_FILES // 10] if len(Path(folder).parts) < DEEPEST_FOLDER else []
            for name in names[:left]:
                relative = os.path.relpath(os.path.join(folder, name), work)
                digest, size = plain_digest(name, handle)
                if digest and self.originals.get(relative) != digest:
                    found[relative] = digest, size
            left -= min(len(names) + 1, left)
            if not left:
                break
        return found


@contextmanager
def laboratory(folder, script, note, seconds):
    """Yields a Laboratory for a script; everything that it made is removed afterwards. Problem where no data can be made."""
    with tempfile.TemporaryDirectory(prefix="fairway-review-", ignore_cleanup_errors=True) as root:
        root = Path(root)
        vocab = vocabulary(script)
        noise_tokenizer(root / "tokenizer.model", vocab)
        named = re.findall(r"\b(fineweb10B_\w{1,40})\b", script.text)
        variants = tuple(dict.fromkeys([f"fineweb10B_sp{vocab}", *named[:20]]))
        environment = {
            "DATA_DIR": "/box/data/",
            "DATA_PATH": f"/box/data/datasets/{variants[0]}",
            "TOKENIZER_PATH": f"/box/data/tokenizers/fineweb_{vocab}_bpe.model",
            "VOCAB_SIZE": vocab,
            "SEED": 1337,
            "RUN_ID": "review",
            "MAX_WALLCLOCK_SECONDS": max(20, int(seconds / 4)),
            "ITERATIONS": 40,
            "WARMUP_STEPS": 0,
            "VAL_LOSS_EVERY": 0,
            "TRAIN_LOG_EVERY": 20,
            "TRAIN_SEQ_LEN": SEQUENCE,
            "EVAL_SEQ_LEN": SEQUENCE,
            "TRAIN_BATCH_TOKENS": 32 * SEQUENCE,
            "VAL_BATCH_SIZE": 32 * SEQUENCE,
            "PYTHONHASHSEED": 0,
            "TORCHDYNAMO_DISABLE": 1,  # a compile takes longer than all that is run here
        }
        command = ["python", script.name]
        if "--data" in script.text and "--stage" in script.text:
            command += ["--data", "/box/data", "--out", "/box/work/out", "--steps", "40"]
        # Noise that a script cannot hold beforehand, and the same at each review of it.
        alphabet = replace(read_alphabet(root / "tokenizer.model"), salt=zlib.crc32(script.text.encode()))
        deadline = time.monotonic() + seconds
        yield Laboratory(folder, script, root, note, deadline, alphabet, environment, command, variants)


def without_numbers(name):
    """A name with its numbers made one sign: those that a run measured stand in it."""
    return re.sub(r"\d+(?:\.\d+)?", "#", name)


def vocabulary(script):
    """How many pieces a script expects: its own default, or what its paths name, or 1,024."""
    stated = str(script.settings.get("VOCAB_SIZE", ""))
    named = re.findall(r"fineweb10B_sp(\d{3,5})\b|fineweb_(\d{3,5})_bpe", script.text)
    for word in (stated, *(part for pair in named for part in pair)):
        if word.isdigit() and 260 < int(word) <= 65536:
            return int(word)
    return 1024


def plain_digest(name, handle):
    """(hex SHA-256, bytes) of a regular file of an open folder, without the time that gzip writes; two None for others."""
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
    except OSError:
        return None, None
    with os.fdopen(opened, "rb") as file:
        facts = os.fstat(opened)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_HASHED:
            return None, None
        digest, head = hashlib.sha256(), file.read(10)
        digest.update(head[:4] + head[8:] if head.startswith(b"\x1f\x8b") else head)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest(), facts.st_size


def written_score(work):
    """The figures of a score.json as a line of a log: this package's own programs print few digits, or nothing."""
    for folder in (work / "out", work):
        path = folder / "score.json"
        try:
            facts = path.lstat()
            if folder.is_symlink() or not stat.S_ISREG(facts.st_mode) or facts.st_size > 1 << 20:
                continue
            score = json.loads(path.read_text())
            nats = float(score["nats"]) / int(score["tokens"])
            return f"\nscore.json val_loss:{nats!r} val_bpb:{float(score['bpb'])!r}\n"
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError, RecursionError):
            continue
    return ""


def kept_files(events, found):
    """The Kept of a run, from its trace and the files {name: (digest, size)} that are there at its end."""
    written, read = {}, {}
    for event in events:
        if event.kind == "write":
            written[event.what] = event.seconds
            read.pop(event.what, None)
        elif event.kind == "rename":
            new = event.what.partition(" -> ")[2]
            written[new] = event.seconds
            read.pop(new, None)
        elif event.kind == "read":
            read.setdefault(event.what, event.seconds)
    names = {f"/box/work/{name}": facts for name, facts in found.items()}
    kept = []
    for path in dict.fromkeys([*written, *names]):
        if path.endswith(NO_ARTIFACT) or (path not in names and path not in read):
            continue
        if Path(path).name in (VAL_FILE, *TRAIN_FILES) or Path(path).is_relative_to("/box/data"):
            continue
        digest, size = names.get(path, (None, None))
        kept.append(Kept(path.removeprefix("/box/work/"), written.get(path), read.get(path), digest, size))
    return tuple(sorted(kept, key=lambda one: (one.written is None, one.written or 0.0)))
