"""Prepares the next batches in a thread while the current one computes."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor


class Prefetcher:
    """Runs a loader `depth` batches ahead and hands its batches out on `device` (a torch.device).

    `note(loader)`, asked after each batch is made, is kept with it: `handed` belongs to the last batch handed out, never
    to those prepared, so that a run which goes on from the loader's state there neither skips nor repeats a batch.
    """

    def __init__(self, loader, device, depth=2, note=None):
        self.loader, self.device, self.note = loader, device, note or (lambda loader: None)
        self.handed = self.note(loader)
        self.pool = ThreadPoolExecutor(1, "prefetch")
        self.ready = deque(self.pool.submit(self._prepared) for _ in range(depth))

    def _prepared(self):
        return *self.loader.next(), self.note(self.loader)

    def next(self):
        """(x, y) on the device, int64 [B, T]. Raises what the loader raised, now and at every later call."""
        x, y, self.handed = self.ready[0].result()
        self.ready.popleft()
        self.ready.append(self.pool.submit(self._prepared))
        return on_device(x, self.device), on_device(y, self.device)

    def close(self):
        """Ends and joins the thread; closing twice is fine."""
        self.pool.shutdown(cancel_futures=True)


def on_device(tensor, device):
    """A CPU tensor on `device`. From pinned memory, or the host would wait for all that the device was given before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
