"""Prepares the next batches in a thread while the current one computes."""

import queue
import threading

import torch


class Prefetcher:
    """Runs a loader `depth` batches ahead and hands its batches out on `device`.

    On CUDA the thread pins each batch and copies it on a stream of its own; `next` makes the caller's stream wait for that
    copy only. The state belongs to the last batch handed out, never to those prepared: a run that resumes from it
    neither skips nor repeats a batch.
    """

    def __init__(self, loader, device, depth=2):
        self.loader, self.depth = loader, max(depth, 1)
        self.device = torch.device(device)
        self.stream = None
        if self.device.type == "cuda":
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            self.device = torch.device("cuda", index)
            self.stream = torch.cuda.Stream(self.device)
        self._start()

    def _start(self):
        self.handed, self.error = self.loader.state(), None
        self.ready, self.stop = queue.Queue(self.depth), threading.Event()
        self.thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self.thread.start()

    def _work(self):
        try:
            if self.stream is not None:
                # The current device is the thread's own; without this, pinning would open a context on device 0.
                torch.cuda.set_device(self.device)
            while not self.stop.is_set():
                batch = self._copied(self.loader.next())
                self.ready.put((*batch, self.loader.state(), None))
        except Exception as error:  # whatever it is, it belongs to the caller of `next`
            self.ready.put((None, None, None, None, error))

    def _copied(self, batch):
        if self.stream is None:
            return *(part.to(self.device) for part in batch), None
        with torch.cuda.stream(self.stream):
            # The allocator of pinned memory keeps the source until the copy is done.
            x, y = (part.pin_memory().to(self.device, non_blocking=True) for part in batch)
            return x, y, self.stream.record_event()

    def next(self):
        """(x, y) on the device, int64 [B, T]. Raises what the loader raised, now and at every later call."""
        if self.thread is None:
            raise RuntimeError("the prefetcher is closed; `restart` starts it again")
        if self.error is None:
            x, y, copied, state, self.error = self.ready.get()
        if self.error is not None:
            raise self.error
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            # The memory belongs to the copying stream, which must not reuse it before the caller's stream is done with it.
            x.record_stream(current)
            y.record_stream(current)
        self.handed = state
        return x, y

    def state(self):
        """The loader's state right after the last batch that `next` returned."""
        return self.handed

    def restart(self, state):
        """Throws away what was prepared and goes on from `state`, as after the warm-up that compiles."""
        self.close()
        self.loader.restore(state)
        self._start()

    def close(self):
        """Ends and joins the thread; closing twice is fine."""
        if self.thread is None:
            return
        self.stop.set()
        # The thread puts at most once more after `stop`: an emptied queue has room for that.
        while not self.ready.empty():
            self.ready.get_nowait()
        self.thread.join()
        self.thread = None
