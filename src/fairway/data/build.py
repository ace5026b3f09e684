"""From documents to a data folder: tokenizer, shards, document hashes, and the manifest that describes and proves them."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import file_sha256, refuse_unwritable, write_bytes, write_json
from ..problem import Problem
from .bytetable import byte_table
from .dataset import MANIFEST, MANIFEST_FORMAT, open_dataset
from .shards import open_shard, write_shard
from .sources import documents
from .tokenizer import encode_documents, load_tokenizer, refuse_vocab, train_tokenizer

HASH_BYTES = 16
_TOKENIZER_FILE, _UNFINISHED = "tokenizer.model", "unfinished.json"
_OUR_FILES = ("train_*.bin", "val_*.bin", "*.hashes", _TOKENIZER_FILE, ".*.part")
_BATCH_CHARS = 8_000_000  # of text that is encoded at once: enough for every thread, small in memory


@dataclass(frozen=True)
class BuildPlan:
    """What is asked for. Equal plans over equal documents give equal shards."""

    source: str
    val_source: str | None
    field: str
    vocab: int
    normalization: str | None  # None: whatever the given tokenizer does
    tokenizer_sha256: str | None  # None: trained on the training documents
    shard_tokens: int
    val_every: int | None
    sample_bytes: int | None

    def parameters(self):
        """What decides the shards beside the documents themselves: not where those lay."""
        return {name: value for name, value in asdict(self).items() if name not in ("source", "val_source", "field")}


def build_dataset(
    source,
    out,
    vocab=None,
    tokenizer=None,
    normalization="nmt_nfkc",
    val_source=None,
    val_every=20,
    field="text",
    shard_tokens=100_000_000,
    sample_bytes=32_000_000,
    num_threads=None,
    progress=None,
):
    """Builds the data folder `out` from `source` (see `documents`) and returns its manifest, written last.

    Validation documents are those of `val_source`, or else those whose hash falls into one of `val_every` classes: the
    choice depends on the text alone. A document equal to one of validation, white space aside, never goes into training.
    vocab defaults to 1,024, or to what the `tokenizer` (a .model file) has. `progress` is called with lines of text.
    A folder that already holds this very dataset is left alone; an unfinished build is made again. Raises Problem for a
    folder with anything else in it, or a split that leaves one side empty.
    """
    out, say = Path(out), progress or (lambda line: None)
    plan = _build_plan(source, vocab, tokenizer, normalization, val_source, val_every, field, shard_tokens, sample_bytes)
    _refuse_foreign(out)
    if not (out / MANIFEST).exists():
        refuse_unwritable(out)
    say(f"reading {plan.source}")
    corpus = Corpus(plan)
    parameters = {**plan.parameters(), "content_sha256": corpus.content()}
    if (out / MANIFEST).exists():
        manifest = _same_dataset(out, parameters)
        say(f"{out} already holds this dataset: reused")
        return manifest
    write_json(out / _UNFINISHED, parameters)
    for stale in [path for pattern in _OUR_FILES for path in out.glob(pattern)]:
        stale.unlink()
    model = out / _TOKENIZER_FILE
    if tokenizer is None:
        say(f"training a tokenizer of {plan.vocab} pieces")
        train_tokenizer(corpus.texts("train"), plan.vocab, model, normalization, sample_bytes)
    else:
        write_bytes(model, Path(tokenizer).read_bytes())
    written = {split: _write_split(corpus, split, out, plan, num_threads, say) for split in ("val", "train")}
    manifest = _describe(corpus, written, parameters, model)
    write_json(out / MANIFEST, manifest)
    (out / _UNFINISHED).unlink()
    return manifest


def _build_plan(source, vocab, tokenizer, normalization, val_source, val_every, field, shard_tokens, sample_bytes):
    if val_source is None and val_every < 2:
        raise Problem(f"one document in {val_every} for validation leaves none for training; take 2 or more")
    if shard_tokens < 1:
        raise Problem(f"shards of {shard_tokens} tokens cannot be; take 1 or more")
    pieces = load_tokenizer(tokenizer).vocab_size() if tokenizer is not None else 1024 if vocab is None else vocab
    if tokenizer is None:
        refuse_vocab(pieces)
    if vocab not in (None, pieces):
        raise Problem(f"tokenizer {tokenizer} has {pieces} pieces, not {vocab}; leave vocab out, or train a tokenizer")
    return BuildPlan(
        source=str(source),
        val_source=None if val_source is None else str(val_source),
        field=field,
        vocab=pieces,
        normalization=normalization if tokenizer is None else None,
        tokenizer_sha256=None if tokenizer is None else file_sha256(tokenizer),
        shard_tokens=shard_tokens,
        val_every=val_every if val_source is None else None,
        sample_bytes=sample_bytes if tokenizer is None else None,
    )


def _refuse_foreign(out):
    try:
        names = {path.name for path in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise Problem(f"cannot use {out} as a data folder: {error.strerror}; choose another") from error
    if names and not names & {MANIFEST, _UNFINISHED}:
        raise Problem(f"{out} is not empty and no data folder (it has {min(names)}); choose another folder")


def _same_dataset(out, parameters):
    """The manifest of a folder that must hold a dataset of equal parameters, whole."""
    dataset = open_dataset(out)
    there = dataset.manifest.get("parameters") or {}
    if differing := [name for name in parameters if there.get(name) != parameters[name]]:
        name = differing[0]
        raise Problem(
            f"{out} holds another dataset ({name} {there.get(name)}, not {parameters[name]}); choose another folder"
        )
    for path in (*dataset.train, *dataset.val):
        open_shard(path)
    load_tokenizer(dataset.tokenizer)
    return dataset.manifest


def document_hash(text):
    """The first 16 bytes of the SHA-256 of a document's words: blind to white space, which normalisation folds anyway."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:HASH_BYTES]


class Corpus:
    """Which documents go where, decided in one pass over the hashes; the texts are streamed again when wanted."""

    def __init__(self, plan):
        self.plan = plan
        self.hashes = {plan.source: [document_hash(text) for text in documents(plan.source, plan.field)]}
        self.dropped = {"blank": 0, "equal_to_validation": 0}
        if plan.val_source is not None:
            self.hashes[plan.val_source] = [document_hash(text) for text in documents(plan.val_source, plan.field)]
        self.split = self._assign()
        counts = {split: sum(row.count(split) for row in self.split.values()) for split in ("train", "val")}
        if not counts["train"] or not counts["val"]:
            raise Problem(
                f"{plan.source} gives {counts['train']} training and {counts['val']} validation documents; "
                "give --val-source, or more documents than these"
            )

    def _assign(self):
        """Source -> "train", "val" or None (dropped) for each of its documents."""
        plan, blank = self.plan, document_hash("")
        chosen = set(self.hashes[plan.val_source]) if plan.val_source is not None else None
        assigned = {source: [None] * len(hashes) for source, hashes in self.hashes.items()}
        seen = set()
        for source, hashes in self.hashes.items():
            for index, digest in enumerate(hashes):
                held_out = digest in chosen if chosen is not None else int.from_bytes(digest[:8]) % plan.val_every == 0
                # A validation source is kept whole and in order; a validation set cut from the source has no twins.
                keep = source == plan.val_source or (held_out and chosen is None and digest not in seen)
                if digest == blank:
                    self.dropped["blank"] += 1
                elif keep:
                    assigned[source][index] = "val"
                    seen.add(digest)
                elif held_out:
                    self.dropped["equal_to_validation"] += 1
                else:
                    assigned[source][index] = "train"
        return assigned

    def content(self):
        """Hex digits of a SHA-256 over all documents' hashes, in order."""
        return hashlib.sha256(b"|".join(b"".join(hashes) for hashes in self.hashes.values())).hexdigest()

    def texts(self, split):
        """Yields the documents of a split, in the source's order."""
        for source, row in self.split.items():
            if split in row:
                for text, where in zip(documents(source, self.plan.field), row, strict=True):
                    if where == split:
                        yield text

    def split_hashes(self, split):
        """The split's document hashes, sorted: [documents] of 16 bytes."""
        pairs = ((self.hashes[source], row) for source, row in self.split.items())
        return sorted(digest for hashes, row in pairs for digest, where in zip(hashes, row, strict=True) if where == split)


def _batches(texts, chars):
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_split(corpus, split, out, plan, num_threads, say):
    """Encodes and writes one split; returns its figures: documents, tokens, bytes and shards."""
    tokenizer = load_tokenizer(out / _TOKENIZER_FILE)
    table = byte_table(tokenizer)
    facts = {"documents": 0, "tokens": 0, "bytes": 0, "original_bytes": 0, "shards": []}
    waiting = np.zeros(0, np.uint16)

    def write(tokens):
        name = f"{split}_{len(facts['shards']):06d}.bin"
        write_shard(out / name, tokens)
        facts["shards"].append({"split": split, "file": name, "tokens": len(tokens), "sha256": file_sha256(out / name)})

    for batch in _batches(corpus.texts(split), _BATCH_CHARS):
        tokens = np.concatenate(encode_documents(tokenizer, batch, num_threads))
        facts["documents"] += len(batch)
        facts["tokens"] += len(tokens)
        facts["bytes"] += table.total(tokens)  # each batch begins with BOS: 0 bytes
        facts["original_bytes"] += sum(len(text.encode()) for text in batch)
        waiting = np.concatenate([waiting, tokens])
        while len(waiting) >= plan.shard_tokens:
            write(waiting[: plan.shard_tokens])
            waiting = waiting[plan.shard_tokens :]
        say(f"{split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens")
    if len(waiting):
        write(waiting)
    hashes = out / f"{split}.hashes"
    write_bytes(hashes, b"".join(corpus.split_hashes(split)))
    return {**facts, "hashes": {"file": hashes.name, "sha256": file_sha256(hashes)}}


def _describe(corpus, written, parameters, model):
    """The manifest: see `open_dataset` for the part that others read."""
    plan, splits = corpus.plan, ("train", "val")
    shared = set(corpus.split_hashes("train")) & set(corpus.split_hashes("val"))
    if shared:
        raise AssertionError(f"{len(shared)} documents are in training and in validation")

    def by_split(name):
        return {split: written[split][name] for split in splits}

    return {
        "format": MANIFEST_FORMAT,
        "source": plan.source,
        "val_source": plan.val_source,
        "vocab": plan.vocab,
        "tokenizer": {"file": model.name, "sha256": file_sha256(model), "normalization": plan.normalization},
        **{name: by_split(name) for name in ("documents", "tokens", "bytes", "original_bytes", "hashes")},
        "dropped": corpus.dropped,
        "documents_in_both": len(shared),
        "shards": [shard for split in splits for shard in written[split]["shards"]],
        "parameters": parameters,
    }
