import json

import numpy as np
import pytest

from fairway.data.check import check_dataset
from fairway.data.dataset import check_ids, count_target_bytes, dataset_bytes, open_dataset, validation_tokens
from fairway.data.shards import write_shard
from fairway.data.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from fairway.files import file_sha256
from fairway.problem import Problem

SHARDS = [("train", "datasets/x/train_0.bin", 5), ("val", "datasets/x/val_0.bin", 3), ("val", "datasets/x/val_1.bin", 4)]


def _manifest(**changes):
    shards = [{"split": split, "file": name, "tokens": count, "sha256": "00"} for split, name, count in SHARDS]
    model = {"file": "datasets/t.model", "sha256": "00"}
    return {"format": 1, "vocab": 300, "tokenizer": model, "shards": shards, **changes}


def _describe(folder, **changes):
    """Writes the manifest with the hashes and counts that the files now have; returns the Dataset."""
    manifest = _manifest(**changes)
    for entry in (*manifest["shards"], manifest["tokenizer"], *manifest.get("byte_files", ())):
        path = folder / entry["file"]
        if path.is_file():
            entry["sha256"] = file_sha256(path)
            if "tokens" in entry:
                entry["tokens"] = (path.stat().st_size - 1024) // 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_dataset(folder)


@pytest.fixture
def folder(tmp_path):
    for _, name, count in SHARDS:
        write_shard(tmp_path / name, np.arange(1, count + 1, dtype=np.uint16))
    _describe(tmp_path)
    return tmp_path


TEXTS = [f"the value of line {n * n % 97} in each text, and {n}\n" for n in range(500)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bytes of a tokenizer of 300 pieces."""
    path = tmp_path_factory.mktemp("model") / "t.model"
    train_tokenizer(TEXTS, 300, path, "identity")
    return path.read_bytes()


@pytest.fixture
def real(folder, model):
    """A folder whose validation tokens are 20 documents under that tokenizer, in two shards."""
    (folder / "datasets/t.model").write_bytes(model)
    tokens = np.concatenate(encode_documents(load_tokenizer(folder / "datasets/t.model"), TEXTS[:20], 1))
    for (_, name, _), part in zip(SHARDS[1:], np.split(tokens, [57]), strict=True):
        write_shard(folder / name, part)
    _describe(folder)
    return folder


def _add_byte_files(folder, *parts):
    names = [f"datasets/x/val_bytes_{index}.bin" for index in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_shard(folder / name, np.asarray(part, np.uint16))
    return _describe(folder, byte_files=[{"file": name, "tokens": 0, "sha256": "00"} for name in names])


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


def test_the_data_hash_follows_all_files_that_decide_a_score_and_nothing_else(folder):
    def data_hash(**changes):
        (folder / "manifest.json").write_text(json.dumps(_manifest(**changes)))
        return open_dataset(folder).data_hash

    first, shards = data_hash(), _manifest()["shards"]
    assert len(first) == 16 and data_hash(source="elsewhere") == first
    for change in ({"file": "datasets/x/other.bin"}, {"tokens": 6}, {"sha256": "01"}, {"split": "val"}):
        assert data_hash(shards=[{**shards[0], **change}, *shards[1:]]) != first
    assert data_hash(tokenizer={"file": "datasets/t.model", "sha256": "01"}) != first
    side = {"file": "datasets/x/b.bin", "tokens": 7, "sha256": "00"}
    assert len({first, data_hash(byte_files=[side]), data_hash(byte_files=[{**side, "sha256": "01"}])}) == 3


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
        _manifest(tokenizer={"file": "../../t.model", "sha256": "00"}),
        _manifest(tokenizer={"file": "t.model"}),
        _manifest(tokenizer={"file": "t.model", "sha256": 5}),
        _manifest(byte_files=[{"file": "/etc/passwd", "tokens": 1, "sha256": "00"}]),
        _manifest(byte_files=5),
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
        validation_tokens(_describe(folder))
    check_ids(np.array([299], np.uint16), 300, "a.bin")
    check_ids(np.array([], np.uint16), 300, "a.bin")


def test_a_dataset_without_validation_says_so(folder):
    (folder / "manifest.json").write_text(json.dumps(_manifest(shards=_manifest()["shards"][:1])))
    with pytest.raises(Problem, match="no validation shards"):
        validation_tokens(open_dataset(folder))


def test_another_validation_shard_of_the_same_length_is_found(folder):
    write_shard(folder / SHARDS[1][1], np.array([1, 2, 4], np.uint16))
    with pytest.raises(Problem, match=r"val_0\.bin is another file than manifest\.json names .*; restore it") as caught:
        validation_tokens(open_dataset(folder))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_of_the_same_size_is_found(real, tmp_path):
    assert len(dataset_bytes(open_dataset(real)).base) == 300
    train_tokenizer([text[::-1] for text in TEXTS], 300, real / "datasets/t.model")
    with pytest.raises(Problem, match=r"t\.model is another file than manifest\.json names"):
        dataset_bytes(open_dataset(real))


def test_the_byte_table_is_the_tokenizers_and_only_if_the_vocabulary_fits(folder, model):
    with pytest.raises(Problem, match="not there"):
        dataset_bytes(open_dataset(folder))
    (folder / "datasets/t.model").write_bytes(model)
    with pytest.raises(Problem, match=r"300 pieces, manifest\.json says 400"):
        dataset_bytes(_describe(folder, vocab=400))
    with pytest.raises(Problem, match="side files"):
        dataset_bytes(_add_byte_files(folder, [1]))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_target_bytes_are_those_of_the_text(real, chunk):
    dataset = open_dataset(real)
    tokens, table = validation_tokens(dataset), dataset_bytes(dataset)
    whole = sum(len(text.encode()) for text in TEXTS[:20])
    assert count_target_bytes(dataset, tokens, len(tokens) - 1) == table.total(tokens, chunk) == whole
    first = int(np.flatnonzero(tokens == 1)[1])  # the second document begins: the targets before it are the first
    assert count_target_bytes(dataset, tokens, first - 1) == len(TEXTS[0].encode())
    assert count_target_bytes(dataset, tokens, 0) == table.total(tokens[:1], chunk) == 0


def test_target_bytes_of_transformed_text_come_from_the_side_files(folder):
    dataset = _add_byte_files(folder, [1, 2, 4], [8, 60000, 60000, 64])
    tokens = validation_tokens(dataset)
    assert dataset.byte_files == (folder / "datasets/x/val_bytes_0.bin", folder / "datasets/x/val_bytes_1.bin")
    # Not the first token's: nothing predicts it.
    assert [count_target_bytes(dataset, tokens, targets) for targets in (0, 1, 3, 6)] == [0, 2, 14, 120_078]


def test_side_files_of_another_length_or_content_are_found(folder):
    dataset = _add_byte_files(folder, [1, 2, 4], [8])
    with pytest.raises(Problem, match="bytes for 4 of 7 validation tokens"):
        count_target_bytes(dataset, validation_tokens(dataset), 6)
    dataset = _add_byte_files(folder, [1, 2, 4, 8, 16, 32, 64])
    write_shard(dataset.byte_files[0], np.array([1, 2, 4, 8, 16, 32, 65], np.uint16))
    with pytest.raises(Problem, match=r"val_bytes_0\.bin is another file"):
        count_target_bytes(dataset, validation_tokens(dataset), 6)


def test_the_check_of_transformed_text_counts_its_side_files_and_knows_the_contests(real, monkeypatch):
    tokens = validation_tokens(open_dataset(real))
    scored = (len(tokens) - 1) // 64 * 64
    dataset = _add_byte_files(real, np.arange(len(tokens)))
    size, documents = int(np.arange(len(tokens))[1 : scored + 1].sum()), int((tokens == 1).sum())
    monkeypatch.setattr("fairway.data.check.CANONICAL_WINDOW", 64)
    monkeypatch.setattr("fairway.data.check.CANONICAL_CASEOPS_TOKENS", {300: scored})
    monkeypatch.setattr("fairway.data.check.CANONICAL_DOCUMENTS", documents)
    monkeypatch.setattr("fairway.data.check.CANONICAL_BYTES", (size, size))
    report = check_dataset(real)
    named = {one["check"]: one["verdict"] for one in report["checks"]}
    assert named["bytes for validation tokens"] == named["datasets/x/val_bytes_0.bin sha256"] == "PASS"
    assert report["canonical"] is True and scored > 0, report["canonical_because"]
    write_shard(dataset.byte_files[0], np.arange(1, len(tokens)))
    report = check_dataset(real)
    assert any("bytes for validation tokens" in line for line in report["failures"]) and report["canonical"] is False
