"""Sinks: event files read back, a run of Weights & Biases kept offline, missing packages, and sinks that fail."""

import json
import sys
import threading
import time

import pytest

from fairway.problem import Problem
from fairway.stages import train
from fairway.terminal import Terminal
from fairway.trials.sinks import Feed, open_sinks
from train.tiny import SETTINGS

RUN = {"recipe_hash": "r" * 16, "data_hash": "d" * 16, "seed": 42, "began": "2026-01-01T00:00:00+00:00"}


def rows_of(first, last):
    return [{"step": step, "tokens": 256 * step, "loss": 7.03125 - step / 8} for step in range(first, last + 1)]


@pytest.fixture
def run(tmp_path):
    """A folder as training has just begun it, with `add(first, last)` to write rows there."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


def add(folder, first, last):
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_of(first, last))


def events(folder):
    """{tag: [(step, value)]} as TensorBoard reads a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    found = accumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_no_names_are_no_sink(tmp_path):
    with open_sinks((), tmp_path / "run") as watch:
        assert watch is None


def test_tensorboard_has_every_row_once_and_the_bpb_at_the_end(run):
    pytest.importorskip("tensorboard")
    with open_sinks(("tensorboard",), run) as watch:
        assert not (run / "tensorboard").exists()
        add(run, 1, 1)
        assert watch(rows_of(1, 1)[0]) is None
        add(run, 2, 11)
        watch(rows_of(11, 11)[0])
        add(run, 12, 14)  # written by a last flush that nobody is told of
        (run / "run.json").write_text(json.dumps({**RUN, "bpb": {"weights": 2.25, "EMA": 2.5}}))
    found = events(run)
    assert found["train/loss"] == [(row["step"], row["loss"]) for row in rows_of(1, 14)]
    assert found["train/tokens"][-1] == (14, 256 * 14)
    assert (found["bpb/weights"], found["bpb/EMA"]) == ([(14, 2.25)], [(14, 2.5)])
    assert sorted(found) == ["bpb/EMA", "bpb/weights", "train/loss", "train/tokens"]


def test_tensorboard_shows_a_resumed_run_once(run):
    pytest.importorskip("tensorboard")
    add(run, 1, 9)
    with pytest.raises(KeyboardInterrupt), open_sinks(("tensorboard",), run) as watch:
        watch(rows_of(9, 9)[0])
        raise KeyboardInterrupt
    assert len(events(run)["train/loss"]) == 9
    (run / "metrics.jsonl").unlink()
    add(run, 1, 12)
    with open_sinks(("tensorboard",), run) as watch:
        watch(rows_of(12, 12)[0])
    assert [step for step, _ in events(run)["train/loss"]] == list(range(1, 13))
    assert len(list((run / "tensorboard").iterdir())) == 2


def test_a_row_that_is_being_written_waits_until_it_is_whole(run):
    seen = []

    class Listener:
        name = "listener"

        def open(self, folder, run, step):
            seen.append(step)

        def add(self, rows):
            seen.extend(row["step"] for row in rows)

    feed = Feed([Listener()], run)
    add(run, 1, 2)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, ')
    feed.send()
    assert seen == [1, 1, 2]
    with open(run / "metrics.jsonl", "a") as file:
        file.write('"loss": 1.0}\n')
    feed.send()
    feed.send()
    assert seen == [1, 1, 2, 3]


def test_nothing_is_made_where_no_row_came(run):
    pytest.importorskip("tensorboard")
    add(run, 1, 9)  # of the run that stands in the way
    with pytest.raises(Problem), open_sinks(("tensorboard",), run):
        raise Problem("refused")
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "run.json"]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_begins(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    wanted = rf"needs the package {name}; pip install 'fairway\[{name}\]'"
    with pytest.raises(Problem, match=wanted), open_sinks((name,), tmp_path / "run"):
        pytest.fail("training would have begun")
    assert not (tmp_path / "run").exists()


def test_a_sink_that_fails_is_noted_once_and_the_others_go_on(run, capsys):
    pytest.importorskip("tensorboard")
    (run / "tensorboard").write_text("in the way")
    add(run, 1, 1)
    with open_sinks(("tensorboard",), run) as watch:
        watch(rows_of(1, 1)[0])
        add(run, 2, 2)
        watch(rows_of(2, 2)[0])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tensorboard failed (")
    assert lines[0].endswith("; the run goes on without it")


def test_of_two_sinks_the_one_that_works_goes_on(run, capsys):
    seen = []

    class Broken:
        name = "broken"

        def open(self, folder, run, step):
            raise OSError("no connection")

    class Working:
        name = "working"

        def open(self, folder, run, step):
            seen.append(run["seed"])

        def add(self, rows):
            seen.append(len(rows))

        def close(self, bpb, step, ended):
            seen.append((bpb, step, ended))

    add(run, 1, 3)
    feed = Feed([Broken(), Working()], run)
    feed.send()
    feed.close(True)
    assert seen == [42, 3, ({}, 3, True)]
    assert capsys.readouterr().err == "broken failed (OSError: no connection); the run goes on without it\n"


def test_a_run_does_not_wait_for_its_sinks(run, monkeypatch):
    pytest.importorskip("tensorboard")
    free, sent = threading.Event(), []

    def slow(feed):
        sent.append(free.wait(20))

    monkeypatch.setattr(Feed, "send", slow)
    with open_sinks(("tensorboard",), run) as watch:
        watch({"step": 1})
        watch({"step": 2})
        assert sent == []
        free.set()
    assert sent == [True, True]


def test_what_could_not_be_sent_at_the_end_is_said(run, capsys):
    pytest.importorskip("tensorboard")
    add(run, 1, 1)
    with open_sinks(("tensorboard",), run) as watch:
        watch(rows_of(1, 1)[0])
        add(run, 2, 2)
        (run / "run.json").unlink()
    assert "not all metrics were sent (" in capsys.readouterr().err


def test_a_training_is_in_tensorboard_as_in_its_metrics(tiny_data, tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    with open_sinks(("tensorboard", "tensorboard"), out) as watch:
        facts = train("demo", tiny_data, out, 42, 12, None, SETTINGS, Terminal(quiet=True), watch)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = events(out)
    assert found["train/loss"] == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in written]
    assert found["bpb/weights"] == [(12, pytest.approx(facts["bpb"]["weights"], rel=1e-6))]


@pytest.fixture
def wandb_at_home(tmp_path, monkeypatch):
    """The package with a home of its own, and no account."""
    wandb = pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield wandb
    wandb.teardown()


def test_wandb_offline_keeps_rows_config_and_bpb(run, wandb_at_home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_sinks(("wandb",), run) as watch:
        assert not (run / "wandb").exists()
        add(run, 1, 10)
        watch(rows_of(10, 10)[0])
        (run / "run.json").write_text(json.dumps({**RUN, "bpb": {"weights": 2.03125}}))
    (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
    # `finish` returns before wandb's own process has written its file; that process ends with the package.
    wandb_at_home.teardown()
    deadline = time.monotonic() + 60
    while b"2.03125" not in (content := log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for row in rows_of(1, 10):
        assert content.count(json.dumps(row["loss"]).encode()) >= 1
    for text in (b"fairway", RUN["recipe_hash"].encode(), b"bpb.weights", b"2.03125"):
        assert text in content


def test_wandb_without_an_account_is_refused_before_training(run, wandb_at_home):
    wanted = "no account here; run `wandb login`, or `wandb offline`"
    with pytest.raises(Problem, match=wanted), open_sinks(("wandb",), run):
        pytest.fail("training would have begun")
