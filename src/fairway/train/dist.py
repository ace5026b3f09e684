"""The only file that knows ranks: one process alone, or several under `torchrun` (NCCL on GPUs, gloo on CPUs)."""

from contextlib import contextmanager

import torch
import torch.distributed as dist

# Its default arguments keep the group of the moment it is imported. Imported later, by torch.optim, it would keep ours
# past `destroy_process_group`, and gloo's threads would abort a process that ends well (in half of the runs).
import torch.distributed.nn.functional

from ..kernels.capability import best_device
from ..problem import Problem


class Done:
    """The pending handle of a call that has already finished."""

    def wait(self):
        """Returns at once."""


class World:
    """This process among its peers. With size 1 no method communicates."""

    def __init__(self, rank, size, device):
        self.rank, self.size, self.device = rank, size, device

    def all_reduce_sum(self, tensor):
        """Adds `tensor` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_mean(self, tensor):
        """Starts averaging `tensor` over the ranks, in place; returns a handle to wait for."""
        if self.size == 1:
            return Done()
        if self.device.type == "cuda":  # NCCL divides on the way; gloo cannot
            return dist.all_reduce(tensor, op=dist.ReduceOp.AVG, async_op=True)
        tensor.div_(self.size)
        return dist.all_reduce(tensor, async_op=True)

    def reduce_scatter_mean(self, whole_PRC):
        """Starts averaging over the ranks, each keeping its part of dimension 0. Returns the part and a handle."""
        part = torch.empty_like(whole_PRC[: whole_PRC.shape[0] // self.size])
        reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # the name since torch 2.13
        if self.device.type == "cuda":  # as above
            return part, reduce_scatter(part, whole_PRC.contiguous(), op=dist.ReduceOp.AVG, async_op=True)
        return part, reduce_scatter(part, whole_PRC.div(self.size).contiguous(), async_op=True)

    def all_gather(self, part_SRC):
        """Starts joining the ranks' parts along dimension 0. Returns the whole and a handle."""
        whole = part_SRC.new_empty(self.size * part_SRC.shape[0], *part_SRC.shape[1:])
        all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        return whole, all_gather(whole, part_SRC, async_op=True)

    def largest(self, numbers):
        """The largest of each number over the ranks. Travels over the CPU, so the device's queue is not waited for."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather_objects(self, thing):
        """Every rank's object, in rank order, on every rank."""
        if self.size == 1:
            return [thing]
        things = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def synchronize(self):
        """Waits until this rank's device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def leave(self):
        """Ends the group, or its threads would abort a process that ends well."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join_world():
    """The World that the process was started in. Under torchrun each rank takes the CUDA card of its local number; alone,
    the first card or the CPU."""
    if not dist.is_torchelastic_launched():
        return World(0, 1, best_device())
    local = dist.get_node_local_rank()
    if torch.cuda.is_available() and local >= torch.cuda.device_count():
        raise Problem(f"rank {local} of this machine has no GPU: start at most {torch.cuda.device_count()} processes here")
    device = best_device(local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Two back ends in one group: device tensors go by NCCL, the clock's few numbers by gloo without touching the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def start_world():
    """Yields the World that the process was started in, and leaves it in order."""
    world = join_world()
    try:
        yield world
    except RuntimeError as error:
        # What a rank sees when its peer has left in the middle of a call, by either back end.
        if dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise Problem("another rank has ended; its own line says why") from error
        raise
    finally:
        world.leave()
