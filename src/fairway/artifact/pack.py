"""Packing: averaged weights to `model.bin` beside the program, under the cap, and the ledger of their bytes.

`fit`'s dials work on a Packing: the weights on their way into the file.
"""

import hashlib
import math
from pathlib import Path

import torch

from ..data.dataset import dataset_bytes
from ..data.loaders import training_batches
from ..files import write_bytes, write_json
from ..model.roles import leaf_views, load_leaves
from ..node import digest
from ..problem import Problem
from ..quantize.hessian import CalibrationContext
from ..quantize.policy import assign_rules, calibrated_leaves, dequantise, quantise, sound_weights
from ..runfolder import LEDGER, PACKED, PROGRAM, WEIGHTS, forget_score, need, update_run
from .container import measure_container, read_container, write_container
from .ledger import check_ledger, make_ledger, refuse_overrun

SPARE_LEAST, SPARE_MOST = 2_000, 40_000  # bytes under the cap at which a dial may stop
FIT_TURNS = 3  # of all dials: they go by measured bytes, which are near the written ones; once or twice does it
HEARD_BATCHES = 8  # of training text after the calibration's, on which the packed weights are compared with the trained


class Packing:
    """Weights on one device, the rule of each leaf, and what the file would weigh; `rules` are what dials change."""

    def __init__(self, recipe, tensors, leaves, rules, hessians, room):
        self.recipe, self.tensors, self.leaves, self.rules, self.hessians = recipe, tensors, leaves, rules, hessians
        self.most, self.least = room - SPARE_LEAST, room - SPARE_MOST
        self.truth = 1.0  # bytes of a file by bytes measured, once one has been written
        self.known = {}

    def quantise(self, rules):
        """Codes by name. What was coded by the same rules the last time is not coded again."""
        members = {}
        for leaf in self.leaves:
            members.setdefault(rules[leaf.name], []).append(leaf)
        known = {}
        for rule, mine in members.items():
            key = rule, tuple(leaf.name for leaf in mine)
            known[key] = self.known.get(key) or quantise(self.tensors, mine, rules, self.hessians)
        self.known = known
        coded = {name: one for codes in known.values() for name, one in codes.items()}
        return {leaf.name: coded[leaf.name] for leaf in self.leaves}

    def measure(self, codes):
        """(bytes of the file, bytes by name)."""
        total, by_name = measure_container(codes, self.recipe.codec, digest(self.recipe))
        return total * self.truth, {name: size * self.truth for name, size in by_name.items()}


def pack_recipe(recipe, folder, program, program_owners, dataset, world, machine, clock, note):
    """Quantises and packs the run's weights; writes model.bin, train_gpt.py (`program`) and ledger.json; returns the ledger.

    All ranks calibrate, rank 0 does the rest (the others get None). Phases `calibrate`, `quantise` and `encode`, the bpb of
    a piece of training text before and after, and the two files' SHA-256 go into run.json. Validation is not touched.
    Over the cap it raises DoesNotHold: the ledger is written so that people see what weighs, but the two files are not,
    and those of an earlier pack are removed, so that no file looks fit to submit. A score goes with its model.bin.
    """
    folder = Path(folder)
    model = recipe.model.build(None, machine.activations).to(world.device)
    leaves = [leaf for leaf, _ in leaf_views(model)]
    tensors = sound_weights(read_weights(need(folder, WEIGHTS, "train"), world.device), leaves)
    load_leaves(model, tensors)
    rules = assign_rules(leaves, recipe.quantize)
    context = CalibrationContext(training_batches(recipe, dataset, world), world, machine, recipe.train.micro_tokens)
    with clock.phase("calibrate"):
        names = calibrated_leaves(rules, recipe.calibrate)
        hessians = recipe.calibrate[0].hessians(model, names, context) if names else {}
    if world.rank:
        return None
    room = recipe.cap - len(program)
    packing = Packing(recipe, tensors, leaves, rules, hessians, room)
    with clock.phase("quantise"):
        codes = packing.quantise(rules)
    first = codes
    for turns in range(FIT_TURNS + 1):
        with clock.phase("encode"):
            data, owners = write_container(codes, recipe.codec, digest(recipe))
        if not recipe.fit or turns == FIT_TURNS or packing.least <= len(data) <= packing.most:
            break
        with clock.phase("quantise"):
            packing.truth *= len(data) / packing.measure(codes)[0]
            before, packing.rules = packing.rules, rules
            said = [dial.turn(packing) for dial in recipe.fit]
            if packing.rules == before:
                break  # nothing is left to give, or to take
            note(f"fit: {'; '.join(said)}")
            codes = packing.quantise(packing.rules)
    if recipe.fit and not packing.least <= len(data) <= packing.most:
        note(f"fit: {room - len(data):,} bytes are left under the cap; the dials go no further")
    report_worth(recipe, model, context, dataset, folder, tensors, first, codes, note)
    return write_packed(recipe, folder, {PROGRAM: program, PACKED: data}, {PROGRAM: program_owners, PACKED: owners}, clock)


@torch.no_grad()
def report_worth(recipe, model, context, dataset, folder, tensors, first, codes, note):
    """bpb of training text that calibration has not read: by the weights, by the rules as they stand in the recipe, and as
    packed. What packing, and then fitting, gave up; into run.json's `heard`."""
    batches, table, device = [], dataset_bytes(dataset), context.world.device
    for _ in range(HEARD_BATCHES):
        x_BT, y_BT = context.loader.next()
        batches.append((x_BT.to(device), y_BT.to(device), int(table.counts(x_BT.numpy(), y_BT.numpy()).sum())))

    def bpb():
        nats = sum(float(model.loss(x_BT, y_BT)) * y_BT.numel() for x_BT, y_BT, _ in batches)
        return nats / math.log(2) / sum(count for *_, count in batches)

    heard = {"weights": bpb()}
    for name, found in {"rules": first, "packed": codes}.items():
        load_leaves(model, dequantise(found))
        heard[name] = bpb() if name == "rules" or found is not first else heard["rules"]
    update_run(folder, {"heard": heard})
    lost, fitted = heard["rules"] - heard["weights"], heard["packed"] - heard["rules"]
    note(f"training text: {heard['weights']:.4f} bpb, {lost:+.4f} by the rules, {fitted:+.4f} more by fitting the cap")


def write_packed(recipe, folder, files, owners, clock):
    """The two files, if they fit, and their ledger, which it returns; DoesNotHold over the cap."""
    ledger = make_ledger(owners, recipe.cap)
    check_ledger(ledger, {name: len(data) for name, data in files.items()})
    forget_score(folder)
    fits = ledger["total"] <= ledger["cap"]
    for name, data in files.items():
        if fits:
            write_bytes(folder / name, data)
        else:
            (folder / name).unlink(missing_ok=True)
    write_json(folder / LEDGER, ledger)
    hashes = {name: hashlib.sha256(data).hexdigest() if fits else None for name, data in files.items()}
    phases = {name: clock.seconds[name] for name in ("calibrate", "quantise", "encode")}
    update_run(folder, {"phases": phases, "sha256": hashes})
    refuse_overrun(ledger)
    return ledger


def read_weights(path, device):
    """Canonical name -> tensor of a weights file."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a broken pickle brings up
        reason = str(error).partition("\n")[0]
        raise Problem(f"cannot read {path}: {reason}; `fairway train` writes it") from error


def load_packed(path, recipe, shapes=None):
    """Canonical name -> float32 weights of a model.bin. Problem when it is damaged, was packed for another recipe, or holds
    other tensors than `shapes` (name -> shape) says."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}; `fairway pack` writes it") from error

    def check(packed_for, found):
        if packed_for != digest(recipe):
            raise Problem(f"{path} was packed for recipe {packed_for}, this one is {digest(recipe)}; pack the run again")
        if shapes is not None and found != shapes:
            raise Problem(f"{path} holds {len(found)} tensors that are not the model's {len(shapes)}; fetch the file again")

    return dequantise(read_container(data, recipe.codec, check)[0])
