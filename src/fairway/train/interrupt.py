"""Ctrl-C and SIGTERM as a flag that the loop reads between steps."""

import os
import signal
import time
from contextlib import contextmanager

PATIENCE = 1.0  # seconds in which a second Ctrl-C is taken for the same one, sent to the whole group


class Interrupt:
    """Whether this process has been asked to stop."""

    def __init__(self):
        self.asked, self.since = False, 0.0

    def ask(self, number, frame):
        """The signal handler: signals ask; a Ctrl-C a second or more after the first stops at once.

        SIGTERM only ever asks: launchers and schedulers each send it to every process, so it comes twice.
        """
        if self.asked and number == signal.SIGINT and time.monotonic() - self.since > PATIENCE:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, time.monotonic()
            # Straight to the descriptor: a print may be what the signal has interrupted.
            if os.isatty(2):
                os.write(2, b"stopping after this step; Ctrl-C again stops at once, without a checkpoint\n")


@contextmanager
def listening():
    """Yields an Interrupt that SIGINT, SIGTERM and SIGHUP (a closed terminal) set while the block runs.

    A SIGHUP that is ignored stays so: that is what `nohup` asks for.
    """
    interrupt, numbers = Interrupt(), [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt.ask) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
