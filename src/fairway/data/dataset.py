"""What training and scoring open: a folder's manifest, which names shards, tokenizer and their hashes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..files import read_json
from ..problem import Problem
from .bytetable import byte_table
from .shards import open_shard
from .tokenizer import load_tokenizer

MANIFEST, MANIFEST_FORMAT = "manifest.json", 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data folder as its manifest describes it. Nothing else has been opened: scoring works with the training shards
    absent, training with the validation shards absent."""

    folder: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    tokenizer: Path
    vocab: int
    data_hash: str
    manifest: dict


def open_dataset(folder):
    """The Dataset of `folder`. `manifest.json` must hold

        {"format": 1, "vocab": int, "tokenizer": {"file": path, ...},
         "shards": [{"split": "train" or "val", "file": path, "tokens": int, "sha256": hex digits}, ...], ...}

    with paths relative to the folder and shards of a split in order. Raises Problem when it is absent or does not.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise Problem(f"{folder} is no data folder (no {MANIFEST}); `fairway data build SOURCE --out {folder}` makes one")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise Problem(f"{path} is not a manifest of format {MANIFEST_FORMAT}; build the data again")
    try:
        shards, vocab, tokenizer = (
            manifest["shards"],
            manifest["vocab"],
            folder / _path_inside(manifest["tokenizer"]["file"]),
        )
        split = {
            name: tuple(folder / _path_inside(shard["file"]) for shard in shards if shard["split"] == name)
            for name in ("train", "val")
        }
        content = "".join(f"{shard['file']} {shard['tokens']:d} {shard['sha256']}\n" for shard in shards)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} lacks or misspells {error}; build or download the data again") from error
    if not isinstance(vocab, int) or not 0 < vocab <= 65536:
        raise Problem(f"{path} says vocab {vocab!r}, not a number from 1 to 65,536; build the data again")
    data_hash = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Dataset(folder, split["train"], split["val"], tokenizer, vocab, data_hash, manifest)


def _path_inside(name):
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} (a path outside the folder)")
    return path


def validation_tokens(dataset):
    """All validation shards, one after the other: uint16 [N]. Raises Problem if one is absent, broken or another's."""
    tokens = [dataset_shard(dataset, path) for path in dataset.val]
    if not tokens:
        raise Problem(f"{dataset.folder} has no validation shards; build it with validation documents")
    return np.concatenate(tokens)


def dataset_shard(dataset, path):
    """One shard's tokens (memory map), its count checked against the manifest and its ids against the vocabulary."""
    tokens = open_shard(path)
    name = path.relative_to(dataset.folder).as_posix()
    promised = next(shard["tokens"] for shard in dataset.manifest["shards"] if shard["file"] == name)
    if len(tokens) != promised:
        raise Problem(f"{path} has {len(tokens)} tokens, {MANIFEST} says {promised}; build or download the data again")
    check_ids(tokens, dataset.vocab, path)
    return tokens


def check_ids(tokens, vocab, path):
    """Raises Problem when a token id of `path` has no row in a model of `vocab` pieces."""
    highest = int(tokens.max()) if len(tokens) else -1
    if highest >= vocab:
        raise Problem(f"token {highest} in {path}, but the vocabulary has {vocab}; use the data's own tokenizer")


def dataset_bytes(dataset):
    """The ByteTable of the dataset's tokenizer. Raises Problem if its pieces are not the manifest's vocabulary, or if
    the text was transformed, so that bytes are known by a side file only (CaseOps, #1729)."""
    if dataset.manifest.get("byte_files"):
        raise Problem(f"{dataset.folder} holds transformed text; its bytes are in its side files, not in the pieces")
    tokenizer = load_tokenizer(dataset.tokenizer)
    if tokenizer.vocab_size() != dataset.vocab:
        raise Problem(
            f"{dataset.tokenizer} has {tokenizer.vocab_size()} pieces, {MANIFEST} says {dataset.vocab}; build the data again"
        )
    return byte_table(tokenizer)
