"""`train_gpt.py` as one executable file: a Python zip application of the package and the recipe.

Python runs a zip file whatever its suffix, so there is nothing to unpack; the package's dependencies must be there.
What runs is the same source as in the package. The zip is deterministic (fixed times, sorted names): equal sources,
equal bytes.
"""

import hashlib
import io
import zipfile
from importlib.resources import files as package_files

from ..runfolder import RECIPE

TOOL_ROOMS = ("referee", "record")  # judge and report a packed model, are no part of it
PROGRAM_MAIN = "from fairway.cli import main\n\nraise SystemExit(main())\n"


def package_sources():
    """Path in the package (`fairway/node.py`) -> source bytes of every module that ships, sorted.

    Reads through importlib.resources, so it also works from inside the zip that it wrote.
    """
    return dict(sorted(_python_files(package_files("fairway"), "fairway")))


def _python_files(folder, path):
    for entry in folder.iterdir():
        inner = f"{path}/{entry.name}"
        if entry.is_dir() and entry.name not in TOOL_ROOMS:
            yield from _python_files(entry, inner)
        elif entry.name.endswith(".py"):
            yield inner, entry.read_bytes()


def source_hash():
    """First 16 hex digits of the SHA-256 over names and contents of the modules that ship.

    The same from the installed package and from inside a packed program.
    """
    state = hashlib.sha256()
    for name, source in package_sources().items():
        state.update(f"{name}\0{len(source)}\0".encode() + source)
    return state.hexdigest()[:16]


def program_bytes(recipe_text):
    """The program file: every module that ships, the recipe and a `__main__` that calls the command line."""
    members = {"__main__.py": PROGRAM_MAIN.encode(), RECIPE: recipe_text.encode(), **package_sources()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # else the byte depends on the system that packs
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED, compresslevel=9)
    return out.getvalue()


def program_owners(data):
    """[{owner, kind, bytes}] of a program's bytes: each member, then the zip's directory; they sum to its length."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        ends = [member.header_offset for member in members[1:]] + [archive.start_dir]
    owners = [
        {"owner": member.filename, "kind": "code", "bytes": end - member.header_offset}
        for member, end in zip(members, ends, strict=True)
    ]
    return [*owners, {"owner": "zip directory", "kind": "overhead", "bytes": len(data) - ends[-1]}]
