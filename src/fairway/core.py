"""Training and scoring of a Recipe as files: the part that the submitted program shares with the command line.

Nothing here reads recipes, knows their names, or asks anybody: what people see and may interrupt is added in stages.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from .artifact.pack import load_packed
from .data.dataset import target_bytes
from .data.shards import joined_shards
from .data.tokenizer import BOS_ID
from .model.roles import leaf_views, load_leaves
from .runfolder import METRICS
from .score.adapter import AdaptContext
from .score.commit import Committer, read_model
from .score.scorer import Pass
from .train.loop import finish_training, run_steps
from .train.metrics import Metrics
from .train.trainer import Trainer


def train_recipe(recipe, dataset, folder, seed, world, machine, clock, tell=None):
    """Trains into `folder`: metrics.jsonl and weights.pt. `tell(row)` gets a line of the metrics every 50 steps.

    Returns facts for run.json. Problem for what cannot train, DoesNotHold for a loss that is not finite.
    """
    trainer, path = Trainer(recipe, dataset, seed, world, machine), Path(folder) / METRICS
    with clock.phase("compile"):
        trainer.warm_up()
    if world.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    with clock.phase("train"):
        run_steps(trainer, Metrics(path, world, every=50), tell=tell)
    finish_training(path.parent, trainer)
    return {"seed": seed, "steps": trainer.steps_done, "phases": dict(clock.seconds)}


def scoring_model(recipe):
    """The model node that is scored: the recipe's, with the techniques that join it for scoring alone."""
    fresh = tuple(part for node in recipe.adapt for part in node.fresh)
    return replace(recipe.model, stream=(*recipe.model.stream, *fresh))


def packed_model(recipe, path, packed_by, machine):
    """The model of a model.bin that was packed by the recipe `packed_by`, as `recipe` scores it, on the machine's device.

    Techniques for scoring alone keep their initial values. Problem for a file that is damaged or of another recipe.
    """
    model = scoring_model(recipe).build(None, machine.activations)
    fresh = {leaf.name: view for leaf, view in leaf_views(model.stream[len(recipe.model.stream) :])}
    shapes = {leaf.name: leaf.shape for leaf, _ in leaf_views(model) if leaf.name not in fresh}
    load_leaves(model, fresh | load_packed(path, packed_by, shapes))
    return model.to(machine.device)


def score_recipe(recipe, path, dataset, world, machine):
    """The Scored of a model.bin by the recipe's own evaluation: one pass over the validation shards, without a look at the
    time. Every rank gets the whole."""
    tokens, evaluation = joined_shards(dataset.val), recipe.evaluate
    model = packed_model(recipe, path, recipe, machine)
    adapter = recipe.adapt[0].build(AdaptContext(model, machine, world, evaluation)) if recipe.adapt else None
    count = int(target_bytes(dataset, tokens, evaluation.scored_targets(len(tokens))).sum())
    dynamic = adapter is not None and adapter.by_round
    commit = Committer(read_model(model), dataset.vocab, world.device, machine.compiled, dynamic)
    starts = np.flatnonzero(tokens == BOS_ID)
    return Pass(commit, tokens, evaluation, count, world, starts, adapter, recipe.mix).run()[-1][1]
