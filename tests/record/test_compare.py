"""`fairway compare` on run folders: which test their files allow, what is refused, and what the sentence dares to say."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from fairway.data.dataset import open_dataset, target_bytes, validation_tokens
from fairway.data.tokenizer import BOS_ID
from fairway.node import override, show
from fairway.problem import Problem
from fairway.recipes.demo import demo
from fairway.record.compare import compare
from fairway.score.bootstrap import document_of_targets, paired_bootstrap

OWN = {42: 1.0562, 314: 1.0571, 1234: 1.0563}
OTHER = {42: 1.0581, 314: 1.0589, 1234: 1.0588}
TARGETS, BYTES = 1000, 3500
KEYS = [
    "runs", "against", "delta", "interval", "test", "because", "p_value", "p_two_sided", "margins", "noise", "notes",
    "sentence",
]  # fmt: skip


def write_run(folder, bpb, targets=TARGETS, size=BYTES, recipe_node=None, **facts):
    """A run folder as train, pack and score leave it, without weights and program."""
    folder.mkdir(parents=True)
    run = {
        "recipe": "demo", "recipe_hash": "aa", "source_hash": "bb", "data": "/gone", "data_hash": "cc", "seed": 42,
        "tokenizer_sha256": "dd", "steps": 60, "tokens": 6000, "world_size": 1, "bpb": {"packed": bpb},
        "sha256": {"model.bin": "ee"}, **facts,
    }  # fmt: skip
    nats = bpb * math.log(2) * size
    score = {
        "bpb": bpb, "nats": nats, "tokens": targets, "bytes": size, "normalised": True, "data_hash": run["data_hash"],
        "model_sha256": "ee", "stages": [{"name": "Sliding", "bpb": bpb, "nats": nats, "seconds": 1.0}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "score.json").write_text(json.dumps(score))
    (folder / "model.bin").write_bytes(b"")
    (folder / "recipe.py").write_text(show(recipe_node or demo()))
    return folder


def write_side(folder, figures, **facts):
    """A folder of runs, one a seed."""
    for seed, bpb in figures.items():
        write_run(folder / f"seed{seed}", bpb, seed=seed, **facts)
    return folder


def change(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.fixture
def own(tmp_path):
    return write_side(tmp_path / "three", OWN)


@pytest.fixture
def other(tmp_path):
    return write_side(tmp_path / "other", OTHER, recipe_hash="ff")


def test_seeds_that_both_sides_share_are_pairs(own, other):
    result, wanted = compare([own], [other], ()), ttest_rel(list(OWN.values()), list(OTHER.values()))
    assert result["test"] == "paired t" and list(result) == KEYS
    assert result["p_two_sided"] == pytest.approx(wanted.pvalue) and result["p_value"] == pytest.approx(wanted.pvalue / 2)
    assert result["interval"] == pytest.approx(list(wanted.confidence_interval(0.95)))
    assert result["delta"]["bpb"] == pytest.approx(-0.00206667, abs=1e-8)
    assert result["delta"]["nats_per_byte"] == pytest.approx(-0.00206667 * math.log(2), abs=1e-8)
    assert result["delta"]["nats_per_token"] == pytest.approx(-0.00206667 * math.log(2) * 3.5, abs=1e-7)
    side = result["runs"]
    assert [side[key] for key in ("name", "n")] == ["three", 3] and side["mean"] == pytest.approx(1.05653333, abs=1e-8)
    assert side["std"] == pytest.approx(0.00049329, abs=1e-8)
    assert [(row["seed"], row["bpb"]) for row in side["runs"]] == [(42, 1.0562), (314, 1.0571), (1234, 1.0563)]
    # Student's t for two degrees of freedom and 95 %: 4.3027
    half = 4.3027 * side["std"] / math.sqrt(3)
    assert side["interval"] == pytest.approx([side["mean"] - half, side["mean"] + half], abs=1e-7)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    "facts, reason",
    [
        ({"steps": 61}, "steps of seed 42 differs (60 and 61)"), ({"world_size": 8}, "world_size"),
        ({"tokens": 6001}, "tokens"), ({"data_hash": "gg"}, "data_hash"),
        ({"recipe_node": override(demo(), ["loader=SequentialShards()"])}, "loader"),
        ({"recipe_node": override(demo(), ["train.micro_tokens=1024"])}, "micro_tokens"),
        ({"recipe_node": override(demo(), ["train.batch_tokens=8192"])}, "batch_tokens"),
        ({"recipe_node": override(demo(), ["model.sequence=512"])}, "sequence"),
    ],
)  # fmt: skip
def test_another_order_of_the_data_makes_no_pairs(tmp_path, own, facts, reason):
    result = compare([own], [write_side(tmp_path / "other", OTHER, **facts)], ())
    wanted = ttest_ind(list(OWN.values()), list(OTHER.values()), equal_var=False)
    assert result["test"] == "Welch t" and reason in result["because"]
    assert result["p_two_sided"] == pytest.approx(wanted.pvalue)
    assert result["interval"] == pytest.approx(list(wanted.confidence_interval(0.95)))


def test_other_seeds_or_an_unknown_order_make_no_pairs(tmp_path, own, other):
    more = write_side(tmp_path / "more", {42: 1.0581, 314: 1.0589, 7: 1.0588})
    assert "seeds" in compare([own], [more], ())["because"]
    for path in other.glob("*/recipe.py"):
        path.write_text("OldRecipe()")
    result = compare([own], [other], ())
    assert result["test"] == "Welch t" and "not known" in result["because"]


def test_pairs_are_of_one_seed_whatever_their_folders_are_called(tmp_path, own):
    for name, (seed, bpb) in zip("abc", OTHER.items(), strict=True):
        write_run(tmp_path / "named" / name, bpb, seed=seed)
    result = compare([own], [tmp_path / "named"], ())
    assert result["p_two_sided"] == pytest.approx(ttest_rel(list(OWN.values()), list(OTHER.values())).pvalue)


def test_a_seed_that_stands_twice_on_both_sides_makes_no_pairs(own, other):
    for side, bpb in ((own, 1.0570), (other, 1.0590)):
        write_run(side / "again", bpb, seed=42)
    result = compare([own], [other], ())
    assert result["test"] == "Welch t" and "a seed stands twice" in result["because"]


def test_a_record_is_one_figure_or_those_of_its_seeds(own):
    figures = list(OWN.values())
    one, several = compare([own], (), (1.06,)), compare([own], (), (1.0581, 1.0589, 1.0588))
    assert one["test"] == "one-sample t" and any("taken as exact" in note for note in one["notes"])
    assert one["p_value"] == pytest.approx(ttest_1samp(figures, 1.06, alternative="less").pvalue)
    assert one["interval"] == pytest.approx([edge - 1.06 for edge in ttest_1samp(figures, 1.06).confidence_interval(0.95)])
    assert one["against"]["runs"] == [{"run": None, "seed": None, "bpb": 1.06}] and one["against"]["std"] is None
    assert several["test"] == "Welch t" and several["against"]["n"] == 3
    assert several["p_two_sided"] == pytest.approx(ttest_ind(figures, [1.0581, 1.0589, 1.0588], equal_var=False).pvalue)


def test_margins_are_told_in_three_units_and_met_below_p_of_one_in_hundred(own):
    result = compare([own], (), (1.0625,))
    assert {unit: round(one["bpb"], 6) for unit, one in result["margins"].items()} == {
        "nats a token": 0.002061, "nats a byte": 0.007213, "bpb": 0.005,
    }  # fmt: skip
    assert [one["met"] for one in result["margins"].values()] == [True, False, False]
    for one in result["margins"].values():
        wanted = ttest_1samp(list(OWN.values()), 1.0625 - one["bpb"], alternative="less").pvalue
        assert one["p_value"] == pytest.approx(wanted)
    assert result["sentence"] == (
        "three (n = 3, 1.0565 bpb, sd 0.0005) is 0.0060 bpb better than the record (1.0625 bpb): 95 % -0.0072 to -0.0047,"
        " one-sample t, one-sided p = 0.0011; more than 0.005 nats a token (p = 0.0026);"
        " not shown at p < 0.01 to be more than 0.005 nats a byte (p = 0.98), 0.005 bpb (p = 0.038)."
    )


def test_a_difference_within_the_noise_is_no_claim(tmp_path, own):
    near = write_side(tmp_path / "near", {1: 1.0565, 2: 1.0578, 3: 1.0560})
    result = compare([own], [near], ())
    assert "within noise" in result["noise"] and result["interval"][0] < 0 < result["interval"][1]
    assert "is not shown to differ from" in result["sentence"] and "better" not in result["sentence"]
    assert compare([own], (), (1.06,))["noise"] is None


def test_a_loss_is_called_one_and_no_margin_is_claimed(own, other):
    result = compare([other], [own], ())
    assert result["p_value"] > 0.99 and result["delta"]["bpb"] > 0 and result["noise"] is None
    assert "0.0021 bpb worse than three" in result["sentence"] and "more than" not in result["sentence"]
    assert f"two-sided p = {result['p_two_sided']:#.2g}" in result["sentence"]


def test_small_differences_keep_their_digits(tmp_path):
    own = write_side(tmp_path / "own", {1: 1.056201, 2: 1.056203})
    assert "0.000029 bpb better than the record (1.056231 bpb)" in compare([own], (), (1.056231,))["sentence"]


def test_runs_alone_are_described(own):
    result = compare([own], (), ())
    assert result["against"] is result["delta"] is result["test"] is result["interval"] is result["noise"] is None
    assert result["sentence"].startswith("three (n = 3, 1.0565 bpb, sd 0.0005): 95 % interval of the mean 1.0553 to 1.0578")
    one = compare([own / "seed42"], (), ())
    assert "no spread" in one["noise"] and one["runs"]["std"] is None


@pytest.mark.parametrize("against, record", [(True, ()), (False, (1.06,)), (False, (1.06, 1.07))])
def test_one_run_against_several_or_a_record_is_not_tested(own, other, against, record):
    result = compare([own / "seed42"], [other] if against else (), record)
    assert result["test"] is result["p_value"] is result["p_two_sided"] is result["interval"] is None
    assert "more seeds" in result["noise"] and "is not tested" in result["sentence"] and result["delta"]["bpb"] < 0
    assert all(one["met"] is None for one in result["margins"].values())


def test_several_runs_against_one_are_not_tested(own, other):
    result = compare([own], [other / "seed42"], ())
    assert result["test"] is None and "seed42" in result["noise"]


def test_figures_without_spread_are_not_tested(tmp_path):
    equal = write_side(tmp_path / "equal", {1: 1.05, 2: 1.05, 3: 1.05})
    result = compare([equal], (), (1.06,))
    assert result["test"] is None and "no spread" in result["noise"] and result["runs"]["interval"] is None


def scored_with_nats(folder, data, seed, gain):
    """A run whose nats.npy has one number for each target of a real data folder."""
    dataset = open_dataset(data)
    tokens = validation_tokens(dataset)
    targets = len(tokens) - 1
    size = int(target_bytes(dataset, tokens, targets).sum())
    nats_N = np.random.default_rng(seed).normal(2.0 - gain, 0.3, targets).astype(np.float32)
    bpb = float(nats_N.sum(dtype=np.float64)) / math.log(2) / size
    facts = {"data": str(data), "data_hash": dataset.data_hash}
    write_run(folder, bpb, targets, size, seed=seed, **facts)
    np.save(folder / "nats.npy", nats_N)
    return folder


@pytest.fixture
def single_runs(tmp_path, tiny_data):
    return [scored_with_nats(tmp_path / name, tiny_data, seed, gain) for name, seed, gain in (("a", 1, 0.2), ("b", 2, 0.0))]


def test_single_runs_are_compared_by_documents(single_runs, tiny_data):
    a, b = single_runs
    result = compare([a], [b], ())
    assert result["test"] == "bootstrap over documents" and result["p_value"] < 0.01 and result["noise"] is None
    dataset = open_dataset(tiny_data)
    tokens = validation_tokens(dataset)
    nats = [np.load(folder / "nats.npy") for folder in single_runs]
    document_N = document_of_targets(np.flatnonzero(tokens == BOS_ID), len(nats[0]))
    wanted = paired_bootstrap(*nats, target_bytes(dataset, tokens, len(nats[0])), document_N)
    assert wanted["documents"] > 1 and f"{wanted['documents']} documents" in result["because"]
    assert result["interval"] == pytest.approx(wanted["interval"], abs=1e-9)
    assert result["delta"]["bpb"] == pytest.approx(wanted["delta_bpb"], abs=1e-9)
    assert any("nothing about other seeds" in note for note in result["notes"]) and "one seed each" in result["sentence"]
    assert all(one["met"] is None for one in result["margins"].values())


def test_single_runs_without_nats_are_told_how_to_get_them(single_runs):
    a, b = single_runs
    (b / "nats.npy").unlink()
    with pytest.raises(Problem, match=rf"{b} has no nats.npy.*`fairway score {b} --keep-nats`"):
        compare([a], [b], ())


def test_single_runs_need_their_data_as_it_was(single_runs, tiny_data, tmp_path):
    a, b = single_runs
    change(a / "run.json", data=str(tmp_path / "gone"))
    with pytest.raises(Problem, match=r"gone, the data of .*a, is not there"):
        compare([a], [b], ())
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (moved / "manifest.json").write_text(json.dumps(manifest))
    change(a / "run.json", data=str(moved))
    with pytest.raises(Problem, match="has changed since"):
        compare([a], [b], ())


def test_nats_of_other_targets_are_refused(single_runs):
    a, b = single_runs
    nats_N = np.load(b / "nats.npy")
    np.save(b / "nats.npy", np.concatenate([nats_N[:-2], nats_N[-2:].sum(keepdims=True)]))
    with pytest.raises(Problem, match=r"over 1072 targets, score\.json says"):
        compare([a], [b], ())


def test_another_validation_text_is_refused_and_another_tokenizer_is_told(tmp_path, own):
    other_text = write_side(tmp_path / "text", OTHER, data_hash="gg", size=3501)
    with pytest.raises(Problem, match=r"3,500 bytes, .* on 3,501: different validation texts"):
        compare([own], [other_text], ())
    same_tokenizer = write_side(tmp_path / "tokens", OTHER, data_hash="gg", targets=999)
    with pytest.raises(Problem, match=r"1,000 tokens, .* on 999"):
        compare([own], [same_tokenizer], ())
    tokenizer = write_side(tmp_path / "tokenizer", OTHER, data_hash="gg", tokenizer_sha256="hh", targets=999)
    result = compare([own], [tokenizer], ())
    assert result["test"] == "Welch t" and result["delta"]["nats_per_token"] is None and result["delta"]["bpb"] < 0
    assert any("tokenizers differ" in note for note in result["notes"])


@pytest.mark.parametrize(
    "missing, command",
    [([], "score"), (["model.bin"], "pack"), (["model.bin", "weights.pt"], "train --resume")],
)
def test_an_unscored_run_is_told_its_next_command(own, missing, command):
    folder = own / "seed314"
    (folder / "weights.pt").write_bytes(b"")
    for name in ["score.json", *missing]:
        (folder / name).unlink()
    change(folder / "run.json", bpb={"weights": 1.06})
    with pytest.raises(Problem, match=rf"{folder} has no score .*; `fairway {command} {folder}` is next"):
        compare([own], (), ())


def test_a_score_by_other_means_is_no_score_of_the_run(own):
    change(own / "seed42" / "run.json", bpb={"weights": 1.06})
    with pytest.raises(Problem, match="has no score of its packed file"):
        compare([own], (), ())
    change(own / "seed42" / "score.json", normalised=False)
    with pytest.raises(Problem, match="no probability"):
        compare([own], (), ())


@pytest.mark.parametrize(
    "file, facts, complaint",
    [
        ("score.json", {"bpb": 1.0552}, "score.json says 1.0552 bpb"), ("score.json", {"nats": math.nan}, "nan as its nats"),
        ("score.json", {"tokens": 0}, "has 0 as its tokens"), ("score.json", {"stages": None}, "no stages"),
        ("run.json", {"bpb": {"packed": 1.05}}, "run.json says 1.05"), ("score.json", {"bytes": "many"}, "'many' as its"),
    ],
)  # fmt: skip
def test_a_changed_digit_is_refused(own, file, facts, complaint):
    change(own / "seed42" / file, **facts)
    with pytest.raises(Problem, match=complaint):
        compare([own], (), ())


def test_one_run_under_two_names_or_on_both_sides_is_refused(own, other):
    with pytest.raises(Problem, match="stands on both sides"):
        compare([own], [other, own / "seed42"], ())
    shutil.copytree(own / "seed42", own / "copy")
    with pytest.raises(Problem, match=r"seed42 and .*copy have one seed and one figure|copy and .*seed42"):
        compare([own], (), ())


def test_a_seed_that_stands_twice_and_mixed_recipes_are_told(tmp_path, own, other):
    write_run(own / "again", 1.0570, seed=42, recipe_hash="zz")
    result = compare([own], [other], ())
    assert result["test"] == "Welch t"
    assert any("seed 42 stands twice in three" in note for note in result["notes"])
    assert any("three mixes recipes (zz, aa)" in note for note in result["notes"])
    assert not any("other mixes" in note for note in result["notes"])


def test_sides_of_one_name_are_called_by_their_paths(tmp_path, own):
    twin = write_side(tmp_path / "elsewhere" / "three", OTHER)
    result = compare([own], [twin], ())
    assert [result[side]["name"] for side in ("runs", "against")] == [str(own), str(twin)]
    several = compare([own / "seed42", own / "seed314"], (), (1.06,))
    assert several["runs"]["name"] == "three" and several["runs"]["n"] == 2


def test_the_command_prints_table_sentence_test_and_limits(fairway_here, own, other):
    code, out, _ = fairway_here("compare", own, "--against", other)
    lines = out.splitlines()
    assert code == 0 and compare([own], [other], ())["sentence"] in lines
    assert any(line.split() == ["seed1234", "1234", "1.0563"] for line in lines)
    assert any(line.startswith("three ") and "n = 3  1.0565  0.0005  1.0553 to 1.0578" in line for line in lines)
    assert any(line.startswith("tested by paired t: ") for line in lines)
    assert lines[-1].startswith("seed noise understates what another machine gives")
    code, out, _ = fairway_here("compare", own, "--record", 1.0625, "--json")
    assert code == 0 and json.loads(out)["test"] == "one-sample t"


@pytest.mark.parametrize("record", [math.nan, math.inf, 0.0, -1.0])
def test_a_record_that_is_no_bpb_is_refused(fairway_here, own, record):
    code, out, err = fairway_here("compare", own, f"--record={record}")
    assert code == 2 and not out and len(err) == 1 and "give a number above 0" in err[0]


def test_runs_and_a_record_together_are_refused(own, other):
    with pytest.raises(Problem, match="not both"):
        compare([own], [other], (1.06,))
