"""The stage `score`: scores what is packed in a run folder and writes score.json, nats.npy and its part of run.json."""

import hashlib
from dataclasses import replace

import numpy as np

from ..data.dataset import dataset_bytes, validation_tokens
from ..files import replacing, write_json
from ..runfolder import NATS, PACKED, SCORE, need, update_run
from .scorer import score_stream
from .windows import NonOverlapping


def score_packed(folder, recipe, predict, dataset, device, clock, keep_nats=False, world=None, progress=None):
    """Scores `predict`, the predictor that was loaded from the folder's model.bin, on the dataset's validation stream.

    Returns what score.json holds: the figures of `Scored`, `phases` (seconds so far), `stages`, and the hashes of data and
    model. With `keep_nats`, nats.npy holds float32 nats of every target, in order. Only rank 0 writes.
    """
    packed = need(folder, PACKED, "pack")
    tokens, table, stages = validation_tokens(dataset), dataset_bytes(dataset), []
    for evaluation in evaluation_stages(recipe):
        before = clock.seconds.get("score", 0.0)
        with clock.phase("score"):
            scored = score_stream(predict, tokens, evaluation, table, dataset.vocab, device, world, progress)
        seconds = clock.seconds["score"] - before
        name = type(evaluation.windows).__name__
        stages.append({"name": name, "bpb": scored.bpb, "nats": scored.nats, "seconds": seconds})
    report = scored.as_json() | {
        "phases": dict(clock.seconds),
        "stages": stages,
        "data_hash": dataset.data_hash,
        "model_sha256": hashlib.sha256(packed.read_bytes()).hexdigest(),
    }
    if world is None or world.rank == 0:
        _write_score(packed.parent, report, scored.nats_N if keep_nats else None)
    return report


def evaluation_stages(recipe):
    """Windows side by side first, as the unpacked weights are scored after training; the recipe's own last: the score."""
    plain = replace(recipe.evaluate, windows=NonOverlapping(recipe.model.sequence))
    return list(dict.fromkeys((plain, recipe.evaluate)))


def _write_score(folder, report, nats_N):
    write_json(folder / SCORE, report)
    if nats_N is None:
        # Nats of an earlier score would pass for this one's.
        (folder / NATS).unlink(missing_ok=True)
    else:
        with replacing(folder / NATS) as part, open(part, "wb") as out:
            np.save(out, nats_N)
    update_run(folder, {"bpb": {"packed": report["bpb"]}, "phases": report["phases"]})
