"""The download of FineWeb, end to end, from a small hub on this machine.

It runs in a process of its own, since the library reads HF_ENDPOINT when it is imported.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from data.hub_server import HubServer
from fairway.data.dataset import open_dataset, validation_tokens
from fairway.data.hub import CASEOPS_REPO, FINEWEB_REPOS, download_fineweb
from fairway.problem import Problem

FOLDER = "datasets/fineweb10B_sp1024"
MODEL = "datasets/tokenizers/fineweb_1024_bpe.model"


def shard_bytes(tokens, magic=20240520, count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(tokens) if count is None else count
    return header.tobytes() + np.asarray(tokens, "<u2").tobytes()


def published():
    """A repository of several vocabularies, as the hub lists them."""
    random = np.random.default_rng(0)
    files = {f"{FOLDER}/fineweb_train_{index:06d}.bin": shard_bytes(random.integers(1024, size=900)) for index in range(5)}
    files |= {f"{FOLDER}/fineweb_val_{index:06d}.bin": shard_bytes(random.integers(1024, size=500)) for index in range(2)}
    files |= {f"datasets/fineweb10B_{name}/fineweb_val_000000.bin": shard_bytes([1]) for name in ("sp10240", "sp1024_small")}
    files |= {f"datasets/tokenizers/fineweb_{name}.model": b"pieces" for name in ("1024_bpe", "10240_bpe")}
    return files | {"datasets/manifest.json": b"{}", "manifest.json": b"{}", "README.md": b"words"}


def published_caseops():
    folder = "datasets/fineweb10B_sp8192_lossless_caps_caseops_v1_reserved"
    return {
        f"{folder}/fineweb_train_000000.bin": shard_bytes([1, 5, 6]),
        f"{folder}/fineweb_val_000000.bin": shard_bytes([1, 7, 8, 9]),
        f"{folder}/fineweb_val_bytes_000000.bin": shard_bytes([0, 4, 5, 300]),
        "datasets/tokenizers/fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model": b"pieces",
    }


@pytest.fixture(scope="module")
def running():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def elsewhere(running, tmp_path_factory):
    """A process that knows the hub from HF_ENDPOINT only, and nothing of the user's tokens and caches."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf_home")))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield lambda *arguments, **named: pool.submit(download_fineweb, *arguments, **named).result(timeout=60)


@pytest.fixture
def hub(running):
    running.reset(FINEWEB_REPOS[1024], published())
    return running


@pytest.fixture
def refused(hub, elsewhere, tmp_path):
    """The words of the Problem that a download ends with."""

    def attempt(*arguments, **named):
        with pytest.raises(Problem) as caught:
            elsewhere(tmp_path / "out", *arguments, **named)
        words = str(caught.value)
        assert "\n" not in words
        return words

    return attempt


def test_a_fresh_download_is_a_data_folder(hub, elsewhere, tmp_path):
    manifest = elsewhere(tmp_path / "out", train_shards=2)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest == manifest and manifest["revision"] == hub.commit and dataset.vocab == 1024
    assert manifest["tokens"] == {"train": 1800, "val": 1000} and len(validation_tokens(dataset)) == 1000
    assert [path.name for path in dataset.train] == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    assert all(path.read_bytes() == hub.files[path.relative_to(tmp_path / "out").as_posix()] for path in dataset.train)
    assert dataset.tokenizer.read_bytes() == b"pieces" and manifest["tokenizer"]["file"] == MODEL
    assert not (tmp_path / "out" / "README.md").exists() and (tmp_path / "out" / "datasets" / "manifest.json").exists()


def test_a_second_call_fetches_nothing_and_more_shards_only_those(hub, elsewhere, tmp_path):
    first = elsewhere(tmp_path / "out", train_shards=2)
    hub.fetched.clear()
    assert elsewhere(tmp_path / "out", train_shards=2) == first and hub.fetched == []
    more = elsewhere(tmp_path / "out", train_shards=4)
    assert sorted(hub.fetched) == [(f"{FOLDER}/fineweb_train_{index:06d}.bin", None) for index in (2, 3)]
    assert elsewhere(tmp_path / "out", train_shards=1) == more


def test_a_cut_connection_goes_on_where_it_broke(hub, elsewhere, tmp_path):
    name = f"{FOLDER}/fineweb_val_000001.bin"
    hub.files[name] = shard_bytes(np.arange(5_500_000) % 1024)
    hub.cut[name] = 10_500_000  # the library writes in chunks of 10 MiB and goes on after the last that is whole
    elsewhere(tmp_path / "out")
    assert [asked for path, asked in hub.fetched if path == name] == [None, f"bytes={10 << 20}-"]
    assert (tmp_path / "out" / name).read_bytes() == hub.files[name]


def test_an_interrupted_download_keeps_what_is_whole(hub, refused, elsewhere, tmp_path):
    hub.absent.add(MODEL)
    assert "404" in refused()
    assert not (tmp_path / "out" / "manifest.json").exists()
    before = {path for path, _ in hub.fetched}
    hub.absent.clear()
    hub.fetched.clear()
    elsewhere(tmp_path / "out")
    after = {path for path, _ in hub.fetched}
    assert MODEL in after and not before & after


def test_a_file_damaged_on_disk_is_fetched_again(hub, elsewhere, tmp_path):
    first = elsewhere(tmp_path / "out")
    flipped, short, model = f"{FOLDER}/fineweb_train_000000.bin", f"{FOLDER}/fineweb_val_000000.bin", MODEL
    data = bytearray(hub.files[flipped])
    data[1500] ^= 1
    (tmp_path / "out" / flipped).write_bytes(data)
    (tmp_path / "out" / short).write_bytes(hub.files[short][:-2])
    (tmp_path / "out" / model).write_bytes(b"Pieces")
    hub.fetched.clear()
    assert elsewhere(tmp_path / "out") == first
    assert sorted(path for path, _ in hub.fetched) == sorted([flipped, short, model])
    assert all((tmp_path / "out" / path).read_bytes() == hub.files[path] for path in (flipped, short, model))


@pytest.mark.parametrize("served", [b"x" * 100, shard_bytes([9] * 900)])
def test_a_hub_that_serves_other_bytes_than_it_lists_is_refused(hub, refused, tmp_path, served):
    name = f"{FOLDER}/fineweb_train_000000.bin"
    hub.served[name] = served
    words = refused()
    assert name in words and ("100 bytes" in words or "hash" in words)
    assert [path for path, _ in hub.fetched].count(name) == 2
    assert not (tmp_path / "out" / name).exists() and not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "data, word",
    [(shard_bytes([1, 2], magic=7), "magic"), (shard_bytes([1, 2], count=3), "3 tokens"), (b"short", "5 bytes")],
)
def test_a_shard_that_was_published_broken_is_named(hub, refused, tmp_path, data, word):
    name = f"{FOLDER}/fineweb_train_000000.bin"
    hub.files[name] = data
    words = refused()
    assert name in words and word in words and FINEWEB_REPOS[1024] in words
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_caseops_brings_the_bytes_of_every_validation_token(hub, elsewhere, refused, tmp_path):
    hub.reset(CASEOPS_REPO, published_caseops())
    manifest = elsewhere(tmp_path / "caseops", 8192, caseops=True)
    assert [entry["tokens"] for entry in manifest["byte_files"]] == [4] and manifest["tokens"]["val"] == 4
    assert len(open_dataset(tmp_path / "caseops").val) == 1
    name = next(name for name in hub.files if "val_bytes" in name)
    hub.files[name] = shard_bytes([0, 4])
    assert "bytes for 2 of 4" in refused(8192, caseops=True)
    del hub.files[name]
    assert "fineweb_val_bytes_" in refused(8192, caseops=True)
    assert "sp8192" in refused(1024, caseops=True)


def test_what_is_not_there_is_said_with_what_is(hub, refused):
    assert "5 training shards" in (words := refused(train_shards=6)) and "not 6" in words
    assert "-1" in refused(train_shards=-1)
    assert "1024, 8192" in refused(4096)
    hub.files = {name: data for name, data in hub.files.items() if not name.startswith(f"{FOLDER}/")}
    del hub.files["datasets/fineweb10B_sp1024_small/fineweb_val_000000.bin"]
    assert "sp10240" in refused()
    hub.reset(FINEWEB_REPOS[1024], {name: data for name, data in published().items() if name != MODEL})
    assert "fineweb_10240_bpe.model" in refused()
    hub.reset(FINEWEB_REPOS[1024], {"README.md": b""})
    assert "nothing of the kind" in refused()


def test_a_hub_that_cannot_be_had_is_one_line(hub, refused):
    hub.gated = True
    assert "gated" in refused()
    hub.reset("somebody/else", {})
    assert FINEWEB_REPOS[1024] in (words := refused()) and hub.endpoint in words
    hub.broken = True
    assert "JSON" in refused() or "Expecting value" in refused()
    assert "refused" in refused(endpoint="http://127.0.0.1:9")
    assert "'huggingface.co' is no address" in refused(endpoint="huggingface.co")


def test_the_endpoint_can_be_given_and_offline_is_respected(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Problem, match="HF_HUB_OFFLINE"):
        download_fineweb(tmp_path / "out", endpoint=hub.endpoint)


def test_a_folder_with_something_else_in_it_is_left_alone(hub, refused, elsewhere, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("words")
    assert "not empty" in refused()
    elsewhere(tmp_path / "other")
    hub.reset(FINEWEB_REPOS[8192], {})
    with pytest.raises(Problem, match="1024 pieces; choose another folder"):
        elsewhere(tmp_path / "other", 8192)


def test_a_folder_that_cannot_be_used_is_found_before_the_hub_is_asked(tmp_path):
    nowhere = "http://127.0.0.1:9"
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match=r"cannot write .*out: Not a directory"):
        download_fineweb(tmp_path / "file" / "out", endpoint=nowhere)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(Problem, match=r"manifest\.json is not a manifest of format 1"):
        download_fineweb(tmp_path, endpoint=nowhere)
