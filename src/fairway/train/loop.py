"""Steps until the budget is spent, then the averaged weights into the run folder."""

import io
import time

import torch

from ..files import write_bytes
from ..model.roles import leaf_views
from ..runfolder import WEIGHTS
from .trainer import put_weights


def run_steps(trainer, metrics, keeper=None, tell=None):
    """Steps until the budget is spent, on one rank's clock. The host stays at most one step ahead of a GPU, so that the
    clock it reads is the GPU's to within a step.

    `keeper` (session.py): `asked` is whether to stop before the next step, by `keeper.stop(trainer, metrics)`, which
    raises; `keeper.keep()` is called after each. `tell(row)` is called after each flush of the metrics.
    """
    recipe, world, mark = trainer.recipe, trainer.world, None
    budget = recipe.train.budget
    begin = time.perf_counter() - trainer.elapsed
    while True:
        own = time.perf_counter() - begin if world.rank == 0 else 0.0
        trainer.elapsed, asked = world.largest([own, float(keeper is not None and keeper.asked)])
        if asked:
            keeper.stop(trainer, metrics)
        done = budget.progress(trainer.steps_done, trainer.elapsed)
        if done >= 1.0:
            break
        multiplier = recipe.train.schedule.multiplier(trainer.steps_done, trainer.elapsed, budget)
        loss, norm = trainer.step(done, multiplier, recipe.model.plan.phase(done))
        if world.device.type == "cuda":
            before, mark = mark, torch.cuda.Event()
            mark.record()
            if before:
                before.synchronize()
        if keeper:
            keeper.keep()
        facts = {
            "step": trainer.steps_done,
            "tokens": trainer.steps_done * recipe.train.batch_tokens,
            "seconds": round(time.perf_counter() - begin, 4),
            "rate": multiplier,
        }
        row = metrics.add(facts, loss, norm)
        if row and tell and world.rank == 0:
            tell(row)
    metrics.flush()
    world.synchronize()
    (trainer.elapsed,) = world.largest([time.perf_counter() - begin])


def finish_training(folder, trainer):
    """Puts the first average into the model and writes it: float32 tensors by canonical name. Ends the recorded steps, whose
    memory is for whoever comes next."""
    if trainer.recorded:
        trainer.recorded.clear()
        torch.cuda.empty_cache()
    for average in trainer.averages[:1]:
        put_weights(trainer.model, average.tensors())
    if trainer.world.rank == 0:
        out = io.BytesIO()  # torch would write a file's own name into it
        torch.save({leaf.name: view.cpu().clone() for leaf, view in leaf_views(trainer.model)}, out)
        write_bytes(folder / WEIGHTS, out.getvalue())
