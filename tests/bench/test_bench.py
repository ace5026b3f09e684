"""`fairway bench`: what it measures, what it writes, what it refuses; on a CPU, and on several ranks of one."""

import csv
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fairway.bench import measure
from fairway.bench.measure import bench_recipe, step_flops
from fairway.bench.results import BENCH_COLUMNS, append_bench
from fairway.node import override
from fairway.recipes.pr1523 import pr1523
from fairway.terminal import Terminal
from train.tiny import MODEL, begin, fairway, finish, torchrun

SMALL = ("model.vocab=300", "model.kv_heads=1", "model.heads=2", "model.width=32", "model.sequence=32")
LOOPED = (*SMALL, "model.positions.Rotary.dims=8")  # of pr1523: two phases


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """No test adds rows to the table of the folder that the tests are started in."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def bench(out, *settings, name="pr1523", data=None, steps=2, tokens=64):
    return bench_recipe(name, data, settings or LOOPED, steps, tokens, out, Terminal(quiet=True))


def test_the_demo_is_measured_as_it_stands(fairway_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = fairway_here("bench", "demo", "--steps", "1")
    assert code == 0, errors
    assert "demo on cpu x1, 1 rank: 4,096 tokens" in out and "phase 0, 6 blocks" in out
    assert "written nowhere" in out and not list(tmp_path.iterdir())


def test_a_row_a_phase_is_added_to_the_table_of_the_folder_benchmarks(fairway_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    arguments = ["bench", "pr1523", "--tokens", "64", "--steps", "2", "--set", *LOOPED]
    code, out, errors = fairway_here(*arguments)
    assert code == 0, errors
    assert "phase 0, 11 blocks" in out and "phase 1, 17 blocks" in out and "added to benchmarks/results.csv" in out
    result = json.loads(fairway_here(*arguments, "--json")[1])
    rows = table(tmp_path / "benchmarks" / "results.csv")
    assert [row["phase"] for row in rows] == ["0", "1", "0", "1"] and tuple(rows[0]) == BENCH_COLUMNS
    for row, expected in zip(rows[2:], result["rows"], strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in expected.items()}
        assert row["changes"] == " ".join(LOOPED) and row["data"] == "synthetic" and row["ranks"] == "1"
        assert row["host_ms"] == row["memory_gib"] == row["mfu"] == row["cuda"] == ""  # a CPU has none of them
        assert float(row["communication_ms"]) == 0


def test_parts_and_paces_fit_each_other(monkeypatch):
    monkeypatch.setattr(measure, "peak_flops", lambda device: 1e10)
    result = bench(None, steps=8)
    for row, flops in zip(result["rows"], result["flops_per_token"], strict=True):
        assert 0 < row["step_min"] <= row["step_ms"] <= row["step_max"]
        parts = row["forward_ms"], row["backward_ms"], row["optimiser_ms"]
        assert min(parts) > 0 and row["step_min"] / 3 < sum(parts) < 3 * row["step_max"]
        assert row["tokens_per_s"] == pytest.approx(64_000 / row["step_ms"], rel=1e-3)
        assert row["mfu"] == pytest.approx(flops * row["tokens_per_s"] / 1e10, rel=1e-2)
        assert row["floor_ms"] == pytest.approx(flops * 64 / (result["product_tflops"] * 1e9), rel=1e-2, abs=1e-3)
    shorter, longer = result["rows"]
    assert longer["step_ms"] > shorter["step_ms"], "a phase of 17 blocks takes longer than one of 11"


def test_each_further_block_of_a_phase_adds_its_products_and_its_attention():
    shorter, longer = step_flops(override(pr1523(), LOOPED))
    weights = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 4 * 32 * 32  # query and output, key and value, MLP
    assert longer - shorter == 6 * (6 * weights + 6 * (32 + 1) * 32)


def test_a_step_is_one_micro_batch_whatever_the_batch_of_the_recipe(tiny_data):
    (row,) = bench(None, *MODEL, name="demo", data=tiny_data, tokens=None, steps=1)["rows"]
    assert row["tokens"] == 4096 and row["data"] not in ("", "synthetic")


def test_two_ranks_are_measured_and_one_speaks(tmp_path):
    out = tmp_path / "new" / "results.csv"
    arguments = ["bench", "pr1523", "--tokens", 64, "--steps", 2, "--out", out, "--set", *LOOPED]
    code, text, errors = fairway(*arguments, launcher=torchrun(2))
    assert code == 0, errors
    assert text.count("2 ranks: 64 tokens") == 1
    rows = table(out)
    assert [(row["ranks"], row["phase"], row["tokens"]) for row in rows] == [("2", "0", "64"), ("2", "1", "64")]
    assert all(0 < float(row["communication_ms"]) < 10 * float(row["step_max"]) for row in rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_row(tmp_path, number):
    out = tmp_path / "results.csv"
    process = begin("bench", "pr1523", "--tokens", 64, "--steps", 100_000, "--out", out, "--set", *LOOPED)
    assert "blocks of 100,000 steps" in process.stderr.readline()
    process.send_signal(number)
    code, text, errors = finish(process)
    assert code == 130 and text == "" and "interrupted" in errors.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("nobody",), "no recipe 'nobody'"),
        (("demo", "--steps", "0"), "--steps 0 is none"),
        (("demo", "--tokens", "100"), "--tokens 100 is no positive multiple of model.sequence=256; give 256"),
        (("demo", "--tokens", "0"), "--tokens 0 is no positive multiple"),
        (("demo", "--tokens", "-512"), "--tokens -512 is no positive multiple"),
        (("demo", "--set", "train.batch_tokens=4096"), "--set train.batch_tokens=4096: a step of bench"),
        (("demo", "--set", "train.micro_tokens=512"), "--set train.micro_tokens=512: a step of bench"),
        (("demo", "--set"), "--set is empty"),
        (("demo", "--out", "/dev/null"), "--out /dev/null is no plain file"),
        (("demo", "--set", "model.inputs=()"), "TiedHead needs a TokenEmbedding"),
        (("demo", "--set", "model.head=()"), "the head gives 160 numbers a token"),
        (("demo", "--data", "nowhere"), "nowhere is no data folder"),
        (("demo", "--out", "."), "--out . is a folder"),
        (("demo", "--out", "other.csv"), "other.csv stands there already"),
        (("demo", "--out", "other.csv/results.csv"), "cannot"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_measured(fairway_here, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "watch_steps", None)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    code, out, errors = fairway_here("bench", *arguments)
    assert (code, out, len(errors)) == (2, "", 1) and says in errors[0], errors
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_data_of_another_vocabulary_is_refused(fairway_here, tiny_data):
    code, _, errors = fairway_here("bench", "demo", "--data", tiny_data)
    assert code == 2 and "--set model.vocab=300" in errors[-1]


def test_a_batch_too_large_for_the_memory_is_one_line(fairway_here, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure, "watch_steps", full)
    code, _, errors = fairway_here("bench", "demo")
    assert code == 2 and "4096 tokens do not fit" in errors[-1] and "--tokens" in errors[-1]


def test_a_loss_that_is_not_finite_measures_nothing(fairway_here, tmp_path):
    rate = "optim.Muon.rate=1e30"
    code, _, errors = fairway_here("bench", "demo", "--steps", "3", "--out", tmp_path / "r.csv", "--set", *MODEL, rate)
    assert code == 1 and "the loss is nan" in errors[-1] and not list(tmp_path.iterdir())


def line_of(number):
    return dict.fromkeys(BENCH_COLUMNS, 0) | {"phase": number, "recipe": 'a "b", c'}


def test_many_may_add_rows_at_once(tmp_path, monkeypatch):
    def slow(handle, look=os.fstat):
        found = look(handle)
        time.sleep(0.005)  # in which another would write the column names too
        return found

    path = tmp_path / "deep" / "results.csv"
    monkeypatch.setattr("os.fstat", slow)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_bench(path, [line_of(2 * number), line_of(2 * number + 1)]), range(40)))
    rows = table(path)
    numbers = [int(row["phase"]) for row in rows]
    assert sorted(numbers) == list(range(80)) and {row["recipe"] for row in rows} == {'a "b", c'}
    assert all(second == first + 1 for first, second in zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("there", [b"", b"a line\n"])
def test_rows_are_added_whole_or_not_at_all(tmp_path, monkeypatch, there):
    def interrupted(handle):
        raise KeyboardInterrupt

    path = tmp_path / "results.csv"
    path.write_bytes(there)
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append_bench(path, [line_of(1)])
    assert path.read_bytes() == there


def test_a_last_line_without_an_end_gets_one(tmp_path):
    path = tmp_path / "results.csv"
    append_bench(path, [line_of(1)])
    path.write_bytes(path.read_bytes()[:-1])
    append_bench(path, [line_of(2)])
    assert len(table(path)) == 2 and path.read_bytes().count(b"\n") == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs --gpu and a GPU")
def test_a_gpu_is_measured_by_its_own_clock(tmp_path):
    for row in bench(tmp_path / "results.csv")["rows"]:
        assert row["host_ms"] > 0 and row["memory_gib"] >= 0 and row["compile_s"] > 0
        # Parts are of launched steps, which take longer than recorded ones where a step is as small as this one.
        parts = row["forward_ms"], row["backward_ms"], row["optimiser_ms"]
        assert min(parts) > 0 and sum(parts) > row["step_min"] / 3
