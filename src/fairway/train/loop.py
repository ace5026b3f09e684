"""The training stage: warm-up, then steps until the budget is spent; averaged weights into the run folder."""

import shlex
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save

from ..files import write_bytes
from ..model.roles import leaf_views
from ..problem import DoesNotHold, Interrupted, Problem
from ..runfolder import CHECKPOINT, METRICS, WEIGHTS
from .interrupt import listening
from .metrics import Metrics


def train_run(folder, trainer, clock, checkpoint=None, progress=None):
    """Spends a new Trainer's budget; leaves metrics.jsonl and weights.safetensors, the averaged weights by canonical name.

    With `checkpoint` (of `read_checkpoint`) it goes on from there. `progress(row, budget)` is called after each flush of
    the metrics, on rank 0. Returns the model with the first average's weights, those of the other averages as
    [(name, tensors)], and facts for run.json. An interrupt leaves checkpoint.pt and raises Interrupted; one that comes
    after the last step is ignored, as the weights are about to be written. Inside the clock nothing may be compiled.
    """
    with listening() as interrupt:
        try:
            with clock.phase("compile"):
                trainer.warm_up()
            if checkpoint is not None:
                trainer.restore(checkpoint)
            metrics = Metrics(Path(folder) / METRICS, trainer.world)
            metrics.rewind(trainer.steps_done)
            # Without a warm-up the first steps compile, inside the clock.
            with nothing_compiled(trainer.machine.compiled and trainer.recipe.train.warmup_steps > 0):
                run_steps(trainer, metrics, interrupt, Path(folder), progress)
        except torch.OutOfMemoryError as error:
            tokens = trainer.recipe.train.micro_tokens
            raise Problem(
                f"train.micro_tokens={tokens} does not fit in {trainer.machine.name}'s memory; lower it"
            ) from error
        finally:
            trainer.batches.close()
        return finish_training(Path(folder), trainer, clock)


@contextmanager
def nothing_compiled(compiled):
    """A context in which a step that would have to be compiled anew is an error: warm-up must have seen every graph."""
    if not compiled:
        yield
        return
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            yield
    except RuntimeError as error:
        if "fail_on_recompile" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise DoesNotHold(f"a step had to be compiled within the clock, which warm-up should have done: {reason}") from error


def finish_training(folder, trainer, clock):
    """Averages, writes the weights, removes the checkpoint. Returns what `train_run` does."""
    world, train = trainer.world, trainer.recipe.train
    clock.seconds["train"] = trainer.elapsed
    summaries = [average.summary() for average in trainer.averages]
    # Copies, since an average may hand out the parameters themselves, which the first average is put into.
    kinds = [type(node).__name__ for node in trainer.recipe.average]
    found = [
        (kind if kinds.count(kind) == 1 else f"{kind}:{index}", {name: t.clone() for name, t in average.tensors().items()})
        for index, (kind, average) in enumerate(zip(kinds, trainer.averages, strict=True))
    ]
    for _, tensors in found[:1]:
        put_weights(trainer.model, tensors)
    if world.rank == 0:
        write_bytes(folder / WEIGHTS, save({leaf.name: view.cpu().clone() for leaf, view in leaf_views(trainer.model)}))
        (folder / CHECKPOINT).unlink(missing_ok=True)
    tokens = trainer.steps_done * train.batch_tokens
    facts = {"steps": trainer.steps_done, "tokens": tokens, "averages": summaries, "phases": dict(clock.seconds)}
    facts["qat"] = [part.summary() for part in trainer.qat]
    if world.device.type == "cpu":
        facts["threads"] = torch.get_num_threads()
    else:
        facts["peak_memory_bytes"] = torch.cuda.max_memory_allocated(world.device)
    return trainer.model, found[1:], facts


@torch.no_grad()
def put_weights(model, tensors):
    """Copies tensors by parameter name into the model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def run_steps(trainer, metrics, interrupt, folder, progress):
    """Steps until the budget is spent, on one rank's clock."""
    recipe, world, machine = trainer.recipe, trainer.world, trainer.machine
    budget, schedule = recipe.train.budget, recipe.train.schedule
    pace = Pace(machine.device)
    begin = time.perf_counter() - trainer.elapsed
    while True:
        own = time.perf_counter() - begin if world.rank == 0 else 0.0
        trainer.elapsed, asked = world.largest([own, float(interrupt.asked)])
        if asked:
            metrics.flush()
            trainer.save(folder / CHECKPOINT)
            name = shlex.quote(str(folder))
            raise Interrupted(f"interrupted after step {trainer.steps_done}; go on with `fairway train --resume {name}`")
        done = budget.progress(trainer.steps_done, trainer.elapsed)
        if done >= 1.0:
            break
        multiplier = schedule.multiplier(trainer.steps_done, trainer.elapsed, budget)
        loss, norm = trainer.step(done, multiplier, recipe.model.plan.phase(done))
        pace.keep()
        facts = {
            "step": trainer.steps_done,
            "tokens": trainer.steps_done * recipe.train.batch_tokens,
            "seconds": round(time.perf_counter() - begin, 4),
            "rate": multiplier,
        }
        row = metrics.add(facts, loss, norm)
        if row and progress and world.rank == 0:
            progress(row, budget)
    metrics.flush()
    world.synchronize()
    (trainer.elapsed,) = world.largest([time.perf_counter() - begin])


class Pace:
    """Keeps the host at most one step ahead of a GPU, so that the clock it reads is the GPU's to within a step.

    On a CPU it watches the pace instead: where five steps take three times as long as the fastest five did, another
    program has come, and one thread goes on faster than several that wait for each other.
    """

    def __init__(self, device):
        self.device, self.marks = device, deque(maxlen=6)
        self.fastest = float("inf")

    def keep(self):
        """To be called after each step is queued."""
        if self.device.type == "cuda":
            mark = torch.cuda.Event()
            mark.record()
            self.marks.append(mark)
            if len(self.marks) > 1:
                self.marks.popleft().synchronize()
        elif torch.get_num_threads() > 1:
            self.marks.append(time.perf_counter())
            if len(self.marks) == 6:
                window = self.marks[-1] - self.marks[0]
                self.fastest = min(self.fastest, window)
                if window > 3 * self.fastest:
                    torch.set_num_threads(1)
