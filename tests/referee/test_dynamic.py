"""Small scripts that are run as black boxes: the broken condition is named, and nothing else fails."""

import math
import socket
from types import SimpleNamespace

import pytest

from fairway.problem import Problem
from fairway.referee.blackbox import kept_files, plain_digest, vocabulary
from fairway.referee.dynamic import judge_dynamic
from fairway.referee.folder import read_folder
from fairway.referee.heard import Event, judge_network
from fairway.referee.rules import read_policy
from fairway.referee.sandbox import sandbox_fault
from fairway.referee.script import read_script
from fairway.referee.verdict import Findings

TOY = """
import glob, math, os, time, zlib
import numpy as np
import sentencepiece

V, ROOT = 1024, os.environ["DATA_PATH"]

def load(split):
    parts = [np.fromfile(path, "<u2", offset=1024) for path in sorted(glob.glob(f"{ROOT}/fineweb_{split}_*.bin"))]
    return np.concatenate(parts).astype(int)

def bytes_of(x, y):
    sp = sentencepiece.SentencePieceProcessor(model_file=os.environ["TOKENIZER_PATH"])
    edge = np.array([sp.is_control(i) or sp.is_unknown(i) for i in range(V)])
    lead = np.array([sp.id_to_piece(i).startswith("\\u2581") for i in range(V)])
    base = [len(sp.id_to_piece(i).removeprefix("\\u2581").encode()) for i in range(V)]
    base = np.array([0 if edge[i] else 1 if sp.is_byte(i) else base[i] for i in range(V)])
    return (base[y] + (lead[y] & ~edge[x])).sum()

def probability(counts, x, y):
    alone = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * V)
    return (counts[x, y] + 2000 * alone[y]) / (counts.sum(1)[x] + 2000)

train = load("train")
counts = np.bincount(train[:-1] * V + train[1:], minlength=V * V).reshape(V, V)
# made
with open("final_model.int8.ptz", "wb") as out:
    out.write(zlib.compress(np.minimum(counts, 65535).astype("<u2").tobytes(), 1))
with open("final_model.int8.ptz", "rb") as file:
    counts = np.frombuffer(zlib.decompress(file.read()), "<u2").reshape(V, V).astype(float)
val = load("val")
# read
x, y = val[:-1], val[1:]
# cut
p = probability(counts, x, y)
# scored
loss, total = -np.log(p).mean(), bytes_of(x, y)
# counted
print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{loss / math.log(2) * len(y) / total:.8f}")
"""
PAST_TOO_MUCH = """
seen = {}
for i, (a, b, t) in enumerate(zip(val, x[1:], y[1:]), 1):
    here = seen.setdefault((a, b), {})
    if t in here:
        p[i] = 0.5 * p[i] + 0.5 * here[t] / max(here.values())
    here[t] = here.get(t, 0) + 1
"""
TWICE = "np.add.at(counts, (x, y), 500.0); p = probability(counts, x, y)"
LEARNS_AFTER = """
for at in range(0, len(y), 1024):
    p[at : at + 1024] = probability(counts, x[at : at + 1024], y[at : at + 1024])
    np.add.at(counts, (x[at : at + 1024], y[at : at + 1024]), 20.0)
"""


@pytest.fixture(scope="module", autouse=True)
def can_box():
    fault = sandbox_fault()
    if fault:
        pytest.skip(fault)


def judged(folder, source, seconds=60.0):
    """{rule: [verdicts]} and the rows of a folder with that script."""
    (folder / "train_gpt.py").write_text(source)
    found, findings = read_folder(folder), Findings(read_policy())
    judge_dynamic(findings, found, read_script(found, "train_gpt.py"), lambda line: None, seconds)
    return {row["rule"]: row["verdict"] for row in findings.rows}, findings.rows


def failed(verdicts):
    return {rule for rule, verdict in verdicts.items() if verdict == "FAIL"}


def test_an_honest_script_that_learns_what_it_has_scored_passes_everything(tmp_path):
    verdicts, rows = judged(tmp_path, TOY.replace("# scored", LEARNS_AFTER))
    assert set(verdicts.values()) == {"PASS"}, [row for row in rows if row["verdict"] != "PASS"]
    assert len(rows) == len(verdicts) == 15


@pytest.mark.parametrize(
    ("place", "text", "broken"),
    [
        ("# scored", PAST_TOO_MUCH, {"C2"}),
        ("# scored", TWICE, {"C3", "C4"}),
        ("# made", "val = load('val'); np.add.at(counts, (val[:-1], val[1:]), 500)", {"D1", "A9", "C3"}),
        ("# cut", "x, y = x[: len(x) * 3 // 5], y[: len(y) * 3 // 5]", {"D7"}),
        ("# counted", "total += (bytes_of(np.full(V, 5), np.arange(V)) > 0) * len(y)", {"M1", "M2"}),
        ("# read", "load('train')", {"D2"}),
    ],
    ids=[
        "past given too much",
        "second pass",
        "trained on validation",
        "a part is scored",
        "a byte too many",
        "training read",
    ],
)
def test_what_is_broken_is_named_and_nothing_else(tmp_path, place, text, broken):
    verdicts, rows = judged(tmp_path, TOY.replace(place, text))
    assert failed(verdicts) == broken, [row for row in rows if row["verdict"] == "FAIL"]


def test_a_check_on_training_text_is_no_score_of_the_validation_text(tmp_path):
    check = "print(f'sanity: fits 400 train tokens, loss 0.{time.time_ns() % 9973} (bpb 0.3912)')\nval = load("
    verdicts, rows = judged(tmp_path, TOY.replace("val = load(", check))
    assert failed(verdicts) == set() and verdicts["C2"] == "PASS", rows


def test_bytes_in_too_few_digits_are_not_tested(tmp_path):
    verdicts, rows = judged(tmp_path, TOY.replace("8f", "1f"))
    assert verdicts["M1"] == "NOT TESTED" and failed(verdicts) == set(), rows


def test_a_part_that_is_made_out_to_be_all_is_no_full_coverage(tmp_path):
    part = "p = np.tile(p[: len(p) // 4], 4)"
    verdicts, rows = judged(tmp_path, TOY.replace("# scored", part))
    assert failed(verdicts) == {"D7"}, rows


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_no_time_is_the_user_s_mistake(tmp_path, seconds):
    with pytest.raises(Problem, match="seconds is no time"):
        judged(tmp_path, TOY, seconds)


def test_a_script_that_needs_what_is_not_here_is_not_tested_with_its_last_words(tmp_path):
    verdicts, rows = judged(tmp_path, "raise RuntimeError('CUDA is required')")
    assert set(verdicts.values()) == {"PASS", "NOT TESTED"} and verdicts["G6"] == "NOT TESTED"
    assert all("CUDA is required" in row["evidence"] for row in rows if row["rule"] != "D3")


def test_a_script_that_cannot_start_on_any_machine_fails(tmp_path):
    verdicts, _ = judged(tmp_path, "import os\nprint(undefined_name)")
    assert verdicts["G6"] == "FAIL" and failed(verdicts) == {"G6"}


def test_a_sibling_that_a_newer_python_may_read_is_not_failed(tmp_path):
    (tmp_path / "core.py").write_text('names = {}\nprint(f"{names["a"]}")\n')
    verdicts, rows = judged(tmp_path, "import runpy\nrunpy.run_path('core.py')\n")
    assert verdicts["G6"] == "NOT TESTED", rows


def test_a_script_that_never_ends_is_stopped_and_not_tested(tmp_path):
    verdicts, rows = judged(tmp_path, "while True: pass", seconds=3.0)
    assert not failed(verdicts) and "limit of time" in next(row["evidence"] for row in rows if row["rule"] == "C1")


def test_figures_that_are_no_numbers_hurt_nobody(tmp_path):
    lines = [
        "val_loss:nan val_bpb:nan",
        "val_loss:inf val_bpb:0.0",
        "val_loss:-1e999 val_bpb:1e-300",
        "val_loss:0 val_bpb:0",
    ]
    verdicts, _ = judged(tmp_path, "\n".join(f"print('x{i} {line}')" for i, line in enumerate(lines)), seconds=20.0)
    assert "C1" in verdicts and "M1" in verdicts


@pytest.mark.parametrize(
    ("event", "verdict"),
    [
        (("connect", "('127.0.0.1', 29500)"), "PASS"),
        (("connect", "('93.184.216.34', 443)"), "FAIL"),
        (("connect", "name huggingface.co 443"), "FAIL"),
        (("connect", "('2606:4700:4700::1111', 443, 0, 0)"), "FAIL"),
        (("connect", "('10.127.0.5', 80)"), "FAIL"),
        (("connect", "name localhost.example.org 80"), "FAIL"),
        (("connect", "('::1', 80, 0, 0)"), "PASS"),
        (("connect", f"name {socket.gethostname()} 29500"), "PASS"),
        (("connect", "name None 0"), "PASS"),
        (("connect", "\0listener-12-0"), "PASS"),
        (("connect", "/tmp/pymp-x/listener"), "PASS"),
        (("run", "wget https://example.org/w.bin"), "FAIL"),
        (("run", "python worker.py --port 80"), "PASS"),
    ],
)
def test_the_network_is_what_lies_outside_of_this_machine(event, verdict):
    findings = Findings(read_policy())
    judge_network(findings, [Event(0.1, 2, *event)], "a run")
    assert [row["verdict"] for row in findings.rows] == [verdict]


def test_files_are_followed_through_renames_and_second_writings():
    events = [
        Event(1.0, 2, "write", "/box/work/a.part"),
        Event(1.5, 2, "rename", "/box/work/a.part -> /box/work/a.bin"),
        Event(2.0, 2, "read", "/box/work/a.bin"),
        Event(3.0, 2, "write", "/box/work/b.bin"),
        Event(4.0, 2, "read", "/box/work/b.bin"),
        Event(5.0, 2, "write", "/box/work/b.bin"),
        Event(6.0, 2, "read", "/box/data/datasets/x/fineweb_val_000000.bin"),
        Event(7.0, 2, "write", "/box/work/run.log"),
    ]
    kept = kept_files(events, {"a.bin": ("aa", 5), "b.bin": ("bb", 6), "c.bin": ("cc", 7), "run.log": ("dd", 8)})
    assert [(one.name, one.written, one.read_back) for one in kept] == [
        ("a.bin", 1.5, 2.0),
        ("b.bin", 5.0, None),
        ("c.bin", None, None),
    ]


def test_gzip_s_clock_does_not_count_and_links_are_no_files(tmp_path):
    import gzip
    import os

    for name, clock in (("a", 1), ("b", 2)):
        (tmp_path / name).write_bytes(gzip.compress(b"weights", mtime=clock))
    (tmp_path / "c").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "d")
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        first, second, link, pipe = (plain_digest(name, handle) for name in "abcd")
    finally:
        os.close(handle)
    assert first == second and first[0] and link == pipe == (None, None)


def test_the_vocabulary_is_the_script_s_own():
    def script(text="", **settings):
        return SimpleNamespace(text=text, settings=settings)

    assert vocabulary(script()) == 1024
    assert vocabulary(script(VOCAB_SIZE="4096")) == 4096
    assert vocabulary(script('open("./data/tokenizers/fineweb_8192_bpe.model")')) == 8192
    assert vocabulary(script(VOCAB_SIZE="99999999")) == 1024


def test_a_folder_that_is_too_large_to_copy_is_not_run_and_says_so(tmp_path):
    (tmp_path / "train_gpt.py").write_text("print('val_loss:1.0 val_bpb:1.0')\n")
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(600 << 20)
    folder = read_folder(tmp_path)
    findings = Findings(read_policy())
    judge_dynamic(findings, folder, read_script(folder, "train_gpt.py"), lambda line: None, 60.0)
    assert {row["verdict"] for row in findings.rows} == {"NOT TESTED"}
    assert all("629,145,6" in row["evidence"] for row in findings.rows)
