"""The byte ledger: every byte of the files that are submitted, by owner."""

import re
from collections import Counter

from ..problem import DoesNotHold


def make_ledger(files, cap):
    """The ledger of `files` (name -> owners, each {owner, kind, bytes} in bytes) against `cap` bytes.

    Keys: total, cap, files {name: bytes}, owners [{file, owner, kind, bytes}] from the largest down.
    """
    owners = [{"file": name, **owner} for name, parts in files.items() for owner in parts]
    owners.sort(key=lambda owner: (-owner["bytes"], owner["file"], owner["owner"], owner["kind"]))
    sizes = {name: sum(owner["bytes"] for owner in parts) for name, parts in files.items()}
    return {"total": sum(sizes.values()), "cap": cap, "files": sizes, "owners": owners}


def owners_together(ledger):
    """(owner, kind) -> bytes of both files, tensors of all layers as one: blocks.*.mlp.up; a file's code is one owner, its
    name, of the kind "code"."""
    sums = Counter()
    for one in ledger["owners"]:
        code = one["kind"] == "code"
        sums[one["file"] if code else re.sub(r"\.\d+\.", ".*.", one["owner"]), one["kind"]] += one["bytes"]
    return sums


def check_ledger(ledger, sizes):
    """Raises AssertionError unless the owners sum to `sizes` (file name -> true length in bytes), file by file."""
    counted = dict.fromkeys(ledger["files"], 0)
    for owner in ledger["owners"]:
        counted[owner["file"]] += owner["bytes"]
    if not counted == ledger["files"] == sizes or sum(sizes.values()) != ledger["total"]:
        raise AssertionError(f"the ledger counts {counted}, the files hold {sizes}")


def refuse_overrun(ledger):
    """Raises DoesNotHold when the total is over the cap, naming the excess and the ten largest owners."""
    total, cap = ledger["total"], ledger["cap"]
    if total > cap:
        heavy = ", ".join(f"{one['owner']} {one['kind']} {one['bytes']:,}" for one in ledger["owners"][:10])
        raise DoesNotHold(f"{total:,} bytes are {total - cap:,} over the cap of {cap:,}; give up some of: {heavy}")
