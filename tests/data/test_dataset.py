import json

import numpy as np
import pytest

from fairway.data.dataset import check_ids, dataset_bytes, open_dataset, validation_tokens
from fairway.data.shards import write_shard
from fairway.data.tokenizer import train_tokenizer
from fairway.problem import Problem

SHARDS = [("train", "datasets/x/train_0.bin", 5), ("val", "datasets/x/val_0.bin", 3), ("val", "datasets/x/val_1.bin", 4)]


def _manifest(**changes):
    shards = [{"split": split, "file": name, "tokens": count, "sha256": "00"} for split, name, count in SHARDS]
    return {"format": 1, "vocab": 300, "tokenizer": {"file": "datasets/t.model"}, "shards": shards, **changes}


@pytest.fixture
def folder(tmp_path):
    for _, name, count in SHARDS:
        write_shard(tmp_path / name, np.arange(1, count + 1, dtype=np.uint16))
    (tmp_path / "manifest.json").write_text(json.dumps(_manifest()))
    return tmp_path


def test_validation_is_read_with_the_training_shards_gone_and_training_named_with_validation_gone(folder):
    (folder / SHARDS[0][1]).unlink()
    dataset = open_dataset(folder)
    assert dataset.train == (folder / "datasets/x/train_0.bin",) and dataset.vocab == 300
    tokens = validation_tokens(dataset)
    assert tokens.dtype == np.uint16 and tokens.tolist() == [1, 2, 3, 1, 2, 3, 4]
    (folder / SHARDS[2][1]).unlink()
    assert open_dataset(folder).train == dataset.train
    with pytest.raises(Problem, match="cannot read shard"):
        validation_tokens(dataset)


def test_the_data_hash_follows_names_counts_and_hashes_and_nothing_else(folder):
    def data_hash(**changes):
        (folder / "manifest.json").write_text(json.dumps(_manifest(**changes)))
        return open_dataset(folder).data_hash

    first, shards = data_hash(), _manifest()["shards"]
    assert len(first) == 16 and data_hash(source="elsewhere") == first
    for change in ({"file": "datasets/x/other.bin"}, {"tokens": 6}, {"sha256": "01"}):
        assert data_hash(shards=[{**shards[0], **change}, *shards[1:]]) != first


def test_a_folder_without_a_manifest_names_the_command(tmp_path):
    with pytest.raises(Problem, match="fairway data build"):
        open_dataset(tmp_path / "none")


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        _manifest(format=2),
        _manifest(vocab="many"),
        _manifest(vocab=0),
        _manifest(shards=[{"split": "val"}]),
        _manifest(shards=5),
        _manifest(tokenizer={"file": "../../t.model"}),
        _manifest(shards=[{"split": "val", "file": "/etc/passwd", "tokens": 1, "sha256": "00"}]),
        {name: value for name, value in _manifest().items() if name != "tokenizer"},
    ],
)
def test_a_broken_manifest_is_one_line(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Problem, match=r"manifest\.json") as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_another_than_the_manifest_says_is_found(folder):
    write_shard(folder / SHARDS[1][1], np.array([1, 2], np.uint16))
    with pytest.raises(Problem, match=r"val_0\.bin has 2 tokens, manifest\.json says 3"):
        validation_tokens(open_dataset(folder))


def test_an_id_without_a_row_is_found(folder):
    write_shard(folder / SHARDS[2][1], np.array([1, 2, 300, 4], np.uint16))
    with pytest.raises(Problem, match=r"token 300 in .*val_1\.bin.* 300"):
        validation_tokens(open_dataset(folder))
    check_ids(np.array([299], np.uint16), 300, "a.bin")
    check_ids(np.array([], np.uint16), 300, "a.bin")


def test_a_dataset_without_validation_says_so(folder):
    (folder / "manifest.json").write_text(json.dumps(_manifest(shards=_manifest()["shards"][:1])))
    with pytest.raises(Problem, match="no validation shards"):
        validation_tokens(open_dataset(folder))


def test_the_byte_table_is_the_tokenizers_and_only_if_the_vocabulary_fits(folder):
    with pytest.raises(Problem, match="not there"):
        dataset_bytes(open_dataset(folder))
    text = "".join(f"the value of line {n * n % 97} in each text, and {n}\n" for n in range(500))
    train_tokenizer([text], 300, folder / "datasets/t.model")
    assert len(dataset_bytes(open_dataset(folder)).base) == 300
    for changes, says in [({"vocab": 400}, "300 pieces, manifest.json says 400"), ({"byte_files": ["x"]}, "side files")]:
        (folder / "manifest.json").write_text(json.dumps(_manifest(**changes)))
        with pytest.raises(Problem, match=says):
            dataset_bytes(open_dataset(folder))
