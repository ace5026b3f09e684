"""Training and validation text against each other: whole documents that stand in both, by their tokens.

The manifest's hashes are the builder's word; these are counted from the shards.
"""

import hashlib

import numpy as np

from ..data.shards import open_shard
from ..data.tokenizer import BOS_ID

OVERLAP_TOKENS = 200_000_000  # of training text that are read, unless all is asked for
CHANCE = 0.001  # of the validation documents: so many may stand twice in any crawl of the web
SHORTEST = 16  # tokens of a document that is told from another by chance


def document_hashes(shards, most=None):
    """(set of hashes of the documents of SHORTEST tokens and more, tokens read). A document begins with BOS and may go on in
    the next shard; the last one read is left out where `most` tokens end it."""
    found, rest, read = set(), np.zeros(0, np.uint16), 0
    for path in shards:
        tokens = open_shard(path)
        if most is not None and read + len(tokens) > most:
            tokens = tokens[: most - read]
        read += len(tokens)
        tokens = np.concatenate([rest, tokens])
        starts = np.flatnonzero(tokens == BOS_ID)
        if not len(starts):
            rest = tokens
            continue
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if end - begin >= SHORTEST:
                found.add(hashed(tokens[begin:end]))
        rest = tokens[starts[-1] :]
        if most is not None and read >= most:
            return found, read
    if len(rest) >= SHORTEST:
        found.add(hashed(rest))
    return found, read


def hashed(tokens):
    """16 bytes that stand for a document."""
    return hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=16).digest()


def judge_overlap(findings, dataset, all_of_it=False):
    """D5: how many documents of validation also stand in training."""
    val, _ = document_hashes(dataset.val)
    train, read = document_hashes(dataset.train, None if all_of_it else OVERLAP_TOKENS)
    total = sum(shard["tokens"] for shard in dataset.manifest["shards"] if shard["split"] == "train")
    both = len(val & train)
    evidence = f"{len(val):,} validation documents against {len(train):,} of training ({read:,} of {total:,} tokens)"
    if 0 < both <= CHANCE * len(val):
        findings.untested("D5", f"{both} in both, which may be chance (pages that occur twice): {evidence}")
    elif both or read >= total:
        findings.say("D5", not both, both, 0, CHANCE * len(val), evidence)
    else:
        findings.untested("D5", f"none in both so far: {evidence}; --full reads all")


def judge_dataset(findings, report):
    """D4, D5, M2 by the checks of `fairway data check`: canonical counts, hashes, decode-and-count."""
    checks = report["checks"]
    if report["canonical"]:
        findings.say("D4", True, report["canonical_because"], evidence="data check")
    else:
        findings.untested("D4", f"not the contest's validation text: {report['canonical_because']}")
    for one in checks:
        # Whether a tokenizer knows every character is no rule of the contest's.
        if one["check"] == "val bytes against decoding":
            holds = {"PASS": True, "FAIL": False}.get(one["verdict"])
            findings.say("M2", holds, one["measured"], one["expected"], evidence="data check: documents decoded and counted")
    broken = [one for one in checks if one["verdict"] == "FAIL" and one["check"] != "val bytes against decoding"]
    for one in broken:
        rule = "D5" if one["check"] == "documents in both" else "D4"
        findings.say(rule, False, one["measured"], one["expected"], evidence=f"data check: {one['check']}")
    if not broken:
        findings.say("G3", True, f"{len(checks)} checks", "the manifest's counts and hashes", evidence="data check")
