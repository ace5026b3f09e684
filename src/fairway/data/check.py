"""Does a data folder hold what its manifest says? Every check has a verdict and a measure; what cannot be tested says so."""

from pathlib import Path

import numpy as np

from ..files import file_sha256
from ..problem import Problem
from .build import HASH_BYTES
from .bytetable import byte_table
from .dataset import check_ids, count_target_bytes, open_dataset
from .shards import open_shard
from .tokenizer import load_tokenizer

# The contest's FineWeb validation: its first 50,000 documents, scored in whole windows of 2,048 (PR #162, #1514).
CANONICAL_DOCUMENTS, CANONICAL_WINDOW = 50_000, 2048
CANONICAL_TOKENS = {1024: 62_021_632, 8192: 40_540_160}
CANONICAL_CASEOPS_TOKENS = {8192: 47_851_520}  # PR #1729, #2078
CANONICAL_BYTES = (151_070_000, 151_090_000)


def check_dataset(folder, hashes=True, sample=200):
    """A JSON-able report: `checks` [{check, verdict, measured, expected}], `failures`, `not_tested`, `canonical` and why.

    `hashes=False` skips the SHA-256 of the files; `sample` documents of each split are decoded and counted.
    Raises Problem only when there is no manifest to check against.
    """
    dataset = open_dataset(folder)
    report = DataReport()
    table = tokenizer = None
    try:
        tokenizer = load_tokenizer(dataset.tokenizer)
        table = byte_table(tokenizer)
        report.equal("tokenizer pieces", len(table.base), dataset.vocab)
    except Problem as problem:
        report.add("tokenizer", "FAIL", str(problem), "a tokenizer whose bytes can be counted")
    named, byte_files = dataset.manifest["shards"], dataset.manifest.get("byte_files", ())
    splits = {
        split: _check_shards(report, dataset, [one for one in named if one["split"] == split], hashes, dataset.vocab)
        for split in ("train", "val")
    }
    if byte_files and (counted := _check_shards(report, dataset, byte_files, hashes, 65536)):
        report.equal("bytes for validation tokens", sum(map(len, counted)), sum(map(len, splits["val"])))
    for split, shards in splits.items():
        if tokenizer is None or not shards:
            report.add(
                f"{split} documents", "NOT TESTED", "no tokenizer or not all shards", "every document begins with BOS"
            )
            report.add(f"{split} bytes", "NOT TESTED", "no tokenizer or not all shards", "equal to decode-and-count")
        else:
            _check_documents(report, dataset, split, shards, tokenizer.bos_id())
            _check_bytes(report, dataset, split, shards, tokenizer, table, sample)
    _check_files(report, dataset, hashes)
    canonical, why = _canonical(dataset, splits["val"], tokenizer)
    return {
        "folder": str(Path(folder)),
        "data_hash": dataset.data_hash,
        "vocab": dataset.vocab,
        "tokens": {split: sum(len(tokens) for tokens in shards) for split, shards in splits.items()},
        "canonical": canonical,
        "canonical_because": why,
        "checks": report.checks,
        "failures": report.lines("FAIL"),
        "not_tested": report.lines("NOT TESTED"),
    }


class DataReport:
    """Collects checks: PASS, FAIL or NOT TESTED, each with what was measured and what should have been."""

    def __init__(self):
        self.checks = []

    def add(self, check, verdict, measured, expected):
        self.checks.append({"check": check, "verdict": verdict, "measured": measured, "expected": expected})

    def equal(self, check, measured, expected):
        self.add(check, "PASS" if measured == expected else "FAIL", measured, expected)

    def lines(self, verdict):
        rows = [row for row in self.checks if row["verdict"] == verdict]
        return [f"{row['check']}: {row['measured']} (expected: {row['expected']})" for row in rows]


def _check_shards(report, dataset, entries, hashes, below):
    """Header, size, count, values and hash of each shard; returns what they hold, or [] unless all could be read."""
    opened = []
    for entry in entries:
        path, name = dataset.folder / entry["file"], entry["file"]
        try:
            tokens = open_shard(path)
            check_ids(tokens, below, path)
        except Problem as problem:
            report.add(name, "FAIL", str(problem), "a whole shard of known ids")
            continue
        opened.append(tokens)
        report.equal(f"{name} tokens", len(tokens), entry["tokens"])
        _check_hash(report, path, name, entry["sha256"], hashes)
    return opened if len(opened) == len(entries) else []


def _check_hash(report, path, name, expected, hashes):
    if not hashes:
        report.add(f"{name} sha256", "NOT TESTED", "skipped on request", expected)
    else:
        try:
            report.equal(f"{name} sha256", file_sha256(path), expected)
        except Problem as problem:
            report.add(f"{name} sha256", "FAIL", str(problem), expected)


def _check_documents(report, dataset, split, shards, bos):
    report.equal(f"{split} begins with BOS", int(shards[0][0]) if len(shards[0]) else None, bos)
    count = sum(int(np.count_nonzero(tokens == bos)) for tokens in shards)
    documents = dataset.manifest.get("documents", {}).get(split)
    if documents is None:
        report.add(f"{split} documents", "NOT TESTED", f"{count} BOS", "the manifest does not count documents")
    else:
        report.equal(f"{split} documents (BOS)", count, documents)


def _check_bytes(report, dataset, split, shards, tokenizer, table, sample):
    """Decodes documents spread over the first shard and compares their length in bytes with the table's sum."""
    if dataset.byte_files:
        report.add(f"{split} bytes", "NOT TESTED", "transformed text", "bytes of the original are in side files")
        return
    tokens = np.asarray(shards[0])
    starts = np.append(np.flatnonzero(tokens == tokenizer.bos_id()), len(tokens))
    # The last document may go on in the next shard, and then even end inside a character: left out unless it is alone.
    whole = len(starts) - 1 - (len(shards) > 1)
    if whole < 1:
        report.add(f"{split} bytes", "NOT TESTED", "no whole document in the first shard", "equal to decode-and-count")
        return
    chosen = np.unique(np.linspace(0, whole - 1, min(sample, whole)).astype(int))
    documents = [tokens[starts[index] : starts[index + 1]].astype(int) for index in chosen]
    wrong = [
        int(index)
        for index, ids in zip(chosen, documents, strict=True)
        if table.counts(ids[:-1], ids[1:]).sum() != decoded_bytes(tokenizer, table, ids)
    ]
    what = f"{len(wrong)} of {len(documents)} documents differ" + (f", the first is document {wrong[0]}" if wrong else "")
    report.add(f"{split} bytes against decoding", "FAIL" if wrong else "PASS", what, "none differs")
    unknown = int(np.count_nonzero(tokens == tokenizer.unk_id()))
    # The contest counts no bytes for them, whatever their text was: legal there, but the true bytes are lost.
    report.add(f"{split} unknown pieces", "NOT TESTED" if unknown else "PASS", unknown, "0, so that no text goes uncounted")


def decoded_bytes(tokenizer, table, ids):
    """UTF-8 bytes of what token ids decode to, the text between control and unknown ids taken on its own (decoding
    writes a mark for an unknown piece, which is no text)."""
    ids = np.asarray(ids)
    runs = np.split(ids, np.flatnonzero(table.boundary[ids]))
    return sum(len(tokenizer.decode(run[table.boundary[run[:1]].sum() :].tolist()).encode()) for run in runs)


def _check_files(report, dataset, hashes):
    """The tokenizer's hash, and the hash files: whole, one entry a document, sorted, nothing in both."""
    named = dataset.manifest["tokenizer"]
    _check_hash(report, dataset.tokenizer, named["file"], named["sha256"], hashes)
    files = dataset.manifest.get("hashes")
    if not files:
        report.add("documents in both", "NOT TESTED", "the folder has no document hashes", "0")
        return
    lists = {}
    for split, entry in files.items():
        path = dataset.folder / entry["file"]
        if not path.is_file():
            report.add("documents in both", "FAIL", f"{entry['file']} is not there", "0")
            return
        data = path.read_bytes()
        _check_hash(report, path, entry["file"], entry["sha256"], hashes)
        report.equal(f"{entry['file']} entries", len(data) / HASH_BYTES, dataset.manifest.get("documents", {}).get(split))
        lists[split] = {data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)}
    report.equal("documents in both", len(lists["train"] & lists["val"]), 0)


def _canonical(dataset, shards, tokenizer):
    """Whether the validation split is the contest's own, and why: positions, documents and bytes that are scored."""
    known = CANONICAL_CASEOPS_TOKENS if dataset.byte_files else CANONICAL_TOKENS
    if (wanted := known.get(dataset.vocab)) is None:
        return False, f"no canonical figure is known for {dataset.vocab} pieces, only for {', '.join(map(str, known))}"
    if not shards or tokenizer is None:
        return False, "the validation shards or the tokenizer could not be read"
    total = sum(len(tokens) for tokens in shards)
    scored = max(total - 1, 0) // CANONICAL_WINDOW * CANONICAL_WINDOW
    if scored != wanted:
        return False, f"{scored} positions are scored, not {wanted}"
    tokens = np.concatenate(shards)
    documents = int(np.count_nonzero(tokens == tokenizer.bos_id()))
    if documents != CANONICAL_DOCUMENTS:
        return False, f"{documents} documents, not {CANONICAL_DOCUMENTS}"
    try:
        size, (low, high) = count_target_bytes(dataset, tokens, scored), CANONICAL_BYTES
    except Problem as problem:
        return False, str(problem)
    return low <= size <= high, f"{scored} positions, {documents} documents, {size} bytes (expected {low} to {high})"
