"""The modules that ship: what a program is bundled from, and what a run is stamped with."""

import hashlib
from importlib.resources import files as package_files

TOOL_ROOMS = ("referee", "trials", "record", "bench")  # judge, repeat, report and time runs, are no part of one


def package_sources():
    """Path in the package (`fairway/node.py`) -> source bytes of every module that ships, sorted."""
    return dict(sorted(_python_files(package_files("fairway"), "fairway")))


def _python_files(folder, path):
    for entry in folder.iterdir():
        inner = f"{path}/{entry.name}"
        if entry.is_dir() and entry.name not in TOOL_ROOMS:
            yield from _python_files(entry, inner)
        elif entry.name.endswith(".py"):
            yield inner, entry.read_bytes()


def source_hash():
    """First 16 hex digits of the SHA-256 over names and contents of the modules that ship."""
    state = hashlib.sha256()
    for name, source in package_sources().items():
        state.update(f"{name}\0{len(source)}\0".encode() + source)
    return state.hexdigest()[:16]
