"""Training as the command line does it: interrupts leave a checkpoint, the pace is watched, every average is kept."""

import shlex
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import torch

from ..kernels.capability import device_name
from ..problem import DoesNotHold, Interrupted, Problem
from ..runfolder import CHECKPOINT, METRICS
from .checkpoint import restore_trainer, write_checkpoint
from .interrupt import listening
from .loop import finish_training, run_steps
from .metrics import Metrics


def train_run(folder, trainer, clock, checkpoint=None, progress=None):
    """Spends a new Trainer's budget; leaves metrics.jsonl and weights.pt, the averaged weights by canonical name.

    With `checkpoint` (of `read_checkpoint`) it goes on from there. `progress(row)` is called after each flush of the
    metrics, on rank 0. Returns the model with the first average's weights, those of the other averages as
    [(name, tensors)], and facts for run.json. An interrupt leaves checkpoint.pt and raises Interrupted; one that comes
    after the last step is ignored, as the weights are about to be written. Inside the clock nothing may be compiled.
    """
    folder, machine = Path(folder), trainer.machine
    with listening() as interrupt:
        try:
            with clock.phase("compile"):
                trainer.warm_up()
            if checkpoint is not None:
                restore_trainer(trainer, checkpoint)
            metrics = Metrics(folder / METRICS, trainer.world)
            metrics.rewind(trainer.steps_done)
            # Without a warm-up the first steps compile, inside the clock.
            with nothing_compiled(machine.compiled and trainer.recipe.train.warmup_steps > 0):
                run_steps(trainer, metrics, Keeper(folder, interrupt, trainer.world.device), progress)
        except torch.OutOfMemoryError as error:
            tokens = trainer.recipe.train.micro_tokens
            raise Problem(
                f"train.micro_tokens={tokens} does not fit in {device_name(machine.device)}'s memory; lower it"
            ) from error
        finally:
            trainer.batches.close()
        clock.seconds["train"] = trainer.elapsed
        others, facts = named_averages(trainer)[1:], training_facts(trainer, clock)
        finish_training(folder, trainer)
        if trainer.world.rank == 0:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return trainer.model, others, facts


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


def named_averages(trainer):
    """[(name, tensors)] of all averages. Copies, since an average may hand out the parameters themselves, which the first
    average is about to be put into."""
    kinds = [type(node).__name__ for node in trainer.recipe.average]
    return [
        (kind if kinds.count(kind) == 1 else f"{kind}:{index}", {name: t.clone() for name, t in average.tensors().items()})
        for index, (kind, average) in enumerate(zip(kinds, trainer.averages, strict=True))
    ]


def training_facts(trainer, clock):
    """What run.json says of a training that has ended."""
    device, tokens = trainer.world.device, trainer.steps_done * trainer.recipe.train.batch_tokens
    facts = {"steps": trainer.steps_done, "tokens": tokens, "phases": dict(clock.seconds)}
    facts["averages"] = [average.summary() for average in trainer.averages]
    facts["qat"] = [part.summary() for part in trainer.qat]
    if device.type == "cpu":
        return facts | {"threads": torch.get_num_threads()}
    return facts | {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}


class Keeper:
    """What `run_steps` asks between steps: whether an Interrupt wants it to stop, and that the pace be kept.

    On a CPU, where five steps take three times as long as the fastest five did, another program has come, and one thread
    goes on faster than several that wait for each other.
    """

    def __init__(self, folder, interrupt, device):
        self.folder, self.interrupt, self.device = folder, interrupt, device
        self.marks, self.fastest = deque(maxlen=6), float("inf")

    @property
    def asked(self):
        """Whether this process has been asked to stop."""
        return self.interrupt.asked

    def stop(self, trainer, metrics):
        """Leaves a checkpoint and raises Interrupted (a collective call)."""
        metrics.flush()
        write_checkpoint(trainer, self.folder / CHECKPOINT)
        name = shlex.quote(str(self.folder))
        raise Interrupted(f"interrupted after step {trainer.steps_done}; go on with `fairway train --resume {name}`")

    def keep(self):
        """To be called after each step is queued."""
        if self.device.type == "cpu" and torch.get_num_threads() > 1:
            self.marks.append(time.perf_counter())
            if len(self.marks) == 6:
                window = self.marks[-1] - self.marks[0]
                self.fastest = min(self.fastest, window)
                if window > 3 * self.fastest:
                    torch.set_num_threads(1)
