import json
from pathlib import Path

import numpy as np
import pytest

from fairway.data.build import build_dataset, document_hash
from fairway.data.check import check_dataset, decoded_bytes
from fairway.data.dataset import MANIFEST, dataset_bytes, open_dataset, validation_tokens
from fairway.data.shards import open_shard, write_shard
from fairway.data.tokenizer import load_tokenizer
from fairway.problem import Problem


def _text(n):
    return f"  Chapter {n}\n" + "".join(f"    the value of line {n * k % 89}  is été {k}, or not\n" for k in range(30))


TEXTS = [_text(n) for n in range(120)]


def _source(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return _source(tmp_path_factory.mktemp("source") / "all.jsonl", TEXTS)


@pytest.fixture(scope="module", params=["nmt_nfkc", "identity"])
def built(request, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "data"
    return out, build_dataset(source, out, vocab=320, normalization=request.param, shard_tokens=9_999, val_every=8)


@pytest.fixture
def small(source, tmp_path):
    build_dataset(source, tmp_path / "data", vocab=320, normalization="identity", val_every=8)
    return tmp_path / "data"


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _refused(says, *arguments, **options):
    with pytest.raises(Problem, match=says) as caught:
        build_dataset(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_the_shards_hold_the_documents_in_order_and_each_once(built):
    out, manifest = built
    dataset = open_dataset(out)
    tokenizer = load_tokenizer(dataset.tokenizer)
    assert len(dataset.train) > 1 and manifest == dataset.manifest
    found = {}
    for split, paths in (("train", dataset.train), ("val", dataset.val)):
        tokens = np.concatenate([open_shard(path) for path in paths])
        rows = np.split(tokens, np.flatnonzero(tokens == 1))[1:]
        found[split] = [" ".join(tokenizer.decode(row.tolist()).split()) for row in rows]
        assert len(tokens) == manifest["tokens"][split] and len(rows) == manifest["documents"][split]
        assert all(len(open_shard(path)) == 9_999 for path in paths[:-1])
    held_out = [int.from_bytes(document_hash(text)[:8], "big") % 8 == 0 for text in TEXTS]
    for split, wanted in (("val", True), ("train", False)):
        expected = [" ".join(text.split()) for text, held in zip(TEXTS, held_out, strict=True) if held == wanted]
        assert found[split] == expected and expected


def test_bytes_are_counted_before_and_after_normalisation(built):
    out, manifest = built
    table, tokens = dataset_bytes(open_dataset(out)), validation_tokens(open_dataset(out))
    assert table.counts(tokens[:-1], tokens[1:]).sum() == manifest["bytes"]["val"]
    total = sum(manifest["original_bytes"].values())
    assert total == sum(len(text.encode()) for text in TEXTS)
    # identity loses the two leading spaces of each document and nothing else; folding white space loses more.
    lost = total - sum(manifest["bytes"].values())
    assert lost == 2 * len(TEXTS) if manifest["tokenizer"]["normalization"] == "identity" else lost > 20 * len(TEXTS)


def test_a_good_folder_passes_every_check(built):
    report = check_dataset(built[0])
    assert report["failures"] == [] and report["not_tested"] == []
    assert len(report["checks"]) > 15 and json.dumps(report, allow_nan=False)
    assert report["canonical"] is False and "320 pieces" in report["canonical_because"]
    skipped = check_dataset(built[0], hashes=False)
    assert skipped["failures"] == [] and all("sha256" in line for line in skipped["not_tested"]) and skipped["not_tested"]


def test_the_same_build_is_reused_and_the_same_elsewhere(built, source, tmp_path):
    out, manifest = built
    options = {
        **{name: manifest["parameters"][name] for name in ("vocab", "normalization", "shard_tokens", "val_every")},
        "num_threads": 1,
    }
    before, lines = {path: path.stat().st_mtime_ns for path in out.iterdir()}, []
    assert build_dataset(source, out, **options, progress=lines.append) == manifest
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before and "reused" in lines[-1]
    build_dataset(source, tmp_path / "again", **options)
    assert _files(tmp_path / "again") == _files(out)
    for other in ({"vocab": 330}, {"val_every": 9}, {"shard_tokens": 8_000}):
        _refused("holds another dataset", source, out, **{**options, **other})
    _refused("another dataset .content_sha256", _source(tmp_path / "b.jsonl", TEXTS[:-1]), out, **options)
    victim = next(out.glob("val_*.bin"))
    data = victim.read_bytes()
    victim.write_bytes(data[:-2])
    _refused("truncated", source, out, **options)
    victim.write_bytes(data)


def test_a_validation_source_is_kept_whole_and_its_documents_never_train(tmp_path):
    val = [TEXTS[3], TEXTS[5], TEXTS[3]]
    train = [*TEXTS, "", " \n", TEXTS[5].replace("    ", "\t\n")]
    manifest = build_dataset(
        _source(tmp_path / "train.jsonl", train),
        tmp_path / "data",
        vocab=320,
        val_source=_source(tmp_path / "val.jsonl", val),
    )
    assert manifest["documents"] == {"train": len(TEXTS) - 2, "val": 3}
    assert manifest["dropped"] == {"blank": 2, "equal_to_validation": 3} and manifest["documents_in_both"] == 0
    hashes = {split: (tmp_path / f"data/{split}.hashes").read_bytes() for split in ("train", "val")}
    assert hashes["val"] == b"".join(sorted(document_hash(text) for text in val))
    assert document_hash(TEXTS[5]) not in [hashes["train"][at : at + 16] for at in range(0, len(hashes["train"]), 16)]
    assert not check_dataset(tmp_path / "data")["failures"]


def test_a_document_that_comes_twice_is_validated_once_and_never_trained(tmp_path):
    once = build_dataset(_source(tmp_path / "a.jsonl", TEXTS), tmp_path / "a", vocab=320, val_every=8)
    twice = build_dataset(_source(tmp_path / "b.jsonl", TEXTS * 2), tmp_path / "b", vocab=320, val_every=8)
    assert twice["documents"] == {"train": 2 * once["documents"]["train"], "val": once["documents"]["val"]}
    assert twice["dropped"]["equal_to_validation"] == once["documents"]["val"]


def test_a_given_tokenizer_is_copied_and_decides_the_vocabulary(built, source, tmp_path):
    model = built[0] / "tokenizer.model"
    manifest = build_dataset(source, tmp_path / "data", tokenizer=model)
    assert manifest["vocab"] == 320 and manifest["tokenizer"]["normalization"] is None
    assert (tmp_path / "data/tokenizer.model").read_bytes() == model.read_bytes()
    _refused("320 pieces, not 1024", source, tmp_path / "other", tokenizer=model, vocab=1024)


def test_what_cannot_be_built_is_one_line(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.doc").write_text("mine")
    _refused("not empty and no data folder .it has letter.doc", source, tmp_path / "mine")
    _refused("cannot use", source, tmp_path / "mine/letter.doc")
    (tmp_path / "one.txt").write_text(TEXTS[0])
    _refused("give --val-source", tmp_path / "one.txt", tmp_path / "data")
    _refused("leaves none", source, tmp_path / "data", val_every=1)
    _refused("1 or more", source, tmp_path / "data", shard_tokens=0)
    _refused("vocab 0 is not possible", source, tmp_path / "data", vocab=0)
    _refused("not there", tmp_path / "none", tmp_path / "data")
    assert not (tmp_path / "data").exists() and _files(tmp_path / "mine") == {"letter.doc": b"mine"}


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_read(source, tmp_path):
    (tmp_path / "file").write_text("")  # root may write into any folder, but not below a file
    lines = []
    _refused("Not a directory; free space or choose another", source, tmp_path / "file/deep/data", progress=lines.append)
    assert lines == [] and (tmp_path / "file").read_text() == ""


def test_an_interrupted_build_leaves_no_manifest_and_is_made_again(source, tmp_path):
    def stop(line):
        if line.startswith("train:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(source, tmp_path / "data", vocab=320, progress=stop)
    assert (tmp_path / "data/val_000000.bin").exists() and not (tmp_path / "data" / MANIFEST).exists()
    (tmp_path / "data/train_000009.bin").write_bytes(b"left over")
    build_dataset(source, tmp_path / "data", vocab=320)
    assert sorted(_files(tmp_path / "data")) == sorted(
        [MANIFEST, "tokenizer.model", "train.hashes", "train_000000.bin", "val.hashes", "val_000000.bin"]
    )


def _rewrite(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    return manifest


def _fails(folder, *says):
    failures = check_dataset(folder)["failures"]
    assert len(failures) >= len(says) and all(any(text in line for line in failures) for text in says), failures


def test_each_kind_of_damage_is_found(small):
    clean = _files(small)

    def restore():
        for name, data in clean.items():
            (small / name).write_bytes(data)

    val = open_shard(small / "val_000000.bin").copy()
    flipped = val.copy()
    flipped[100] ^= 1
    for tokens, says in [
        (flipped, ["val_000000.bin sha256"]),
        (val[1:], ["begins with BOS", "val documents", "val_000000.bin tokens"]),
        (np.append(val, np.uint16(320)), ["token 320"]),
        (np.append(val, np.uint16(1)), ["val documents"]),
    ]:
        write_shard(small / "val_000000.bin", tokens)
        _fails(small, *says)
        restore()
    (small / "train_000000.bin").write_bytes(clean["train_000000.bin"][:-2])
    _fails(small, "truncated")
    restore()
    (small / "train.hashes").write_bytes(clean["val.hashes"][:16] + clean["train.hashes"][16:])
    _fails(small, "documents in both", "train.hashes sha256")
    restore()
    (small / "tokenizer.model").unlink()
    _fails(small, "tokenizer")
    restore()
    (small / "val.hashes").unlink()
    _fails(small, "val.hashes is not there")
    restore()
    assert not check_dataset(small)["failures"]


def test_a_table_that_counts_wrongly_is_found(small):
    # Documents that begin with a space decode to one byte more than any table can count after BOS.
    tokenizer = load_tokenizer(small / "tokenizer.model")
    ids = [1, *tokenizer.encode(" the value")]
    assert decoded_bytes(tokenizer, dataset_bytes(open_dataset(small)), ids) == 10
    write_shard(small / "val_000000.bin", np.array(ids, np.uint16))
    _fails(small, "1 of 1 documents differ, the first is document 0")


def test_what_a_download_does_not_carry_is_not_tested_rather_than_passed(small):
    manifest = _rewrite(small)
    kept = {name: manifest[name] for name in ("format", "vocab", "tokenizer", "shards")}
    (small / MANIFEST).write_text(json.dumps(kept))
    report = check_dataset(small)
    assert report["failures"] == []
    assert {line.split(":")[0] for line in report["not_tested"]} == {"train documents", "val documents", "documents in both"}


def test_the_contests_validation_is_known_by_positions_documents_and_bytes(small, monkeypatch):
    dataset = open_dataset(small)
    tokens = validation_tokens(dataset)
    scored = (len(tokens) - 1) // 2048 * 2048
    table = dataset_bytes(dataset)
    size = int(table.counts(tokens[:scored], tokens[1 : scored + 1]).sum())
    documents = int((tokens == 1).sum())

    def verdict(positions, count, low):
        monkeypatch.setattr("fairway.data.check.CANONICAL_TOKENS", {320: positions})
        monkeypatch.setattr("fairway.data.check.CANONICAL_DOCUMENTS", count)
        monkeypatch.setattr("fairway.data.check.CANONICAL_BYTES", (low, low + 10))
        report = check_dataset(small, hashes=False)
        return report["canonical"], report["canonical_because"]

    assert scored > 0 and verdict(scored, documents, size)[0] is True
    assert verdict(scored + 2048, documents, size) == (False, f"{scored} positions are scored, not {scored + 2048}")
    assert verdict(scored, documents + 1, size) == (False, f"{documents} documents, not {documents + 1}")
    held, why = verdict(scored, documents, size + 1)
    assert held is False and f"{size} bytes" in why


def test_the_contests_tokenizer_counts_a_built_folder(tmp_path, source):
    models = Path(__file__).parents[2].parent / "shared" / "tokenizers"
    model = models / "fineweb_8192_bpe.model"
    if not model.is_file():
        pytest.skip(f"the contest's {model.name} is looked for in {models.parent.name}/{models.name} beside the checkout")
    build_dataset(source, tmp_path / "data", tokenizer=model, val_every=8)
    report = check_dataset(tmp_path / "data")
    assert report["failures"] == [] and "positions are scored, not 40540160" in report["canonical_because"]
