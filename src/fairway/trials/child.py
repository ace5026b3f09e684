"""A stage as a process of its own: what it says is shown and kept, an interrupt is passed on, its end is put into words."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

LOOK_SECONDS = 0.2  # between two looks at what a process says
STOP_SECONDS = 60  # for a process that was told to stop, before it is killed
TAIL_BYTES = 1 << 16  # of what a process says, kept to find its reason in


def run_child(command, log, interrupt):
    """Runs a command until it ends; its standard error is added to the open file `log`, and shown as it comes. Returns (exit
    code, the end of its standard error).

    It writes to the file itself, so that it can go on without us, and with it keeps the file's lock if we hold that. It has
    a session of its own: it hears of an interrupt from us, once, as a SIGTERM, since a Ctrl-C that reaches both of us would
    count twice. The signal that clusters warn with is ours alone: it would end a process that does not know it.
    """
    with open(log.name, "rb") as said:
        log.write(f"[{time_now()}] $ {shlex.join(command)}\n".encode())
        log.flush()
        said.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN),
        )  # fmt: skip
        try:
            tail = watch_child(child, said, interrupt)
        except BaseException as fault:
            child.send_signal(signal.SIGINT if isinstance(fault, KeyboardInterrupt) else signal.SIGTERM)
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
        return child.wait(), tail.decode(errors="replace")


def watch_child(child, said, interrupt):
    """Shows what is added to the open file `said` until a process has ended; passes an interrupt on. Returns its end."""
    tail, told, ended = b"", False, False
    while not ended:
        if interrupt.asked and not told:
            child.terminate()
            told = True
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_SECONDS)
        ended = child.returncode is not None
        chunk = said.read()
        tail = (tail + chunk)[-TAIL_BYTES:]
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
    return tail


def ending_of(code, tail, asked):
    """(outcome, what is said of it) of a process: its exit code, the end of its standard error, whether it was told to."""
    lines = [line for line in tail.splitlines() if line.strip()]
    own = [line.removeprefix("fairway: ") for line in lines if line.startswith("fairway: ")]
    said = own[-1] if own else lines[-1] if lines else f"exit code {code}"
    # torchrun exits with 1 whatever its ranks did; the last code in its table is that of the first to fail.
    codes = re.findall(r"exitcode\s*:\s*(-?\d+)", tail)
    code = int(codes[-1]) if codes else code
    if code == 130 or asked:
        return "interrupted", said
    if code < 0:
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else number
        return "killed", f"killed by {name}" + (", as by a machine that runs out of memory" if name == "SIGKILL" else "")
    # An error that nobody foresaw is 1, too, but has no line of ours.
    return ("does not hold" if code == 1 and own else "failed"), said


def time_now():
    """The time, as run.json has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
