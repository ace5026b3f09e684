"""Atomic writes: a file is there whole or not at all, and a full disk or a locked folder is one clear line."""

import fcntl
import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .problem import Problem


@contextmanager
def replacing(path):
    """Yields a temporary path beside `path`; renames it over `path` if the block ends well, removes it otherwise.

    Raises Problem when the operating system refuses (full disk, read-only folder, folder in the way).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error
    part = Path(name)
    try:
        yield part
        # mkstemp makes files private; what a run leaves behind should be as readable as any other file.
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        part.replace(path)
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror or error}; free space or choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def refuse_unwritable(folder):
    """Raises Problem unless a file can be written in `folder`, or in the nearest folder above it that is there. Leaves
    nothing behind: for commands that work long before they write."""
    try:
        there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise Problem(f"cannot write {folder}: {error.strerror}; free space or choose another folder") from error


def write_bytes(path, data):
    """Writes bytes atomically and flushes them to the disk before the rename."""
    with replacing(path) as part, open(part, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def write_text(path, text):
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path, value):
    """Writes indented JSON atomically; refuses NaN, which other readers of JSON do not accept."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path):
    """Reads JSON; Problem names the file when it is absent or broken."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is not valid JSON ({error}); write it again") from error


def file_sha256(path):
    """Hex digits of a file's SHA-256; Problem when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}; fetch or build it again") from error


@contextmanager
def owning(folder):
    """Holds a folder while the block runs: another process that wants it gets a Problem. Leaves no file, dies with us."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Problem(f"{folder} is in use by another fairway; wait for it, or choose another folder") from error
    finally:
        os.close(handle)
