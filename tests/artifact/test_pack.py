import dataclasses
import hashlib
import json
from contextlib import nullcontext

import pytest
import torch

from fairway.artifact.ledger import check_ledger, make_ledger, refuse_overrun
from fairway.artifact.pack import SPARE_LEAST, SPARE_MOST, load_packed, pack_recipe
from fairway.clock import Clock
from fairway.codec.columns import ColumnRans
from fairway.data.dataset import open_dataset
from fairway.files import read_json
from fairway.kernels.capability import capability
from fairway.node import amend, override, show
from fairway.problem import DoesNotHold, Problem
from fairway.quantize.fit import MixedBits, Pruning, StepDial
from fairway.quantize.gptq import GPTQ, Nearest
from fairway.quantize.hessian import Calibration
from fairway.quantize.schemes import KeepFloat16, RowInt
from fairway.recipes.demo import demo
from fairway.runfolder import update_run
from fairway.train.dist import World
from train.tiny import SETTINGS

FILES = ("train_gpt.py", "model.bin", "ledger.json")
CODE = b"#" * 1000
OWNERS = [{"owner": "all of it", "kind": "code", "bytes": len(CODE)}]
TABLE = RowInt(role="table", bits=8)
STEPS = (KeepFloat16(largest=200), TABLE, RowInt(bits=6, sigmas=12.85, log_scales=True, rounding=GPTQ()))
RECIPE = dataclasses.replace(
    override(demo(), SETTINGS),
    quantize=STEPS,
    codec=ColumnRans(),
    calibrate=(Calibration(tokens=2048),),
    fit=(),
)


@pytest.fixture(scope="module")
def weights():
    """Of the recipe's model, as if trained: rows and columns of different spread."""
    from fairway.model.roles import leaf_views

    draw = torch.Generator().manual_seed(5)
    found = {}
    for leaf, view in leaf_views(RECIPE.model.build(7)):
        spread = torch.rand(view.shape[-1:], generator=draw) + 0.5
        found[leaf.name] = torch.randn(view.shape, generator=draw) * 0.05 * spread if view.dim() > 1 else view.clone()
    return found


@pytest.fixture
def folder(tmp_path, weights):
    torch.save(weights, tmp_path / "weights.pt")
    return tmp_path


@pytest.fixture
def pack(tiny_data, folder):
    """pack(recipe) packs the folder; its notes are in pack.notes."""

    def call(recipe=RECIPE, into=folder):
        call.notes = []
        world = World(0, 1, torch.device("cpu"))
        data, machine = open_dataset(tiny_data), capability(world.device)
        return pack_recipe(recipe, into, CODE, OWNERS, data, world, machine, Clock(), call.notes.append)

    return call


def test_a_pack_leaves_the_two_files_their_ledger_and_their_hashes(folder, pack):
    ledger = pack()
    assert ledger == json.loads((folder / "ledger.json").read_text())
    sizes = {name: (folder / name).stat().st_size for name in ("train_gpt.py", "model.bin")}
    assert ledger["files"] == sizes and (folder / "train_gpt.py").read_bytes() == CODE
    assert ledger["total"] == sum(sizes.values()) == sum(owner["bytes"] for owner in ledger["owners"])
    run = read_json(folder / "run.json")
    assert run["phases"].keys() == {"calibrate", "quantise", "encode"}
    assert run["sha256"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sizes}


def test_the_packed_weights_are_near_the_trained_and_what_was_given_up_is_told(folder, pack, weights):
    # GPTQ would move single weights far, for the outputs' sake.
    recipe = amend(RECIPE, RowInt, rounding=Nearest())
    pack(recipe)
    packed = load_packed(folder / "model.bin", recipe)
    assert packed.keys() == weights.keys()
    for name, weight in weights.items():
        assert (packed[name] - weight).norm() < 0.2 * weight.norm() + 1e-3, name
    heard = read_json(folder / "run.json")["heard"]
    assert heard["packed"] == heard["rules"] != heard["weights"]
    assert abs(heard["packed"] - heard["weights"]) < 0.1
    assert f"training text: {heard['weights']:.4f} bpb" in pack.notes[-1]


def test_packing_twice_gives_the_same_files(folder, pack):
    pack()
    before = [(folder / name).read_bytes() for name in FILES]
    pack()
    assert before == [(folder / name).read_bytes() for name in FILES]


def test_over_the_cap_only_the_ledger_remains_and_ten_owners_are_named(folder, pack):
    pack()
    with pytest.raises(DoesNotHold, match="over the cap of 900; give up some of: ") as fault:
        pack(dataclasses.replace(RECIPE, cap=900))
    assert str(fault.value).count(", ") >= 9
    assert not (folder / "model.bin").exists() and not (folder / "train_gpt.py").exists()
    ledger = read_json(folder / "ledger.json")
    assert ledger["total"] > ledger["cap"] == 900
    assert set(read_json(folder / "run.json")["sha256"].values()) == {None}


@pytest.mark.parametrize("cap", [RECIPE.cap, 900])
def test_a_pack_takes_the_score_of_an_earlier_model_away(folder, pack, cap):
    for name in ("score.json", "nats.npy"):
        (folder / name).write_text("of another model.bin")
    update_run(folder, {"bpb": {"weights": 2.0, "packed": 2.1}, "phases": {"train": 3.0}})
    with pytest.raises(DoesNotHold) if cap == 900 else nullcontext():
        pack(dataclasses.replace(RECIPE, cap=cap))
    assert not (folder / "score.json").exists() and not (folder / "nats.npy").exists()
    run = read_json(folder / "run.json")
    assert run["bpb"] == {"weights": 2.0} and run["phases"].keys() == {"train", "calibrate", "quantise", "encode"}


@pytest.fixture
def natural(pack):
    """Bytes of the recipe's model.bin with no dial moved."""
    return pack()["files"]["model.bin"]


@pytest.mark.parametrize("share", [0.8, 1.0, 1.15])
def test_the_step_is_moved_until_the_bytes_fit_the_cap_from_either_side(pack, natural, share, monkeypatch):
    monkeypatch.setattr("fairway.artifact.pack.SPARE_LEAST", 20)
    monkeypatch.setattr("fairway.artifact.pack.SPARE_MOST", 400)
    cap = int(natural * share) + len(CODE)
    ledger = pack(dataclasses.replace(RECIPE, cap=cap, fit=(StepDial(),)))
    assert 20 <= cap - ledger["total"] <= 400
    factors = [float(note.removeprefix("fit: steps x ")) for note in pack.notes if note.startswith("fit: steps")]
    assert (factors[-1] > 1) == (share <= 1)


def test_bits_are_given_where_they_gain_most_until_the_cap_is_met(folder, pack, monkeypatch):
    monkeypatch.setattr("fairway.artifact.pack.SPARE_LEAST", 0)
    monkeypatch.setattr("fairway.artifact.pack.SPARE_MOST", 4000)
    plain = dataclasses.replace(RECIPE, quantize=(KeepFloat16(largest=200), TABLE, RowInt(bits=5, rounding=GPTQ())))
    least = pack(plain)["files"]["model.bin"]
    cap = least + len(CODE) + 8000
    ledger = pack(dataclasses.replace(plain, cap=cap, fit=(MixedBits(role="matrix", bits=(5, 6, 7)),)))
    assert least < ledger["files"]["model.bin"] <= cap - len(CODE)
    told = next(note for note in pack.notes if note.startswith("fit: "))
    counts = [int(part.split()[0]) for part in told.removeprefix("fit: ").split(", ")]
    assert sum(counts) == sum(leaf.startswith("blocks") for leaf in weights_of_matrices(folder)) and counts[1] + counts[2]


def weights_of_matrices(folder):
    return [name for name, one in torch.load(folder / "weights.pt").items() if one.dim() == 2 and one.numel() > 200]


def test_codes_are_pruned_only_when_the_bytes_are_over(folder, pack, natural):
    roomy = pack(dataclasses.replace(RECIPE, cap=natural * 2 + 200_000, fit=(Pruning(role="matrix"),)))
    assert abs(roomy["files"]["model.bin"] - natural) < 16  # another recipe has another digest
    tight = dataclasses.replace(RECIPE, cap=int(natural * 0.97) + len(CODE) + SPARE_LEAST, fit=(Pruning(role="matrix"),))
    assert pack(tight)["total"] <= tight.cap - SPARE_LEAST


def test_a_dial_that_finds_nothing_to_move_says_so(pack):
    flat = dataclasses.replace(RECIPE, quantize=(KeepFloat16(),), calibrate=(), cap=30_000)
    for dial, words in [(StepDial(), "clips by sigmas"), (MixedBits(), "no integer rule"), (Pruning(), "rounds by GPTQ")]:
        with pytest.raises(Problem, match=words):
            pack(dataclasses.replace(flat, fit=(dial,)))


def test_hessians_that_are_wanted_must_be_asked_for(pack):
    with pytest.raises(Problem, match=r"wants Hessians and `calibrate` holds 0 nodes"):
        pack(dataclasses.replace(RECIPE, calibrate=()))


def test_the_window_in_which_a_fit_must_end_is_the_issue_s():
    assert (SPARE_LEAST, SPARE_MOST) == (2_000, 40_000)


def test_the_cap_itself_is_allowed_and_one_byte_more_is_not():
    files = {"model.bin": [{"owner": "matrix", "kind": "q", "bytes": 16_000_000}]}
    refuse_overrun(make_ledger(files, 16_000_000))
    with pytest.raises(DoesNotHold, match="16,000,000 bytes are 1 over"):
        refuse_overrun(make_ledger(files, 15_999_999))


def test_a_model_packed_for_another_recipe_is_refused_in_one_line(folder, pack):
    pack()
    other = dataclasses.replace(RECIPE, name="other")
    with pytest.raises(Problem, match=r"packed for recipe \w+, this one is \w+; pack the run again"):
        load_packed(folder / "model.bin", other)


def test_a_file_of_other_tensors_than_the_models_is_refused_before_it_is_decoded(folder, pack, weights):
    pack()
    shapes = {name: tuple(one.shape) for name, one in weights.items()}
    assert load_packed(folder / "model.bin", RECIPE, shapes).keys() == weights.keys()
    for wrong in ({}, shapes | {"more": (3,)}, {name: (1, *shape) for name, shape in shapes.items()}):
        with pytest.raises(Problem, match="that are not the model's"):
            load_packed(folder / "model.bin", RECIPE, wrong)


def test_a_fit_that_ends_outside_of_its_window_is_told(pack, natural):
    roomy = dataclasses.replace(RECIPE, cap=natural * 4 + 200_000, fit=(StepDial(least=0.9),))
    pack(roomy)
    assert any("bytes are left under the cap; the dials go no further" in note for note in pack.notes)


def test_absent_and_broken_inputs_are_one_line(folder, pack, weights):
    with pytest.raises(Problem, match=r"model.bin: No such file"):
        load_packed(folder / "model.bin", RECIPE)
    for wrong in ({}, weights | {"more": torch.zeros(3)}, weights | {name: one[..., :1] for name, one in weights.items()}):
        torch.save(wrong, folder / "weights.pt")
        with pytest.raises(Problem, match="train this recipe again"):
            pack()
    torch.save({name: one * float("nan") for name, one in weights.items()}, folder / "weights.pt")
    with pytest.raises(Problem, match="not finite"):
        pack()
    (folder / "weights.pt").write_bytes(b"junk")
    with pytest.raises(Problem, match="`fairway train` writes it"):
        pack()
    (folder / "weights.pt").unlink()
    with pytest.raises(Problem, match="`fairway train` writes it"):
        pack()


def test_the_ledger_is_sorted_and_wrong_sums_are_found():
    files = {
        "model.bin": [{"owner": "matrix", "kind": "q", "bytes": 5}, {"owner": "matrix", "kind": "scale", "bytes": 9}],
        "train_gpt.py": [{"owner": "fairway/node.py", "kind": "code", "bytes": 7}],
    }
    ledger = make_ledger(files, 20)
    assert ledger["files"] == {"model.bin": 14, "train_gpt.py": 7}
    assert [owner["bytes"] for owner in ledger["owners"]] == [9, 7, 5]
    check_ledger(ledger, {"model.bin": 14, "train_gpt.py": 7})
    with pytest.raises(AssertionError, match="the files hold"):
        check_ledger(ledger, {"model.bin": 15, "train_gpt.py": 7})
    with pytest.raises(DoesNotHold, match=r"21 bytes are 1 over the cap of 20; .*: matrix scale 9, fairway/node.py code 7"):
        refuse_overrun(ledger)


def test_the_recipe_in_use_survives_its_own_text():
    from fairway.node import parse_node

    assert parse_node(show(RECIPE)) == RECIPE
