import errno
import json
import math
import os
import time
from pathlib import Path

import pytest

from fairway.clock import Clock
from fairway.files import file_sha256, read_json, refuse_unwritable, replacing, write_bytes, write_json, write_text
from fairway.problem import Problem
from fairway.runfolder import forget_score, need, read_run, update_run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refusing(code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


def test_bytes_text_and_json_come_back(tmp_path):
    write_bytes(tmp_path / "a", b"\0\xff")
    write_text(tmp_path / "b", "naïve 日本\n")
    write_json(tmp_path / "c", {"x": [1, 2.5, None]})
    assert (tmp_path / "a").read_bytes() == b"\0\xff"
    assert (tmp_path / "b").read_bytes() == "naïve 日本\n".encode()
    assert read_json(tmp_path / "c") == {"x": [1, 2.5, None]}
    assert names(tmp_path) == ["a", "b", "c"]


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "deep" / "down" / "file", "x")
    assert (tmp_path / "deep" / "down" / "file").read_text() == "x"


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, Problem])
def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path, fault):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(fault), replacing(path) as part:
        part.write_text("half of the n")
        raise fault("stop")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_the_old_file_stands_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.parent == path.parent
    assert path.read_text() == "new" and names(tmp_path) == ["file"]


def test_a_disk_that_fills_up_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))
    with pytest.raises(Problem, match=r"cannot write .*file: No space left on device; free space") as problem:
        write_bytes(path, b"new")
    assert "\n" not in str(problem.value)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_a_problem(tmp_path):
    refused = pytest.raises(Problem, match="No space left on device")
    with refused, replacing(tmp_path / "file"), open("/dev/full", "wb") as out:
        out.write(b"x" * 100_000)
    assert names(tmp_path) == []


def test_a_folder_that_may_not_be_written_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", refusing(errno.EACCES))
    with pytest.raises(Problem, match=r"cannot write .*file: Permission denied"):
        write_text(tmp_path / "file", "x")


def test_a_file_where_a_folder_should_be_is_a_problem(tmp_path):
    (tmp_path / "way").write_text("old")
    with pytest.raises(Problem, match=r"cannot write .*way/file"):
        write_text(tmp_path / "way" / "file", "x")
    assert (tmp_path / "way").read_text() == "old"


def test_a_folder_where_the_file_should_be_is_a_problem(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(Problem, match=r"cannot write .*file"):
        write_text(tmp_path / "file", "x")
    assert names(tmp_path) == ["file"]


def test_a_name_that_is_too_long_is_a_problem(tmp_path):
    with pytest.raises(Problem, match="File name too long"):
        write_text(tmp_path / ("x" * 300), "x")


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_permissions_of_any_other(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("value", [math.nan, {"bpb": math.inf}])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, value):
    write_json(tmp_path / "file", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == 1 and names(tmp_path) == ["file"]


def test_reading_json_names_the_file_that_is_absent_or_broken(tmp_path):
    with pytest.raises(Problem, match=r"cannot read .*gone\.json: No such file"):
        read_json(tmp_path / "gone.json")
    for content in (b"{", b"\xff\xfe", b""):
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(Problem, match=r"broken\.json is not valid JSON"):
            read_json(tmp_path / "broken.json")


def test_what_cannot_be_written_is_known_without_writing(tmp_path, monkeypatch):
    refuse_unwritable(tmp_path / "not" / "there")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "deep" / "down"):
        with pytest.raises(Problem, match=rf"cannot write {path}: Not a directory; free space or choose another folder"):
            refuse_unwritable(path)
    assert names(tmp_path) == ["file"]
    monkeypatch.setattr("tempfile.TemporaryFile", refusing(errno.EROFS))
    with pytest.raises(Problem, match="Read-only file system"):
        refuse_unwritable(tmp_path)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
    with pytest.raises(Problem, match=r"cannot read .*gone: No such file"):
        file_sha256(tmp_path / "gone")


def test_a_run_that_is_no_object_of_the_kinds_that_are_written_is_one_line(tmp_path):
    with pytest.raises(Problem, match=r"run\.json is not there; `fairway train` writes it"):
        read_run(tmp_path)
    for content, says in (
        ("[]", "holds a list, not an object"),
        ("null", "holds a NoneType, not an object"),
        ('{"phases": 5}', r"phases takes dict\[str, float\], not 5; "),
        ('{"bpb": null}', r"bpb takes dict\[str, float\], not None; "),
        ('{"seed": "7"}', "seed takes int, not '7'; "),
        ('{"data": ["d"]}', "data takes str, not "),
        ('{"sha256": {"model.bin": 3}}', r"sha256 takes dict\[str, str \| None\], not "),
        ("[" * 100_000, "is not valid JSON"),
    ):
        (tmp_path / "run.json").write_text(content)
        for call in (read_run, forget_score, lambda folder: update_run(folder, {"phases": {"train": 1.0}, "bpb": {}})):
            with pytest.raises(Problem, match=says) as caught:
                call(tmp_path)
            assert "run.json" in str(caught.value) and "\n" not in str(caught.value)
        assert (tmp_path / "run.json").read_text() == content


def test_a_run_that_was_over_the_cap_can_be_read(tmp_path):
    whole = update_run(tmp_path, {"seed": 2**64 - 1, "sha256": {"model.bin": None, "metrics.jsonl": "ab"}})
    assert read_run(tmp_path) == whole


def test_a_run_names_what_it_is_asked_for_or_the_key_that_it_lacks(tmp_path):
    whole = update_run(tmp_path, {"data": "d", "seed": 3})
    assert read_run(tmp_path, "data", "seed") == whole
    with pytest.raises(Problem, match=r"run\.json names no data_hash: no training began here"):
        read_run(tmp_path, "data", "data_hash")


def test_a_run_grows_key_by_key(tmp_path):
    update_run(tmp_path, {"seed": 1, "bpb": {"weights": 2.0}, "phases": {"train": 1.0}})
    whole = update_run(tmp_path, {"steps": 9, "bpb": {"packed": 2.1}, "phases": {"train": 3.0, "score": 1.0}})
    assert whole == json.loads((tmp_path / "run.json").read_text())
    assert whole == {
        "seed": 1,
        "steps": 9,
        "bpb": {"weights": 2.0, "packed": 2.1},
        "phases": {"train": 3.0, "score": 1.0},
    }


def test_a_file_that_is_needed_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(Problem, match=r"model\.bin is not there; `fairway pack` writes it"):
        need(tmp_path, "model.bin", "pack")
    (tmp_path / "model.bin").mkdir()
    with pytest.raises(Problem):
        need(tmp_path, "model.bin", "pack")
    write_text(tmp_path / "other", "")
    assert need(str(tmp_path), "other", "pack") == tmp_path / "other"


def test_the_clock_adds_up_each_phase_also_when_it_fails():
    clock = Clock()
    for _ in range(2):
        with clock.phase("train"):
            time.sleep(0.01)
    with pytest.raises(ValueError), clock.phase("score"):
        time.sleep(0.01)
        raise ValueError
    assert list(clock.seconds) == ["train", "score"]
    assert 0.02 <= clock.seconds["train"] < 1 and 0.01 <= clock.seconds["score"] < 1
