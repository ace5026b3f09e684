"""The stage `score`: scores what is packed in a run folder and writes score.json, nats.npy and its part of run.json."""

import hashlib
from dataclasses import replace

import numpy as np

from ..data.dataset import count_target_bytes, validation_tokens
from ..files import replacing, write_json
from ..runfolder import NATS, PACKED, RUN, SCORE, need, read_run, update_run
from .scorer import score_stream, warm_shapes
from .windows import NonOverlapping


def score_packed(folder, recipe, predict, dataset, clock, world, keep_nats=False, progress=None):
    """Scores `predict`, the predictor that was loaded from the folder's model.bin, on the dataset's validation stream.

    Returns what score.json holds: the figures of `Scored`, `phases` (seconds so far), `stages`, and the hashes of data and
    model. With `keep_nats`, nats.npy holds float32 nats of every target, in order. Only rank 0 writes.
    """
    packed = need(folder, PACKED, "pack")
    stages = score_stages(predict, dataset, evaluation_stages(recipe), clock, world, "score", progress)
    scored = stages[-1][1]
    report = scored.as_json() | {
        "phases": dict(clock.seconds),
        "stages": [{"name": name, "bpb": one.bpb, "nats": one.nats, "seconds": seconds} for name, one, seconds in stages],
        "data_hash": dataset.data_hash,
        "model_sha256": hashlib.sha256(packed.read_bytes()).hexdigest(),
    }
    if world.rank == 0:
        _write_score(packed.parent, report, scored.nats_N if keep_nats else None)
    return report


def score_stages(predict, dataset, evaluations, clock, world, phase, progress=None):
    """[(name of the windows, Scored, seconds)] of a dataset's validation stream, one for each Evaluation.

    On a GPU each shape of batch is first run once, as phase `compile`, so that `phase` counts scoring alone.
    """
    tokens, done = validation_tokens(dataset), []
    for evaluation in evaluations:
        targets = evaluation.scored_targets(len(tokens))
        if world.device.type == "cuda":
            with clock.phase("compile"):
                warm_shapes(predict, evaluation, targets, world.device)
        before = clock.seconds.get(phase, 0.0)
        with clock.phase(phase):
            count = count_target_bytes(dataset, tokens, targets)
            scored = score_stream(predict, tokens, evaluation, count, dataset.vocab, world, progress)
        done.append((type(evaluation.windows).__name__, scored, clock.seconds[phase] - before))
    return done


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
    own = not (folder / RUN).exists() or read_run(folder).get("data_hash", report["data_hash"]) == report["data_hash"]
    # A score on other data is in score.json with that data's hash; the run's own figures stay the run's.
    update_run(folder, {"phases": report["phases"]} | ({"bpb": {"packed": report["bpb"]}} if own else {}))
