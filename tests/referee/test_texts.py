"""Documents that stand in both splits, counted from the shards."""

import numpy as np
import pytest

from fairway.data.dataset import Dataset
from fairway.data.shards import write_shard
from fairway.referee.rules import read_policy
from fairway.referee.texts import document_hashes, judge_overlap
from fairway.referee.verdict import Findings


def documents(seed, count, tokens=40):
    return [np.append([1], np.random.default_rng([seed, i]).integers(2, 300, tokens)) for i in range(count)]


@pytest.fixture
def overlap(tmp_path):
    """`overlap(train, val)`: the verdict on documents in two training shards and one of validation."""

    def judged(train, val):
        stream, paths = np.concatenate(train), []
        # The cut lies inside of a document.
        for name, tokens in (("a", stream[:100]), ("b", stream[100:]), ("v", np.concatenate(val))):
            write_shard(tmp_path / name, tokens.astype(np.uint16))
            paths.append(tmp_path / name)
        shards = [{"split": "train", "tokens": len(stream)}, {"split": "val", "tokens": sum(map(len, val))}]
        dataset = Dataset(tmp_path, tuple(paths[:2]), tuple(paths[2:]), (), tmp_path, 300, {"shards": shards})
        findings = Findings(read_policy())
        judge_overlap(findings, dataset)
        (row,) = findings.rows
        return row

    return judged


def test_documents_that_cross_shards_are_whole(tmp_path):
    stream = np.concatenate(documents(0, 5)).astype(np.uint16)
    for name, part in (("one", stream), ("a", stream[:100]), ("b", stream[100:])):
        write_shard(tmp_path / name, part)
    assert document_hashes([tmp_path / "one"]) == document_hashes([tmp_path / "a", tmp_path / "b"])
    assert len(document_hashes([tmp_path / "one"])[0]) == 5


def test_splits_without_a_document_in_common_pass(overlap):
    row = overlap(documents(0, 50), documents(1, 10))
    assert (row["verdict"], row["measured"]) == ("PASS", 0) and "10 validation documents against 50" in row["evidence"]


def test_a_document_of_validation_in_training_fails(overlap):
    val = documents(1, 10)
    row = overlap([*documents(0, 20), val[3], *documents(2, 20)], val)
    assert (row["rule"], row["verdict"], row["measured"]) == ("D5", "FAIL", 1)


def test_one_page_in_a_thousand_may_be_chance(overlap):
    val = documents(1, 1500)
    row = overlap([*documents(0, 20), val[3]], val)
    assert row["verdict"] == "NOT TESTED" and "may be chance" in row["evidence"]
