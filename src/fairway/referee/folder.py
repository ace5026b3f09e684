"""The folder of a stranger: listed and read within bounds, links never followed, nothing in it run or unpickled."""

import codecs
import os
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..problem import Problem
from .inflate import ARCHIVE_ERRORS, GIGABYTE, Oversize, unpacked_size

MOST_ENTRIES, DEEPEST = 20_000, 20
FIRST_BYTES, LAST_BYTES = 64 << 20, 16 << 20  # bytes of a text of any size that are read
LONGEST_LINE = 1 << 16  # characters
CHUNK = 1 << 18
MOST_INFLATED = 4 * GIGABYTE  # of all archives of a folder together
LOG_ENDINGS = (".log", ".txt", ".out", ".jsonl")
LOGGED = re.compile(r"(?:loss|bpb|train_time|step)\W{0,4}\d", re.I)
BINARIES = (".pt", ".ptz", ".pth", ".bin", ".ckpt", ".safetensors", ".npy", ".npz", ".pkl", ".pickle", ".so", ".whl")
NO_TOKENIZER = (".py", ".md", ".log", ".txt", ".sh", ".toml", ".yaml", ".yml")
CLAIM_KEYS = ("val_bpb", "author", "github_id")


@dataclass(frozen=True)
class Entry:
    """What stands in the folder under the printable relative `name`: `kind` is "file", "link", "folder" or "other" (pipe,
    device, socket). `raw` is its name as the system has it, `target` where a link points to."""

    name: str
    size: int
    kind: str
    raw: str = ""
    target: str = ""


@dataclass(eq=False)
class Folder:
    """`entries` by name; `breaches`: what makes the folder unsafe; `faults`: those, and all that could not be read."""

    path: Path
    entries: list
    faults: list = field(default_factory=list)
    breaches: list = field(default_factory=list)

    def __post_init__(self):
        self.by_name = {one.name: one for one in reversed(self.entries)}

    def entry(self, name):
        """The Entry of that name, or None."""
        return self.by_name.get(name)

    def has(self, name):
        """Whether there is a regular file of that name."""
        return name in self.by_name and self.by_name[name].kind == "file"

    def files(self):
        """The entries that are regular files."""
        return [one for one in self.entries if one.kind == "file"]

    def fault(self, text):
        """Remembers once what could not be read."""
        if text not in self.faults:
            self.faults.append(text)

    def open(self, name):
        """The file of that name, open to read bytes; None, and a fault, where it cannot be."""
        one = self.by_name.get(name)
        if one is None or one.kind != "file":
            self.fault(f"{name} is {'not there' if one is None else 'no regular file'}")
            return None
        try:
            handle = os.open(os.path.join(self.path, one.raw), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return os.fdopen(handle, "rb")
            os.close(handle)
            self.fault(f"{name} is no regular file")
        except OSError as error:
            self.fault(f"{name} cannot be read: {error.strerror}")
        return None

    def data(self, name, most=8 << 20):
        """The first `most` bytes of a file; none, and a fault, where it cannot be read."""
        file = self.open(name)
        if file is None:
            return b""
        try:
            with file:
                data = file.read(most + 1)
        except OSError as error:
            self.fault(f"{name} cannot be read: {error.strerror}")
            return b""
        if len(data) > most:
            self.fault(f"{name}: only the first {most:,} bytes are read")
        return data[:most]

    def text(self, name, most=8 << 20):
        """The first `most` bytes of a file as text: UTF-8, or what its byte order mark says; other bytes become U+FFFD."""
        data = self.data(name, most)
        return data.decode(encoding_of(data), "replace").removeprefix("\ufeff")

    def lines(self, name):
        """The lines of a text of any size: of its first 64 MiB and its last 16 MiB, each of at most 65,536 characters."""
        file = self.open(name)
        if file is None:
            return
        with file:
            try:
                size = os.fstat(file.fileno()).st_size
                yield from self.cut_lines(name, file, min(size, FIRST_BYTES))
                start = max(FIRST_BYTES, size - LAST_BYTES)
                if start > FIRST_BYTES:
                    self.fault(f"{name}: {start - FIRST_BYTES:,} bytes in its middle are not read")
                if start < size:
                    file.seek(start)
                    yield from self.cut_lines(name, file, size - start)
            except OSError as error:
                self.fault(f"{name} cannot be read: {error.strerror}")

    def cut_lines(self, name, file, left):
        """The lines of the next `left` bytes of an open file."""
        decoder, line, skipping = None, "", False
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            decoder = decoder or codecs.getincrementaldecoder(encoding_of(chunk))("replace")
            text = decoder.decode(chunk).replace("\r\n", "\n").replace("\r", "\n")
            *whole, last = text.split("\n")
            for part in whole:
                if not skipping:
                    yield self.cut(name, line + part)
                line, skipping = "", False
            if not skipping:
                line += last
            if len(line) > LONGEST_LINE:
                yield self.cut(name, line)
                line, skipping = "", True
        if line:
            yield self.cut(name, line)

    def cut(self, name, line):
        """A line of bearable length."""
        if len(line) > LONGEST_LINE:
            self.fault(f"{name}: lines are cut after {LONGEST_LINE:,} characters")
        return line[:LONGEST_LINE].removeprefix("\ufeff")

    def sample(self, name):
        """The first and last 256 KiB of a file as text."""
        file = self.open(name)
        if file is None:
            return ""
        try:
            with file:
                head = file.read(CHUNK)
                size = file.seek(0, 2)
                file.seek(max(len(head), size - CHUNK))
                return (head + file.read(CHUNK)).decode(encoding_of(head), "replace")
        except OSError as error:
            self.fault(f"{name} cannot be read: {error.strerror}")
            return ""

    def logs(self):
        """Names of the logs of training and scoring, by what they say: those that lie least deep. Where none says anything,
        whatever is called a log."""
        found = {}
        for one in self.files():
            ending = os.path.splitext(one.name.lower())[1]
            if ending in LOG_ENDINGS and not is_python(one.name):
                hits = len(LOGGED.findall(self.sample(one.name)))
                # A note may quote a figure or two; a log that is called one need not say much.
                if hits >= (1 if ending == ".log" else 3):
                    found[one.name] = one.name.count("/")
        if not found:
            found = {one.name: one.name.count("/") for one in self.files() if one.name.lower().endswith(".log")}
        least = min(found.values(), default=0)
        return sorted(name for name, depth in found.items() if depth == least)

    def scripts(self):
        """Names of the Python files: train_gpt.py first, then those at the top that are called train, the largest first."""

        def rank(one):
            deep, trains = "/" in one.name, "train" in one.name.lower()
            return (one.name != "train_gpt.py", deep, not trains, -one.size, one.name)

        return [one.name for one in sorted(self.files(), key=rank) if is_python(one.name)]


def is_python(name):
    """Whether a file's name says that it is Python source."""
    return name.lower().endswith((".py", ".pyw"))


def encoding_of(data):
    """The encoding that a text's byte order mark states, else UTF-8."""
    return "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"


def read_folder(path):
    """The Folder at `path`. Problem where it is absent, is no folder, or cannot be listed at all."""
    root = Path(path)
    if not root.exists():
        raise Problem(f"no folder {path}; name the folder of a submission")
    if not root.is_dir():
        raise Problem(f"{path} is a file; name the folder that it lies in")
    root = root.resolve()
    entries, faults, breaches, folders = [], [], [], [("", 0)]
    while folders:
        below, depth = folders.pop()
        for one in listed(root, below, MOST_ENTRIES - len(entries), faults):
            entries.append(one)
            if is_deceptive(one.raw):
                breaches.append(f"a name with control characters or bytes that are no text: {one.name}")
            if one.kind == "link" and is_outside(root, one):
                breaches.append(f"{one.name} is a link out of the folder, to {shown_name(one.target)}")
            if one.kind == "other":
                breaches.append(f"{one.name} is a pipe, a device or a socket: whoever opens it may wait for ever")
            if one.kind == "folder" and depth < DEEPEST:
                folders.append((one.raw, depth + 1))
            elif one.kind == "folder":
                faults.append(f"{one.name} lies {DEEPEST} folders deep; what is in it is not looked at")
        if len(entries) >= MOST_ENTRIES:
            faults.append(f"only the first {MOST_ENTRIES:,} entries are looked at")
            break
    if not entries and faults:
        raise Problem(f"cannot list {path}: {faults[0].rpartition(': ')[2]}; make it readable")
    return Folder(root, sorted(entries, key=lambda one: one.name), breaches + faults, breaches)


def listed(root, below, most, faults):
    """The entries of one folder, `most` of them, in the order of their names."""
    found = []
    try:
        with os.scandir(os.path.join(root, below)) as there:
            for one in there:
                if len(found) >= most:
                    break
                raw = f"{below}/{one.name}" if below else one.name
                try:
                    status = one.stat(follow_symlinks=False)
                    target = os.readlink(one.path) if stat.S_ISLNK(status.st_mode) else ""
                except OSError as error:
                    faults.append(f"{shown_name(raw)} cannot be looked at: {error.strerror}")
                    continue
                found.append(Entry(shown_name(raw), status.st_size, kind_of(status.st_mode), raw, target))
    except OSError as error:
        faults.append(f"{shown_name(below) or 'the folder'} cannot be listed: {error.strerror}")
    return sorted(found, key=lambda one: one.raw)


def kind_of(mode):
    """The kind of an Entry, by its mode."""
    if stat.S_ISREG(mode):
        return "file"
    return "link" if stat.S_ISLNK(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def shown_name(raw):
    """A name that can be printed: what cannot is written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in raw[:4096])


def is_deceptive(raw):
    """Whether a name holds control characters, line ends, marks that turn the writing round, or bytes that are no text.

    Other marks that do not print (a narrow space in the name of a screen shot) are unusual and harmless.
    """
    turned = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in turned for c in raw)


def is_outside(root, link):
    """Whether a link of the folder points out of it. Told from the texts of links, and from where they end."""
    first = os.path.normpath(os.path.join(root, os.path.dirname(link.raw), link.target))
    try:
        last = os.path.realpath(os.path.join(root, link.raw))
    except (OSError, ValueError):
        return True
    return any(place != str(root) and not place.startswith(f"{root}/") for place in (first, last))


def judge_folder(findings, folder):
    """G1, G7, A10 and A5: what is there, what is dangerous, what is large, what belongs to a tokenizer."""
    judge_required(findings, folder)
    judge_safety(findings, folder)
    files = folder.files()
    total, most = sum(one.size for one in files), findings.limit("A10")
    large = {one.name: one.size for one in files if one.name.lower().endswith(BINARIES)}
    largest = dict(sorted(large.items(), key=lambda pair: -pair[1])[:10])
    evidence = f"{len(files):,} files, of which {len(large)} are binaries" + (" (the largest are listed)" if large else "")
    findings.say("A10", total <= most, {"total": total, **largest}, most, 0, evidence)
    tokens = {one.name: one.size for one in files if is_tokenizer(one.name)}
    if tokens:
        shown = {"total": sum(tokens.values()), **dict(list(tokens.items())[:10])}
        findings.say("A5", True, shown, evidence="never counted in practice")


def is_tokenizer(name):
    """Whether a file's name is that of a tokenizer's data."""
    base = name.lower().rpartition("/")[2]
    if base.endswith(NO_TOKENIZER):
        return False
    return base.endswith((".model", ".vocab", ".tiktoken")) or "tokenizer" in base or base in ("vocab.json", "merges.json")


def judge_required(findings, folder):
    """G1: one verdict for each file that is missing or empty, or one for all of them."""
    there, notes, faults = {}, [], []
    for name in ("README.md", "submission.json", "train_gpt.py"):
        found = standing_for(folder, name)
        if found is None:
            others = [one for one in folder.scripts() if "/" not in one][:5] if name == "train_gpt.py" else []
            faults.append(f"no {name}" + (f"; there is {', '.join(others)}" if others else ""))
            continue
        there[found.name] = found.size
        if found.name != name:
            notes.append(f"{found.name} stands for {name}")
        if found.kind == "link":
            findings.untested("G1", f"{found.name} is a link, and links are not followed")
        elif found.kind != "file":
            faults.append(f"{found.name} is no file")
        elif not found.size or (found.size < 1 << 16 and not folder.data(found.name).strip()):
            faults.append(f"{found.name} is empty")
    logs = {name: folder.entry(name).size for name in folder.logs()}
    there |= dict(list(logs.items())[:20])
    if not logs:
        faults.append("no log")
    elif not any(logs.values()):
        faults.append("the logs are empty")
    for fault in faults:
        findings.say("G1", False, there, "README.md, submission.json, train_gpt.py, a log", evidence=fault)
    if not faults:
        findings.say("G1", True, there, evidence="; ".join(notes) or f"{len(logs)} logs")


def standing_for(folder, name):
    """The Entry at the top that is, or stands for, README.md, submission.json or train_gpt.py; None."""
    top = {one.name: one for one in folder.entries if "/" not in one.name}
    found = top.get(name) or next((one for one in top.values() if one.name.lower() == name.lower()), None)
    if found is None and name == "submission.json":
        found = next((one for one in folder.files() if is_claim(folder, one)), None)
    if found is None and name == "README.md":
        found = next((one for one in top.values() if one.name.lower().startswith("readme")), None)
    return found


def is_claim(folder, entry):
    """Whether a JSON file is a submission's claims under another name."""
    name = entry.name.lower()
    if "/" in name or not name.endswith(".json"):
        return False
    text = folder.text(entry.name, 1 << 20)
    return sum(f'"{key}"' in text for key in CLAIM_KEYS) >= (1 if "submission" in name else 2)


def judge_safety(findings, folder):
    """G7: breaches that were seen while it was read, and archives that unpack to a gigabyte and more."""
    left, breaches, unread = MOST_INFLATED, list(folder.breaches), []
    for one in folder.files():
        file = folder.open(one.name)
        if file is None:
            continue
        with file:
            try:
                size = unpacked_size(file, min(left, GIGABYTE)) if left > 0 else 0
            except Oversize as large:
                unread.append(f"{one.name} {large}")
                continue
            except ARCHIVE_ERRORS:
                continue  # no archive, or a broken one: whoever needs it will say so
        left -= size
        if size > GIGABYTE:
            breaches.append(f"{one.name} ({one.size:,} bytes) unpacks to {size:,} bytes or more")
    if left <= 0:
        unread.append(f"archives unpack to {MOST_INFLATED:,} bytes and more; the rest is not looked at")
    counted = f"{len(folder.entries):,} entries"
    for breach in breaches[:20]:
        findings.say("G7", False, f"{len(breaches)} breaches in {counted}", 0, evidence=breach)
    for fault in [one for one in folder.faults if one not in folder.breaches][:20] + unread:
        findings.untested("G7", fault)
    if not breaches and not unread and len(folder.faults) == len(folder.breaches):
        findings.say("G7", True, f"0 breaches in {counted}", 0)
