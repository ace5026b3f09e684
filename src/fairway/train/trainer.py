"""One run's state and its step: model, optimiser, averages, batches; warm-up before the clock; checkpoints.

B sequences a micro-batch and rank, T positions.
"""

import zipfile
from contextlib import ExitStack

import torch

from ..data.loaders import LoaderContext
from ..data.prefetch import Prefetcher
from ..files import replacing
from ..kernels.attention import attention_backends
from ..node import digest
from ..optim.optimizer import Optimizer
from ..optim.schedule import Moment
from ..problem import Problem


class Trainer:
    """Everything that a step changes, and nothing else. Raises Problem, before anything heavy, for what cannot train."""

    def __init__(self, recipe, dataset, seed, world, machine):
        self.recipe, self.world, self.machine = recipe, world, machine
        self.micro_steps = recipe.train.micro_steps(world.size, recipe.model.sequence)
        if dataset.vocab != recipe.model.vocab:
            raise Problem(
                f"{dataset.folder} has {dataset.vocab} pieces, the model {recipe.model.vocab} rows;"
                f" --set model.vocab={dataset.vocab}"
            )
        context = LoaderContext(
            dataset.train, world.rank, world.size, recipe.train.micro_tokens, recipe.model.sequence, recipe.model.vocab
        )
        loader = recipe.loader.build(context)
        self.model = recipe.model.build(seed, machine.activations).to(world.device)
        self.optimizer = self._fresh_optimizer()
        self.averages = [node.build(self.model) for node in recipe.average]
        self.qat = [node.build(self.model, recipe.quantize) for node in recipe.qat]
        self.loss = self.model.loss
        if machine.compiled:
            self.loss = torch.compile(self.loss, dynamic=False, fullgraph=True)
        self.steps_done, self.elapsed = 0, 0.0
        # Last, since it starts a thread.
        self.batches = Prefetcher(loader, world.device)

    def _fresh_optimizer(self):
        recipe = self.recipe
        return Optimizer(self.model, recipe.optim, self.world, self.machine.products, recipe.train.clip)

    def step(self, progress, multiplier, phase):
        """One optimiser step. Returns this rank's mean loss and the gradient norm, both on the device."""
        moment = Moment(self.steps_done, progress, multiplier)
        total = torch.zeros((), device=self.world.device)
        with ExitStack() as bent:
            for part in self.qat:
                bent.enter_context(part.bent(moment))
            for _ in range(self.micro_steps):
                x_BT, y_BT = self.batches.next()
                with attention_backends(self.world.device):
                    loss = self.loss(x_BT, y_BT, phase) / self.micro_steps
                    loss.backward()
                total += loss.detach()
        norm = self.optimizer.step(moment)
        for average in self.averages:
            average.after_step(moment)
        self.steps_done += 1
        return total, norm

    def warm_up(self):
        """Compiles every phase by real steps, then puts parameters, optimiser, averages and batches back as they were."""
        recipe = self.recipe
        if not self.machine.compiled or not recipe.train.warmup_steps:
            return
        begin, before = self.batches.state(), {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for phase in range(len(self.model.orders)):
            for _ in range(recipe.train.warmup_steps):
                self.step(0.0, 1.0, phase)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(before[name])
        # Fresh objects, so that nothing of the warm-up survives (the public banks kept its momentum).
        self.optimizer = self._fresh_optimizer()
        self.averages = [node.build(self.model) for node in recipe.average]
        self.qat = [node.build(self.model, recipe.quantize) for node in recipe.qat]
        self.batches.restart(begin)
        self.steps_done = 0
        self.world.synchronize()

    def save(self, path):
        """Writes a checkpoint from which a run continues exactly (a collective call; rank 0 writes)."""
        state = {
            "recipe": digest(self.recipe),
            "world_size": self.world.size,
            "steps": self.steps_done,
            "elapsed": self.elapsed,
            "model": {name: p.detach() for name, p in self.model.named_parameters()},
            "optimizer": self.optimizer.state(),
            "averages": [average.state() for average in self.averages],
            "qat": [part.state() for part in self.qat],
            "batches": self.world.gather_objects(self.batches.state()),
        }
        if self.world.rank == 0:
            with replacing(path) as part:
                try:
                    torch.save(state, part)
                except RuntimeError as error:  # torch's zip writer reports a full disk so
                    raise Problem(f"cannot write {path}: {str(error).splitlines()[0]}; free space and try again") from error

    def restore(self, state):
        """Continues from what `read_checkpoint` returned."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state["model"][name])
        self.optimizer.restore(state["optimizer"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.restore(saved)
        for part, saved in zip(self.qat, state["qat"], strict=True):
            part.restore(saved)
        self.batches.restart(state["batches"][self.world.rank])
        self.steps_done, self.elapsed = state["steps"], state["elapsed"]


def read_checkpoint(path, recipe, world_size):
    """What `Trainer.save` wrote. Problem when it is broken, or of another recipe or number of ranks."""
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():  # torch reads tensors without a look at their checksums
                raise zipfile.BadZipFile(f"checksum of {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        written_by, ranks = state["recipe"], state["world_size"]
    except Exception as error:
        raise Problem(f"{path} cannot be read ({str(error).partition(chr(10))[0]}); start the run anew") from error
    if written_by != digest(recipe):
        raise Problem(f"{path} was written by recipe {written_by}, not {digest(recipe)}; restore recipe.py")
    if ranks != world_size:
        raise Problem(f"{path} was written by {ranks} ranks, not {world_size}; resume with as many")
    return state
