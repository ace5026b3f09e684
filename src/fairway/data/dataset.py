"""What training and scoring open: a folder's manifest, which names shards, tokenizer and their hashes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..files import file_sha256, read_json
from ..problem import Problem
from .bytetable import byte_table
from .shards import joined_shards, open_shard
from .tokenizer import load_tokenizer

MANIFEST, MANIFEST_FORMAT = "manifest.json", 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data folder as its manifest describes it. Nothing else has been opened: scoring works with the training shards
    absent, training with the validation shards absent."""

    folder: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    byte_files: tuple[Path, ...]
    tokenizer: Path
    vocab: int
    manifest: dict

    @property
    def data_hash(self):
        """16 hex digits that cover all files of the manifest by their hashes: shards, side files, tokenizer."""
        shards = [*self.manifest["shards"], *({**one, "split": "bytes"} for one in self.manifest.get("byte_files", ()))]
        content = "".join(f"{shard['split']} {shard['file']} {shard['tokens']:d} {shard['sha256']}\n" for shard in shards)
        return hashlib.sha256((content + self.manifest["tokenizer"]["sha256"]).encode()).hexdigest()[:16]


def read_dataset(folder):
    """The Dataset of `folder`, on trust: what `open_dataset` has once found good."""
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    files = {"train": [], "val": [], "bytes": [folder / one["file"] for one in manifest.get("byte_files", ())]}
    for shard in manifest["shards"]:
        files[shard["split"]].append(folder / shard["file"])
    return Dataset(folder, *map(tuple, files.values()), folder / manifest["tokenizer"]["file"], manifest["vocab"], manifest)


def open_dataset(folder):
    """The Dataset of `folder`. `manifest.json` must hold

        {"format": 1, "vocab": int, "tokenizer": {"file": path, "sha256": hex digits, ...},
         "shards": [{"split": "train" or "val", "file": path, "tokens": int, "sha256": hex digits}, ...], ...}

    with paths relative to the folder and shards of a split in order. Transformed text (CaseOps) has "byte_files" besides:
    shards, without a split, of the original UTF-8 bytes that each validation token stands for (PR #1729). `data_hash`
    covers all these files and the tokenizer. Raises Problem when the manifest is absent or not like this.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise Problem(f"{folder} is no data folder (no {MANIFEST}); `fairway data build SOURCE --out {folder}` makes one")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise Problem(f"{path} is not a manifest of format {MANIFEST_FORMAT}; build the data again")
    try:
        for one in (manifest["tokenizer"], *manifest["shards"], *manifest.get("byte_files", ())):
            _refuse_outside(one["file"])
        dataset = read_dataset(folder)
        dataset.data_hash  # noqa: B018  (it reads every key that is promised)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} lacks or misspells {error}; build or download the data again") from error
    if not isinstance(dataset.vocab, int) or not 0 < dataset.vocab <= 65536:
        raise Problem(f"{path} says vocab {dataset.vocab!r}, not a number from 1 to 65,536; build the data again")
    return dataset


def _refuse_outside(name):
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} (a path outside the folder)")


def validation_tokens(dataset):
    """All validation shards, one after the other: uint16 [N]. Raises Problem if one is absent, broken or another's."""
    if not dataset.val:
        raise Problem(f"{dataset.folder} has no validation shards; build it with validation documents")
    _refuse_broken_promises(dataset, dataset.val, dataset.manifest["shards"])
    for path in dataset.val:
        check_ids(open_shard(path), dataset.vocab, path)
    return joined_shards(dataset.val)


def _refuse_broken_promises(dataset, paths, entries):
    """Problem unless shards have the count and hash that the manifest's entry of that file promises."""
    promised = {dataset.folder / entry["file"]: entry for entry in entries}
    for path in paths:
        found, count = len(open_shard(path)), promised[path]["tokens"]
        if found != count:
            raise Problem(f"{path} has {found} tokens, {MANIFEST} says {count}; build or download the data again")
        _refuse_another(path, promised[path]["sha256"])


def _refuse_another(path, promised):
    found = file_sha256(path)
    if found != promised:
        raise Problem(
            f"{path} is another file than {MANIFEST} names (sha256 {found[:12]}..., not {promised[:12]}...); "
            "restore it, or build or download the data again"
        )


def check_ids(tokens, vocab, path):
    """Raises Problem when a token id of `path` has no row in a model of `vocab` pieces."""
    highest = int(tokens.max()) if len(tokens) else -1
    if highest >= vocab:
        raise Problem(f"token {highest} in {path}, but the vocabulary has {vocab}; use the data's own tokenizer")


def dataset_bytes(dataset):
    """The ByteTable of the dataset's tokenizer. Raises Problem if that is another than the manifest's, or if the text was
    transformed, so that bytes are known by a side file only (CaseOps, #1729)."""
    if dataset.byte_files:
        raise Problem(f"{dataset.folder} holds transformed text; its bytes are in its side files, not in the pieces")
    tokenizer = load_tokenizer(dataset.tokenizer)
    _refuse_another(dataset.tokenizer, dataset.manifest["tokenizer"]["sha256"])
    if tokenizer.vocab_size() != dataset.vocab:
        raise Problem(
            f"{dataset.tokenizer} has {tokenizer.vocab_size()} pieces, {MANIFEST} says {dataset.vocab}; build the data again"
        )
    return byte_table(tokenizer)


def checked_target_bytes(dataset, tokens, targets):
    """`target_bytes`. Raises Problem for a side file or tokenizer that is not the manifest's."""
    if dataset.byte_files:
        _refuse_broken_promises(dataset, dataset.byte_files, dataset.manifest["byte_files"])
    else:
        dataset_bytes(dataset)
    return target_bytes(dataset, tokens, targets)


def target_bytes(dataset, tokens, targets):
    """Bytes of the original text that each of tokens[1 : targets + 1] stands for: int32 [targets]; `tokens` are the
    dataset's validation tokens.

    By the tokenizer's byte table, or, where the text was transformed, by the side files: one count a token (PR #1729).
    Raises Problem for side files of another length.
    """
    if not dataset.byte_files:
        return byte_table(load_tokenizer(dataset.tokenizer)).of_targets(tokens[: targets + 1])
    counts = joined_shards(dataset.byte_files)
    if len(counts) != len(tokens):
        raise Problem(f"{dataset.folder} has bytes for {len(counts)} of {len(tokens)} validation tokens; download it again")
    return counts[1 : targets + 1].astype(np.int32)


def count_target_bytes(dataset, tokens, targets):
    """The sum of `checked_target_bytes`."""
    return int(checked_target_bytes(dataset, tokens, targets).sum(dtype=np.int64))
