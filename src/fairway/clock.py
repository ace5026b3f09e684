"""One monotonic clock with labelled phases; what a run reports as seconds comes from here and nowhere else."""

import time
from contextlib import contextmanager


class Clock:
    """Adds up the seconds of labelled phases (compile, train, calibrate, quantise, encode, decode, score, adapt)."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def phase(self, name):
        """Counts the time inside the block towards `name`, also when the block fails."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
