"""Ctrl-C and SIGTERM as a flag that the loop reads between steps."""

import signal
from contextlib import contextmanager


class Interrupt:
    """Whether this process has been asked to stop."""

    def __init__(self):
        self.asked = False

    def ask(self, number, frame):
        """The signal handler: the first signal asks, a second one stops at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def listening():
    """Yields an Interrupt that SIGINT and SIGTERM set while the block runs."""
    interrupt = Interrupt()
    before = {number: signal.signal(number, interrupt.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
