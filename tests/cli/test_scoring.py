"""`fairway score` as it is typed: other ways of scoring a packed run, what they print, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from fairway.data.shards import open_shard, write_shard
from fairway.files import file_sha256, read_json, write_json


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def with_validation(data, out, tokens):
    """A copy of a data folder whose validation is one shard of these tokens; None: there is none."""
    shutil.copytree(data, out)
    manifest = read_json(out / "manifest.json")
    shards = [shard for shard in manifest["shards"] if shard["split"] != "val"]
    for shard in manifest["shards"]:
        if shard["split"] == "val":
            (out / shard["file"]).unlink()
    if tokens is not None:
        write_shard(out / "val_000000.bin", tokens)
        digest = file_sha256(out / "val_000000.bin")
        shards.append({"split": "val", "file": "val_000000.bin", "tokens": len(tokens), "sha256": digest})
    write_json(out / "manifest.json", manifest | {"shards": shards})
    return out


def length_of(run):
    text = (run / "recipe.py").read_text()
    return int(text.partition("sequence=")[2].partition(",")[0])


def test_methods_are_compared_in_one_table_and_the_run_s_own_score_stays(fairway_here, run):
    fairway_here("score", run)
    own, length = read_json(run / "run.json")["bpb"]["packed"], length_of(run)
    sgd = f"adapt=(ScoreFirstSGD(chunk={4 * length}, rate=0.05),)"
    code, out, err = fairway_here("score", run, "--json", "--set", sgd, "mix=(TokenTilt(), BackoffCache())")
    report = json.loads(out)
    assert code == 0
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["NonOverlapping", "Sliding", "ScoreFirstSGD", "TokenTilt", "BackoffCache"]
    assert all("gain" in stage for stage in report["stages"][1:]) and report["normalised"] is True
    assert any("ScoreFirstSGD: this will take" in line and "of 600 s" in line for line in err)
    assert "rate=0.05" in report["evaluation"]["adapt"]
    assert read_json(run / "run.json")["bpb"]["packed"] == own
    code, out, _ = fairway_here("score", run, "--last", "--set", f"evaluate.windows=Documents(length={length}, stride=8)")
    assert code == 0 and "packed file, Documents" in out and "sliding" not in out
    lora = f"adapt=(DocumentLoRA(rank=2, context={length}, batch=8, chunks=(), chunk={length // 2}),)"
    code, out, _ = fairway_here(
        "score", run, "--last", "--set", lora, f"evaluate.windows=Documents(length={length}, stride=8)"
    )
    assert code == 0 and "packed file, DocumentLoRA" in out


def test_what_is_no_probability_is_no_score(fairway_here, run):
    cache = "mix=(BackoffCacheAsPublished(buckets=64, every=64, sample=200),)"
    code, out, _ = fairway_here("score", run, "--last", "--set", cache)
    assert code == 0 and "not a probability" in out and "no score" in out and "mean_z" in out
    report = read_json(run / "score.json")
    assert report["normalised"] is False and report["stages"][-1]["mean_z"] > 2
    assert "packed" not in read_json(run / "run.json")["bpb"]


def test_a_budget_that_ends_early_loses_nothing_and_says_so(fairway_here, run):
    code, out, err = fairway_here("score", run, "--last", "--set", "evaluate.seconds=0.001")
    report = read_json(run / "score.json")
    assert code == 0 and 0 < report["stages"][-1]["plainly_scored"] <= report["tokens"]
    assert "were scored plainly" in out and any("were scored plainly" in line for line in err)


@pytest.mark.parametrize(
    "setting, says",
    [
        ("evaluate.seconds=0", "budget"), ("evaluate.seconds=-3", "budget"), ("model.width=32", "stays as it is"),
        ("mix=TokenTilt()", "(X(...),)"), ("mix=(TokenTilt(rules=()),)", "is empty"), ("mix=(Tilt(),)", "unknown node"),
        ("adapt=(ScoreFirstSGD(), ScoreFirstSGD())", "leave one"), ("adapt=(ScoreFirstSGD(chunk=2),)", "chunk is 2"),
        ("adapt=(DocumentLoRA(context=100000),)", "longer than"), ("evaluate.windows=Documents(length=0)", "stride"),
        ("adapt=(DocumentLoRA(targets=('head', 'head')),)", "once"), ("mix=(BackoffCache(cap=1.0),)", "below 1"),
    ],
)  # fmt: skip
def test_a_senseless_way_of_scoring_is_one_line_and_writes_nothing(fairway_here, run, setting, says):
    code, out, err = fairway_here("score", run, "--last", "--set", setting)
    assert (code, out) == (2, "") and says in err[-1] and not (run / "score.json").exists()
    assert not any("Traceback" in line for line in err)


@pytest.mark.parametrize("tokens, says", [(None, "no validation"), ("short", "a window reads"), ("foreign", "token 300")])
def test_validation_that_cannot_be_scored_is_one_line(fairway_here, run, tiny_data, tmp_path, tokens, says):
    val = np.asarray(open_shard(next(tiny_data.glob("val*.bin"))))
    streams = {"short": val[: length_of(run)], "foreign": np.concatenate([val, [299, 300]]).astype(np.uint16), None: None}
    data = with_validation(tiny_data, tmp_path / "data", streams[tokens])
    code, out, err = fairway_here("score", run, "--data", data)
    assert (code, out) == (2, "") and says in err[-1] and not (run / "score.json").exists()


def test_weights_that_overflow_are_one_line(fairway_here, run):
    adapt = f"adapt=(ScoreFirstSGD(chunk={length_of(run)}, rate=1e30, clip=1e30),)"
    code, out, err = fairway_here("score", run, "--last", "--set", adapt)
    assert (code, out) == (2, "") and "NaN" in err[-1] and "target" in err[-1]
