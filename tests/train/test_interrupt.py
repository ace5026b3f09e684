"""Which signals training listens to, and what it gives back afterwards."""

import os
import signal

import pytest

from fairway.train.interrupt import listening


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_and_the_handler_before_comes_back(number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with listening() as interrupt:
            assert not interrupt.asked
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # launchers and schedulers both send it
            assert interrupt.asked
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.asked
    finally:
        signal.signal(signal.SIGHUP, before)
