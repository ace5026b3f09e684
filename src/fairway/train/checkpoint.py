"""`checkpoint.pt`: all that a Trainer's steps change, so that an interrupted run goes on to the same bits."""

import zipfile

import torch

from ..data.prefetch import Prefetcher
from ..files import replacing
from ..node import digest
from ..problem import Problem
from .trainer import put_weights


def loader_state(loader):
    """A Trainer's `note` where checkpoints are written."""
    return loader.state()


def write_checkpoint(trainer, path):
    """Writes a checkpoint from which a run continues exactly (a collective call; rank 0 writes)."""
    state = {
        "recipe": digest(trainer.recipe),
        "world_size": trainer.world.size,
        "steps": trainer.steps_done,
        "elapsed": trainer.elapsed,
        "model": {name: p.detach() for name, p in trainer.model.named_parameters()},
        "optimizer": trainer.optimizer.state(),
        "averages": [average.state() for average in trainer.averages],
        "qat": [part.state() for part in trainer.qat],
        "batches": trainer.world.gather_objects(trainer.batches.handed),
    }
    if trainer.world.rank == 0:
        with replacing(path) as part:
            try:
                torch.save(state, part)
            except RuntimeError as error:  # torch's zip writer reports a full disk so
                raise Problem(f"cannot write {path}: {str(error).splitlines()[0]}; free space and try again") from error


def restore_trainer(trainer, state):
    """Continues from what `read_checkpoint` returned."""
    put_weights(trainer.model, state["model"])
    trainer.optimizer.restore(state["optimizer"])
    for average, saved in zip(trainer.averages, state["averages"], strict=True):
        average.restore(saved)
    for part, saved in zip(trainer.qat, state["qat"], strict=True):
        part.restore(saved)
    trainer.batches.close()
    loader = trainer.batches.loader
    loader.restore(state["batches"][trainer.world.rank])
    trainer.batches = Prefetcher(loader, trainer.world.device, note=trainer.note)
    trainer.steps_done, trainer.elapsed = state["steps"], state["elapsed"]


def read_checkpoint(path, recipe, world_size):
    """What `write_checkpoint` wrote. Problem when it is broken, or of another recipe or number of ranks."""
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
