"""The folder of a stranger: what is listed, what is read, what is refused."""

import bz2
import gzip
import io
import lzma
import os
import socket
import zipfile
import zlib

import pytest

from fairway.problem import Problem
from fairway.referee import folder as folder_module
from fairway.referee.folder import judge_folder, read_folder
from fairway.referee.inflate import (
    GIGABYTE,
    Oversize,
    bounded,
    bz2_pieces,
    unpacked_size,
    xz_pieces,
    zlib_pieces,
    zstd_pieces,
)
from fairway.referee.rules import read_policy
from fairway.referee.verdict import Findings

LOG = "step:1 val_loss:3.2 val_bpb:1.9\nstep:2 val_loss:3.1 val_bpb:1.8\n"


@pytest.fixture
def place(tmp_path):
    """An honest folder."""
    (tmp_path / "README.md").write_text("# Nine layers\n")
    (tmp_path / "submission.json").write_text('{"author": "a", "val_bpb": 1.2}')
    (tmp_path / "train_gpt.py").write_text("print(1)\n")
    (tmp_path / "train_seed42.log").write_text(LOG)
    return tmp_path


def judged(place):
    findings = Findings(read_policy())
    judge_folder(findings, read_folder(place))
    return findings


def verdicts(findings, rule):
    return [row["verdict"] for row in findings.rows if row["rule"] == rule]


def evidence(findings, rule):
    return " ".join(row["evidence"] for row in findings.rows if row["rule"] == rule)


def test_an_honest_folder_passes(place):
    found = judged(place)
    assert verdicts(found, "G1") == verdicts(found, "G7") == verdicts(found, "A10") == ["PASS"]
    assert verdicts(found, "A5") == []


def test_what_is_no_folder_is_one_clear_line(tmp_path):
    with pytest.raises(Problem, match="no folder"):
        read_folder(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(Problem, match="is a file"):
        read_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["README.md", "submission.json", "train_gpt.py", "train_seed42.log"])
def test_each_required_file_is_missed_where_it_is_absent_or_empty(place, name):
    (place / name).write_text("")
    assert verdicts(judged(place), "G1") == ["FAIL"]
    (place / name).unlink()
    found = judged(place)
    assert verdicts(found, "G1") == ["FAIL"]
    assert ("no log" if name.endswith("log") else f"no {name}") in evidence(found, "G1")


def test_other_names_that_do_the_same_are_accepted_and_said(place):
    (place / "submission.json").rename(place / "submission_ternary.json")
    (place / "README.md").rename(place / "readme.md")
    found = judged(place)
    assert verdicts(found, "G1") == ["PASS"]
    assert "submission_ternary.json stands for submission.json" in evidence(found, "G1")


def test_a_json_of_something_else_is_no_claim(place):
    (place / "submission.json").rename(place / "config.json")
    (place / "config.json").write_text('{"layers": 9}')
    assert verdicts(judged(place), "G1") == ["FAIL"]


def test_links_out_of_the_folder_break_it_and_links_inside_do_not(place):
    (place / "again.log").symlink_to("train_seed42.log")
    assert verdicts(judged(place), "G7") == ["PASS"]
    for target in ("/etc/hostname", "../../x", "more/../../y"):
        (place / "data").symlink_to(target)
        found = judged(place)
        assert verdicts(found, "G7") == ["FAIL"], target
        (place / "data").unlink()


def test_a_chain_of_links_out_is_seen_and_nothing_is_read_through_it(place, tmp_path_factory):
    secret = tmp_path_factory.mktemp("other") / "secret.log"
    secret.write_text("val_loss:1 val_bpb:1")
    (place / "hop").symlink_to(secret.parent)
    (place / "train.log").symlink_to("hop/secret.log")
    found = read_folder(place)
    assert len(found.breaches) == 2
    assert found.text("train.log") == "" and found.logs() == ["train_seed42.log"]
    assert any("no regular file" in fault for fault in found.faults)


def test_names_with_control_characters_break_it_and_unusual_names_do_not(place):
    for name in ("résumé 训练 🚀.txt", "a\u202fnarrow space.png", "-rf", "a'\"$(b).md", "..."):
        (place / name).write_text("x")
    assert verdicts(judged(place), "G7") == ["PASS"]
    for name in ("a\x1b[2Jb", "a\nb", "a\u202eyp.exe", b"bad\xff"):
        path = os.path.join(os.fsencode(place), os.fsencode(name))
        open(path, "w").close()
        found = read_folder(place)
        assert len(found.breaches) == 1 and found.breaches[0].isprintable()
        assert all(one.name.isprintable() for one in found.entries)
        os.unlink(path)


def test_pipes_and_sockets_are_never_opened(place):
    os.mkfifo(place / "train_seed7.log")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place / "train.sock"))
        found = read_folder(place)
        assert found.data("train_seed7.log") == b"" and list(found.lines("train.sock")) == []
        assert found.logs() == ["train_seed42.log"]
    assert verdicts(judged(place), "G7") == ["FAIL", "FAIL"]


def test_a_file_that_becomes_a_pipe_after_the_listing_does_not_hang(place):
    found = read_folder(place)
    (place / "train_seed42.log").unlink()
    os.mkfifo(place / "train_seed42.log")
    assert found.text("train_seed42.log") == ""
    assert "train_seed42.log is no regular file" in found.faults


def test_numbers_and_depth_of_entries_are_bounded(place, monkeypatch):
    deep = place / "/".join("abcdef")
    deep.mkdir(parents=True)
    (deep / "x").write_text("x")
    monkeypatch.setattr(folder_module, "DEEPEST", 3)
    found = read_folder(place)
    assert not found.has("a/b/c/d/e/f/x") and any("folders deep" in fault for fault in found.faults)
    monkeypatch.setattr(folder_module, "MOST_ENTRIES", 3)
    found = read_folder(place)
    assert len(found.entries) == 3 and any("first 3 entries" in fault for fault in found.faults)
    assert verdicts(judged(place), "G7") != ["PASS"]


def test_what_may_not_be_listed_is_a_fault(place, monkeypatch):
    (place / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = judged(place)
    assert "NOT TESTED" in verdicts(found, "G7") and "locked cannot be listed: Permission denied" in evidence(found, "G7")


def test_lines_of_a_text_of_any_size_are_bounded(place, monkeypatch):
    monkeypatch.setattr(folder_module, "FIRST_BYTES", 1000)
    monkeypatch.setattr(folder_module, "LAST_BYTES", 100)
    (place / "big.log").write_text("".join(f"line {at:05}\n" for at in range(1000)))
    found = read_folder(place)
    lines = list(found.lines("big.log"))
    assert lines[0] == "line 00000" and lines[-1] == "line 00999" and len(lines) < 115
    assert any("in its middle are not read" in fault for fault in found.faults)


def test_a_line_without_end_is_cut(place):
    (place / "long.log").write_bytes(b"first\n" + b"x" * 3_000_000 + b"\nlast\n")
    found = read_folder(place)
    assert [len(line) for line in found.lines("long.log")] == [5, 65_536, 4]
    assert any("lines are cut" in fault for fault in found.faults)


def test_line_ends_and_encodings_of_all_kinds_are_read(place):
    (place / "a.log").write_bytes(b"one\r\ntwo\rthree\nfour \xff")
    (place / "b.log").write_bytes("eins\nzwei ü".encode("utf-16"))
    (place / "c.log").write_bytes("\ufeffx\n".encode())
    found = read_folder(place)
    assert list(found.lines("a.log")) == ["one", "two", "three", "four \ufffd"]
    assert list(found.lines("b.log")) == ["eins", "zwei ü"] and found.text("b.log") == "eins\nzwei ü"
    assert list(found.lines("c.log")) == ["x"] and found.text("c.log") == "x\n"


def test_logs_are_told_by_what_they_say_and_the_least_deep_ones_count(place):
    (place / "requirements.txt").write_text("torch\n")
    (place / "notes.txt").write_text("val_bpb 1.2 is what we reach\n")
    (place / "pip.log").write_text("Collecting torch\n")
    (place / "run_7.txt").write_text(LOG)
    (place / "ablations").mkdir()
    (place / "ablations" / "other.log").write_text(LOG)
    assert read_folder(place).logs() == ["run_7.txt", "train_seed42.log"]
    (place / "run_7.txt").unlink()
    (place / "train_seed42.log").unlink()
    assert read_folder(place).logs() == ["ablations/other.log"]


def test_the_main_script_comes_first(place):
    (place / "a.py").write_text("x" * 10_000)
    (place / "train_other.py").write_text("x" * 100)
    (place / "lib").mkdir()
    (place / "lib" / "train.py").write_text("x" * 20_000)
    assert read_folder(place).scripts() == ["train_gpt.py", "train_other.py", "a.py", "lib/train.py"]
    (place / "train_gpt.py").unlink()
    assert read_folder(place).scripts()[0] == "train_other.py"


def test_large_binaries_are_for_people_to_judge_and_tokenizers_are_recorded(place):
    (place / "model.ptz").write_bytes(os.urandom(4_100_000))
    (place / "fineweb_1024_bpe.model").write_bytes(bytes(100))
    (place / "tokenizer_notes.md").write_text("x")
    findings = judged(place)
    rows = {row["rule"]: row for row in findings.rows}
    assert rows["A10"]["verdict"] == "NOT TESTED" and rows["A10"]["measured"]["model.ptz"] == 4_100_000
    assert "for people to judge" in rows["A10"]["evidence"]
    assert rows["A5"]["measured"] == {"total": 100, "fineweb_1024_bpe.model": 100}


def zeros(kind):
    """68 MiB of zeros from a small file."""
    block = bytes(4 << 20)
    if kind == "zip":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for at in range(17):
                archive.writestr(f"{at}", block)
        return out.getvalue()
    return {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[kind](block) * 17


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2", "zip"])
def test_archives_that_unpack_to_more_than_the_limit_break_it(place, kind, monkeypatch):
    monkeypatch.setattr(folder_module, "GIGABYTE", 64 << 20)
    (place / f"weights.{kind}").write_bytes(zeros(kind))
    found = judged(place)
    assert verdicts(found, "G7") == ["FAIL"] and f"weights.{kind}" in evidence(found, "G7")


def test_archives_that_are_small_or_broken_do_not_break_it(place):
    (place / "a.gz").write_bytes(gzip.compress(bytes(1 << 20)))
    (place / "b.xz").write_bytes(lzma.compress(b"x" * 1000)[:-9])
    (place / "c.zip").write_bytes(b"PK\3\4 and nothing")
    (place / "model.ptz").write_bytes(zlib.compress(bytes(1000)))
    assert verdicts(judged(place), "G7") == ["PASS"]


def test_archives_inside_archives_are_counted():
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10 << 20))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        for at in range(3):
            archive.writestr(f"{at}.zip", inner.getvalue())
    assert unpacked_size(outer, GIGABYTE) > 30 << 20


@pytest.mark.parametrize(
    "pack, pieces",
    [(lzma.compress, xz_pieces), (bz2.compress, bz2_pieces), (zlib.compress, zlib_pieces)],
    ids=["xz", "bz2", "zlib"],
)
def test_decompression_gives_what_was_packed_and_no_more_than_allowed(pack, pieces):
    data = os.urandom(3000) + bytes(3 << 20)
    packed = pack(data)
    assert bounded(pieces([packed]), 4 << 20) == data
    assert bounded(pieces(packed[at : at + 7] for at in range(0, len(packed), 7)), 4 << 20) == data
    with pytest.raises(Oversize, match=f"{len(data):,}"):
        bounded(pieces([packed]), 1 << 20)
    with pytest.raises((EOFError, lzma.LZMAError)):
        bounded(pieces([packed[:-30]]), 4 << 20)


def test_zstandard_is_streamed():
    zstandard = pytest.importorskip("zstandard")
    assert bounded(zstd_pieces([zstandard.compress(bytes(5 << 20))]), 6 << 20) == bytes(5 << 20)
