"""The sandbox: a stranger's command in namespaces of its own, with limits, a bounded output and a trace of what it did.

Linux only; no superuser needed. Inside there is no network, no home, nothing of the project, and of the machine only its
programs, read-only. What the trace says is what the script's Python said of itself: code that means to hide can stay silent
or lie there, but it cannot get out, stay alive, or take more than its share.
"""

import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..problem import Problem
from .heard import Event, KeptEvents, KeptOutput
from .walls import NOBODY, walls
from .watch import Watch

TOOL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("unshare", "mount", "umount", "pivot_root", "setpriv", "prlimit", "setsid", "sh", "rm", "chmod", "chown")
SET_UP_SECONDS = 20.0
TICK = 0.05  # seconds that a silent box is listened to before its limits are looked at


@dataclass(frozen=True)
class Limits:
    """What a box may take: seconds of wall clock, bytes of memory over all its processes, bytes of disk in its work folder,
    processes at one time, and bytes of output that are kept (all of it is read)."""

    seconds: float = 60.0
    memory: int = 6 << 30
    disk: int = 2 << 30
    processes: int = 64
    output: int = 4 << 20


@dataclass(frozen=True)
class Boxed:
    """What came of a command. `code`: its exit status (128 and more: died of signal code - 128), None when it was stopped;
    `stopped`: the limit that it broke (time, memory, disk, processes), or None; `seconds` of wall clock; `output`: what it
    printed, head and tail; `events`: what it did, in order."""

    code: int | None
    stopped: str | None
    seconds: float
    output: str
    events: tuple[Event, ...]

    def last_words(self):
        """The end of what it printed, on one line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-300:] or "it printed nothing"


def sandbox_fault():
    """Why no sandbox can be had on this machine, in one line, or None. Tries a box once; takes about 0.1 s."""
    with tempfile.TemporaryDirectory(prefix="fairway-try-") as work:
        try:
            boxed = run_boxed(["true"], work, limits=Limits(seconds=10.0))
        except Problem as problem:
            return str(problem)
    return None if boxed.code == 0 else f"no sandbox here: `true` ended with {boxed.code} ({boxed.output.strip()[:200]})"


def run_boxed(command, work, shared=None, limits=None, environment=None, silence_steps=False, devices=False, halt=None):
    """Runs `command` (a list; a first word "python" is this interpreter) in a box and returns its Boxed.

    `work`: folder that is /box/work inside, writable, and where the command starts; a superuser's box hands it to the user
    nobody. `shared`: {name: host path} that are /box/<name>, read-only. `environment`: {name: value}, the only variables
    besides PATH, HOME, USER, LANG, OMP_NUM_THREADS and Python's own. `silence_steps`: torch optimizers do nothing from the
    moment on at which a file of more than 1 kB that the box wrote is read back. `devices`: NVIDIA GPUs are there. `halt`: a
    threading.Event by which another thread stops the box ("halt").

    Raises Problem where no box can be had. Whatever ends this call, also Ctrl-C, ends everything inside.
    """
    limits = limits or Limits()
    work, shared = present(work), {name: present(path) for name, path in (shared or {}).items()}
    tools = find_tools()
    if os.geteuid() == 0:
        hand_over(work, tools)
    with scratch_folder() as scratch:
        (scratch / "root").mkdir()
        (scratch / "hook").mkdir()
        hook = Path(__file__).with_name("inside.py").read_text()
        (scratch / "hook" / "sitecustomize.py").write_text(f"{hook}\n\nwatch_python({bool(silence_steps)})\n")
        os.mkfifo(scratch / "trace")
        for path, mode in (("trace", 0o622), ("hook", 0o755), ("hook/sitecustomize.py", 0o644)):
            (scratch / path).chmod(mode)
        places = {name: (path, False) for name, path in shared.items()}
        places |= {"work": (work, True), "hook": (scratch / "hook", False), "trace": (scratch / "trace", True)}
        places = {name: (str(path), free) for name, (path, free) in places.items()}
        program = os.path.abspath(sys.executable) if command[0] == "python" else command[0]
        words = [program, *map(str, command[1:])]
        text = walls(str(scratch / "root"), places, limits, words, variables(environment), devices)
        (scratch / "walls").write_text(text)  # a file: what is on a command line can be read inside
        trace = os.open(scratch / "trace", os.O_RDWR | os.O_NONBLOCK)
        try:
            return follow(start_box(tools, scratch / "walls"), trace, limits, work, halt)
        finally:
            os.close(trace)


def present(path):
    """The absolute path of something that is there; Problem otherwise."""
    path = Path(path).absolute()
    if not path.exists():
        raise Problem(f"{path} is not there; the sandbox can only show what exists")
    return path


def find_tools():
    """{name: path} of the system's programs that build a box; Problem names what is missing."""
    if not sys.platform.startswith("linux"):
        raise Problem(f"no sandbox on {sys.platform}: it needs Linux namespaces; run the dynamic review on a Linux machine")
    tools = {name: shutil.which(name, path=TOOL_PATH) for name in TOOLS}
    if missing := [name for name, path in tools.items() if not path]:
        raise Problem(f"no sandbox here: {', '.join(missing)} not found; install util-linux and coreutils")
    return tools


def variables(environment):
    """The environment inside."""
    extra = dict(environment or {})
    modules = ":".join(["/box/hook", *filter(None, [extra.pop("PYTHONPATH", "")])])
    return {
        "PATH": f"{Path(os.path.abspath(sys.executable)).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/box/work",
        "USER": "box",
        "LANG": "C.UTF-8",
        # Threads that spin while they wait for each other take several times as long where others work too.
        "OMP_NUM_THREADS": str(min(4, len(os.sched_getaffinity(0)))),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **{str(name): str(value) for name, value in extra.items()},
        "PYTHONPATH": modules,
    }


@contextmanager
def scratch_folder():
    """A folder for the outside of a box, removed afterwards, whatever is left in it."""
    scratch = Path(tempfile.mkdtemp(prefix="fairway-box-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def hand_over(work, tools):
    """Gives a tree to the user that a superuser's box runs as; follows no link."""
    words = [tools["chown"], "-R", "-h", "-P", f"{NOBODY}:{NOBODY}", "--", str(work)]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Problem(f"cannot give {work} to the sandbox ({done.stderr.strip()[:200]}); choose another folder")


def start_box(tools, script):
    """Starts the first process of new namespaces on a shell script: (process, its output, its word that it is up)."""
    heard, said = os.pipe()
    spaces = ["--net", "--pid", "--fork", "--mount", "--ipc", "--uts", "--kill-child"]
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    try:
        process = subprocess.Popen(
            [tools["setpriv"], "--pdeathsig", "KILL", tools["unshare"], *user, *spaces, tools["sh"], str(script)],
            stdin=said,  # not read: the shell's one low file number that is free for the word
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": TOOL_PATH, "LC_ALL": "C"},
            cwd="/",
            start_new_session=True,
        )
    except BaseException as error:
        os.close(heard)
        if isinstance(error, OSError):
            raise Problem(f"no sandbox here: cannot start unshare ({error.strerror})") from error
        raise
    finally:
        os.close(said)
    return process, heard


def follow(started, trace, limits, work, halt=None):
    """Reads everything that a box says until it ends or breaks a limit; returns its Boxed. Leaves nothing alive."""
    process, heard = started
    output, events = KeptOutput(limits.output), KeptEvents()
    with process, selectors.DefaultSelector() as ears:
        for handle, ear in ((process.stdout.fileno(), output.add), (trace, events.add), (heard, None)):
            os.set_blocking(handle, False)
            ears.register(handle, selectors.EVENT_READ, ear)
        try:
            await_walls(heard, ears, output)
            begin, watch, stopped = time.monotonic(), Watch(process.pid, limits, work), None
            while process.poll() is None and not stopped:
                listen(ears, TICK)
                stopped = "time" if time.monotonic() - begin > limits.seconds else watch.broken()
                stopped = "halt" if halt and halt.is_set() else stopped
            seconds = time.monotonic() - begin
        finally:
            end_box(process, ears)
            os.close(heard)
    code = None if stopped else process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Boxed(code, stopped, seconds, output.text(), events.since(begin))


def await_walls(heard, ears, output):
    """Waits for the word that the walls stand; Problem with the reason when they do not."""
    end = time.monotonic() + SET_UP_SECONDS
    while time.monotonic() < end:
        if heard in listen(ears, TICK):
            ears.unregister(heard)
            if os.read(heard, 8).startswith(b"up"):
                return
            break
    listen(ears, TICK)
    said = " ".join(output.text().split())[:300] or f"no answer within {SET_UP_SECONDS:.0f} s"
    raise Problem(f"no sandbox here: {said}; it needs util-linux and Linux user namespaces (or root)")


def listen(ears, seconds):
    """Reads once from each handle that has something; returns the handles that had."""
    had = []
    for key, _ in ears.select(seconds):
        if key.data is None:
            had.append(key.fd)
            continue
        try:
            chunk = os.read(key.fd, 1 << 18)
        except BlockingIOError:
            continue
        if not chunk:
            ears.unregister(key.fd)
            continue
        key.data(chunk)
        had.append(key.fd)
    return had


def end_box(process, ears):
    """Kills process 1 of the box, with which the kernel kills all others, and waits until they are gone. Goes on reading:
    unshare reports the death on the same pipe, which may be full."""
    with suppress(psutil.Error):
        for first in psutil.Process(process.pid).children():
            first.kill()
    end = time.monotonic() + 10.0
    while process.poll() is None and time.monotonic() < end:
        listen(ears, 0.01)
    process.kill()
    process.wait()
    while listen(ears, 0.0):
        pass


def clear_box(work):
    """Removes a folder that a box has had, whatever it left there (locked folders, links, pipes, names without end); follows
    no link and never raises. Returns whether it is gone."""
    tools = {name: shutil.which(name, path=TOOL_PATH) or name for name in ("chmod", "rm")}
    for words in ([tools["chmod"], "-R", "u+rwx", "--"], [tools["rm"], "-rf", "--"]):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*words, os.path.abspath(work)], capture_output=True, stdin=subprocess.DEVNULL, timeout=600.0)
    return not os.path.lexists(work)
