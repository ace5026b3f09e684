"""One run's state and its step: model, optimiser, averages, batches; warm-up before the clock.

B sequences a micro-batch and rank, T positions.
"""

from contextlib import ExitStack
from functools import partial

import torch

from ..data.loaders import training_batches
from ..data.prefetch import Prefetcher
from ..kernels.attention import attention_backends
from ..optim.optimizer import Optimizer
from ..optim.schedule import Moment
from ..problem import Problem
from .replay import GradientGraph


class Trainer:
    """Everything that a step changes, and its recorded passes. Raises Problem, before anything heavy, for what cannot train.

    `note` is the Prefetcher's: what is to be known of the loader at each batch.
    """

    def __init__(self, recipe, dataset, seed, world, machine, note=None):
        self.recipe, self.dataset, self.world, self.machine, self.note = recipe, dataset, world, machine, note
        self.micro_steps = recipe.train.micro_steps(world.size, recipe.model.sequence)
        if dataset.vocab != recipe.model.vocab:
            raise Problem(
                f"{dataset.folder} has {dataset.vocab} pieces, the model {recipe.model.vocab} rows;"
                f" --set model.vocab={dataset.vocab}"
            )
        loader = training_batches(recipe, dataset, world)
        self.model = recipe.model.build(seed, machine.activations).to(world.device)
        self.loss = torch.compile(self.model.loss, dynamic=False, fullgraph=True) if machine.compiled else self.model.loss
        self.recorded = {}  # a GradientGraph for each phase
        self._begin(loader)

    def _begin(self, loader):
        recipe, self.steps_done, self.elapsed = self.recipe, 0, 0.0
        self.optimizer = Optimizer(self.model, recipe.optim, self.world, self.machine.products, recipe.train.clip)
        self.averages = [node.build(self.model) for node in recipe.average]
        self.qat = [node.build(self.model, recipe.quantize) for node in recipe.qat]
        # Last, since it starts a thread.
        self.batches = Prefetcher(loader, self.world.device, note=self.note)

    def step(self, progress, multiplier, phase):
        """One optimiser step. Returns this rank's mean loss and the gradient norm, both on the device."""
        moment, batches = Moment(self.steps_done, progress, multiplier), self._next_batches()
        with ExitStack() as bent:
            for part in self.qat:
                bent.enter_context(part.bent(moment))
            if phase in self.recorded:
                loss = self.recorded[phase].replay(batches)
            else:
                loss = self._accumulate(batches, phase)
        norm = self.optimizer.step(moment)
        for average in self.averages:
            average.after_step(moment)
        self.steps_done += 1
        return loss, norm

    def _next_batches(self):
        """A step's micro-batches of this rank."""
        return [self.batches.next() for _ in range(self.micro_steps)]

    def _accumulate(self, batches, phase):
        """Adds the gradients of the micro-batches' mean loss to the parameters; returns that loss."""
        total = torch.zeros((), device=self.world.device)
        for x_BT, y_BT in batches:
            with attention_backends(self.world.device):
                loss = self.loss(x_BT, y_BT, phase) / self.micro_steps
                loss.backward()
            total += loss.detach()
        return total

    def record(self):
        """Where the machine records: makes the passes of all phases graphs that later steps replay. Steps must have compiled
        them before. The last phase first: it is the largest, and the others fit into its memory."""
        if not self.machine.recorded:
            return
        pool, parameters = torch.cuda.graph_pool_handle(), list(self.model.parameters())
        for phase in reversed(range(len(self.model.orders))):
            compute = partial(self._accumulate, phase=phase)
            try:
                self.recorded[phase] = GradientGraph(compute, self._next_batches(), parameters, pool)
            except torch.AcceleratorError as error:
                reason = str(error).partition("\n")[0]
                raise Problem(
                    f"the passes of phase {phase} could not be recorded ({reason}); lower"
                    f" train.micro_tokens={self.recipe.train.micro_tokens} if the memory is short"
                ) from error

    def warm_up(self):
        """Compiles every phase by real steps and records it, then begins again: parameters as before, all else anew, so that
        nothing of the warm-up survives (the public banks kept its momentum)."""
        if not self.machine.compiled or not self.recipe.train.warmup_steps:
            return
        before = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        for phase in range(len(self.model.orders)):
            for _ in range(self.recipe.train.warmup_steps):
                self.step(0.0, 1.0, phase)
        self.record()
        put_weights(self.model, before)
        self.batches.close()
        self._begin(training_batches(self.recipe, self.dataset, self.world))
        self.world.synchronize()


@torch.no_grad()
def put_weights(model, tensors):
    """Copies tensors by parameter name into the model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
