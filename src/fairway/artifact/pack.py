"""Packing: averaged weights to the two files that are submitted, and the ledger of their bytes."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..files import write_bytes, write_json
from ..node import digest
from ..problem import Problem
from ..quantize.policy import dequantise, quantise, save_codes
from ..runfolder import CODES, LEDGER, PACKED, PROGRAM, WEIGHTS, forget_score, need, update_run
from .container import read_container, write_container
from .ledger import check_ledger, make_ledger, refuse_overrun
from .program import program_bytes, program_owners


def pack_run(folder, recipe, recipe_text, leaves, clock):
    """Quantises and packs the run's weights; writes codes, model.bin, train_gpt.py and ledger.json, and returns the ledger.

    `leaves`: the model's, in order. Phases `quantise` and `encode` and the two files' SHA-256 go into run.json.
    Over the cap it raises DoesNotHold: codes and ledger are written so that people see what weighs, but model.bin and
    train_gpt.py are not, and those of an earlier pack are removed, so that no file looks fit to submit. A score goes with
    the model.bin that it belongs to.
    """
    folder = Path(folder)
    with clock.phase("quantise"):
        codes = quantise(_read_weights(need(folder, WEIGHTS, "train")), leaves, recipe.quantize)
        save_codes(folder / CODES, codes)
    with clock.phase("encode"):
        model, model_owners = write_container(codes, recipe.codec, digest(recipe))
        packed = {PROGRAM: program_bytes(recipe_text), PACKED: model}
    ledger = make_ledger({PROGRAM: program_owners(packed[PROGRAM]), PACKED: model_owners}, recipe.cap)
    check_ledger(ledger, {name: len(data) for name, data in packed.items()})
    forget_score(folder)
    fits = ledger["total"] <= ledger["cap"]
    for name, data in packed.items():
        if fits:
            write_bytes(folder / name, data)
        else:
            (folder / name).unlink(missing_ok=True)
    write_json(folder / LEDGER, ledger)
    hashes = {name: hashlib.sha256(data).hexdigest() if fits else None for name, data in packed.items()}
    phases = {name: clock.seconds[name] for name in ("quantise", "encode")}
    update_run(folder, {"phases": phases, "sha256": hashes})
    refuse_overrun(ledger)
    return ledger


def _read_weights(path):
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Problem(f"cannot read {path}: {error}; `fairway train` writes it") from error


def load_packed(path, recipe_digest):
    """Canonical name -> float32 weights of a model.bin. Problem when it is damaged or was packed for another recipe."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}; `fairway pack` writes it") from error
    codes, packed_for = read_container(data)
    if packed_for != recipe_digest:
        raise Problem(f"{path} was packed for recipe {packed_for}, this one is {recipe_digest}; pack the run again")
    return dequantise(codes)
