"""Where documents come from: the interpreter's own library, or text and JSON-lines files, streamed in a fixed order."""

import json
import os
import sysconfig
import tokenize
from pathlib import Path

import zstandard

from ..problem import Problem

PYTHON_DOCS = "python-docs"
SOURCE_SUFFIXES = (".txt", ".jsonl", ".jsonl.zst")
# Tests, bundled wheels and tables say little about a language; `config-3.x` and `_sysconfigdata` name the machine.
_SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "idle_test", "site-packages", "dist-packages", "turtledemo", "ensurepip", "encodings", "pydoc_data")
)
_SKIPPED_FILES = ("_sysconfigdata", "entities.py")


def documents(source, field="text"):
    """Yields the documents (str) of `source`: "python-docs", a .txt, .jsonl or .jsonl.zst file, or a folder of these.

    A .txt file is one document; a line of JSON is one, its text under `field`. Folders are read recursively, sorted.
    Raises Problem naming file and line for what is absent, empty, not UTF-8, not JSON or without the field.
    """
    if str(source) == PYTHON_DOCS:
        yield from python_documents()
        return
    found = False
    for path in source_files(source):
        for text in [_text_of_file(path)] if path.name.endswith(".txt") else _json_texts(path, field):
            found = found or bool(text.strip())
            yield text
    if not found:
        raise Problem(f"{source} holds no document that is not blank; name a source with text in it")


def source_files(source):
    """The readable files of a path, sorted by their path; Problem if it is absent, of another kind or holds none."""
    source = Path(source)
    if not source.exists():
        raise Problem(f"{source} is not there; name {PYTHON_DOCS}, or a file or folder of {', '.join(SOURCE_SUFFIXES)}")
    files = [source] if source.is_file() else sorted(_files_below(source))
    files = [path for path in files if path.name.lower().endswith(SOURCE_SUFFIXES)]
    if not files:
        raise Problem(f"{source} is no {' or '.join(SOURCE_SUFFIXES)} file and holds none; convert the text to one of these")
    return files


def _files_below(folder):
    """Every file in a folder and its folders; Problem for a folder that cannot be read, which rglob passes over."""

    def refuse(error):
        raise Problem(
            f"cannot read {error.filename} ({error.strerror}); make it readable, or take it out of {folder}"
        ) from error

    return [Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names]


def python_documents():
    """Yields the running interpreter's standard library: each module's source, then each help topic. Needs no download;
    the same for one installation, different between Python versions."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = {path.relative_to(library).as_posix(): path for path in library.rglob("*.py")}
    kept = [path for name, path in sorted(modules.items()) if not _is_skipped_module(name)]
    if not kept:
        raise Problem(f"{library} holds no module sources; give text files as the source instead of {PYTHON_DOCS}")
    for path in kept:
        try:
            with tokenize.open(path) as file:  # obeys the module's coding line
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise Problem(f"cannot read {path} ({error}); repair the Python installation or give another source") from error
        yield text
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise Problem(f"this Python has no help topics ({error}); install them or give another source") from error
    for _, text in sorted(topics.items()):
        yield text


def _is_skipped_module(name):
    *folders, file = name.split("/")
    named = any(folder in _SKIPPED_FOLDERS or folder.startswith("config-") for folder in folders)
    return named or file.startswith(_SKIPPED_FILES)


def _text_of_file(path):
    data = b"".join(_source_chunks(path))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Problem(_not_utf8(path, data[: error.start].count(b"\n") + 1)) from error


def _json_texts(path, field):
    for number, line in enumerate(_source_lines(path), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise Problem(_not_utf8(path, number)) from error
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Problem(f"{path} line {number} is not JSON ({error}); each line must be one object") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            has = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise Problem(
                f"{path} line {number} has no text under {field!r} (it has: {has}); name the text's key with --field"
            )
        text = record[field]
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, UTF-8 cannot
                raise Problem(f"{path} line {number} holds a lone surrogate {text[error.start]!r}; remove it") from error
        yield text


def _not_utf8(path, number):
    return f"{path} line {number} is not UTF-8; convert the file to UTF-8"


def _source_lines(path):
    """Yields the lines (bytes) of a plain or zstd file."""
    rest = b""
    for chunk in _zstd_chunks(path) if path.name.endswith(".zst") else _source_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _source_chunks(path, size=1 << 20):
    try:
        with open(path, "rb") as file:
            while chunk := file.read(size):
                yield chunk
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error


def _zstd_chunks(path):
    """Frame by frame: the library's own stream reader takes a file that was cut off for a short one, without a word."""
    frame = None
    try:
        for chunk in _source_chunks(path):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise Problem(f"{path} is not a zstd file that can be read ({error}); fetch or compress it again") from error
    if frame is not None:
        raise Problem(f"{path} is cut off in the middle of a zstd frame; fetch or compress it again")
