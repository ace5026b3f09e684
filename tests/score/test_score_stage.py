import hashlib
import json
import math
import types

import numpy as np
import pytest
import torch

from fairway.clock import Clock
from fairway.data.dataset import open_dataset
from fairway.data.shards import write_shard
from fairway.data.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from fairway.files import write_json
from fairway.kernels.capability import capability
from fairway.problem import Problem
from fairway.runfolder import update_run
from fairway.score.commit import read_function
from fairway.score.sgd import ScoreFirstSGD
from fairway.score.stage import PassPlan, Scoring, pass_plans, score_packed
from fairway.score.tilt import TokenTilt
from fairway.score.windows import Evaluation, NonOverlapping, Sliding
from fairway.train.dist import World

CPU = torch.device("cpu")
THINGS, PLACES = ("art", "cost", "end", "use", "sound"), ("war", "rain", "winter", "books", "light")
TEXTS = [f"The {one} of {other}: {len(one)} ways, naïve or not — 日本.\n" for one in THINGS for other in PLACES]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset without training shards, in two validation shards, and the length of its text."""
    folder = tmp_path_factory.mktemp("data")
    train_tokenizer(TEXTS, 320, folder / "tokenizer.model", normalization="identity")
    tokens = np.concatenate(encode_documents(load_tokenizer(folder / "tokenizer.model"), TEXTS))
    shards = []
    for name, part in (("val_000000.bin", tokens[:100]), ("val_000001.bin", tokens[100:])):
        write_shard(folder / name, part)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        shards.append({"split": "val", "file": name, "tokens": len(part), "sha256": digest})
    tokenizer = {"file": "tokenizer.model", "sha256": hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()}
    manifest = {"format": 1, "vocab": 320, "tokenizer": tokenizer, "shards": shards}
    write_json(folder / "manifest.json", manifest)
    return open_dataset(folder), len(tokens), len("".join(TEXTS).encode())


@pytest.fixture
def run(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"packed weights")
    update_run(tmp_path, {"seed": 1, "bpb": {"weights": 9.0}, "phases": {"train": 5.0}})
    return tmp_path


def recipe_of(windows, multiple_of=1, adapt=(), mix=()):
    evaluate, model = Evaluation(windows, multiple_of), types.SimpleNamespace(sequence=48)
    return types.SimpleNamespace(evaluate=evaluate, model=model, adapt=adapt, mix=mix)


def uniform(ids, first):
    return torch.zeros(*ids[:, first:].shape, 320)


def score(run, dataset, multiple_of=1, **more):
    recipe = recipe_of(more.pop("windows", Sliding(32, 8)), multiple_of)
    predict, clock, world = more.pop("predict", uniform), more.pop("clock", Clock()), more.pop("world", World(0, 1, CPU))
    read = read_function(lambda ids_BT: predict(ids_BT, 0), 320)
    return score_packed(run, recipe, Scoring(None, capability(CPU), dataset, clock, world, read=read), **more)


def test_a_score_is_written_with_all_that_readers_rely_on(run, data):
    dataset, tokens, text_bytes = data
    report = score(run, dataset)
    assert json.loads((run / "score.json").read_text()) == report
    # Uniform over 320 ids; the bytes are those of the text itself.
    assert report["tokens"] == tokens - 1 and report["dropped_targets"] == 0
    assert report["bytes"] == text_bytes
    assert report["nats"] == pytest.approx((tokens - 1) * math.log(320), rel=1e-12)
    assert report["bpb"] == pytest.approx((tokens - 1) * math.log2(320) / text_bytes, rel=1e-12)
    assert report["implied_bytes"] == pytest.approx(text_bytes, rel=1e-12)
    assert report["model_sha256"] == hashlib.sha256(b"packed weights").hexdigest()
    assert report["data_hash"] == dataset.data_hash
    assert report["windows"] == 1 + math.ceil((tokens - 1 - 32) / 8)
    first, last = report["stages"]
    assert last.keys() - first.keys() == {"gain"}
    assert {"name", "bpb", "nats", "seconds", "tokens_per_second", "plainly_scored"} <= first.keys()
    assert last["gain"]["delta_bpb"] == pytest.approx(last["bpb"] - first["bpb"], abs=1e-9)
    assert (first["name"], last["name"]) == ("NonOverlapping", "Sliding")
    assert (last["bpb"], last["nats"]) == (report["bpb"], report["nats"])
    assert first["seconds"] + last["seconds"] == pytest.approx(report["phases"]["score"], rel=0.1)
    assert not (run / "nats.npy").exists()


def first_seen(ids_BT, first):
    """Prefers the id that the window shows first, so that windows matter to the score."""
    z_BSV = torch.zeros(len(ids_BT), ids_BT.shape[1] - first, 320)
    return z_BSV.scatter(2, ids_BT[:, :1, None].expand(-1, z_BSV.shape[1], 1), 3.0)


def test_the_recipe_s_own_windows_make_the_score_and_those_side_by_side_stand_before_it(run, data):
    report = score(run, data[0], predict=first_seen)
    plain = score(run, data[0], predict=first_seen, windows=NonOverlapping(48))
    assert [stage["name"] for stage in plain["stages"]] == ["NonOverlapping"]
    first, last = report["stages"]
    assert first["bpb"] == plain["bpb"] != last["bpb"] == report["bpb"]


def test_passes_keep_what_else_the_evaluation_says_and_none_comes_twice():
    own, plain = Evaluation(Sliding(32, 8), 64, 5), Evaluation(NonOverlapping(48), 64, 5)
    recipe = types.SimpleNamespace(evaluate=own, model=types.SimpleNamespace(sequence=48), adapt=(), mix=())
    assert pass_plans(recipe) == [PassPlan("NonOverlapping", plain), PassPlan("Sliding", own)]
    assert pass_plans(recipe, last_only=True) == [PassPlan("Sliding", own)]
    assert [plan.evaluation for plan in pass_plans(recipe_of(NonOverlapping(48)))] == [Evaluation(NonOverlapping(48))]
    assert len(pass_plans(recipe_of(NonOverlapping(32)))) == 2


def test_what_adapts_and_what_is_mixed_in_come_last_and_a_mixer_needs_no_pass_of_its_own():
    sgd, tilt = ScoreFirstSGD(), TokenTilt()
    names = [plan.name for plan in pass_plans(recipe_of(Sliding(32, 8), adapt=(sgd,), mix=(tilt,)))]
    assert names == ["NonOverlapping", "Sliding", "ScoreFirstSGD"]
    mixed = pass_plans(recipe_of(Sliding(32, 8), mix=(tilt,)))
    assert [(plan.name, plan.mix) for plan in mixed] == [("NonOverlapping", ()), ("Sliding", (tilt,))]
    alone = pass_plans(recipe_of(NonOverlapping(48), mix=(tilt,)))
    assert [(plan.name, plan.mix) for plan in alone] == [("NonOverlapping", (tilt,))]


def test_the_run_keeps_what_it_knew_and_gains_the_score(run, data):
    report = score(run, data[0])
    facts = json.loads((run / "run.json").read_text())
    assert facts["seed"] == 1
    assert facts["bpb"] == {"weights": 9.0, "packed": report["bpb"]}
    spent = {name if name != "compile" else "compile for score": seconds for name, seconds in report["phases"].items()}
    assert facts["phases"] == {"train": 5.0} | spent
    assert {"score", "compile for score"} <= facts["phases"].keys()


def test_a_stage_counts_its_own_seconds_only(run, data):
    clock = Clock()
    clock.seconds.update(score=1000.0, decode=2.0)
    report = score(run, data[0], clock=clock)
    assert report["phases"]["score"] > 1000 and report["phases"]["decode"] == 2.0
    assert all(0 < stage["seconds"] < 500 for stage in report["stages"])


def test_nats_are_kept_when_asked_and_those_of_another_score_are_not(run, data):
    report = score(run, data[0], keep_nats=True)
    nats_N = np.load(run / "nats.npy")
    assert nats_N.dtype == np.float32 and nats_N.shape == (report["tokens"],)
    assert nats_N.sum(dtype=np.float64) == pytest.approx(report["nats"], rel=1e-6)
    score(run, data[0])
    assert not (run / "nats.npy").exists()


def test_the_dropped_targets_are_reported(run, data):
    dataset, tokens, text_bytes = data
    report = score(run, dataset, multiple_of=64)
    assert report["tokens"] % 64 == 0 and 0 < report["dropped_targets"] == tokens - 1 - report["tokens"]
    assert report["bytes"] < text_bytes


def test_only_the_first_rank_writes(run, data):
    class Second(World):
        """One of two, whose peer did all that is missing here."""

        def largest(self, numbers):
            return numbers

        def all_reduce_sum(self, tensor):
            return tensor.where(tensor != 0, torch.full_like(tensor, -math.log(320) if tensor.is_floating_point() else 1))

    report = score(run, data[0], world=Second(1, 2, CPU))
    assert report["nats"] == pytest.approx((data[1] - 1) * math.log(320), rel=1e-12)
    assert not (run / "score.json").exists()


def test_a_folder_that_was_not_packed_is_a_problem_that_names_the_stage(tmp_path, data):
    with pytest.raises(Problem, match="fairway pack"):
        score(tmp_path, data[0])


def test_a_failed_score_leaves_the_last_good_files(run, data):
    score(run, data[0], keep_nats=True)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(Problem, match="NaN"):
        score(run, data[0], predict=lambda ids, first: torch.full((*ids[:, first:].shape, 320), math.nan))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
