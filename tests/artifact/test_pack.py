import dataclasses
import hashlib
import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from fairway.artifact.ledger import check_ledger, make_ledger, refuse_overrun
from fairway.artifact.pack import load_packed, pack_run
from fairway.clock import Clock
from fairway.codec.zstd import Zstd
from fairway.files import read_json
from fairway.model.roles import Leaf
from fairway.node import Node, digest, show
from fairway.problem import DoesNotHold, Problem
from fairway.quantize.policy import dequantise, load_codes
from fairway.quantize.schemes import KeepFloat16, RowInt
from fairway.recipe import Recipe
from fairway.runfolder import update_run

LEAVES = [
    Leaf("table", "embedding", -1, (16, 8)),
    Leaf("blocks.0.up", "matrix.up", 0, (8, 8)),
    Leaf("gain", "scalar", -1, (8,)),
]
FILES = ("train_gpt.py", "model.bin", "codes.safetensors", "ledger.json")
RECIPE = Recipe(
    name="test",
    model=Node(),
    loader=Node(),
    train=Node(),
    optim=(),
    quantize=(RowInt(role="matrix"), KeepFloat16()),
    codec=Zstd(level=3),
    evaluate=Node(),
)


@pytest.fixture
def folder(tmp_path):
    save_file({leaf.name: torch.randn(leaf.shape) for leaf in LEAVES}, tmp_path / "weights.safetensors")
    return tmp_path


def pack(folder, recipe=RECIPE):
    return pack_run(folder, recipe, show(recipe), LEAVES, Clock())


def test_a_pack_leaves_the_two_files_their_ledger_and_their_hashes(folder):
    ledger = pack(folder)
    assert ledger == json.loads((folder / "ledger.json").read_text())
    sizes = {name: (folder / name).stat().st_size for name in ("train_gpt.py", "model.bin")}
    assert ledger["files"] == sizes
    assert ledger["total"] == sum(sizes.values()) == sum(owner["bytes"] for owner in ledger["owners"])
    run = read_json(folder / "run.json")
    assert run["phases"].keys() == {"quantise", "encode"}
    assert run["sha256"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sizes}


def test_the_packed_model_holds_exactly_the_codes(folder):
    pack(folder)
    weights, codes = load_packed(folder / "model.bin", digest(RECIPE)), dequantise(load_codes(folder / "codes.safetensors"))
    assert list(weights) == list(codes) == [leaf.name for leaf in LEAVES]
    assert all(torch.equal(weights[name], codes[name]) for name in codes)


def test_packing_twice_gives_the_same_files(folder):
    pack(folder)
    before = [(folder / name).read_bytes() for name in FILES]
    pack(folder)
    assert before == [(folder / name).read_bytes() for name in FILES]


def test_over_the_cap_only_the_ledger_and_the_codes_remain(folder):
    pack(folder)
    with pytest.raises(DoesNotHold, match="over the cap of 900; give up some of: "):
        pack(folder, dataclasses.replace(RECIPE, cap=900))
    assert not (folder / "model.bin").exists()
    assert not (folder / "train_gpt.py").exists()
    ledger = read_json(folder / "ledger.json")
    assert ledger["total"] > ledger["cap"] == 900
    assert set(read_json(folder / "run.json")["sha256"].values()) == {None}
    assert load_codes(folder / "codes.safetensors").keys() == {leaf.name for leaf in LEAVES}


@pytest.mark.parametrize("cap", [RECIPE.cap, 900])
def test_a_pack_takes_the_score_of_an_earlier_model_away(folder, cap):
    for name in ("score.json", "nats.npy"):
        (folder / name).write_text("of another model.bin")
    update_run(folder, {"bpb": {"weights": 2.0, "packed": 2.1}, "phases": {"train": 3.0}})
    with pytest.raises(DoesNotHold) if cap == 900 else nullcontext():
        pack(folder, dataclasses.replace(RECIPE, cap=cap))
    assert not (folder / "score.json").exists() and not (folder / "nats.npy").exists()
    run = read_json(folder / "run.json")
    assert run["bpb"] == {"weights": 2.0} and run["phases"].keys() == {"train", "quantise", "encode"}


def test_the_cap_itself_is_allowed_and_one_byte_more_is_not():
    files = {"model.bin": [{"owner": "matrix", "kind": "q", "bytes": 16_000_000}]}
    refuse_overrun(make_ledger(files, 16_000_000))
    with pytest.raises(DoesNotHold, match="16,000,000 bytes are 1 over"):
        refuse_overrun(make_ledger(files, 15_999_999))


def test_a_model_packed_for_another_recipe_is_refused_in_one_line(folder):
    pack(folder)
    with pytest.raises(Problem, match=f"packed for recipe {digest(RECIPE)}, this one is 0000; pack the run again"):
        load_packed(folder / "model.bin", "0000")


def test_absent_and_broken_inputs_are_one_line(folder):
    with pytest.raises(Problem, match=r"model.bin: No such file"):
        load_packed(folder / "model.bin", "0000")
    (folder / "weights.safetensors").write_bytes(b"junk")
    with pytest.raises(Problem, match="`fairway train` writes it"):
        pack(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(Problem, match="`fairway train` writes it"):
        pack(folder)


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
