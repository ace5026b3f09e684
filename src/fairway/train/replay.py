"""A step's forward and backward passes as one CUDA graph: the device goes from kernel to kernel without its host."""

import torch

from ..problem import DoesNotHold


class GradientGraph:
    """What `compute(batches)` does to the gradients of `parameters`, recorded once, to be replayed for other batches.

    `batches` [(x, y)] give shapes and dtypes; `compute` must have run before (nothing may be compiled while it is recorded),
    return a tensor, and neither wait for the device nor depend on anything but the batches and on tensors that stay where
    they are. `pool` is torch's handle of the memory that all graphs may share of which one at a time is in use.
    """

    def __init__(self, compute, batches, parameters, pool):
        self.batches, self.parameters = [tuple(map(torch.clone, batch)) for batch in batches], parameters
        self._put([None] * len(parameters))
        self.graph = torch.cuda.CUDAGraph()
        # The default mode would let what other threads do meanwhile (batches are prepared, NCCL is watched) end it.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.found = compute(self.batches)
        self.places = self._places()
        # Made by the recorded passes, so replays write these and add to nothing. Kept, or the pool would use their place.
        self.gradients = [parameter.grad for parameter in parameters]
        self._put([None] * len(parameters))

    def replay(self, batches):
        """Queues the passes for these batches; leaves the gradients in the parameters and returns what `compute` did."""
        if self._places() != self.places:
            raise DoesNotHold("a parameter was replaced since the passes were recorded; write its values in place")
        for own, given in zip(self.batches, batches, strict=True):
            torch._foreach_copy_(own, given)
        self.graph.replay()
        self._put(self.gradients)
        return self.found.clone()

    def _places(self):
        return [parameter.data_ptr() for parameter in self.parameters]

    def _put(self, gradients):
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
